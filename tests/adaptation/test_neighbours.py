"""The label-free judgement of an encoder: its definition by loops, and that it ranks encoders as labels do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from fgssl.adaptation import Judgement, best_of, judge, neighbours
from fgssl.adaptation.neighbours import reciprocity, standing_out


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow(features: torch.Tensor) -> tuple[float, float]:
    """Standing out and reciprocity."""
    nearest, far = [], []
    for row in range(len(features)):
        others = {
            other: float(functional.cosine_similarity(features[row], features[other], dim=0))
            for other in range(len(features)) if other != row
        }  # fmt: skip
        nearest.append(max(others, key=others.__getitem__))
        values = list(others.values())
        far.append((max(values) - np.mean(values)) / np.std(values))
    return float(np.mean(far)), sum(nearest[nearest[row]] == row for row in range(len(features))) / len(features)


@pytest.mark.parametrize("rows", [3, 12, 25])
def test_both_signs_are_what_a_loop_finds(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", 10)  # 25 rows are three chunks
    features = random(rows, 5) + 0.4
    assert (standing_out(features), reciprocity(features)) == pytest.approx(slow(features), rel=1e-4)
    assert standing_out(7 * features) == pytest.approx(standing_out(features), rel=1e-4)
    assert reciprocity(7 * features) == reciprocity(features)


def test_values_are_those_of_a_closed_form() -> None:
    """K classes of equal features at right angles: 1 against a mean and a spread that K and the number decide."""
    for classes, each in ((4, 5), (20, 3), (50, 10)):
        share = (each - 1) / (classes * each - 1)
        expected = (1 - share) / (share * (1 - share)) ** 0.5
        assert standing_out(torch.eye(classes).repeat(each, 1)) == pytest.approx(expected, rel=1e-3)
    assert 2.5 < standing_out(random(400, 512)) < 3.5  # the most of 399 unrelated
    pairs = random(20, 30).repeat_interleave(2, 0) + 0.1 * random(40, 30, seed=1)
    assert reciprocity(pairs) == 1
    angles = torch.tensor([0.0, 1.0, 1.9, 2.7, 3.4])  # each is nearest to the next, and the last two to each other
    assert reciprocity(torch.stack([angles.cos(), angles.sin()], 1)) == pytest.approx(2 / 5)
    collapsed = torch.ones(40, 8)
    assert standing_out(collapsed) == pytest.approx(0, abs=1e-6) and reciprocity(collapsed) <= 2 / 40


def test_each_half_is_judged_by_what_the_other_tells() -> None:
    views = random(5, 14, 6) + random(14, 6, seed=1)
    halves = [views[:, ::2], views[:, 1::2]]
    told = [slow(neighbours.fit_whitening(one)(other[0])) for one, other in (halves, halves[::-1])]
    assert judge(views) == pytest.approx(np.mean(told, 0), rel=1e-3)


def test_the_start_is_left_only_for_what_is_better_by_both_signs() -> None:
    start = Judgement(4.5, 0.46)
    assert best_of({"start": start, "trained": Judgement(4.7, 0.43), "averaged": Judgement(4.4, 0.5)}) == "start"
    assert best_of({"start": start, "trained": Judgement(4.7, 0.47), "averaged": Judgement(4.8, 0.48)}) == "averaged"
    assert best_of({"start": start, "trained": start}) == "start" == best_of({"start": Judgement(), "x": Judgement()})
    assert best_of({"trained": Judgement(2.0, 0.1), "averaged": Judgement(1.0, 0.1)}) == "trained"


@pytest.mark.parametrize("seed", range(3))
def test_encoders_are_judged_as_their_labels_do(seed: int) -> None:
    """Features of classes and pictures under more and more noise; then some that know every picture and no class."""
    labels = torch.arange(400) % 80
    kinds, own = random(80, 64, seed=seed)[labels], random(400, 64, seed=seed + 10)
    told, right = [], []
    for share, noise in ((1.0, 0.3), (1.0, 1.0), (1.0, 3.0), (0.0, 0.1)):
        views = share * kinds + 0.7 * own + noise * random(5, 400, 64, seed=seed + 20)
        told.append(judge(views))
        unit = functional.normalize(views[0], dim=1)
        right.append(float((labels[(unit @ unit.T).fill_diagonal_(-2).argmax(1)] == labels).double().mean()))
    found = [one.standing_out for one in told]
    assert right[:3] == sorted(right[:3], reverse=True) and right[3] < 0.1
    assert found[0] > found[2] and found[1] > found[2] and found[1] > 1.2 * found[3]
    for worse in (told[2], told[3]):  # for neither is what knows classes left
        assert best_of({"start": told[1], "trained": worse}) == "start"
