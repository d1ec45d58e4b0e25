"""What of the backbone learns: scales and biases alone, or nothing until the heads have learned."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from running import fgssl, photos
from safetensors.torch import load_file
from tiny_trainer import tiny_trainer
from two_processes import learned

from fgssl.backbones import adapt_lora, adapt_norms, build_backbone, merge_lora, save_timm
from fgssl.config.resolve import load_config
from fgssl.errors import FgsslError
from fgssl.training.loop import Trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def changed(before: dict[str, torch.Tensor], trainer: Trainer) -> set[str]:
    return {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_scales_and_biases_alone_learn(name: str) -> None:
    """Against the shapes: all vectors, as these models have no others but layer scales."""
    backbone = build_backbone(name, image_size=64)
    adapt_norms(backbone)
    learning = {key for key, value in backbone.model.named_parameters() if value.requires_grad}
    vectors = {key for key, value in backbone.model.named_parameters() if value.ndim == 1}
    scales_of_layers = {key for key in vectors if key.endswith("gamma")}
    assert learning == vectors - scales_of_layers - set(backbone.unused_parameters) and learning
    assert backbone.parameters_trained == sum(backbone.model.get_parameter(key).numel() for key in learning)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_adapters_compute_what_the_weights_with_their_products_added_do(name: str) -> None:
    """Against weights changed by hand; at first nothing has changed, to the bit."""
    backbone = build_backbone(name, image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    before, start = backbone(images), copy.deepcopy(backbone.model.state_dict())
    adapt_lora(backbone, 4, seed=0)
    assert torch.equal(backbone(images), before)
    assert backbone.lora is not None and {key for key, p in backbone.named_parameters() if p.requires_grad} == {
        key for key, _ in backbone.named_parameters() if key.startswith("lora.")
    }
    for up in backbone.lora.up:
        torch.nn.init.normal_(up, std=0.1)
    other = copy.deepcopy(backbone)
    other.lora = None
    for key, up, down in zip(backbone.lora.names, backbone.lora.up, backbone.lora.down, strict=True):
        old = start[key]
        product = torch.einsum("or,ri->oi", up.detach(), down.detach()).reshape(old.shape)
        other.model.get_parameter(key).data = old + product
    adapted = backbone(images)
    assert not torch.allclose(adapted, before, atol=1e-3)
    torch.testing.assert_close(adapted, other(images))
    assert all(torch.equal(value, start[key]) for key, value in backbone.model.state_dict().items())
    merge_lora(backbone)
    torch.testing.assert_close(backbone(images), adapted)


def test_a_run_with_adapters_leaves_weights_of_low_rank_from_its_start_that_plain_timm_opens(tmp_path: Path) -> None:
    """Against the singular values of the differences; BatchNorm, biases and depthwise weights are as they were."""
    start = build_backbone("test_convnext", image_size=64)
    save_timm(start, tmp_path / "start")
    sets = ("backbone.adapt=lora", "backbone.lora_rank=2", "training.choose=false")
    options = [word for one in sets for word in ("--set", one)] + ["--epochs", "2", "--lr", "0.1", "--batch-size", "8"]
    run = ("--init", tmp_path / "start", "--data", photos(), "--image-size", "64", "--output", tmp_path / "run")
    done = fgssl("pretrain", *run, *options)
    assert done.code == 0, done.err
    found, learned = load_file(tmp_path / "run" / "timm" / "model.safetensors"), set[str]()
    for key, before in start.model.state_dict().items():
        change = (found[key] - before).flatten(1) if before.ndim > 1 else found[key] - before
        if change.any():
            learned.add(key)
            values = torch.linalg.svdvals(change.double())
            assert values[2:].max() < 1e-5 * values[0], key
    assert "stages.0.blocks.0.mlp.fc1.weight" in learned and "stages.0.blocks.0.conv_dw.weight" not in learned
    again = fgssl("pretrain", "--resume", tmp_path / "run", "--epochs", "3", "--allow-changes")
    assert again.code == 0, again.err


def test_a_step_changes_the_adapted_weights_and_the_heads_only(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, **{"backbone.adapt": "norm", "objective.name": "simsiam"})
    before = weights(trainer)
    trainer.step(0, next(trainer.batches(0)))
    moved = changed(before, trainer)
    inside = {name for name in moved if name.startswith("objective.backbone.")}
    assert inside and all(before[name].ndim == 1 for name in inside)
    assert any(name.startswith("objective.projector.") for name in moved)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_backbone_rests_while_the_heads_learn(optimizer: str, tmp_path: Path) -> None:
    """Eight images a batch of twelve: an epoch has one step. Afterwards a step is that of a fresh optimiser."""
    settings = {"training.head_epochs": 2.0, "training.epochs": 4, "optimizer.name": optimizer}
    trainer = tiny_trainer(tmp_path, **{"objective.name": "simsiam", **settings})
    start = weights(trainer)
    for step, batch in enumerate(trainer.batches(0)):
        before = weights(trainer)
        trainer.step(step, batch)
        moved = changed(before, trainer)
        assert any("projector" in name for name in moved)
        inside = {name for name in start if name.startswith("objective.backbone.")}
        assert moved.isdisjoint(inside) if step < 2 else moved & inside
        kept = [trainer.optimizer.state.get(p, {}) for p in trainer.plan.backbone.parameters()]
        averages = [value.abs().max() for one in kept for key, value in one.items() if key != "step"]
        assert any(averages) == (step >= 2)
    assert step == 3


def test_a_state_saved_while_the_backbone_rests_goes_on_bit_by_bit(tmp_path: Path) -> None:
    settings = {"training.head_epochs": 2.0, "training.epochs": 4, "optimizer.name": "adamw"}
    settings["objective.name"] = "simsiam"
    first, second = (tiny_trainer(tmp_path, **settings) for _ in range(2))
    for step, batch in enumerate(first.batches(0)):
        if step == 1:
            second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
            second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
            torch.manual_seed(7)
        first.step(step, batch)
    torch.manual_seed(7)
    for step, batch in enumerate(second.batches(1), start=1):
        second.step(step, batch)
    assert all(torch.equal(value, second.model.state_dict()[key]) for key, value in first.model.state_dict().items())


@pytest.mark.parametrize(
    ("sets", "problem"),
    [
        (("training.head_epochs=4", "training.epochs=4"), "head_epochs 4 of 4 leave the backbone none"),
        (("training.head_epochs=1", "backbone.freeze=backbone"), "leaves the heads alone all the time"),
        (("backbone.adapt=norm", "backbone.freeze=backbone"), "leaves nothing to backbone.adapt"),
        (("backbone.adapt=lora", "training.checkpoint_gradients=true"), "lora leaves --checkpoint-gradients"),
    ],
)
def test_contradictions_are_refused(sets: tuple[str, ...], problem: str) -> None:
    with pytest.raises(FgsslError, match=problem):
        load_config(sets=sets)


def test_two_processes_rest_and_adapt_as_one_does() -> None:
    folder = learned("adapted")
    one, two = (
        [json.loads(line)["loss"] for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("alone", "run")
    )
    assert two == pytest.approx(one, rel=1e-4, abs=1e-4)
    first, second = (torch.load(folder / f"rank{rank}.pt") for rank in (0, 1))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
