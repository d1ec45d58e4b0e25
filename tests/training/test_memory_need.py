"""Settings that cannot fit are refused by name before anything is built, and named where memory runs out later."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from unittest import mock

import pytest
import torch
from running import SHORT, TINY, fgssl, photos
from tiny_trainer import tiny_trainer

from fgssl.config.resolve import load_config
from fgssl.errors import FgsslError
from fgssl.training.diagnosis import check_memory, largest_settings, memory_needs
from fgssl.training.plan import make_plan


def test_needs_are_counted_as_the_modules_are(tmp_path: Path) -> None:
    """Against the parameters of a trainer that was built: weights, gradients and one average of each."""
    trainer = tiny_trainer(tmp_path, **{"rationale.projections": 48})
    plan, objective, head = trainer.plan, trainer.model.objective, trainer.model.encoder.rationale
    assert head is not None and objective.config.projector_hidden == plan.backbone.channels
    maps = 2 * 4 * 8 * 48 * plan.backbone.map_size[0] * plan.backbone.map_size[1]
    assert (
        plan.needs["rationale.projections"]
        == maps + 3 * 4 * (48 * plan.backbone.channels + 2 * 48 + 48) + 4 * (48 + 48) + 8
    )
    trained = 4 * sum(p.numel() for p in objective.projector.parameters())
    queue = sum(b.numel() * b.element_size() for b in (objective.queue, objective.queue_index, objective.queue_pointer))
    assert plan.needs["objective.projector_hidden"] == 4 * trained + queue + 4 * 8 * len(objective.queue)
    assert plan.needs["backbone.image_size"] == 2 * 3 * 4 * 8 * 64 * 64


@pytest.mark.parametrize("setting", ["rationale.projections=4096", "objective.projector_dim=16384"])
def test_a_setting_that_the_memory_does_not_hold_is_refused_by_name_in_the_dry_run(setting: str) -> None:
    key, _, value = setting.partition("=")
    with mock.patch("fgssl.training.diagnosis.free_memory", lambda _device: 10_000_000):
        error = fgssl("pretrain", "--data", photos(), *TINY, "--set", setting, "--dry-run").error()
    assert f"{key} {value} takes" in error and f"make {key} smaller" in error


def test_sizes_that_cannot_be_counted_are_infinite() -> None:
    config = load_config(sets=["training.batch_size=8"]).config
    rationale = dataclasses.replace(config.rationale, projections=2**62)
    training = dataclasses.replace(config.training, batch_size=8)
    backbone = dataclasses.replace(config.backbone, image_size=64)
    objective = dataclasses.replace(config.objective, projector_dim=8, momentum=0.9, temperature=0.1, queue_size=2**61)
    config = dataclasses.replace(config, rationale=rationale, training=training, backbone=backbone, objective=objective)
    needs = memory_needs(config, channels=512, map_size=(7, 7), images=10)
    assert needs["rationale.projections"] == needs["objective.queue_size"] == math.inf
    with pytest.raises(FgsslError, match="takes more than can be counted"):
        check_memory(needs, {key: 1 for key in needs}, torch.device("cpu"))


def test_the_largest_is_to_blame_and_what_fits_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(
        load_config(
            flags={"data.source": str(photos()), "backbone.pretrained": False}, sets=["backbone.name=resnet10t"]
        )
    )
    total = sum(plan.needs.values())
    for free, refused in ((total - 1, True), (total, False)):
        monkeypatch.setattr("fgssl.training.diagnosis.free_memory", lambda _device, free=free: free)
        if refused:
            with pytest.raises(FgsslError, match=r"cpu has .* GB free; make"):
                check_memory(plan.needs, {key: 1 for key in plan.needs}, plan.device)
        else:
            check_memory(plan.needs, {}, plan.device)
    monkeypatch.setattr("fgssl.training.diagnosis.free_memory", lambda _device: 10_000_000_000)
    assert largest_settings({"a": 5e9, "b": 1e8, "c": 2e9}, plan.device) == "a (5.0 GB), c (2.0 GB)"


@pytest.mark.parametrize(("place", "error"), [
    ("fgssl.training.setup.build_optimizer", RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")),
    ("fgssl.training.results.draw_overview", MemoryError()),
    ("fgssl.training.setup.open_pixels", OSError(12, "Cannot allocate memory")),
])  # fmt: skip
def test_memory_that_runs_out_anywhere_is_a_matter_of_settings(place: str, error: Exception, tmp_path: Path) -> None:
    evaluated = ("--set", "training.evaluate=true")
    with mock.patch(place, side_effect=error):
        line = fgssl("pretrain", "--data", photos(), *SHORT, *evaluated, "--output", tmp_path / "run").error()
    assert "the memory of cpu is exhausted" in line and "--batch-size" in line and "report" not in line


def test_cached_views_count_where_the_backbone_is_frozen() -> None:
    sets = ["backbone.name=resnet10t", "backbone.freeze=backbone", "backbone.cached_views=7"]
    plan = make_plan(load_config(flags={"data.source": str(photos()), "backbone.pretrained": False}, sets=sets))
    assert plan.needs["backbone.cached_views"] == 7 * 24
    assert memory_needs(plan.config, channels=4, map_size=(1, 1), images=10)["backbone.cached_views"] == 70
