"""The label-free judgement of an encoder: its definition by loops, and that it ranks encoders as labels do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from fgssl.adaptation import held_out_standing_out, neighbours, standing_out
from fgssl.adaptation.neighbours import nearness


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow(features: torch.Tensor) -> float:
    found = []
    for row in range(len(features)):
        others = [
            float(functional.cosine_similarity(features[row], features[other], dim=0))
            for other in range(len(features)) if other != row
        ]  # fmt: skip
        found.append((max(others) - np.mean(others)) / np.std(others))
    return float(np.mean(found))


@pytest.mark.parametrize("rows", [3, 12, 25])
def test_it_is_what_a_loop_finds(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", 10)  # 25 rows are three chunks
    features = random(rows, 5) + 0.4
    assert standing_out(features) == pytest.approx(slow(features), rel=1e-4)
    assert standing_out(7 * features) == pytest.approx(standing_out(features), rel=1e-4)


def test_its_values_are_those_of_a_closed_form() -> None:
    """K classes of equal features at right angles: 1 against a mean and a spread that K and the number decide."""
    for classes, each in ((4, 5), (20, 3), (50, 10)):
        features = torch.eye(classes).repeat(each, 1)
        share = (each - 1) / (classes * each - 1)
        assert standing_out(features) == pytest.approx((1 - share) / (share * (1 - share)) ** 0.5, rel=1e-3)
    unrelated = random(400, 512)
    assert 2.5 < standing_out(unrelated) < 3.5
    assert standing_out(torch.ones(40, 8)) == pytest.approx(0, abs=1e-6)  # a collapsed encoder
    assert standing_out(torch.ones(40, 8) + 1e-6 * random(40, 8)) < 4


def test_features_that_know_pictures_and_no_classes_stand_out_less() -> None:
    """Whatever the views of one picture do: they are not looked at."""
    labels = torch.arange(200) % 20
    classes = random(20, 64)[labels] + random(200, 64, seed=1)
    pictures = 3 * random(200, 64, seed=2)
    both = [held_out_standing_out(torch.stack([kind + 0.1 * random(200, 64, seed=s) for s in range(5)]))
            for kind in (classes, pictures)]  # fmt: skip
    assert both[0] > 1.1 * both[1]  # views of one picture are as much alike in either


@pytest.mark.parametrize("seed", range(3))
def test_it_orders_encoders_as_their_labels_do(seed: int) -> None:
    """Features of classes and pictures under more and more noise: how far neighbours stand out and rank-1 fall."""
    labels = torch.arange(200) % 20
    pictures = random(20, 64, seed=seed)[labels] + random(200, 64, seed=seed + 10)
    found, right = [], []
    for noise in (0.5, 1.5, 3.0):
        views = pictures + noise * random(5, 200, 64, seed=seed + 20)
        found.append(held_out_standing_out(views))
        unit = functional.normalize(views[0], dim=1)
        right.append(float((labels[(unit @ unit.T).fill_diagonal_(-2).argmax(1)] == labels).double().mean()))
    assert right == sorted(right, reverse=True)
    assert found == sorted(found, reverse=True)


def test_nearness_leaves_out_what_spreads() -> None:
    """Of one encoder the larger is the closer; of two with other spreads the standard deviation decides."""
    features = random(60, 16)
    wide = torch.cat([features, 4 * torch.ones(60, 1)], 1)  # all of them more alike
    assert nearness(wide) < nearness(features)
    assert standing_out(wide) == pytest.approx(standing_out(features), rel=0.25)
