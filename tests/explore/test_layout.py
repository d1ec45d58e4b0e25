"""The plane: principal axes of few pictures, UMAP of many, and a sample where there are very many; and its groups."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness
from torch import Tensor
from torch.nn.functional import normalize

from fgssl.errors import FgsslError
from fgssl.evaluation.retrieval.ranking import Neighbours, search
from fgssl.explore import layout
from fgssl.explore.groups import ALONE, find_groups, typical_first, usual_size
from fgssl.explore.layout import lay_out, need_library


def blobs(sizes: tuple[int, ...], width: int = 16) -> tuple[Tensor, np.ndarray]:
    """Length-1 features around so many directions, and which one each belongs to."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(len(sizes), width, generator=generator)
    kinds = np.repeat(np.arange(len(sizes)), sizes)
    return normalize(centres[kinds] + 0.3 * torch.randn(len(kinds), width, generator=generator), dim=1), kinds


def near(features: Tensor) -> Neighbours:
    return search(features, top=14, normalize=False)


def test_few_pictures_stand_on_their_principal_axes() -> None:
    features, _ = blobs((10, 10))
    points, laid_out = lay_out(features, near(features))
    centred = (features - features.mean(0)).double().numpy()
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    assert np.abs(points) == pytest.approx(np.abs(left[:, :2] * scale[:2]), abs=1e-4)
    assert laid_out.tolist() == list(range(20))
    for count in (1, 2, 3):
        alone, _ = lay_out(features[:count], Neighbours(torch.empty(count, 0).long(), torch.empty(count, 0)))
        assert alone.shape == (count, 2) and np.isfinite(alone).all()


def test_neighbours_stay_neighbours_and_blobs_are_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    features, kinds = blobs((40, 25, 60))
    points, laid_out = lay_out(features, near(features))
    assert trustworthiness(features.numpy(), points, n_neighbors=10, metric="cosine") > 0.9
    again, _ = lay_out(features, near(features))
    assert np.array_equal(points, again)  # a seed gives one layout
    groups = find_groups(points, laid_out, size=10)
    for group in range(groups.max() + 1):
        assert len({*kinds[groups == group].tolist()}) == 1, group
    assert (groups != ALONE).mean() > 0.7
    monkeypatch.setattr(layout, "LARGEST", 70)
    points, laid_out = lay_out(features, near(features))
    assert len(laid_out) == 70 and np.isfinite(points).all()
    row = int(np.setdiff1d(np.arange(125), laid_out)[0])
    cosines = features.numpy()[laid_out] @ features.numpy()[row]
    assert points[row] == pytest.approx(points[laid_out][np.argsort(-cosines)[:5]].mean(0), abs=1e-4)


def test_groups_are_numbered_by_size_and_others_join_the_nearest() -> None:
    generator = np.random.default_rng(0)
    middles = np.repeat([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], (12, 30, 20), axis=0)
    points = (middles + 0.2 * generator.standard_normal(middles.shape)).astype(np.float32)
    points = np.concatenate([points, [[40, 40], [10.1, 0.1]]]).astype(np.float32)  # one far from all, one to be placed
    laid_out = np.arange(63)
    groups = find_groups(points, laid_out, size=8)
    assert [groups[0], groups[12], groups[42], groups[62]] == [2, 0, 1, ALONE]
    assert np.bincount(groups[groups >= 0]).tolist() == [31, 20, 12] and groups[63] == 0


def test_a_group_has_a_size() -> None:
    assert [usual_size(count) for count in (1, 36, 300, 10_000)] == [3, 3, 9, 50]
    assert find_groups(np.zeros((5, 2), np.float32), np.arange(5), size=3).tolist() == [ALONE] * 5


def test_the_most_typical_is_the_one_most_like_the_mean() -> None:
    features, _ = blobs((20, 20))
    rows = np.array([3, 8, 5, 30, 12])
    own = features.double().numpy()[rows]
    likeness = [float(row @ own.mean(0)) for row in own]
    assert typical_first(features, rows).tolist() == [row for _, row in sorted(zip(likeness, rows, strict=True))[::-1]]


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(FgsslError, match=r"pip install 'fgssl\[explore\]'"):
        need_library(layout.FEWEST)
    need_library(layout.FEWEST - 1)  # few pictures do without
