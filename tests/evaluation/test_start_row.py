"""The weights that a run began from as rows of fgssl compare: against the single verbs, and told by what they lack."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from running import BACKBONE, fgssl, finished_run, photos, plain_run, trained_run, weights

from fgssl.config.schema import BackboneConfig, PretrainConfig
from fgssl.errors import FgsslError
from fgssl.evaluation.bootstrap import paired_bootstrap
from fgssl.evaluation.compare import METRICS, Row, differences
from fgssl.runs.encoder_file import load_encoder, save_encoder
from fgssl.runs.start import Start, same_weights, start_of


def compared(*arguments: str | Path) -> Any:
    outcome = fgssl("compare", *arguments, "--data", photos(), "--json")
    return outcome.json()


def test_the_start_comes_first_at_the_runs_size_in_all_its_poolings() -> None:
    found = compared(trained_run())
    rows = [(row["encoder"], row["pool"], row["start"]) for row in found["rows"]]
    start, run = f"start: {weights()}", str(trained_run())
    assert rows == [(start, "gap", True), (start, "zoom", True)] + [
        (run, p, False) for p in ("gap", "rationale", "zoom")
    ]
    assert found["no_start"] is None
    for row in found["rows"][:2]:
        options = ("--data", photos(), "--backbone", BACKBONE, "--image-size", "64", "--pool", row["pool"], "--json")
        alone = fgssl("retrieve", weights(), *options, "--gallery-split", "train").json()
        assert (row["train_rank1"], row["train_mAP"]) == (
            pytest.approx(alone["rank1"], abs=1e-4),
            pytest.approx(alone["mAP"], abs=1e-4),
        )
    best = {metric: max(found["rows"][:2], key=lambda row: row[metric])["pool"] for metric in METRICS}
    for each in found["comparisons"]:
        assert each["against"] == {"encoder": start, "pool": best[each["metric"]]}
    assert len(found["comparisons"]) == len(METRICS) * (5 - 1)  # of two start rows one is the best by each metric
    table = fgssl("compare", trained_run(), "--data", photos(), "--pool", "gap")
    assert f"Against {start}, by each column in its best pooling" in table.out


def test_differences_are_told_against_the_best_pooling_by_each_metric() -> None:
    """One start row is ahead by rank-1, the other by everything else; a second start has rows of its own."""

    def row(encoder: str, pool: str, began: str, **hits: int) -> Row:
        right = {metric: (torch.arange(100) < hits.get(metric, hits["others"])).double() for metric in METRICS}
        return Row(encoder, pool, 2, {metric: 100 * float(v.mean()) for metric, v in right.items()}, right, began)

    rows = [
        row("s", "gap", "s", rank1=50, others=30),
        row("s", "zoom", "s", rank1=40, others=35),
        row("t", "gap", "t", others=90),
        row("a", "gap", "s", others=45),
        row("b", "gap", "t", others=80),
    ]
    found = {(one.name, metric): (other, c) for one, other, metric, c in differences(rows)}
    for metric in METRICS:
        other, difference = found["a (gap)", metric]
        assert other is rows[0 if metric == "rank1" else 1]
        assert difference == paired_bootstrap(100 * rows[3].images[metric], 100 * other.images[metric])
        assert difference.difference == pytest.approx(-5 if metric == "rank1" else 10)
        assert found["b (gap)", metric][1].difference == pytest.approx(-10)
        assert ("s (gap)", metric) in found or metric == "rank1"
    assert ("s (gap)", "rank1") not in found and not any(name == "t (gap)" for name, _ in found)


def test_a_start_named_by_its_user_is_not_doubled_and_opened_as_the_run_did() -> None:
    found = compared(trained_run(), weights(), "--pool", "gap")
    assert [(row["encoder"], row["start"]) for row in found["rows"]] == [
        (str(trained_run()), False),
        (str(weights()), True),
    ]
    assert {each["against"]["encoder"] for each in found["comparisons"]} == {str(weights())}
    added = compared(trained_run(), "--pool", "gap")["rows"][0]
    assert {metric: found["rows"][1][metric] for metric in METRICS} == {metric: added[metric] for metric in METRICS}


def test_without_the_start_on_request_and_from_scratch() -> None:
    outcome = fgssl("compare", trained_run(), "--data", photos(), "--pool", "gap", "--no-start", "--json")
    assert [row["encoder"] for row in outcome.json()["rows"]] == [str(trained_run())] and "start" not in outcome.err
    outcome = fgssl("compare", plain_run(), "--data", photos(), "--pool", "gap", "--json")
    assert outcome.json()["no_start"] == f"'{plain_run()}' was trained from scratch"
    assert outcome.err.count("from scratch") == 1 and len(outcome.json()["rows"]) == 1
    both = compared(plain_run(), trained_run(), "--pool", "gap")  # one from scratch is told against it as well
    assert both["no_start"] is None and both["rows"][0]["start"]
    assert {each["against"]["encoder"] for each in both["comparisons"]} == {f"start: {weights()}"}


def run_with(folder: Path, **backbone: Any) -> Path:
    """A copy of the trained run whose settings name another start."""
    shutil.copytree(trained_run(), folder)
    encoder = load_encoder(str(folder))
    assert encoder.config is not None
    before = encoder.config.backbone
    encoder.config = replace(encoder.config, backbone=replace(before, **backbone))
    save_encoder(folder / "encoder.safetensors", encoder)
    config = folder / "config.yaml"
    if "init" in backbone:
        config.write_text(config.read_text().replace(str(before.init), str(backbone["init"])))
    return folder


def test_a_start_that_cannot_be_had_is_one_line_and_the_table_goes_on(tmp_path: Path) -> None:
    gone = run_with(tmp_path / "gone", init=str(tmp_path / "gone.safetensors"))
    published = run_with(tmp_path / "published", init=None, pretrained=True)
    written_over = run_with(tmp_path / "over", init=str(tmp_path / "over"))
    for run, why in ((gone, "no checkpoint"), (published, "not on this machine"), (written_over, "was written over")):
        outcome = fgssl("compare", run, plain_run(), "--data", photos(), "--pool", "gap", "--json")
        found = outcome.json()
        assert [row["encoder"] for row in found["rows"]] == [str(run), str(plain_run())], run
        lines = [line for line in outcome.err.splitlines() if "no row" in line]
        assert len(lines) == 1 and why in lines[0] and lines[0].startswith("warning:"), outcome.err
        assert why in found["no_start"] and not any(row["start"] for row in found["rows"])
        assert {each["against"]["encoder"] for each in found["comparisons"]} == {str(run)}


def test_what_a_file_alone_says_is_not_opened(tmp_path: Path) -> None:
    """An encoder file may come from anybody; a run's own config.yaml vouches for the weights it names."""
    shutil.copy(trained_run() / "encoder.safetensors", tmp_path)
    opened = mock.patch("fgssl.runs.encoder_file._weights", side_effect=AssertionError("opened"))
    with opened:
        outcome = fgssl("compare", tmp_path / "encoder.safetensors", "--data", photos(), "--pool", "gap", "--json")
    assert len(outcome.json()["rows"]) == 1 and "no config.yaml of its run beside it does" in outcome.err


def test_starts_of_every_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(run: str = "run", **backbone: Any) -> Start | None:
        return start_of(run, PretrainConfig(backbone=BackboneConfig(image_size=96, **backbone)))

    assert start(name="resnet18", pretrained=False) is None
    assert start(name="resnet18", pretrained=True) == Start("timm:resnet18", "resnet18", 96)
    assert start(name="resnet18", init="resnet18.tv_in1k") == Start("timm:resnet18.tv_in1k", "resnet18", 96)
    assert start(name="resnet18.a1_in1k", init="tv_in1k") == Start("timm:resnet18.tv_in1k", "resnet18.a1_in1k", 96)
    for foreign in ({"init": "hf-hub:me/model"}, {"pretrained": True, "name": "local-dir:/etc"}):
        with pytest.raises(FgsslError, match="no config"):
            start(str(plain_run()), **foreign)
    (tmp_path / "config.yaml").write_text(f"backbone:\n  init: {finished_run()[0]}\n")
    shutil.copy(plain_run() / "encoder.safetensors", tmp_path)
    found = start(str(tmp_path), init=str(finished_run()[0]))
    assert found is not None and found.checkpoint == str(finished_run()[0])
    monkeypatch.chdir(finished_run()[0].parent)
    found = start(str(tmp_path), init=str(finished_run()[0]))
    assert found is not None and found.checkpoint == finished_run()[0].name  # as a user here would write it


def test_one_checkpoint_by_several_names(monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished_run()[0]
    monkeypatch.chdir(run.parent)
    assert same_weights(str(run), f"{run.name}/encoder.safetensors") and not same_weights(str(run), str(plain_run()))
    assert same_weights("timm:resnet18", "timm:resnet18.a1_in1k")
    assert not same_weights("timm:resnet18", "timm:resnet18.tv_in1k")


def test_features_alone_know_of_no_start(tmp_path: Path) -> None:
    for split in ("train", "test"):
        path = tmp_path / f"{split}.safetensors"
        assert fgssl("embed", trained_run(), "--data", photos(), "--split", split, "--output", path).code == 0
    joined = f"{tmp_path / 'train.safetensors'}+{tmp_path / 'test.safetensors'}"
    outcome = fgssl("compare", joined, "--data", photos(), "--json")
    assert len(outcome.json()["rows"]) == 1 and outcome.json()["no_start"] is None and "start" not in outcome.err
