"""Steps in parts, checkpointed and compiled: the same training with less memory, or faster."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from running import BACKBONE, TINY, fgssl, flat_photos
from tiny_trainer import tiny_trainer

from fgssl.backbones import build_backbone
from fgssl.errors import FgsslError
from fgssl.runtime.machine import peak_memory


def test_a_step_in_parts_averages_their_gradients_and_moves_the_key_encoder_once(tmp_path):
    """Against the parts worked through by hand on a copy of the model."""
    trainer = tiny_trainer(tmp_path, **{"training.accumulate": 2})
    by_hand, batch = copy.deepcopy(trainer.model), next(trainer.batches(0))
    momentum = by_hand.objective.momentum
    start = [p.clone() for p in by_hand.objective.key_projector.parameters()]
    source = [p.clone() for p in by_hand.objective.projector.parameters()]
    with mock.patch.object(trainer.optimizer, "zero_grad"):  # so that the gradients can be looked at
        output = trainer.step(0, batch)
    losses = []
    for part in range(2):
        rows = slice(4 * part, 4 * part + 4)
        by_hand.objective.update_target = part == 0
        result = by_hand(batch.views[:, rows], batch.index[rows], 1.0)
        (result.total / 2).backward()
        losses.append(result.loss)
    assert output.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-6)
    assert output.features.shape[0] == 8
    for ours, theirs in zip(trainer.model.parameters(), by_hand.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    for key, before, query in zip(trainer.model.objective.key_projector.parameters(), start, source, strict=True):
        assert torch.allclose(key, momentum * before + (1 - momentum) * query, atol=1e-7)
    assert trainer.model.objective.queue_pointer.item() == by_hand.objective.queue_pointer.item()


def test_two_processes_average_a_step_in_parts_once(tmp_path):
    """Gradients travel after the last part only, and are the mean over parts and processes; weights stay equal."""
    script = Path(__file__).parents[1] / "support" / "parts_of_two.py"
    words = [sys.executable, str(script), str(tmp_path)]
    code = f"from fgssl.runtime.processes import launch\nprint(launch({words!r}, 2).problem, flush=True)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parents[1]), str(script.parent)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert found["images"] == 4 and found["unequal"] == []
    assert found["travelled"] and len(set(found["travelled"])) == len(found["travelled"])
    assert found["largest"] > 1e-3 and found["worst"] < 1e-6


@pytest.mark.parametrize("parts,problem", [("3", "cannot be divided into 3 parts"), ("8", "cannot be divided into 8")])
def test_parts_must_divide_the_batch_and_hold_two_images(parts, problem, tmp_path):
    outcome = fgssl("pretrain", "--data", flat_photos(), *TINY, "--accumulate", parts, "--output", tmp_path / "run")
    assert problem in outcome.error()


def test_more_parts_than_the_data_has_images_for_are_refused_by_name(tmp_path):
    options = ("--backbone", BACKBONE, "--no-pretrained", "--image-size", "64", "--accumulate", "500")
    outcome = fgssl("pretrain", "--data", flat_photos(), *options, "--output", tmp_path / "run")
    assert "--accumulate 500 makes more parts" in outcome.error() and not (tmp_path / "run").exists()


def test_checkpointed_gradients_are_the_same(tmp_path):
    """And fewer tensors are kept for the backward pass."""
    results = {}
    for checkpointed in (False, True):
        trainer = tiny_trainer(tmp_path, **{"training.checkpoint_gradients": checkpointed})
        trainer.prepare_backbone()
        batch, kept = next(trainer.batches(0)), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            output = trainer.wrapped(batch.views, batch.index, 1.0)
        output.total.backward()
        results[checkpointed] = (sum(kept), output.total.item(), [p.grad for p in trainer.model.parameters()])
    assert results[True][0] < 0.5 * results[False][0]
    assert results[True][1] == pytest.approx(results[False][1], rel=1e-6)
    for a, b in zip(results[True][2], results[False][2], strict=True):
        assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, atol=1e-5))


@pytest.mark.parametrize("parts", [1, 2])
def test_checkpointed_gradients_leave_the_running_statistics_of_one_forward(parts, tmp_path):
    """Weights and buffers after two steps: the backbone's forwards are computed twice, its images counted once."""
    states = []
    for checkpointed in (False, True):
        settings = {"training.checkpoint_gradients": checkpointed, "training.accumulate": parts}
        trainer = tiny_trainer(tmp_path, **settings)
        trainer.prepare_backbone()
        for step, batch in zip(range(2), trainer.batches(0), strict=False):
            trainer.step(step, batch)
        states.append(trainer.model.state_dict())
    counted = [int(value) for name, value in states[1].items() if name.endswith("num_batches_tracked")]
    assert max(counted) == 2 * parts
    for name, value in states[0].items():
        torch.testing.assert_close(
            states[1][name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_model_without_checkpointing_says_so():
    backbone = build_backbone(BACKBONE, image_size=64)
    with (
        mock.patch.object(backbone.model, "set_grad_checkpointing", side_effect=AssertionError),
        pytest.raises(FgsslError, match="offers no gradient checkpointing"),
    ):
        backbone.checkpoint_gradients()


def test_compiling_wraps_the_backbones_alone_and_is_undone(tmp_path):
    """With a stand-in for the compiler, which takes minutes: who is compiled, and that names of weights stay."""
    trainer = tiny_trainer(tmp_path, **{"training.compile": True})
    names = list(trainer.model.state_dict())
    with mock.patch("torch.compile", side_effect=lambda call, *_args, **_kwargs: call) as compiler:
        trainer.prepare_backbone()
    assert compiler.call_count == 2  # query and key
    assert list(trainer.model.state_dict()) == names
    trainer.step(0, next(trainer.batches(0)))
    trainer.model.objective.forget_compiled()
    assert all(module._compiled_call_impl is None for module in trainer.model.objective.backbones())


def test_peak_memory_grows_with_what_is_used():
    before = peak_memory(torch.device("cpu"))
    block = torch.ones(int((before + 0.05) * 2**30 / 4) if before < 0.3 else 1)
    assert peak_memory(torch.device("cpu")) >= max(before, 0.01) and block.numel()


def test_peak_memory_is_this_process_own():
    """Not that of the one it was started by, which `getrusage` hands down."""
    block = torch.ones(600 * 2**20 // 4)
    code = "import torch; from fgssl.runtime.machine import peak_memory; print(peak_memory(torch.device('cpu')))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.05 < float(told) < peak_memory(torch.device("cpu")) - 0.2 and block.numel()
