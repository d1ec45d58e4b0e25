"""Which weights a run leaves: those judged best, the others beside them, and what is said of the start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from running import fgssl, finished_run, photos
from safetensors.torch import load_file
from tiny_trainer import tiny_trainer

from fgssl.adaptation import Judgement, best_of
from fgssl.runs.encoder_file import load_encoder
from fgssl.training.choice import candidate_path, choose_encoder, keep_start

OPTIONS = (
    "--batch-size",
    "8",
    "--epochs",
    "2",
    "--device",
    "cpu",
    "--quiet",
    "--set",
    "training.workers=0",
    "--freeze",
    "none",
)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from the weights of another."""
    output = tmp_path_factory.mktemp("choice") / "run"
    outcome = fgssl("pretrain", "--init", finished_run()[0], "--data", photos(), *OPTIONS, "--output", output)
    assert outcome.code == 0, outcome.err
    return output


def test_the_encoder_is_the_candidate_that_is_judged_best(adapted: Path) -> None:
    choice = json.loads((adapted / "summary.json").read_text())["choice"]
    assert set(choice["judged"]) == {"start", "interpolated", "trained", "averaged"}
    assert choice["weights"] == best_of({name: Judgement(**told) for name, told in choice["judged"].items()})
    saved, chosen = load_file(adapted / "encoder.safetensors"), load_file(candidate_path(adapted, choice["weights"]))
    looks = {
        key for key in saved if key.startswith(("colocalizer.", "window_whitening."))
    }  # fitted to the chosen alone
    assert looks and saved.keys() - looks == chosen.keys()
    assert all(torch.equal(saved[key], chosen[key]) for key in chosen)


def test_the_summary_tells_what_zoom_is(adapted: Path) -> None:
    zoom, encoder = json.loads((adapted / "summary.json").read_text())["zoom"], load_encoder(str(adapted))
    assert zoom["window"] == ("middle" if encoder.finder is None else "common")
    assert zoom["weight"] == pytest.approx(encoder.window_weight, abs=1e-3)


def test_the_candidates_are_what_their_names_say(adapted: Path) -> None:
    found = {
        name: load_file(candidate_path(adapted, name)) for name in ("start", "interpolated", "trained", "averaged")
    }
    begun = load_file(finished_run()[0] / "encoder.safetensors")
    weights = [key for key in begun if key.startswith("backbone.") and begun[key].is_floating_point()]
    assert all(torch.equal(found["start"][key], begun[key]) for key in weights)
    assert any(not torch.equal(found["trained"][key], begun[key]) for key in weights)
    for key in weights:
        assert torch.allclose(found["interpolated"][key], (begun[key] + found["trained"][key]) / 2, atol=1e-6)
        low, high = torch.minimum(begun[key], found["trained"][key]), torch.maximum(begun[key], found["trained"][key])
        if key.endswith("running_mean"):  # at rest
            assert torch.equal(low, high)
    assert load_encoder(str(candidate_path(adapted, "start"))).rationale is None  # it was fitted to other maps
    assert load_encoder(str(candidate_path(adapted, "averaged"))).rationale is not None


def test_what_it_gained_over_the_start_is_that_of_two_separate_searches(adapted: Path) -> None:
    beside = json.loads((adapted / "summary.json").read_text())["against_start"]
    pool = load_encoder(str(adapted)).default_pool()
    own = fgssl("retrieve", adapted, "--pool", pool, "--json")
    start = fgssl("retrieve", finished_run()[0] / "timm", "--data", photos(), "--pool", "gap", "--json")
    assert (own.code, start.code) == (0, 0), own.err + start.err
    assert beside["rank1"] == pytest.approx(own.json()["rank1"])
    assert beside["start_rank1"] == pytest.approx(start.json()["rank1"])
    assert beside["low"] <= beside["difference"] <= beside["high"]


def test_broken_weights_are_not_kept(tmp_path: Path) -> None:
    """Weights that training has ruined lose against the start, without a label."""
    trainer = tiny_trainer(
        tmp_path,
        **{
            "backbone.init": str(finished_run()[0]),
            "backbone.name": "mobilenetv3_small_050",
            "backbone.freeze": "none",
        },
    )
    keep_start(trainer.setup)
    with torch.no_grad():
        for parameter in trainer.model.objective.backbone.parameters():
            parameter.normal_(std=3.0)
    choice = choose_encoder(trainer.setup)
    assert choice.judged["start"].standing_out > choice.judged["trained"].standing_out and choice.name != "trained"
    assert choice.encoder.whitening is not None


def test_from_scratch_and_frozen_there_is_nothing_to_choose() -> None:
    run = finished_run()[0]
    assert json.loads((run / "summary.json").read_text())["choice"] is None and not (run / "candidates").exists()
    outcome = fgssl(
        "pretrain", "--data", photos(), *OPTIONS, "--set", "training.choose=true", "--dry-run", "--no-pretrained"
    )
    assert outcome.code == 1 and "training.choose" in outcome.err


def test_a_finished_run_goes_on_from_the_trained_weights_not_from_the_chosen(adapted: Path) -> None:
    longer = fgssl("pretrain", "--resume", adapted, "--epochs", "3", "--allow-changes", "--quiet")
    assert longer.code == 0, longer.err
    assert json.loads((adapted / "summary.json").read_text())["choice"]["judged"].keys() >= {"start", "trained"}
