"""The label-free judgement of an encoder: its definition by loops, and that it ranks encoders as labels do."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fgssl.adaptation import held_out_agreement, view_agreement


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow(views: torch.Tensor) -> float:
    same, own = [], []
    count = views.shape[1]
    for first in range(1, len(views), 2):
        for picture in range(count):
            nearest_others = []
            for crop in (first, first + 1):
                found = [
                    float(functional.cosine_similarity(views[crop, picture], views[0, o], dim=0)) for o in range(count)
                ]
                own.append(max(range(count), key=found.__getitem__) == picture)
                nearest_others.append(max((o for o in range(count) if o != picture), key=found.__getitem__))
            same.append(nearest_others[0] == nearest_others[1])
    return sum(same) / len(same) * sum(own) / len(own)


def test_it_is_what_a_loop_finds() -> None:
    pictures = random(12, 5)
    views = pictures + 0.7 * random(5, 12, 5, seed=1)
    assert view_agreement(views) == pytest.approx(slow(views)) and 0.1 < view_agreement(views) < 0.9


def test_features_that_always_agree_have_one_and_those_that_know_nothing_next_to_none() -> None:
    pictures = random(40, 8)
    assert view_agreement(pictures.expand(5, -1, -1)) == 1
    assert view_agreement(random(5, 40, 8)) < 0.05
    assert view_agreement(torch.ones(5, 40, 8)) < 0.05  # a collapsed encoder, whose alignment is perfect


@pytest.mark.parametrize("seed", range(3))
def test_it_orders_encoders_as_their_labels_do(seed: int) -> None:
    """Features of classes and pictures under more and more noise of the view: agreement and rank-1 fall together."""
    labels = torch.arange(200) % 20
    pictures = torch.cat([2 * random(20, 8, seed=seed)[labels] + random(200, 8, seed=seed + 10)], 1)
    found, right = [], []
    for noise in (0.2, 0.6, 1.2, 2.4):
        views = pictures + noise * random(5, 200, 8, seed=seed + 20)
        found.append(held_out_agreement(views))
        unit = functional.normalize(views[0], dim=1)
        right.append(float((labels[(unit @ unit.T).fill_diagonal_(-2).argmax(1)] == labels).double().mean()))
    assert found == sorted(found, reverse=True) and right == sorted(right, reverse=True)
