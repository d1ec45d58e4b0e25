"""The probe as a whole: shares of the labels, the four protocols, the files, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from running import fgssl, finished_run, flat_photos, make_photos, photos, plain_run
from torch import Tensor

from fgssl.config.schema import DataConfig
from fgssl.data import load_images
from fgssl.data.cache.pixels import PixelStore, Shrunk
from fgssl.data.feed import CropDataset, CropSampler, Key, crop_batches
from fgssl.errors import FgsslError
from fgssl.evaluation.probing.classifiers import Sets, linear_probe
from fgssl.evaluation.probing.linear import SgdRecipe, fit_sgd, train_on_crops
from fgssl.evaluation.probing.scores import Confusion, draw_labels, judge, run_trials
from fgssl.evaluation.subject import EvaluationOptions, open_subject

LABELS = torch.arange(60) % 4


# ---- shares of the labels


def test_draws_are_stratified_seeded_and_one_where_nothing_is_drawn() -> None:
    whole, half = draw_labels(LABELS, (1.0, 0.5), tries=3, seed=7)
    assert len(whole) == 1 and torch.equal(whole[0].rows, torch.arange(60))
    assert [draw.seed for draw in half] == [7, 8, 9]
    for draw in half:
        assert LABELS[draw.rows].bincount().tolist() == [8, 8, 8, 8]  # half of 15, rounded half up
    assert len({tuple(draw.rows.tolist()) for draw in half}) == 3
    again = draw_labels(LABELS, (0.5,), tries=1, seed=8)[0][0]
    assert torch.equal(again.rows, half[1].rows)


def test_mean_spread_per_class_and_confusions_over_tries_by_hand() -> None:
    """Two tries on four test images of two classes: right at 4 of 4, then at 2 of 4."""
    truth = torch.tensor([0, 0, 1, 1])
    answers = iter([[0, 0, 1, 1], [0, 1, 0, 1]])

    def fit(_rows: Tensor, _seed: int) -> object:
        return judge(torch.eye(2)[next(answers)], truth, "by hand")

    (share,) = run_trials(draw_labels(LABELS, (0.5,), tries=2), fit)  # type: ignore[arg-type]
    assert share.values("top1") == [100, 50] and share.mean("top1") == 75
    assert share.spread("top1") == pytest.approx(50 / 2**0.5)
    assert share.per_class().tolist() == [75, 75]
    assert share.correct().tolist() == [1, 0.5, 0.5, 1]
    assert share.confusions(truth) == (Confusion(0, 1, 1), Confusion(1, 0, 1))
    interval = share.interval()
    assert interval.value == 75 and 50 <= interval.low < 75 < interval.high <= 100


@pytest.mark.parametrize(
    ("fractions", "tries", "expected"),
    [((0.5,), 0, "0 tries"), ((), 1, "fractions"), ((0.5, 0.5), 1, "each once"), ((0.01,), 1, "without one")],
)
def test_draws_name_bad_input(fractions: tuple[float, ...], tries: int, expected: str) -> None:
    with pytest.raises(FgsslError, match=expected):
        draw_labels(LABELS, fractions, tries=tries)


# ---- the sgd protocol


def by_hand(
    batches: list[list[tuple[Tensor, Tensor]]], recipe: SgdRecipe, weight: np.ndarray
) -> tuple[np.ndarray, ...]:
    """SGD with momentum on the softmax cross-entropy, its gradient written down, in float64."""
    bias = np.zeros(weight.shape[1])
    speed, bias_speed = np.zeros_like(weight), np.zeros_like(bias)
    for epoch, steps in enumerate(batches):
        rate = recipe.lr / (1, 10, 100)[(epoch >= 6) + (epoch >= 8)]
        for features, labels in steps:
            x, y = features.double().numpy(), np.eye(weight.shape[1])[labels.numpy()]
            scores = np.exp(x @ weight + bias)
            error = (scores / scores.sum(1, keepdims=True) - y) / len(x)
            speed, bias_speed = 0.9 * speed + x.T @ error, 0.9 * bias_speed + error.sum(0)
            weight, bias = weight - rate * speed, bias - rate * bias_speed
    return weight, bias


def test_sgd_equals_its_formula_written_out() -> None:
    generator = torch.Generator().manual_seed(3)
    recipe = SgdRecipe(epochs=10, lr=3.0)
    batches = [
        [
            (torch.nn.functional.normalize(torch.randn(n, 5, generator=generator)), torch.arange(n) % 3)
            for n in (8, 8, 3)
        ]
        for _ in range(recipe.epochs)
    ]
    start = (0.01 * torch.randn(5, 3, generator=torch.Generator().manual_seed(11))).double().numpy()
    seen: list[int] = []
    model = fit_sgd(lambda e: batches[e], width=5, classes=3, recipe=recipe, seed=11, done=seen.append)
    weight, bias = by_hand(batches, recipe, start)
    np.testing.assert_allclose(model.weight, weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.bias, bias, rtol=1e-4, atol=1e-5)
    assert seen == [8, 8, 3] * 10


def test_the_papers_learning_rates() -> None:
    recipe = SgdRecipe()
    rates = [recipe.rate(epoch) for epoch in (0, 59, 60, 79, 80, 99)]
    assert rates == pytest.approx([30, 30, 3, 3, 0.3, 0.3])
    assert (recipe.batch_size, recipe.epochs, "x0.1 after 60 and 80" in recipe.words()) == (256, 100, True)


def test_few_epochs_name_a_fall_that_comes_twice_once() -> None:
    recipe = SgdRecipe(epochs=3)
    assert [recipe.rate(epoch) for epoch in range(3)] == pytest.approx([30, 30, 0.3])
    assert "x0.01 after 2," in recipe.words()


def test_sgd_that_diverges_says_so() -> None:
    def endless(_epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.full((2, 2), 1e30), torch.tensor([0, 1])

    with pytest.raises(FgsslError, match=r"not finite after epoch \d"):
        fit_sgd(endless, width=2, classes=2, recipe=SgdRecipe(epochs=50, lr=1e30))


def test_every_image_once_an_epoch_in_new_crops_that_do_not_depend_on_the_workers() -> None:
    images = load_images(DataConfig(source=str(photos())), "train")
    dataset = CropDataset(PixelStore(images, Shrunk(40)), size=16, seed=5)
    positions = np.array([1, 4, 9, 16, 22])
    found = {}
    for workers in (0, 2):
        sampler = CropSampler(positions, batch_size=2, epochs=2, seed=5)
        batches = list(crop_batches(dataset, sampler, workers=workers))
        assert [len(batch.index) for batch in batches] == [2, 2, 1] * 2 and len(sampler) == 6
        found[workers] = batches
    for epoch in (found[0][:3], found[0][3:]):
        assert sorted(torch.cat([batch.index for batch in epoch]).tolist()) == positions.tolist()
    assert all(torch.equal(a.images, b.images) for a, b in zip(found[0], found[2], strict=True))
    first, second = (dataset.__getitems__([Key(epoch, 4)]) for epoch in (0, 1))
    assert not torch.equal(first.images, second.images)


def test_training_on_crops_leaves_the_encoder_as_it_was_and_skips_broken_images(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 20)
    (folder / "class 0" / "00.jpg").write_bytes(b"no picture")
    images = load_images(DataConfig(source=str(folder)), "all")
    subject = open_subject(str(plain_run()), EvaluationOptions(data=str(folder), pool="gap", device="cpu"))
    encoder = subject.encoder
    encoder.backbone.train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    calls: list[tuple[int, int]] = []

    def train() -> Tensor:
        model = train_on_crops(
            subject, images, SgdRecipe(epochs=2), positions=torch.arange(20), width=encoder.backbone.channels,
            classes=3, workers=0, progress=lambda done, total: calls.append((done, total)),
        )  # fmt: skip
        return model.weight

    assert torch.equal(train(), train())
    assert calls[:2] == [(19, 40), (38, 40)]
    assert encoder.backbone.training and all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


# ---- the command


def test_json_of_shares_has_mean_spread_classes_and_confusions(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    options = ("--labels", "1.0,0.5", "--tries", "2", "--seed", "4", "--output", folder, "--json")
    found = fgssl("probe", finished_run()[0], *options).json()
    whole, half = found["results"]
    assert (whole["labels"], whole["tries"], whole["top1_spread"]) == (24, 1, None)
    assert (half["labels"], half["tries"], half["seeds"]) == (12, 2, [4, 5])
    assert {key: found[key] for key in ("top1", "top5", "mean_per_class", "labels")} == {
        key: whole[key] for key in ("top1", "top5", "mean_per_class", "labels")
    }
    assert half["top1"] == pytest.approx(np.mean(half["top1_tries"]))
    assert half["top1_spread"] == pytest.approx(np.std(half["top1_tries"], ddof=1))
    for share in (whole, half):
        assert share["per_class"].keys() == {"class 0", "class 1", "class 2"}
        assert np.mean(list(share["per_class"].values())) == pytest.approx(share["mean_per_class"])
        wrong = sum(pair["images"] for pair in share["confusions"])
        assert wrong == pytest.approx(share["tries"] * 12 * (1 - share["top1"] / 100))
    assert found["top1_low"] <= found["top1"] <= found["top1_high"]
    assert json.loads((folder / "probe.json").read_text()) == found


def test_protocol_tells_each_share_and_the_table_its_spread(tmp_path: Path) -> None:
    """24 images in 3 classes: a fifth of each share, by class, rounded, is held out."""
    run = finished_run()[0]
    outcome = fgssl("probe", run, "--labels", "1.0,0.5,0.125", "--tries", "2", cwd=tmp_path)
    assert "± sd of 2 tries" in outcome.out
    held = {share: 3 * max(1, round(0.2 * each)) for share, each in (("1", 8), ("0.5", 4))}
    assert f"share 1 chosen on {held['1']} of 24 train images" in outcome.out
    assert f"share 0.5 chosen on {held['0.5']} of 12 train images" in outcome.out
    assert "share 0.125 not chosen: no class has two train images" in outcome.out
    assert "C = " not in outcome.out and "C = " in fgssl("probe", run).out
    knn = ("--protocol", "knn", "--k", "20", "--labels", "1.0,0.5", "--json")
    found = fgssl("probe", run, *knn, cwd=tmp_path).json()["protocol"]
    assert "20 nearest" in found and "(share 1), 12 nearest" in found


def test_lists_of_labelled_images_are_data_sources_and_repeat_the_try(tmp_path: Path) -> None:
    options = ("--labels", "0.5", "--tries", "2", "--output", tmp_path / "o", "--json")
    found = fgssl("probe", finished_run()[0], *options).json()
    for seed, expected in zip((0, 1), found["results"][0]["top1_tries"], strict=True):
        listed = load_images(DataConfig(source=str(tmp_path / "o" / f"labels-0.5-seed{seed}.txt")), "all")
        assert listed.labels is not None and np.bincount(listed.labels).tolist() == [4, 4, 4]
        assert {Path(listed.identifier(i)).parent for i in range(12)} == {
            photos() / "train" / f"class {c}" for c in range(3)
        }
        encoder = finished_run()[0]
        features = {name: fgssl_features(encoder, source, tmp_path / name, split) for name, source, split in (
            ("chosen", tmp_path / "o" / f"labels-0.5-seed{seed}.txt", "all"), ("test", photos(), "test"))}  # fmt: skip
        again = linear_probe(Sets(*features["chosen"], *features["test"]), seed=seed)
        assert again.top1 == pytest.approx(expected)


def fgssl_features(encoder: Path, source: Path, output: Path, split: str) -> tuple[Tensor, Tensor]:
    from safetensors.torch import load_file

    assert fgssl("embed", encoder, "--data", source, "--split", split, "--output", output).code == 0
    tensors = load_file(output)
    return tensors["features"], tensors["labels"]


def test_tables_by_class_and_default_folder(tmp_path: Path) -> None:
    outcome = fgssl("probe", finished_run()[0], "--protocol", "knn", "--labels", "0.5", "--k", "3", cwd=tmp_path)
    assert outcome.code == 0 and "tables and lists: probe-lists" in outcome.out and "knn" in outcome.out
    assert sorted(path.name for path in (tmp_path / "probe-lists").iterdir()) == [
        "confusions.csv", "labels-0.5-seed0.txt", "per_class.csv", "probe.json",
    ]  # fmt: skip
    rows = list(csv.reader((tmp_path / "probe-lists" / "per_class.csv").open()))
    assert rows[0] == ["class", "test images", "top1 at 0.5"]
    assert [row[:2] for row in rows[1:]] == [[f"class {c}", "4"] for c in range(3)]
    assert "━" not in outcome.out and "│" not in outcome.out  # a pipe gets plain text


def test_without_output_nothing_is_written(tmp_path: Path) -> None:
    assert fgssl("probe", finished_run()[0], "--json", cwd=tmp_path).json()["output"] is None
    assert list(tmp_path.iterdir()) == []


def test_sgd_and_knn_have_the_same_keys_as_cached() -> None:
    keys = None
    for options in ((), ("--protocol", "sgd", "--epochs", "2"), ("--protocol", "knn", "--k", "50")):
        found = fgssl("probe", finished_run()[0], *options, "--json").json()
        assert keys in (None, found.keys())
        keys = found.keys()
        assert found["labels"] == 24 and 0 <= found["top1"] <= 100
        if "sgd" in options:
            assert "lr 30" in found["protocol"] and "2 epochs" in found["protocol"]
        if "knn" in options:
            assert "24 nearest" in found["protocol"] and "50 asked" in found["protocol"]


def test_few_shot_of_the_test_split() -> None:
    options = ("--protocol", "fewshot", "--shots", "1,2", "--ways", "0", "--episodes", "20")
    found = fgssl("probe", finished_run()[0], *options, "--json").json()
    assert {"top1", "top5", "protocol", "labels", "pool"} <= found.keys()
    assert [(row["shots"], row["ways"], row["episodes"]) for row in found["results"]] == [(1, 3, 20), (2, 3, 20)]
    assert found["top1"] == found["results"][0]["top1"] and found["labels"] == 3
    table = fgssl("probe", finished_run()[0], *options).out
    assert all(f"{row['top1']:.2f}" in table for row in found["results"])


# ---- what is refused


@pytest.mark.parametrize(
    "options",
    [
        ("--protocol", "forest"), ("--labels", "20"), ("--labels", "0.5,x"), ("--labels", "0.5,0.5"), ("--labels", "0"),
        ("--shots", "1.5"), ("--labels", "0.5", "--protocol", "fewshot"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage(options: tuple[str, ...]) -> None:
    outcome = fgssl("probe", "nothing is opened", *options)
    assert outcome.code == 2 and options[0] in outcome.err


@pytest.mark.parametrize(
    ("code", "options", "expected"),
    [
        (
            1,
            ("--labels", "0.1"),
            "0.1 of 24 images leaves some of 3 classes without one; use a fraction of 0.125 or more",
        ),
        (2, ("--tries", "0"), "--tries is 0"),
        (2, ("--protocol", "sgd", "--epochs", "0"), "--epochs is 0"),
        (2, ("--protocol", "knn", "--k", "0"), "--k is 0"),
        (1, ("--protocol", "fewshot", "--ways", "9"), "3 classes have more than 1 images, 9 are needed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_numbers_are_one_line(code: int, options: tuple[str, ...], expected: str) -> None:
    assert expected in fgssl("probe", finished_run()[0], *options, "--json").error(code)


def test_data_that_cannot_be_probed_is_one_line(tmp_path: Path) -> None:
    assert "has no labels" in fgssl("probe", plain_run(), "--data", flat_photos()).error()
    assert "has no labels" in fgssl("probe", plain_run(), "--data", flat_photos(), "--protocol", "fewshot").error()
    lone = make_photos(tmp_path / "lone", 4, classes=4)
    assert "has one image" in fgssl("probe", plain_run(), "--data", lone).error()
    (tmp_path / "file").touch()
    refused = fgssl("probe", finished_run()[0], "--output", tmp_path / "file")
    assert "is a file" in refused.error() and refused.out == ""
