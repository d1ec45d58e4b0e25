"""Frozen layers stay as they are; maps of a frozen backbone are made once and are those that it would make again."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_results import assert_equal_encoders, metrics
from running import BACKBONE, TINY, fgssl, photos
from safetensors.torch import load_file
from stopping import stopped_run

from fgssl.backbones import Backbone, build_backbone, freeze_backbone, layer_groups
from fgssl.config.resolve import load_config
from fgssl.data.cache.map_store import MapStore, entry_bytes, rounded
from fgssl.data.feed import StepSampler
from fgssl.errors import FgsslError
from fgssl.runtime.reporting import Reporter
from fgssl.training.feed import FrozenSampler
from fgssl.training.plan import Plan, make_plan
from fgssl.training.pretrain import build_trainer

FROZEN = (*TINY, "--freeze", "backbone")
SHAPE = (2, 3, 4, 5)


# ---- the store


def some_maps(seed: int) -> np.ndarray:
    return rounded(np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32))


def test_entries_come_back_and_others_are_missing(tmp_path: Path) -> None:
    store = MapStore(tmp_path / "deep" / "x.maps", images=6, slots=2, shape=SHAPE)
    assert store.kept == 6 and store.path.stat().st_size == 12 * entry_bytes(SHAPE)
    store.write(4, 1, some_maps(1), 5)
    again = MapStore(store.path, images=6, slots=2, shape=SHAPE)  # another process
    found = again.read(4, 1)
    assert found is not None and found[1] == 5 and np.array_equal(found[0], some_maps(1))
    present = {(i, s) for i in range(6) for s in range(2) if again.has(i, s)}
    assert present == {(4, 1)} and again.read(4, 0) is None and again.read(9, 0) is None


@pytest.mark.parametrize("place", [0, 8, 16, -1])
def test_a_damaged_entry_is_missing(place: int, tmp_path: Path) -> None:
    store = MapStore(tmp_path / "x.maps", images=2, slots=1, shape=SHAPE)
    store.write(1, 0, some_maps(2), 1)
    content = bytearray(store.path.read_bytes())
    start = entry_bytes(SHAPE)
    content[place if place < 0 else start + place] ^= 0xFF
    store.path.write_bytes(content)
    found = MapStore(store.path, images=2, slots=1, shape=SHAPE).read(1, 0)
    assert found is None or (place == 8 and np.array_equal(found[0], some_maps(2)))


def test_store_keeps_to_its_share_of_the_disk(tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=4 * 3 * entry_bytes(SHAPE) + 5)
    with mock.patch("shutil.disk_usage", return_value=usage):
        store = MapStore(tmp_path / "x.maps", images=100, slots=1, shape=SHAPE)
    assert store.kept == 3
    store.write(3, 0, some_maps(1), 3)
    assert store.read(3, 0) is None and store.path.stat().st_size == 3 * entry_bytes(SHAPE)


def test_values_beyond_float16_are_clipped() -> None:
    assert rounded(np.array([1e9, -1e9, 1.0], np.float32)).tolist() == [65504.0, -65504.0, 1.0]


# ---- what is made when


@given(
    length=st.integers(8, 30), batch=st.integers(1, 4), slots=st.integers(1, 3), epochs=st.integers(1, 7),
    world=st.integers(1, 2), share=st.floats(0, 1), kept=st.integers(0, 40),
)  # fmt: skip
def test_first_appearances_are_those_of_a_slow_search(
    length: int, batch: int, slots: int, epochs: int, world: int, share: float, kept: int
) -> None:
    batch, stop = batch * world, epochs * (length // (batch * world))
    seen: set[tuple[int, int]] = set()
    expected = []
    steps = [list(StepSampler(length, batch, seed=3, start=0, stop=stop, rank=r, world=world)) for r in range(world)]
    for keys in zip(*steps, strict=True):
        pairs = [[(key.epoch % slots, key.index) for key in part] for part in keys]
        expected.append([[pair not in seen or pair[1] >= kept for pair in part] for part in pairs])
        seen.update(pair for part in pairs for pair in part)
    start = int(share * stop)  # resumed here
    for rank in range(world):
        sampler = StepSampler(length, batch, seed=3, start=start, stop=stop, rank=rank, world=world)
        found = [[request.first for request in step] for step in FrozenSampler(sampler, slots=slots, kept=kept)]
        assert found == [step[rank] for step in expected[start:]]


def frozen_plan(**settings: object) -> Plan:
    flags = {
        "data.source": str(photos()), "backbone.name": BACKBONE, "backbone.pretrained": False,
        "backbone.image_size": 64, "backbone.freeze": "backbone", "training.batch_size": 8, "training.workers": 0,
        "training.device": "cpu", "training.epochs": 4, "training.mixed_precision": "no",
    }  # fmt: skip
    return make_plan(load_config(flags={**flags, **settings}))


@pytest.mark.parametrize("slots", [1, 2])
def test_maps_are_the_backbones_own_and_made_once(slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "cache"))
    plan = frozen_plan(**{"backbone.cached_views": slots})
    trainer = build_trainer(plan, tmp_path, Reporter())
    trainer.model.train()
    calls = 0
    original = Backbone.forward

    def counted(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return original(self, images)

    with mock.patch.object(Backbone, "forward", counted):
        inputs = [trainer.feed.inputs(batch) for batch in trainer.batches(0)]
    assert len(inputs) == 12 and calls == 2 * 3 * slots  # two views of three batches, in the first epochs only
    plain = StepSampler(24, 8, seed=0, start=0, stop=12)
    for keys, (maps, index) in zip(plain, inputs, strict=True):
        assert index.tolist() == [key.index for key in keys]
        drawn = [type(key)(key.epoch % slots, key.index) for key in keys]
        expected = trainer.model.feature_maps(trainer.views.__getitems__(drawn).views)
        torch.testing.assert_close(maps, expected, rtol=2e-3, atol=1e-4)  # float16 on disk


# ---- whole runs


def test_frozen_run_trains_the_heads_alone_and_its_file_is_an_encoder(tmp_path: Path) -> None:
    outcome = fgssl("pretrain", "--data", photos(), *FROZEN, "--output", tmp_path / "run")
    assert outcome.code == 0 and "the frozen backbone has random weights" in outcome.err
    saved = load_file(tmp_path / "run" / "encoder.safetensors")
    torch.manual_seed(0)
    untrained = build_backbone(BACKBONE, image_size=64, drop_path=0.2).model.state_dict()
    assert all(torch.equal(saved[f"backbone.{key}"], value) for key, value in untrained.items())
    before = build_trainer(frozen_plan(**{"backbone.drop_path": 0.2}), tmp_path, Reporter()).model
    assert before.encoder.rationale is not None
    for name, value in before.encoder.rationale.named_parameters():
        assert not torch.equal(saved[f"rationale.{name}"], value), name
    found = fgssl("retrieve", tmp_path / "run", "--json")
    assert found.code == 0 and found.json()["pool"] == "zoom"


def test_frozen_run_stopped_in_its_second_epoch_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "cold"))
    assert fgssl("pretrain", "--data", photos(), *FROZEN, "--output", tmp_path / "whole").code == 0
    assert fgssl("pretrain", "--data", photos(), *FROZEN, "--output", tmp_path / "warm").code == 0
    assert_equal_encoders(tmp_path / "whole", tmp_path / "warm")  # one that finds the maps of another
    for step, cache in ((1, "first"), (4, "second")):
        monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / cache))
        run = stopped_run(tmp_path / f"run{step}", FROZEN, step=step)
        assert fgssl("pretrain", "--resume", run, "--workers", "1").code == 0
        assert_equal_encoders(tmp_path / "whole", run)
        assert metrics(tmp_path / "whole") == metrics(run)


def test_maps_that_cannot_be_kept_are_made_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "file"))
    outcome = fgssl("pretrain", "--data", photos(), *FROZEN, "--output", tmp_path / "run")
    assert outcome.code == 0 and "feature maps cannot be kept" in outcome.err


# ---- the first layers


def test_first_groups_keep_weights_and_statistics_and_the_rest_learns(tmp_path: Path) -> None:
    plan = frozen_plan(**{"backbone.freeze": "3", "training.epochs": 1})
    frozen = {name for group in layer_groups(build_backbone(BACKBONE).model)[:3] for name in group}
    before = {key: value.clone() for key, value in plan.backbone.model.state_dict().items()}
    trainer = build_trainer(plan, tmp_path, Reporter())
    trainer.model.train()
    for step, batch in enumerate(trainer.batches(0)):
        trainer.step(step, batch)
    after = plan.backbone.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    learned = {name for name, _ in plan.backbone.model.named_parameters()} - set(plan.backbone.unused_parameters)
    assert changed.intersection(learned) == learned - frozen
    assert "blocks.1.0.bn1.running_mean" not in changed and "blocks.2.0.bn1.running_mean" in changed
    assert "bn1.num_batches_tracked" not in changed


def test_stage_names_of_the_groups() -> None:
    stages = [{name.partition(".")[0] for name in group} for group in layer_groups(build_backbone("resnet18").model)]
    assert stages == [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]


def test_too_many_groups_are_one_line() -> None:
    with pytest.raises(FgsslError, match="--freeze 5: resnet18 has 5 layer groups; use 1 to 4, or backbone for all"):
        freeze_backbone(build_backbone("resnet18"), 5)
    error = fgssl("pretrain", "--data", photos(), *TINY, "--freeze", "0", "--dry-run").error(2)
    assert "--freeze cannot be '0'; choose none, backbone, or a number of layer groups" in error
