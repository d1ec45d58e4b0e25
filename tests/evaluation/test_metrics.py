"""Small metrics against closed forms and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from fgssl.errors import FgsslError
from fgssl.evaluation import metrics
from fgssl.evaluation.probing.scores import judge, topk_accuracy
from fgssl.evaluation.retrieval.metrics import evaluate_retrieval


def test_accuracies_by_hand() -> None:
    labels, predictions = torch.tensor([0, 0, 0, 1, 3]), torch.tensor([0, 0, 1, 1, 0])
    found = judge(torch.eye(4)[predictions], labels, "by hand")
    assert found.top1 == pytest.approx(60)
    np.testing.assert_allclose(found.per_class, [200 / 3, 100, np.nan, 0])
    assert found.mean_per_class == pytest.approx((200 / 3 + 100 + 0) / 3)


def test_accuracies_equal_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(200, 9, generator=generator), torch.arange(200) % 9
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(labels, scores, k=k)
        assert topk_accuracy(scores, labels, k=k) == pytest.approx(100 * expected)
    expected = balanced_accuracy_score(labels, scores.argmax(1))
    assert judge(scores, labels, "").mean_per_class == pytest.approx(100 * expected)


def test_top_k_with_equal_and_unknown_scores() -> None:
    equal, labels = torch.zeros(4, 4), torch.arange(4)
    for k in range(1, 5):  # one row more for each k: no row gains by its scores being equal
        assert topk_accuracy(equal, labels, k=k) == 25 * k
    assert topk_accuracy(equal, labels, k=1) == judge(equal, labels, "").top1
    unknown = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert topk_accuracy(unknown, torch.tensor([1]), k=5) == 0


def test_retrieval_worked_out_by_eye() -> None:
    # on the unit circle, 0 and 10 degrees of class 0, 15 and 90 of class 1: each query's ranking worked out by eye
    angles = torch.tensor([0.0, 10.0, 15.0, 90.0]).deg2rad()
    features, labels = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 0, 1, 1])
    found = evaluate_retrieval(features, labels, ks=(1, 2)).to_dict()
    assert found["rank1"] == 50  # 0 finds 10; 10 finds 15; 15 finds 10; 90 finds 15
    assert found["rank2"] == 75
    assert found["mAP"] == pytest.approx(100 * (1 + 1 / 2 + 1 / 3 + 1) / 4)


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


def test_bad_input_is_named() -> None:
    with pytest.raises(FgsslError, match="same images"):
        metrics.alignment(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(FgsslError, match="one image"):
        metrics.uniformity(torch.ones(1, 3))
    with pytest.raises(FgsslError, match="row 1"):
        metrics.effective_rank(torch.tensor([[1.0], [math.inf]]))
