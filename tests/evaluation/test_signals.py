"""Signals without labels: closed forms, slow loops, and their place in runs and in `fgssl embed --stats`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import ArrayImages
from run_results import assert_equal_encoders
from running import BACKBONE, SHORT, TINY, fgssl, finished_run, flat_photos, photos, plain_run, trained_run, weights
from safetensors.torch import load_file, save_file
from stopping import stopped_run

from fgssl.config.schema import ViewsConfig
from fgssl.data.cache.pixels import PixelStore, Shrunk
from fgssl.data.feed import ViewDataset, view_pairs
from fgssl.encoder import evaluated
from fgssl.errors import FgsslError
from fgssl.evaluation.metrics import (
    MEANINGS,
    feature_stats,
    label_free_signals,
    neighbour_overlap,
    signals_of,
    view_stats,
)
from fgssl.runs.encoder_file import load_encoder
from fgssl.training.signals import is_worse


@given(st.integers(2, 12), st.integers(0, 99), st.data())
def test_neighbour_overlap_equals_a_slow_loop(images: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, images - 1))
    first, second = torch.randn(2, images, 4, generator=torch.Generator().manual_seed(seed)).double()
    shares = []
    for i in range(images):
        near = []
        for view in (first, second):
            cosines = {j: float(torch.cosine_similarity(view[i], view[j], dim=0)) for j in range(images) if j != i}
            near.append(set(sorted(cosines, key=lambda j: -cosines[j])[:k]))
        shares.append(len(near[0] & near[1]) / k)
    assert neighbour_overlap(first, second, k=k) == pytest.approx(np.mean(shares))


def test_neighbour_overlap_at_its_ends_and_by_chance() -> None:
    features = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1))).Q
    assert neighbour_overlap(features, 3 * features @ rotation, k=10) > 0.999
    unrelated = torch.randn(400, 16, generator=torch.Generator().manual_seed(2))
    assert neighbour_overlap(features, unrelated, k=10) == pytest.approx(10 / 399, abs=0.01)


@pytest.mark.parametrize(("rows", "other", "k"), [(5, 4, 2), (5, 5, 5), (5, 5, 0)])
def test_neighbour_overlap_names_bad_input(rows: int, other: int, k: int) -> None:
    with pytest.raises(FgsslError):
        neighbour_overlap(torch.randn(rows, 3), torch.randn(other, 3), k=k)


def test_signals_of_known_features() -> None:
    """N orthogonal images seen alike twice: full rank, no distance, pairs at squared distance 2."""
    eye = torch.eye(20)
    found = label_free_signals(eye, eye)
    assert found.effective_rank == pytest.approx(20) and found.alignment == pytest.approx(0, abs=1e-9)
    assert found.uniformity == pytest.approx(-4) and found.neighbour_chance == pytest.approx(10 / 19)
    collapsed = label_free_signals(torch.ones(20, 5), torch.ones(20, 5))
    assert collapsed.effective_rank == pytest.approx(1) and collapsed.uniformity == pytest.approx(0, abs=1e-6)
    mirrored = label_free_signals(eye, eye.flip(0))
    assert mirrored.alignment == pytest.approx(2)
    assert MEANINGS.keys() == found._asdict().keys()


def test_signals_are_those_of_the_views_and_the_encoder_is_left_as_it_was() -> None:
    encoder = load_encoder(str(finished_run()[0]))
    views = torch.randint(0, 256, (2, 5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = (torch.cat([encoder(image[None], "rationale") for image in view]) for view in views)
    expected = label_free_signals(first, second)
    encoder.backbone.train()
    encoder.backbone.model.conv_stem.eval()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    for batch_size in (2, 64):
        assert signals_of(encoder, views, pool="rationale", batch_size=batch_size) == pytest.approx(expected, rel=1e-3)
    assert encoder.backbone.training and not encoder.backbone.model.conv_stem.training and not encoder.training
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_modes_come_back_after_an_error() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    with pytest.raises(KeyError), evaluated(module):
        assert not any(part.training for part in module.modules())
        raise KeyError
    assert [part.training for part in module.modules()] == [True, True, False]


def test_pairs_are_fixed_spread_and_without_broken_images(memory_images: Callable[..., ArrayImages]) -> None:
    def dataset(broken: tuple[int, ...] = ()) -> ViewDataset:
        return ViewDataset(PixelStore(memory_images(9, broken=broken), Shrunk(40)), ViewsConfig(), size=16, seed=3)

    pairs = view_pairs(dataset(), 5)
    assert pairs.shape == (2, 5, 3, 16, 16) and pairs.dtype == torch.uint8
    assert torch.equal(pairs, view_pairs(dataset(), 5))
    assert not torch.equal(pairs[0], pairs[1])
    assert torch.equal(view_pairs(dataset(broken=(0, 4)), 5), pairs[:, [1, 3, 4]])  # of images 0, 2, 4, 6, 8
    assert view_pairs(dataset(), 100).shape[1] == 9


# ---- in runs


def signal_rows(run: Path) -> dict[int, dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if "sample_alignment" in row}


def test_runs_log_signals_when_due_and_train_the_same_without(tmp_path: Path) -> None:
    weights = {}
    for every, steps in (("3", [4, 6]), ("1", [2, 4, 6]), ("0", [])):  # lines are due after steps 2, 4 and 6
        run = tmp_path / every
        outcome = fgssl(
            "pretrain", "--data", flat_photos(), *TINY, "--set", f"training.signals_every={every}", "--output", run
        )
        assert outcome.code == 0, outcome.err
        rows = signal_rows(run)
        assert list(rows) == steps and ("same neighbours" in outcome.err) == bool(steps)
        for row in rows.values():
            assert 1 <= row["sample_effective_rank"] <= 12 and 0 <= row["sample_alignment"] <= 4
            assert row["sample_uniformity"] <= 0 and 0 <= row["sample_neighbour_overlap"] <= 1
            assert row["sample_neighbour_chance"] == pytest.approx(10 / 11)
        weights[every] = load_file(run / "encoder.safetensors")
    for other in ("1", "0"):
        assert all(torch.equal(value, weights["3"][key]) for key, value in weights[other].items())
    last = json.loads((tmp_path / "1" / "summary.json").read_text())["last"]
    assert last["sample_alignment"] == signal_rows(tmp_path / "1")[6]["sample_alignment"]


def test_last_signals_are_those_of_the_saved_encoder() -> None:
    """The log against the encoder file: same sample, same views, after the last step."""
    run = finished_run()[0]
    encoder = load_encoder(str(run))
    assert encoder.config is not None
    from fgssl.data import load_images

    images = load_images(encoder.config.data, "train")
    pixels = PixelStore(images, Shrunk(round(1.3 * 64)))
    pairs = view_pairs(ViewDataset(pixels, encoder.config.views, size=64, seed=encoder.config.training.seed), 256)
    expected = signals_of(encoder, pairs)
    row = signal_rows(run)[6]
    for name, value in expected._asdict().items():
        assert row[f"sample_{name}"] == pytest.approx(value, rel=1e-3), name


def test_signals_cost_a_hundredth_by_default(tmp_path: Path) -> None:
    """Two forward passes of 24 images every n steps of 8, a step being four: n = 48 / (4 x 8 x 0.01) = 150."""
    options = ("--data", photos(), *TINY, "--dry-run", "--json", "--output", tmp_path / "run")
    settings = fgssl("pretrain", *options).json()["settings"]["training.signals_every"]
    assert settings["value"] == 150 and "1 %" in settings["origin"]


# ---- fgssl embed --stats


def test_stats_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "features"
    found = fgssl("embed", finished_run()[0], "--stats", "--output", path, "--json").json()
    features = load_file(path)["features"]
    stats = found["stats"]
    shares = torch.linalg.svdvals(features.double())
    shares = shares / shares.sum()
    assert stats["effective_rank"] == pytest.approx(math.exp(-(shares * shares.log()).sum()), rel=1e-4)
    squared = torch.cdist(features.double(), features.double()).square()
    pairs = (-2 * squared).exp()[~torch.eye(12, dtype=torch.bool)]
    assert stats["uniformity"] == pytest.approx(math.log(pairs.mean()), rel=1e-4)
    assert (stats["images"], stats["width"], stats["view_images"]) == (12, 3 * 288, 12)
    assert 0 <= stats["alignment"] <= 4 and 0 <= stats["neighbour_overlap"] <= 1
    outcome = fgssl("embed", finished_run()[0], "--stats", "--output", path)
    assert f"{stats['alignment']:.3f}" in outcome.out and all(name in outcome.out for name in MEANINGS)


def test_stats_of_foreign_features_and_of_unlabelled_pictures(tmp_path: Path) -> None:
    save_file({"features": torch.eye(6)}, tmp_path / "foreign.safetensors")
    found = fgssl("embed", tmp_path / "foreign.safetensors", "--stats", "--json", cwd=tmp_path)
    assert found.json()["stats"] == {
        "images": 6, "width": 6, "effective_rank": pytest.approx(6), "uniformity": pytest.approx(-4),
    }  # fmt: skip
    assert len(list(tmp_path.iterdir())) == 1 and "need the encoder" in found.err
    table = fgssl("embed", plain_run(), "--data", flat_photos(), "--stats", "--output", tmp_path / "o")
    assert table.code == 0 and "neighbour_overlap" in table.out
    save_file({"features": torch.tensor([[1.0, math.nan]])}, tmp_path / "nan.safetensors")
    assert "row 0 holds NaN" in fgssl("embed", tmp_path / "nan.safetensors", "--stats").error()


def test_one_image_has_no_neighbours(memory_images: Callable[..., ArrayImages]) -> None:
    encoder = load_encoder(str(plain_run()))
    assert view_stats(encoder, memory_images(1), pool="gap") == {}
    assert feature_stats(torch.ones(1, 3)) == {"images": 1, "width": 3, "effective_rank": pytest.approx(1)}


# ---- beside the start


def test_a_run_shows_each_signal_beside_its_value_before_the_first_step() -> None:
    """The oracle of the start is the weights that the run began from, opened by themselves."""
    run = trained_run()
    encoder = load_encoder(str(weights()), backbone=BACKBONE, image_size=64)
    config = load_encoder(str(run)).config
    assert config is not None
    from fgssl.data import load_images

    pixels = PixelStore(load_images(config.data, "train"), Shrunk(round(1.3 * 64)))
    expected = signals_of(encoder, view_pairs(ViewDataset(pixels, config.views, size=64, seed=0), 256))._asdict()
    (row,) = signal_rows(run).values()
    summary = json.loads((run / "summary.json").read_text())["signals"]
    chance = expected.pop("neighbour_chance")
    for name, value in expected.items():
        assert row[f"start_{name}"] == summary["start"][name] == pytest.approx(value, rel=1e-3), name
        assert row[f"sample_{name}"] == summary["end"][name], name
    assert summary["end"]["neighbour_chance"] == pytest.approx(chance) and "neighbour_chance" not in summary["start"]
    words = label_free_signals(torch.eye(20), torch.eye(20)).in_words(label_free_signals(torch.eye(9), torch.eye(9)))
    assert "effective rank 20.0 (start 9.0)" in words and "same neighbours 1.000 (start 1.000, chance 0.526)" in words


def test_worse_neighbours_are_told_from_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(256, generator=generator).double()
    noise = 0.02 * torch.randn(256, generator=generator).double()
    assert is_worse(start - 0.1 + noise, start) and not is_worse(start + 0.1 + noise, start)
    assert not is_worse(start, start) and not is_worse(start - 1, start[:100])
    few = torch.tensor([0.5, 0.9, 0.1, 0.4]).double()
    assert not is_worse(few - torch.tensor([0.3, -0.2, 0.2, -0.1]), few)


def test_a_resumed_run_keeps_the_start_and_warns_at_the_end(tmp_path: Path) -> None:
    options = tuple(option for option in TINY if option != "--no-pretrained")
    options = (*options, "--init", str(weights()), "--set", "training.signals_every=2",
               "--set", "training.choose=false")  # fmt: skip
    whole = tmp_path / "whole"
    with mock.patch("fgssl.training.signals.is_worse", return_value=True):
        outcome = fgssl("pretrain", "--data", photos(), *options, "--output", whole)
    warnings = [line for line in outcome.err.splitlines() if "the features got worse" in line]
    assert len(warnings) == 1 and f"fgssl compare {whole}" in warnings[0] and warnings[0].startswith("warning:")
    stopped = stopped_run(tmp_path / "stopped", options)
    outcome = fgssl("pretrain", "--resume", stopped)
    assert outcome.code == 0 and "step 0:" not in outcome.err and "(start " in outcome.err
    assert signal_rows(stopped).keys() == {2, 4, 6}
    for step, row in signal_rows(whole).items():
        for name, value in row.items():
            if name.startswith(("start_", "sample_")):
                assert signal_rows(stopped)[step][name] == value, (step, name)
    assert_equal_encoders(whole, stopped)


def test_a_frozen_run_and_one_without_signals_have_no_start(tmp_path: Path) -> None:
    options = (
        *(option for option in SHORT if option != "--no-pretrained"),
        "--init",
        weights(),
        "--set",
        "training.choose=false",
    )
    for name, more in (("frozen", ("--freeze", "backbone")), ("none", ("--set", "training.signals_every=0"))):
        outcome = fgssl(
            "pretrain", "--data", photos(), *options, "--init", weights(), *more, "--output", tmp_path / name
        )
        assert outcome.code == 0, outcome.err
        assert "step 0:" not in outcome.err and "start_" not in (tmp_path / name / "metrics.jsonl").read_text()
        assert json.loads((tmp_path / name / "summary.json").read_text())["signals"] is None
