"""Where a run starts: weights of every origin, and the defaults that suit them. The oracle is plain timm."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import timm
import torch
from hub_server import Repository, serve
from run_results import assert_equal_encoders
from running import BACKBONE, TINY, fgssl, finished_run, photos
from safetensors.torch import load_file, save_file
from stopping import stopped_run

from fgssl.backbones import Backbone, build_backbone, origin_of, save_timm
from fgssl.config.resolve import load_config
from fgssl.config.schema import OptimizerConfig
from fgssl.runtime.reporting import Reporter
from fgssl.training.model import build_optimizer, learning_rate, parameter_groups, set_rate
from fgssl.training.plan import derived_batch, make_plan
from fgssl.training.pretrain import build_trainer


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a small ViT as timm's folder."""
    torch.manual_seed(7)
    return save_timm(build_backbone("test_vit", image_size=32), tmp_path_factory.mktemp("vit") / "timm")


def plan_of(**settings: Any) -> Any:
    flags = {"data.source": str(photos()), "training.batch_size": 8, "training.device": "cpu", "training.workers": 0}
    return make_plan(load_config(flags={**flags, **settings}))


# ---- --init


def test_a_run_starts_another_with_its_model_size_and_weights() -> None:
    run, _ = finished_run()
    for source in (run, run / "encoder.safetensors", run / "timm", f"local-dir:{run / 'timm'}"):
        plan = plan_of(**{"backbone.init": str(source)})
        assert plan.config.backbone.name == "mobilenetv3_small_050" and plan.config.backbone.image_size == 64
        assert plan.origins["backbone.name"] == "derived: from --init"
        saved = load_file(run / "encoder.safetensors")
        for key, value in plan.backbone.model.state_dict().items():
            assert torch.equal(value, saved[f"backbone.{key}"]), key
        assert plan.warnings() == [] and plan.initial.missing == () and plan.initial.unexpected == ()


def test_an_asked_backbone_and_size_win_over_those_of_the_weights(vit_folder: Path) -> None:
    plan = plan_of(**{"backbone.init": str(vit_folder), "backbone.name": "test_vit", "backbone.image_size": 64})
    assert plan.backbone.map_size == (4, 4)
    plain = timm.create_model("test_vit", img_size=64, num_classes=0)
    weights = load_file(vit_folder / "model.safetensors")
    resized = timm.layers.resample_abs_pos_embed(
        weights["pos_embed"], new_size=[4, 4], num_prefix_tokens=plain.num_prefix_tokens
    )
    torch.testing.assert_close(plan.backbone.model.pos_embed, resized)


def test_keys_without_a_partner_are_listed(vit_folder: Path, tmp_path: Path) -> None:
    weights = load_file(vit_folder / "model.safetensors")
    weights["extra.weight"] = weights.pop("norm.weight")
    save_file(weights, tmp_path / "w.safetensors")
    options = ("--backbone", "test_vit", "--image-size", "32", "--set", "backbone.drop_path=0", "--init")
    options = (*(option for option in TINY if option != "--no-pretrained"), *options, tmp_path / "w.safetensors")
    outcome = fgssl("pretrain", "--data", photos(), *options, "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    facts = outcome.json()["facts"]["initial_weights"]
    assert facts["missing"] == ["norm.weight"] and facts["unexpected"] == ["extra.weight"]
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 2 and "lacks 1 weights, left as they were: norm.weight" in warnings[0]
    assert "1 weights without a place: extra.weight" in warnings[1]


def test_what_cannot_start_a_run_is_one_line(tmp_path: Path) -> None:
    def error(*options: str | Path, code: int = 1) -> str:
        return fgssl("pretrain", "--data", photos(), "--backbone", "resnet18", *options, "--dry-run").error(code)

    both = error("--pretrained", "--init", "x.safetensors", code=2)
    assert "--pretrained and --init are both given; choose one" in both
    assert "no such file or folder: x.safetensors" in error("--init", "x.safetensors")
    assert "has no weights; it needs one of" in error("--init", tmp_path)
    torch.save({"conv1.weight": torch.ones(64, 3, 3, 3)}, tmp_path / "w.pth")
    assert "conv1.weight is (64, 3, 3, 3) instead of (64, 3, 7, 7)" in error("--init", tmp_path / "w.pth")
    torch.save(timm.create_model("test_resnet"), tmp_path / "code.pth")
    assert "reading it would run code stored in it" in error("--init", tmp_path / "code.pth")


def test_origin_of_a_plain_state_dict_is_unknown(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "w.safetensors")
    assert origin_of(tmp_path / "w.safetensors") is None and origin_of("no/such/file.safetensors") is None
    assert origin_of("resnet18.a1_in1k") == ("resnet18.a1_in1k", None)


HUB = """
import json, sys
from fgssl.training.plan import make_plan
from fgssl.config.resolve import load_config
found = []
for flags in ({"backbone.name": "hf-hub:me/vit"}, {"backbone.init": "hf-hub:me/vit"},
              {"backbone.init": "hf-hub:me/vit", "backbone.name": "test_vit", "backbone.image_size": 48}):
    base = {"data.source": sys.argv[1], "training.batch_size": 8, "training.device": "cpu", "backbone.freeze": "none"}
    plan = make_plan(load_config(flags={**base, **flags}))
    weights = plan.backbone.model.state_dict()
    sums = [float(weights[key].sum()) for key in ("blocks.0.attn.qkv.weight", "norm.bias")]
    found.append([plan.backbone.architecture, plan.backbone.image_size, *sums, plan.config.optimizer.layer_decay,
                  plan.warnings()])
print(json.dumps(found))
"""


def test_weights_under_a_hub_name_start_a_run_from_a_loopback_hub(vit_folder: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in vit_folder.iterdir()}
    weights = load_file(vit_folder / "model.safetensors")
    sums = [float(weights["blocks.0.attn.qkv.weight"].sum()), float(weights["norm.bias"].sum())]
    with serve({"me/vit": Repository(files, kind="model")}) as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "hub"), "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, "-c", HUB, str(photos())], capture_output=True, text=True, env=environment, timeout=120,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [row[:2] for row in found] == [["test_vit", 32], ["test_vit", 32], ["test_vit", 48]]
    for row in found:
        assert row[2:4] == pytest.approx(sums) and row[4:] == [0.75, []]


# ---- defaults


@pytest.mark.parametrize(
    ("asked", "freeze"),
    [
        ({}, "backbone"),
        ({"objective.name": "byol"}, "none"),
        ({"optimizer.layer_decay": 0.5}, "none"),
        ({"backbone.freeze": "none"}, "none"),
        ({"backbone.freeze": "1"}, "1"),
        ({"training.epochs": 3, "optimizer.lr": 1e-3}, "backbone"),
    ],
)
def test_trained_weights_rest_unless_what_trains_them_is_asked_for(
    asked: dict[str, Any], freeze: str, tmp_path: Path
) -> None:
    start = str(save_timm(build_backbone("test_resnet", image_size=64), tmp_path / "cnn"))
    plan = plan_of(**{"backbone.init": start}, **asked)
    assert plan.config.backbone.freeze == freeze and plan.backbone.frozen == (freeze == "backbone")
    assert plan.config.backbone.whitening and plan.config.training.choose == (freeze != "backbone")


def test_from_scratch_all_trains() -> None:
    plan = plan_of(**{"backbone.name": "test_resnet", "backbone.pretrained": False, "backbone.image_size": 64})
    assert plan.config.backbone.freeze == "none" and not plan.backbone.frozen


def test_each_start_has_its_own_defaults(vit_folder: Path, tmp_path: Path) -> None:
    cnn = save_timm(build_backbone("test_resnet", image_size=64), tmp_path / "cnn")
    rows = {}
    for name, settings in {
        "scratch": {"backbone.name": "test_resnet", "backbone.pretrained": False, "backbone.image_size": 64},
        "cnn": {"backbone.init": str(cnn), "backbone.freeze": "none"},
        "transformer": {"backbone.init": str(vit_folder), "backbone.freeze": "none"},
        "frozen": {"backbone.init": str(vit_folder), "backbone.freeze": "backbone"},
    }.items():
        plan = plan_of(**settings, **{"training.epochs": 20})
        o = plan.config.optimizer
        rows[name] = (o.name, o.lr, o.layer_decay, o.warmup_epochs, plan.config.backbone.drop_path)
        for key in ("name", "lr", "layer_decay", "warmup_epochs", "weight_decay"):
            assert plan.origins[f"optimizer.{key}"].startswith("derived: "), key
    assert rows == {
        "scratch": ("adamw", 1e-3, 1.0, 0.0, None),
        "cnn": ("sgd", 0.03 * 8 / 128, 1.0, 0.0, None),
        "transformer": ("adamw", 1e-4, 0.75, 2.0, 0.1),
        "frozen": ("adamw", 1e-3, 1.0, 0.0, None),
    }
    asked = plan_of(**{"backbone.init": str(vit_folder), "optimizer.layer_decay": 0.5, "backbone.drop_path": 0.0})
    assert asked.config.optimizer.layer_decay == 0.5 and asked.config.backbone.drop_path == 0.0


def batch_norms(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in backbone.model.named_buffers() if "running" in key}


def test_batch_norm_of_a_trained_start_keeps_its_statistics_and_learns_its_weights(tmp_path: Path) -> None:
    trained = build_backbone("test_resnet", image_size=64)
    for value in (value for key, value in trained.model.named_buffers() if "running" in key):
        value.uniform_(0.5, 1.5)
    start = {"backbone.init": str(save_timm(trained, tmp_path / "cnn")), "backbone.freeze": "none"}
    plan = plan_of(**start, **{"training.batch_size": 4})
    assert plan.config.backbone.batch_norm == "rest" and "trained weights" in plan.origins["backbone.batch_norm"]
    trainer = build_trainer(plan, tmp_path / "run", Reporter())
    backbone, target = trainer.model.encoder.backbone, trainer.model.objective.key_backbone
    before, weight = batch_norms(backbone), backbone.model.bn1.weight.detach().clone()
    trainer.model.train()
    for step, batch in zip(range(2), trainer.batches(0), strict=False):
        trainer.step(step, batch)
    for found in (batch_norms(backbone), batch_norms(target)):
        assert all(torch.equal(found[key], before[key]) for key in before)
    assert not torch.equal(backbone.model.bn1.weight, weight)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.train()(images), backbone.eval()(images))


def test_batch_norm_of_the_batch_is_from_scratch_and_where_asked_for(tmp_path: Path) -> None:
    cnn = save_timm(build_backbone("test_resnet", image_size=64), tmp_path / "cnn")
    scratch = {"backbone.name": "test_resnet", "backbone.pretrained": False, "backbone.image_size": 64}
    for settings in (scratch, {"backbone.init": str(cnn), "backbone.batch_norm": "batch"}):
        plan = plan_of(**settings)
        assert plan.config.backbone.batch_norm == "batch" and plan.backbone.train().model.bn1.training


def test_adamw_of_channels_last_weights_is_torchs_and_hands_over_what_is_contiguous() -> None:
    """Bit for bit, over a saved and loaded state as well; with kernels of 1 x 1, which have both memory formats."""
    torch.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 5, 1, bias=False))
    ours.to(memory_format=torch.channels_last)
    theirs = copy.deepcopy(ours)
    config = OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.05)
    optimizer = build_optimizer(ours, config, torch.device("cpu"))
    plain = torch.optim.AdamW(parameter_groups(theirs, config), lr=0.1, fused=True)
    kernel, strides = torch._fused_adamw_, []
    for step in range(4):
        for model in (ours, theirs):
            model.zero_grad()
            generator = torch.Generator().manual_seed(step)
            images = torch.randn(2, 3, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
            model(images).square().sum().backward()
        if step == 2:
            kept = io.BytesIO()
            torch.save(optimizer.state_dict(), kept)
            optimizer = build_optimizer(ours, config, torch.device("cpu"))
            optimizer.load_state_dict(torch.load(io.BytesIO(kept.getvalue())))

        def called(*lists: Any, **options: Any) -> Any:
            strides.extend(tensor.is_contiguous() for tensors in lists[:4] for tensor in tensors)
            return kernel(*lists, **options)

        with mock.patch("torch._fused_adamw_", called):
            optimizer.step()
        plain.step()
    assert len(strides) == 4 * 4 * 5 and all(strides)
    for first, second in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(first, second)
        assert optimizer.state[first]["exp_avg"].shape == first.shape


def test_layers_learn_at_powers_of_the_decay() -> None:
    backbone = build_backbone("vit_tiny_patch16_224", image_size=32)
    model = torch.nn.ModuleDict({"backbone": backbone, "projector": torch.nn.Linear(192, 4)})
    config = OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.05, layer_decay=0.5, warmup_epochs=0.0)
    optimizer = build_optimizer(model, config, torch.device("cpu"), backbone=backbone)
    set_rate(optimizer, 0.1)
    rates, decays = {}, {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            rates[id(parameter)], decays[id(parameter)] = group["lr"], group["weight_decay"]
    names = {name: id(value) for name, value in backbone.model.named_parameters()}
    assert len(rates) == len(list(model.parameters()))
    for block in range(12):  # the stem is layer 0, block b is layer b + 1, the last block and norm the 12th
        assert rates[names[f"blocks.{block}.mlp.fc1.weight"]] == pytest.approx(0.1 * 0.5 ** (11 - block))
    assert rates[names["patch_embed.proj.weight"]] == pytest.approx(0.1 * 0.5**12)
    assert rates[id(model["projector"].weight)] == 0.1 and rates[names["norm.weight"]] == 0.1
    assert decays[names["pos_embed"]] == decays[names["cls_token"]] == decays[names["norm.weight"]] == 0
    assert decays[names["blocks.0.mlp.fc1.weight"]] == decays[id(model["projector"].weight)] == 0.05
    assert decays[id(model["projector"].bias)] == 0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_every_trained_parameter_is_in_one_group(name: Any, layer_decay: float) -> None:
    backbone = build_backbone("test_convnext", image_size=64)  # with an unused norm, which is not trained
    model = torch.nn.ModuleDict({"backbone": backbone, "head": torch.nn.Linear(4, 4)})
    config = OptimizerConfig(name=name, lr=0.1, weight_decay=0.05, layer_decay=layer_decay)
    groups = parameter_groups(model, config, backbone)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    if name == "sgd":  # as the paper: everything decays
        assert all(group.get("weight_decay", 0.05) == 0.05 for group in groups)


def test_warm_up_rises_linearly_to_the_peak() -> None:
    config = OptimizerConfig(name="adamw", lr=0.4, weight_decay=0.0, warmup_epochs=0.5)
    rates = [learning_rate(step, config, steps_per_epoch=8, total_steps=16) for step in range(16)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4]) and rates[10] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("images", "parts", "batch"),
    [(5994, 1, 128), (5887, 1, 64), (2943, 1, 32), (1472, 1, 32), (1470, 1, 30), (60, 1, 30), (60, 4, 20), (61, 1, 30),
     (33, 1, 32), (20, 1, 20), (21, 2, 20), (96, 40, 80), (96, 64, 128), (5994, 100, 200), (5994, 40, 120)],
)  # fmt: skip
def test_the_derived_batch_leaves_little_out(images: int, parts: int, batch: int) -> None:
    assert derived_batch(images, parts=parts)[0] == batch


# ---- whitening


def test_a_run_from_trained_weights_whitens_and_one_from_scratch_does_not(tmp_path: Path) -> None:
    run, _ = finished_run()
    options = ("--backbone", BACKBONE, "--image-size", "64", "--batch-size", "8", "--max-steps", "2")
    for name, more, whitened in (
        ("trained", ("--init", run), True),
        ("refused", ("--init", run, "--set", "backbone.whitening=false"), False),
        ("scratch", ("--no-pretrained",), False),
    ):
        outcome = fgssl("pretrain", "--data", photos(), *options, *more, "--output", tmp_path / name)
        assert outcome.code == 0, outcome.err
        keys = load_file(tmp_path / name / "encoder.safetensors").keys()
        assert ("whitening.weight" in keys) == whitened, name
    rows = fgssl("retrieve", tmp_path / "trained", "--pool", "gap", "--json").json()
    plain = fgssl("retrieve", tmp_path / "refused", "--pool", "gap", "--json").json()
    assert rows != plain


def test_a_stopped_run_whitens_as_one_left_alone(tmp_path: Path) -> None:
    options = (*TINY, "--init", str(finished_run()[0]))
    whole = tmp_path / "whole"
    assert fgssl("pretrain", "--data", photos(), *options, "--output", whole).code == 0
    stopped = stopped_run(tmp_path / "stopped", options)
    assert fgssl("pretrain", "--resume", stopped).code == 0
    assert "whitening.bias" in load_file(whole / "encoder.safetensors")
    assert_equal_encoders(whole, stopped)
