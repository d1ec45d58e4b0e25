"""View whitening: its closed form, its neighbours, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from fgssl.adaptation.whitening import SHRINKAGE, fit_whitening, mutual_neighbours


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mutual_neighbours_are_those_of_scikit_learn() -> None:
    features = torch.nn.functional.normalize(random(1500, 6), dim=1)
    found = {tuple(pair) for pair in mutual_neighbours(features, 3).tolist()}
    nearest = NearestNeighbors(n_neighbors=3).fit(features.numpy()).kneighbors(return_distance=False)
    sets = [set(row.tolist()) for row in nearest]
    expected = {(i, j) for i, row in enumerate(sets) for j in row if i < j and i in sets[j]}
    assert len(expected) > 500 and found == expected


def test_the_scatter_of_views_and_neighbours_becomes_what_the_shrinkage_says() -> None:
    """W S W^T = I - SHRINKAGE W W^T for the mean of both scatters, computed here by loops."""
    views = random(4, 30, 5) * torch.tensor([3.0, 1.0, 0.3, 2.0, 1.0], dtype=torch.float64)
    whitening = fit_whitening(views)
    weight = whitening.weight.double()
    within = np.zeros((5, 5))
    for picture in range(30):
        mean = views[:, picture].mean(0)
        for view in range(4):
            difference = (views[view, picture] - mean).numpy()
            within += np.outer(difference, difference)
    first = both = torch.from_numpy(within / np.trace(within) * 5)
    for _ in range(2):
        values, vectors = torch.linalg.eigh(both / (both.trace() / 5))
        root = vectors @ torch.diag((values + SHRINKAGE) ** -0.5) @ vectors.T
        averaged = (views.mean(0) - views[0].mean(0)) @ root
        between = np.zeros((5, 5))
        for one, other in mutual_neighbours(torch.nn.functional.normalize(averaged, dim=1), 3).tolist():
            difference = (views[0, one] - views[0, other]).numpy()
            between += np.outer(difference, difference)
        both = first + torch.from_numpy(between / np.trace(between) * 5)
    both = both / (both.trace() / 5)
    identity = weight @ both @ weight.T + SHRINKAGE * weight @ weight.T
    assert torch.allclose(identity, torch.eye(5, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(whitening(views[0].float()).mean(0), torch.zeros(5), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_nuisance_larger_than_the_classes_is_taken_out(seed: int) -> None:
    """Classes lie along some axes, the view moves pictures along others, further: neighbours are of one class after."""
    labels = torch.arange(400) % 8
    classes = torch.cat([3 * random(8, 6, seed=seed)[labels], torch.zeros(400, 6, dtype=torch.float64)], 1)
    noise = torch.cat([0.7 * random(5, 400, 6, seed=10 + seed), 6 * random(5, 400, 6, seed=20 + seed)], 2)
    views = classes + noise

    def right(features: torch.Tensor) -> float:
        unit = torch.nn.functional.normalize(features, dim=1)
        similarity = (unit @ unit.T).fill_diagonal_(-2)
        return float((labels[similarity.argmax(1)] == labels).double().mean())

    assert right(views[0] - views[0].mean(0)) < 0.8
    assert right(fit_whitening(views)(views[0].float()).double()) > 0.9


def test_features_of_no_width_and_of_two_pictures_stay_finite() -> None:
    for views in (torch.ones(2, 2, 4), torch.zeros(3, 5, 4), random(2, 2, 4).float()):
        whitening = fit_whitening(views)
        assert torch.isfinite(whitening.weight).all() and torch.isfinite(whitening.bias).all()
