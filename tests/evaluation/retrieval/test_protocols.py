"""Published evaluations by name: which images search which, and their values against other libraries and slow loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from running import fgssl, finished_run
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_hit_rate,
    retrieval_precision,
    retrieval_r_precision,
)

from fgssl.config.schema import DataConfig
from fgssl.data import FIRST_CLASSES, LAST_CLASSES, available_splits, load_images
from fgssl.data.archives.rehearsal import draw_archive
from fgssl.errors import FgsslError
from fgssl.evaluation.protocols import KNN_KS, LISTS_KS, PROBE, RETRIEVAL
from fgssl.evaluation.retrieval.chosen import choose
from fgssl.evaluation.retrieval.metrics import evaluate_retrieval
from fgssl.evaluation.retrieval.scored import score_protocol
from fgssl.evaluation.subject import EvaluationOptions, open_subject


def clustered(seed: int, count: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    means = torch.randn(classes, 8, generator=generator)
    return torch.randn(count, 8, generator=generator) + means[labels], labels


def drawn(name: str, folder: Path, **options) -> DataConfig:
    return DataConfig(source=f"{name}:{draw_archive(name, folder / name, images=3, size=33, **options)}")


# ---- values


def test_values_equal_torchmetrics_query_by_query() -> None:
    features, labels = clustered(3, 90, 7)
    result = evaluate_retrieval(features, labels, ks=(1, 2, 4, 8), precision_ks=(1, 5, 10, 500))
    unit = torch.nn.functional.normalize(features)
    scores, found = unit @ unit.T, result.per_query()
    for query, row in enumerate(result.indices.tolist()):
        others = torch.arange(90) != row
        # torchmetrics takes nothing of a score below 0 for found
        ranked, relevant = 2 + scores[row][others], (labels == labels[row])[others]
        theirs = {f"rank{k}": retrieval_hit_rate(ranked, relevant, top_k=k) for k in (1, 2, 4, 8)}
        theirs |= {f"precision_at_{k}": retrieval_precision(ranked, relevant, top_k=k) for k in (1, 5, 10)}
        theirs["precision_at_500"] = retrieval_precision(ranked, relevant, top_k=500, adaptive_k=True)
        theirs["mAP"] = retrieval_average_precision(ranked, relevant)
        theirs["r_precision"] = retrieval_r_precision(ranked, relevant)
        for name, value in theirs.items():
            assert float(found[name][query]) == pytest.approx(float(value), abs=1e-5), name


def test_recall_and_map_at_r_of_a_gallery_equal_pytorch_metric_learning() -> None:
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    (queries, asked), (gallery, labels) = clustered(1, 60, 6), clustered(2, 100, 6)
    theirs = AccuracyCalculator(
        include=("mean_average_precision_at_r", "precision_at_1"), k=100, knn_func=CustomKNN(CosineSimilarity())
    ).get_accuracy(queries, asked, gallery, labels)
    protocol = RETRIEVAL["query-gallery"]
    ours = evaluate_retrieval(queries, asked, gallery=gallery, gallery_labels=labels, ks=protocol.ks).to_dict()
    assert ours["rank1"] == pytest.approx(100 * theirs["precision_at_1"], abs=1e-4)
    assert ours["mAP_at_R"] == pytest.approx(100 * theirs["mean_average_precision_at_r"], abs=1e-4)


def dino_knn(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int) -> float:
    """A loop over DINO's rule: the k nearest vote with exp(similarity / 0.07)."""
    right = 0
    for feature, label in zip(test, test_labels.tolist(), strict=True):
        ranked = sorted(((float(feature @ other), int(of)) for other, of in zip(train, train_labels, strict=True)))
        votes: dict[int, float] = {}
        for score, of in ranked[::-1][:k]:
            votes[of] = votes.get(of, 0.0) + math.exp(score / 0.07)
        right += max(votes, key=votes.__getitem__) == label
    return 100 * right / len(test)


def test_knn_from_train_to_test_equals_a_loop_over_dinos_rule(tmp_path: Path) -> None:
    data = drawn("cub", tmp_path, classes=4)
    options = EvaluationOptions(data=data.source, pool="gap", cache="off", device="cpu")
    scored = score_protocol(str(finished_run()[0]), options, "knn")
    subject = open_subject(str(finished_run()[0]), options)
    (train, test) = (subject.embed(load_images(data, split)) for split in ("train", "test"))
    for k in KNN_KS:
        expected = dino_knn(train.features, train.labels, test.features, test.labels, k)
        assert scored.added[f"knn_{k}"] == pytest.approx(expected)
    assert scored.protocol == "test -> train" and scored.result.gallery == 12


# ---- which images


def test_class_disjoint_takes_the_last_half_of_the_classes_of_all_splits(tmp_path: Path) -> None:
    data = drawn("cub", tmp_path, classes=5)
    first, last = (load_images(data, half) for half in (FIRST_CLASSES, LAST_CLASSES))
    assert set(first.labels.tolist()) == {0, 1} and set(last.labels.tolist()) == {2, 3, 4}
    assert (len(first), len(last)) == (12, 18) and last.split == "last-classes"
    names = [{images.name(row) for row in range(len(images))} for images in (first, last)]
    whole = load_images(data, "train+test")
    assert names[0] | names[1] == {whole.name(row) for row in range(len(whole))} and not names[0] & names[1]
    chosen = choose("class-disjoint", data)
    assert chosen.gallery is None and chosen.queries.fingerprint() == last.fingerprint()
    assert chosen.protocol.ks == (1, 2, 4, 8) and available_splits(data) == (
        "train",
        "test",
    )  # the halves are not among them


def test_class_disjoint_takes_the_lists_that_are_so_already(tmp_path: Path) -> None:
    chosen = choose("class-disjoint", drawn("sop", tmp_path))
    assert chosen.queries.split == "test" and chosen.gallery is None and chosen.protocol.ks == LISTS_KS
    assert chosen.protocol.metrics == ("rank1", "rank10", "rank100", "rank1000", "mAP_at_R", "r_precision")


def test_query_gallery_takes_the_lists_of_in_shop(tmp_path: Path) -> None:
    chosen = choose("query-gallery", drawn("inshop", tmp_path))
    assert (chosen.queries.split, chosen.gallery.split) == ("query", "gallery")
    assert np.array_equal(np.unique(chosen.queries.labels), np.unique(chosen.gallery.labels))
    with pytest.raises(FgsslError, match="has no splits query and gallery"):
        choose("query-gallery", drawn("cub", tmp_path))


@pytest.mark.parametrize("name", ["paper", "precision"])
def test_the_others_search_within_the_test_split(name: str, tmp_path: Path) -> None:
    chosen = choose(name, drawn("pets", tmp_path))
    assert chosen.queries.split == "test" and chosen.gallery is None


def test_what_is_shown_is_computed() -> None:
    for protocol in RETRIEVAL.values():
        wanted = {name for name in protocol.metrics if not name.startswith("knn_")}
        found = evaluate_retrieval(*clustered(0, 30, 3), ks=protocol.ks, precision_ks=protocol.precision_ks)
        assert wanted <= found.to_dict().keys() & found.intervals().keys()
        assert protocol.definition and protocol.source
    assert PROBE["paper"].source == RETRIEVAL["paper"].source


# ---- the verb


def test_the_verb_prints_definition_and_source(tmp_path: Path) -> None:
    options = ("--cache", "off", "--device", "cpu", "--pool", "gap")
    data = drawn("sop", tmp_path)
    outcome = fgssl("retrieve", finished_run()[0], "--data", data.source, "--protocol", "class-disjoint", *options)
    words = " ".join(outcome.out.split())
    assert outcome.code == 0 and "rank1000" in words and "rank5" not in words and "mAP_at_R" in words
    assert f"source: {RETRIEVAL['class-disjoint'].source}" in words
    assert f"definition: {RETRIEVAL['class-disjoint'].definition}" in words
    found = fgssl(
        "retrieve", finished_run()[0], "--data", data.source, "--protocol", "precision", "--json", *options
    ).json()
    assert found["protocol"] == "leave-one-out in test" and found["source"].startswith("Manning")
    assert found["precision_at_1"] == found["rank1"] and "precision_at_10" in found["intervals"]


def test_features_of_any_model_take_the_protocols_that_need_no_splits(tmp_path: Path) -> None:
    features, labels = clustered(4, 40, 4)
    file = tmp_path / "f.safetensors"
    save_file({"features": features, "labels": labels}, file)
    found = fgssl("retrieve", file, "--protocol", "precision", "--json").json()
    expected = evaluate_retrieval(features, labels, precision_ks=(5,)).to_dict()
    assert found["precision_at_5"] == pytest.approx(expected["precision_at_5"])
    assert "give the encoder and --data" in fgssl("retrieve", file, "--protocol", "class-disjoint").error()


@pytest.mark.parametrize(
    "options, says",
    [
        (("--protocol", "best"), "'best' is not one of paper, class-disjoint"),
        (("--protocol", "paper", "--split", "train"), "leave out --query-split"),
        (("--protocol", "paper", "--gallery", "demo"), "leave out --gallery"),
    ],
)
def test_what_does_not_go_with_a_protocol_is_wrong_usage(options: tuple[str, ...], says: str) -> None:
    outcome = fgssl("retrieve", finished_run()[0], "--data", "demo", *options)
    assert outcome.code == 2 and says in " ".join(outcome.err.replace("│", " ").split())


def test_probe_by_the_paper_is_sgd_on_its_three_shares(tmp_path: Path) -> None:
    data = draw_archive("cub", tmp_path / "cub", classes=2, images=5, size=33)
    options = ("--data", f"cub:{data}", "--epochs", "1", "--pool", "gap", "--output", tmp_path / "lists")
    found = fgssl("probe", finished_run()[0], "--protocol", "paper", *options, "--json").json()
    assert [row["fraction"] for row in found["results"]] == [1.0, 0.5, 0.2]
    assert [row["labels"] for row in found["results"]] == [10, 6, 2]  # of 5 a class, half up
    assert "lr 30" in found["protocol"] and found["definition"] == PROBE["paper"].definition
    assert found["source"] == RETRIEVAL["paper"].source
