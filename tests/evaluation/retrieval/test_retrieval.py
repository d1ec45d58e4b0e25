"""Retrieval against rankings typed by hand, a slow loop with the same rule for ties, and scikit-learn."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor

from fgssl.errors import FgsslError
from fgssl.evaluation.bootstrap import bootstrap_interval, paired_bootstrap
from fgssl.evaluation.retrieval import ranking
from fgssl.evaluation.retrieval.metrics import DEFINITIONS, evaluate_retrieval
from fgssl.evaluation.retrieval.ranking import search


def on_a_line(*scores: float) -> Tensor:
    """Gallery features whose inner product with [1] is the score."""
    return torch.tensor(scores)[:, None]


def evaluate_one(scores: list[float], positives: list[int], ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """One query of class 1 against a gallery with these scores, 1 where positive."""
    result = evaluate_retrieval(
        torch.ones(1, 1),
        torch.tensor([1]),
        gallery=on_a_line(*scores),
        gallery_labels=torch.tensor(positives),
        ks=ks,
        normalize=False,
    )
    return result.to_dict()


def slow(queries: Tensor, query_labels: Tensor, gallery: Tensor, gallery_labels: Tensor, own: bool) -> np.ndarray:
    """(Q, 4): AP, AP at R, R-precision, first hit; one query at a time, by a full sort, negatives first in ties."""
    rows = []
    for index, (query, label) in enumerate(zip(queries, query_labels, strict=True)):
        entries = [
            (-float(query @ other), int(other_label == label))
            for place, (other, other_label) in enumerate(zip(gallery, gallery_labels, strict=True))
            if not (own and place == index)
        ]
        relevant = [positive for _, positive in sorted(entries)]
        count = sum(relevant)
        if count == 0:
            continue
        at = [rank for rank, positive in enumerate(relevant, 1) if positive]
        precision = [hits / rank for hits, rank in enumerate(at, 1)]
        rows.append(
            [
                sum(precision) / count,
                sum(p for p, rank in zip(precision, at, strict=True) if rank <= count) / count,
                sum(rank <= count for rank in at) / count,
                at[0],
            ]
        )
    return np.array(rows).reshape(-1, 4)


def per_query(result) -> np.ndarray:
    return np.stack(
        [result.average_precision, result.average_precision_at_r, result.r_precision, result.first_hit], axis=1
    )


# rankings typed by hand -------------------------------------------------------------------------------------------


def test_hand_typed_ranking() -> None:
    # ranks of the positives 1, 3, 6 of 6: AP = (1/1 + 2/3 + 3/6) / 3; R = 3: positives at 1 and 3
    got = evaluate_one([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [1, 0, 1, 0, 0, 1])
    assert got["mAP"] == pytest.approx(100 * (1 + 2 / 3 + 1 / 2) / 3)
    assert got["mAP_at_R"] == pytest.approx(100 * (1 + 2 / 3) / 3)
    assert got["r_precision"] == pytest.approx(100 * 2 / 3)
    assert (got["rank1"], got["rank5"], got["rank10"]) == (100, 100, 100)
    assert (got["queries"], got["gallery"], got["lone_queries"]) == (1, 6, 0)


def test_the_two_meanings_of_map_differ() -> None:
    # one positive, at rank 3: the full ranking gives 1/3, at R gives 0
    got = evaluate_one([0.9, 0.8, 0.7], [0, 0, 1], ks=(1, 2, 3))
    assert got["mAP"] == pytest.approx(100 / 3)
    assert got["mAP_at_R"] == 0
    assert (got["rank1"], got["rank2"], got["rank3"]) == (0, 0, 100)


def test_negatives_come_first_among_equal_scores() -> None:
    # 0.5 three times: the negative, then two positives, after the 0.9: ranks 3 and 4
    got = evaluate_one([0.5, 0.5, 0.5, 0.9], [1, 0, 1, 0])
    assert got["mAP"] == pytest.approx(100 * (1 / 3 + 2 / 4) / 2)
    assert (got["rank1"], got["rank5"]) == (0, 100)


def test_k_beyond_the_gallery_takes_the_whole_ranking() -> None:
    assert evaluate_one([0.9, 0.1], [0, 1], ks=(1, 50))["rank50"] == 100


def test_a_constant_encoder_scores_the_worst_ranking() -> None:
    labels = torch.arange(40) % 4  # 10 a class: 9 positives after 30 negatives
    got = evaluate_retrieval(torch.full((40, 300), 0.3), labels).to_dict()
    worst = 100 * sum(hit / (30 + hit) for hit in range(1, 10)) / 9
    assert got["rank1"] == got["rank10"] == got["r_precision"] == 0
    assert got["mAP"] == pytest.approx(worst)


def test_constant_features_tie_exactly_at_any_width_and_place() -> None:
    # rounding in the product must not depend on where a column stands, or equal images would not be equal
    row = torch.randn(1, 777, generator=torch.Generator().manual_seed(3))
    got = evaluate_retrieval(row.expand(1003, -1).contiguous(), torch.arange(1003) // 100).to_dict()
    assert got["rank10"] == 0


def test_a_duplicate_is_found_and_oneself_is_not() -> None:
    # 0 and 1 are the same picture: leaving out by score would lose both
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    result = evaluate_retrieval(features, torch.tensor([0, 0, 1]))
    assert result.first_hit.tolist() == [1, 1]
    assert (result.queries, result.lone_queries, result.gallery) == (2, 1, 3)
    assert result.indices.tolist() == [0, 1]


def test_macro_weighs_classes_alike() -> None:
    # class 0: three queries found at rank 1; class 1: one query that is not
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    got = evaluate_retrieval(
        queries,
        torch.tensor([0, 0, 0, 1]),
        gallery=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        gallery_labels=torch.tensor([0, 1]),
    ).to_dict()
    assert (got["rank1"], got["macro_rank1"]) == (75, 50)
    assert got["macro_mAP"] == pytest.approx(75)


# against slow and foreign code ------------------------------------------------------------------------------------


@st.composite
def cases(draw):
    """Small integer features: exact products, many ties; few labels: lone queries and unbalanced classes."""
    width = draw(st.integers(1, 3))
    values = st.integers(-2, 2)
    count = draw(st.integers(2, 14))
    other = draw(st.integers(0, 12))
    rows = draw(
        st.lists(st.lists(values, min_size=width, max_size=width), min_size=count + other, max_size=count + other)
    )
    labels = draw(st.lists(st.integers(0, 4), min_size=count + other, max_size=count + other))
    memory = draw(st.sampled_from([1, 300, 10**6]))
    features, classes = torch.tensor(rows, dtype=torch.float32), torch.tensor(labels)
    return features[:count], classes[:count], features[count:], classes[count:], memory


@settings(max_examples=60, deadline=None)
@given(cases())
def test_equals_the_slow_loop_with_ties_and_lone_queries(case) -> None:
    queries, labels, gallery, gallery_labels, memory = case
    leave_one_out = len(gallery) == 0
    found, found_labels = (queries, labels) if leave_one_out else (gallery, gallery_labels)
    expected = slow(queries, labels, found, found_labels, leave_one_out)
    keywords = {} if leave_one_out else {"gallery": gallery, "gallery_labels": gallery_labels}
    if len(expected) == 0:
        with pytest.raises(FgsslError, match="another image of its class"):
            evaluate_retrieval(queries, labels, normalize=False, memory_bytes=memory, **keywords)
        return
    result = evaluate_retrieval(queries, labels, normalize=False, memory_bytes=memory, **keywords)
    np.testing.assert_allclose(per_query(result), expected, rtol=1e-12)
    assert result.lone_queries == len(queries) - len(expected)
    assert torch.equal(labels[result.indices], result.labels)


@pytest.mark.parametrize("memory", [None, 10_000])
def test_average_precision_equals_scikit_learn(memory: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 12, (150,), generator=generator)
    features = torch.randn(150, 24, generator=generator) + 2 * torch.randn(12, 24, generator=generator)[labels]
    result = evaluate_retrieval(features, labels, memory_bytes=memory)
    unit = torch.nn.functional.normalize(features.double())
    scores = (unit @ unit.T).numpy()
    expected = []
    for query in range(150):
        others = np.arange(150) != query
        expected.append(average_precision_score((labels == labels[query]).numpy()[others], scores[query, others]))
    np.testing.assert_allclose(result.average_precision, expected, atol=1e-6)


@pytest.mark.parametrize("own", [True, False])
def test_metrics_equal_pytorch_metric_learning(own: bool) -> None:
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 15, (240,), generator=generator)
    labels[200:] = labels[200:] % 5  # classes of very different sizes
    labels[0] = 77  # a lone query
    features = torch.randn(240, 16, generator=generator) + torch.randn(80, 16, generator=generator)[labels]
    split = 0 if own else 100
    gallery, gallery_labels = features[split:], labels[split:]
    queries, query_labels = (features, labels) if own else (features[:100], labels[:100])
    calculator = AccuracyCalculator(
        include=("mean_average_precision", "mean_average_precision_at_r", "r_precision", "precision_at_1"),
        k=len(gallery) - own,
        knn_func=CustomKNN(CosineSimilarity()),
    )
    theirs = calculator.get_accuracy(queries, query_labels, gallery, gallery_labels, ref_includes_query=own)
    searched = {} if own else {"gallery": gallery, "gallery_labels": gallery_labels}
    ours = evaluate_retrieval(queries, query_labels, **searched).to_dict()
    for name, their_name in (
        ("mAP", "mean_average_precision"),
        ("mAP_at_R", "mean_average_precision_at_r"),
        ("r_precision", "r_precision"),
        ("rank1", "precision_at_1"),
    ):
        assert ours[name] == pytest.approx(100 * theirs[their_name], abs=1e-4), name
    assert ours["lone_queries"] == 1


@pytest.mark.parametrize("signal", [0.0, 0.2, 0.6, 3.0])
def test_sorting_only_a_part_of_long_rows_changes_nothing(signal: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # signals at which none, some and all thresholds lie in the part sorted; doubled rows for ties, lone queries
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 25, (700,), generator=generator)
    labels[:2] = torch.tensor([98, 99])
    features = torch.randn(700, 32, generator=generator) + signal * torch.randn(100, 32, generator=generator)[labels]
    features[350:400] = features[:50]
    cuts = []

    def counted(*arguments, cheapest=ranking._cheapest_cut):
        cuts.append(cheapest(*arguments))
        return cuts[-1]

    whole = evaluate_retrieval(features, labels)
    monkeypatch.setattr(ranking, "LONG_ROW", 600)
    monkeypatch.setattr(ranking, "_cheapest_cut", counted)
    part = evaluate_retrieval(features, labels)
    assert torch.equal(torch.from_numpy(per_query(whole)), torch.from_numpy(per_query(part)))
    assert (signal < 0.5) or sum(cut is not None for cut in cuts) > 300


def test_random_features_rank_at_chance() -> None:
    # expected rank-1 of random features: the share of positives among the others, 49 / 499
    features = torch.randn(500, 64, generator=torch.Generator().manual_seed(1))
    got = evaluate_retrieval(features, torch.arange(500) % 10).to_dict()
    assert abs(got["rank1"] - 100 * 49 / 499) < 4 * 100 * math.sqrt(0.1 * 0.9 / 500)


def test_order_chunks_and_device_of_labels_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(2)
    features, labels = torch.randn(200, 8, generator=generator), torch.randint(-3, 9, (200,), generator=generator)
    shuffle = torch.randperm(200, generator=generator)
    whole = evaluate_retrieval(features, labels)
    parts = evaluate_retrieval(features[shuffle], labels[shuffle].int(), memory_bytes=1)
    np.testing.assert_allclose(per_query(whole)[shuffle], per_query(parts), atol=1e-6)
    assert whole.to_dict() == pytest.approx(parts.to_dict(), abs=1e-4)


def test_low_precision_features_are_scored_in_float32() -> None:
    features, labels = torch.randn(60, 16).bfloat16(), torch.arange(60) % 6
    assert evaluate_retrieval(features, labels).to_dict() == evaluate_retrieval(features.float(), labels).to_dict()


def test_progress_reaches_the_end() -> None:
    seen = []
    evaluate_retrieval(
        torch.randn(30, 4), torch.arange(30) % 3, memory_bytes=4000, progress=lambda *at: seen.append(at)
    )
    assert len(seen) > 1 and seen[-1] == (30, 30) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_every_result_is_defined() -> None:
    got = evaluate_retrieval(torch.randn(30, 4), torch.arange(30) % 3).to_dict()
    assert {name.removeprefix("macro_") for name in got} - {"queries", "gallery"} <= set(DEFINITIONS)


# bad input --------------------------------------------------------------------------------------------------------


def test_bad_input_is_named() -> None:
    features, labels = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    broken = features.clone()
    broken[4, 1] = float("nan")
    broken[5, 0] = float("inf")
    with pytest.raises(FgsslError, match=r"queries: row 4 \(and 1 more\)"):
        evaluate_retrieval(broken, labels)
    with pytest.raises(FgsslError, match="gallery: row 4"):
        evaluate_retrieval(features, labels, gallery=broken, gallery_labels=labels)
    with pytest.raises(FgsslError, match="queries are 4 wide and gallery 3"):
        evaluate_retrieval(features, labels, gallery=features[:, :3], gallery_labels=labels)
    with pytest.raises(FgsslError, match="gallery are empty"):
        evaluate_retrieval(features, labels, gallery=features[:0], gallery_labels=labels[:0])
    with pytest.raises(FgsslError, match="none of 6 queries"):
        evaluate_retrieval(features, torch.arange(6))
    with pytest.raises(FgsslError, match="6 rows"):
        evaluate_retrieval(features, labels[:3])
    with pytest.raises(FgsslError, match="not integers"):
        evaluate_retrieval(features, labels.float())
    with pytest.raises(FgsslError, match="without labels"):
        evaluate_retrieval(features, labels, gallery=features)
    with pytest.raises(FgsslError, match="k = 0"):
        evaluate_retrieval(features, labels, ks=(0, 1))


# search -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(1, 30))
def test_search_equals_a_stable_sort(case, top: int) -> None:
    queries, _, gallery, _, memory = case
    others = queries if len(gallery) == 0 else gallery
    scores = queries @ others.T
    if len(gallery) == 0:
        scores.fill_diagonal_(float("-inf"))
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, : min(top, len(others) - (len(gallery) == 0))]
    found = search(queries, gallery if len(gallery) else None, top=top, normalize=False, memory_bytes=memory)
    assert torch.equal(found.indices, order)
    assert torch.equal(found.scores, scores.gather(1, order))


def test_search_by_cosine_ignores_length() -> None:
    found = search(torch.tensor([[1.0, 0.0]]), torch.tensor([[9.0, 9.0], [0.1, 0.0], [5.0, 0.0]]), top=2)
    assert found.indices.tolist() == [[1, 2]]
    assert found.scores.tolist() == [[1, 1]]


def test_search_names_bad_input() -> None:
    with pytest.raises(FgsslError, match="top 0"):
        search(torch.ones(1, 2), torch.ones(1, 2), top=0)
    with pytest.raises(FgsslError, match="no others"):
        search(torch.ones(1, 2))
    with pytest.raises(FgsslError, match="wide"):
        search(torch.ones(1, 2), torch.ones(1, 3))


# bootstrap --------------------------------------------------------------------------------------------------------


def test_interval_is_that_of_the_normal_law() -> None:
    # the mean of 2,000 standard normal values: interval of 2 x 1.96 / sqrt(2000)
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    got = bootstrap_interval(values, resamples=2000)
    assert got.value == pytest.approx(float(values.double().mean()))
    assert got.high - got.low == pytest.approx(2 * 1.96 * float(values.std()) / math.sqrt(2000), rel=0.06)
    assert got == bootstrap_interval(values, resamples=2000)
    assert got != bootstrap_interval(values, resamples=2000, seed=1)


def test_pairing_cancels_what_both_find_hard() -> None:
    generator = torch.Generator().manual_seed(0)
    hard = 5 * torch.randn(500, generator=generator)
    better, same = (
        hard + 0.1 * torch.randn(500, generator=generator),
        hard + 0.1 * torch.randn(500, generator=generator),
    )
    apart = paired_bootstrap(better + 0.05, same)
    assert apart.low > 0 and apart.p == pytest.approx(2 / 1001)
    opposite = paired_bootstrap(same, better + 0.05)
    assert opposite.difference == pytest.approx(-apart.difference) and opposite.p == apart.p
    assert paired_bootstrap(hard, hard) == (0, 0, 0, 1)


def test_bootstrap_names_bad_input() -> None:
    with pytest.raises(FgsslError, match="no values"):
        bootstrap_interval([])
    with pytest.raises(FgsslError, match="level 2"):
        bootstrap_interval([1.0], level=2)
    with pytest.raises(FgsslError, match="3 queries against 2"):
        paired_bootstrap([1, 2, 3], [1, 2])


def test_an_exact_duplicate_is_a_hit_and_the_query_itself_is_not() -> None:
    """pytorch-metric-learning #464: "the first neighbour is the query" leaves out the duplicate or keeps the query."""
    features = torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0], [0.1, 1.0]])
    assert evaluate_retrieval(features, torch.tensor([0, 0, 1, 1])).to_dict()["rank1"] == 100
    # the duplicate has another class: both copies find it first, and neither finds itself
    found = evaluate_retrieval(features, torch.tensor([0, 1, 0, 1])).to_dict()
    assert found["rank1"] == 0 and found["queries"] == 4


@pytest.mark.parametrize("count", [47, 2])
def test_processes_share_the_queries(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of three, in the order of their ranks, are the rows of one; of two queries one of them has none."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(count, 8, generator=generator), torch.arange(count) % (count // 2)
    alone = evaluate_retrieval(features, labels, ks=(1, 5))
    parts: list[Tensor] = []

    def gather(own: list[Tensor]) -> list[Tensor]:
        parts.extend(own)
        return parts[:3] if len(parts) > 3 else [torch.zeros(count, own[0].shape[1])]

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    for rank in (0, 1, 2, 0):  # the first once more, when the parts of all are known
        together = SimpleNamespace(num_processes=3, process_index=rank)
        found = evaluate_retrieval(features, labels, ks=(1, 5), together=together)
    assert [len(part) for part in parts[:3]] == [count // 3, (2 * count) // 3 - count // 3, count - (2 * count) // 3]
    assert found.to_dict() == alone.to_dict() and torch.equal(found.indices, alone.indices)
