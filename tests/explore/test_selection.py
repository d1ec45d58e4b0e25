"""k-centre greedy against a loop over all pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fgssl.explore.selection import k_centre


def some(count: int, width: int = 8, seed: int = 0) -> Tensor:
    return normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def slow(features: list[list[float]], count: int) -> tuple[list[int], float]:
    def distance(one: int, other: int) -> float:
        return 1 - sum(a * b for a, b in zip(features[one], features[other], strict=True))

    mean = [sum(column) / len(features) for column in zip(*features, strict=True)]
    likeness = [sum(a * b for a, b in zip(row, mean, strict=True)) for row in features]
    taken = [likeness.index(max(likeness))]
    while True:
        far = [min(distance(row, other) for other in taken) for row in range(len(features))]
        if len(taken) == count:
            return taken, max(far)
        rest = [row for row in range(len(features)) if row not in taken]
        taken.append(max(rest, key=lambda row: (far[row], -row)))


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_what_is_taken_is_what_a_loop_takes(count: int) -> None:
    features = some(40)
    rows, reach = slow(features.double().tolist(), count)
    found = k_centre(features, count)
    assert found.rows.tolist() == rows
    assert found.reach == pytest.approx(reach, abs=1e-5)


def test_a_smaller_selection_begins_a_larger_one_and_reaches_less() -> None:
    features = some(300, seed=1)
    few, many = k_centre(features, 10), k_centre(features, 50)
    assert many.rows[:10].tolist() == few.rows.tolist() and many.reach < few.reach


def test_nothing_is_taken_twice_and_no_more_than_there_is() -> None:
    features = some(3).repeat(4, 1)  # copies: all distances are 0 after three
    found = k_centre(features, 100)
    assert sorted(found.rows.tolist()) == list(range(12)) and found.reach == 0
    assert len({row % 3 for row in found.rows[:3].tolist()}) == 3
    assert k_centre(features[:1], 5).rows.tolist() == [0]
