"""Small metrics against closed forms and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from fgssl.errors import FgsslError
from fgssl.evaluation import metrics


def test_accuracies_by_hand() -> None:
    labels, predictions = torch.tensor([0, 0, 0, 1, 3]), torch.tensor([0, 0, 1, 1, 0])
    assert metrics.accuracy(predictions, labels) == pytest.approx(60)
    per_class = metrics.per_class_accuracy(predictions, labels, classes=4)
    np.testing.assert_allclose(per_class, [200 / 3, 100, np.nan, 0])
    assert metrics.mean_per_class_accuracy(predictions, labels) == pytest.approx((200 / 3 + 100 + 0) / 3)


def test_accuracies_equal_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(200, 9, generator=generator), torch.arange(200) % 9
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(labels, scores, k=k)
        assert metrics.topk_accuracy(scores, labels, k=k) == pytest.approx(100 * expected)
    expected = balanced_accuracy_score(labels, scores.argmax(1))
    assert metrics.mean_per_class_accuracy(scores.argmax(1), labels) == pytest.approx(100 * expected)


def test_top_k_with_equal_and_unknown_scores() -> None:
    equal, labels = torch.zeros(4, 4), torch.arange(4)
    for k in range(1, 5):  # one row more for each k: no row gains by its scores being equal
        assert metrics.topk_accuracy(equal, labels, k=k) == 25 * k
    assert metrics.topk_accuracy(equal, labels, k=1) == metrics.accuracy(equal.argmax(1), labels)
    unknown = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert metrics.topk_accuracy(unknown, torch.tensor([1]), k=5) == 0


def test_wrappers_of_retrieval() -> None:
    # on the unit circle, 0 and 10 degrees of class 0, 15 and 90 of class 1: each query's ranking worked out by eye
    angles = torch.tensor([0.0, 10.0, 15.0, 90.0]).deg2rad()
    features, labels = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 0, 1, 1])
    assert metrics.recall_at_k(features, labels) == 50  # 0 finds 10; 10 finds 15; 15 finds 10; 90 finds 15
    assert metrics.recall_at_k(features, labels, k=2) == 75
    assert metrics.mean_average_precision(features, labels) == pytest.approx(100 * (1 + 1 / 2 + 1 / 3 + 1) / 4)


def test_effective_rank_closed_forms() -> None:
    orthogonal = torch.linalg.qr(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))[0]
    assert metrics.effective_rank(orthogonal) == pytest.approx(8, rel=1e-5)
    assert metrics.effective_rank(orthogonal.T) == pytest.approx(8, rel=1e-5)
    assert metrics.effective_rank(torch.full((50, 8), 0.3)) == pytest.approx(1, abs=1e-4)
    assert metrics.effective_rank(torch.zeros(5, 3)) == 1
    # singular values 3 and 1: exp of the entropy of (3/4, 1/4)
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert metrics.effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected)


def test_relative_std_closed_forms() -> None:
    axes = torch.cat([torch.eye(8), -torch.eye(8)]) * torch.rand(16, 1).add(0.1)  # of any length
    # each dimension has a 1, a -1 and fourteen 0: variance 2/15, against 1/8
    assert metrics.relative_std(axes) == pytest.approx(math.sqrt(2 / 15 * 8), rel=1e-6)
    assert metrics.relative_std(torch.randn(20_000, 32)) == pytest.approx(1, abs=0.01)
    assert metrics.relative_std(torch.rand(50, 1) * torch.ones(50, 8)) == pytest.approx(0, abs=1e-6)
    assert metrics.relative_std(torch.zeros(5, 3)) == 0


def test_effective_rank_equals_the_decomposition() -> None:
    features = torch.randn(60, 20, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -4, 20)
    singular = np.linalg.svd(features.double().numpy(), compute_uv=False)
    share = singular / singular.sum()
    assert metrics.effective_rank(features) == pytest.approx(float(np.exp(-(share * np.log(share)).sum())), rel=1e-6)


def test_alignment_and_uniformity_closed_forms() -> None:
    corners = torch.eye(4)
    assert metrics.alignment(corners, 3 * corners) == 0
    assert metrics.alignment(corners, corners.roll(1, 0)) == pytest.approx(2)
    assert metrics.alignment(corners, corners.roll(1, 0), power=1) == pytest.approx(2**0.5)
    # every pair of corners is at squared distance 2
    assert metrics.uniformity(corners) == pytest.approx(-4)
    assert metrics.uniformity(corners, scale=3) == pytest.approx(-6)
    assert metrics.uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-6)


def test_uniformity_in_chunks_equals_pairs() -> None:
    features = torch.randn(1500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = features / features.norm(dim=1, keepdim=True)
    expected = math.log(float(torch.pdist(unit).pow(2).mul(-2).exp().mean()))
    assert metrics.uniformity(features) == pytest.approx(expected)


def test_entropy_relative_to_uniform() -> None:
    uniform, point, blank = torch.full((2, 4), 0.2), torch.zeros(2, 4), torch.zeros(2, 4)
    point[1, 2] = 5
    half = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    got = metrics.entropy_relative_to_uniform(torch.stack([uniform, point, blank, half]))
    np.testing.assert_allclose(got, [1, 0, 1, math.log(4) / math.log(8)], rtol=1e-6)
    assert metrics.entropy_relative_to_uniform(torch.zeros(2, 1, 1)).tolist() == [1, 1]
    with pytest.raises(FgsslError, match="negative"):
        metrics.entropy_relative_to_uniform(-uniform[None])


def test_energy_and_pointing_by_hand() -> None:
    maps = torch.tensor([[3.0, 1.0], [0.0, -2.0]])
    left = torch.tensor([[True, False], [True, False]])
    assert float(metrics.energy_inside(maps, left)) == pytest.approx(0.75)
    assert float(metrics.pointing_hit(maps, left)) == 1
    assert float(metrics.pointing_hit(maps, ~left)) == 0
    stacked = metrics.energy_inside(torch.stack([maps, maps]), torch.stack([left, ~left]))
    np.testing.assert_allclose(stacked, [0.75, 0.25])


def test_flat_maps_score_the_area_of_the_mask() -> None:
    mask = torch.zeros(8, 8)
    mask[:2, :4] = 1
    for flat in (torch.ones(3, 3), torch.zeros(3, 3)):
        assert float(metrics.energy_inside(flat, mask)) == pytest.approx(8 / 64)
        assert float(metrics.pointing_hit(flat, mask)) == pytest.approx(8 / 64)


def test_maps_are_resized_to_the_mask_bilinearly() -> None:
    # one row 0, 1 becomes 0, 1/4, 3/4, 1: centres of pixels aligned
    maps, mask = torch.tensor([[0.0, 1.0]]), torch.tensor([[0, 0, 1, 0]])
    assert float(metrics.energy_inside(maps, mask)) == pytest.approx(0.75 / 2)
    assert float(metrics.pointing_hit(maps, mask)) == 0


def test_bad_input_is_named() -> None:
    with pytest.raises(FgsslError, match="one map a mask"):
        metrics.energy_inside(torch.ones(2, 3, 3), torch.ones(3, 3))
    with pytest.raises(FgsslError, match="NaN"):
        metrics.pointing_hit(torch.full((3, 3), math.nan), torch.ones(3, 3))
    with pytest.raises(FgsslError, match="same images"):
        metrics.alignment(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(FgsslError, match="one image"):
        metrics.uniformity(torch.ones(1, 3))
    with pytest.raises(FgsslError, match="row 1"):
        metrics.effective_rank(torch.tensor([[1.0], [math.inf]]))
