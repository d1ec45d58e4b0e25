"""What only a GPU can show: `pytest -m gpu -n 0 tests/training/test_gpu.py`, which recipes/bench/gpu_day.sh runs.

FGSSL_GPU_TESTS names the device, by default cuda; cpu rehearses: each check starts, and what the CPU lacks is skipped.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from running import SHORT, fgssl, photos, plain_run
from safetensors.torch import load_file
from tiny_trainer import tiny_trainer
from two_processes import OPTIONS, launched

from fgssl.errors import TrainingFault
from fgssl.training.loop import Trainer

DEVICE = torch.device(os.environ.get("FGSSL_GPU_TESTS", "cuda"))
HERE = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}[DEVICE.type]()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason=f"no {DEVICE} here")]
only_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="CUDA alone has it")


def trainer_on(device: torch.device, folder: Path, **settings: object) -> Trainer:
    return tiny_trainer(folder, **{"training.device": str(device), **settings})


@contextlib.contextmanager
def nothing_read_back() -> Iterator[None]:
    """Any wait for CUDA inside the block is an error; elsewhere the `meta` device stands in (test_device_paths.py)."""
    if DEVICE.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def steps_of(trainer: Trainer, count: int, *, begin: int = 0) -> list[float]:
    totals = []
    for step, batch in zip(range(begin, begin + count), trainer.batches(begin), strict=False):
        totals.append(trainer.step(step, batch).total)
    return torch.stack(totals).tolist()


def test_views_on_the_device_are_those_of_the_cpu(tmp_path: Path) -> None:
    trainer = trainer_on(DEVICE, tmp_path)
    trainer.views.on_device = True
    batch = next(trainer.batches(0))
    ours, expected = batch.views_on(DEVICE).cpu().float(), batch.views_on(torch.device("cpu")).float()
    assert (ours - expected).abs().max() <= 1 and (ours - expected).abs().mean() < 0.01


@only_cuda
def test_batches_are_pinned(tmp_path: Path) -> None:
    trainer = trainer_on(DEVICE, tmp_path, **{"training.workers": 1})
    batch = next(trainer.batches(0))
    assert batch.views.pixels.is_pinned() and batch.index.is_pinned()


@pytest.mark.parametrize("name", ["mocov2", "byol", "simclr", "dino", "stml"])
def test_steps_are_those_of_the_cpu_and_nothing_is_read_back(name: str, tmp_path: Path) -> None:
    """In float32, from the same weights and views: loss, fit and total of three steps."""
    settings = {"objective.name": name, "optimizer.name": "sgd", "optimizer.lr": 0.01}
    ours, theirs = (trainer_on(device, tmp_path, **settings) for device in (DEVICE, torch.device("cpu")))
    ours.views.on_device = False  # exactly the CPU's
    ours.model.load_state_dict(theirs.model.state_dict())
    found, expected = [], []
    batches = zip(range(3), ours.batches(0), theirs.batches(0), strict=False)
    for step, batch, other in batches:
        with nothing_read_back() if step > 0 else contextlib.nullcontext():  # in the first memory is taken
            output = ours.step(step, batch)
        found.append(torch.stack([output.loss, output.fit, output.total]))
        output = theirs.step(step, other)
        expected.append(torch.stack([output.loss, output.fit, output.total]))
    torch.testing.assert_close(torch.stack(found).cpu(), torch.stack(expected), rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=only_cuda)])
def test_mixed_precision_learns_what_float32_does(precision: str, tmp_path: Path) -> None:
    """GradCAM inside the forward, with fp16's scaler around it."""
    losses = {}
    for asked in ("no", precision):
        trainer = trainer_on(DEVICE, tmp_path, **{"training.mixed_precision": asked, "optimizer.lr": 0.01})
        losses[asked] = steps_of(trainer, 12)
        assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    assert losses[precision][0] == pytest.approx(losses["no"][0], rel=0.05)
    assert sum(losses[precision][-4:]) == pytest.approx(sum(losses["no"][-4:]), rel=0.2)


def test_channels_last_computes_what_contiguous_does(tmp_path: Path) -> None:
    totals = []
    for last in (True, False):
        trainer = trainer_on(DEVICE, tmp_path, **{"backbone.name": "test_resnet"})
        trainer.plan.backbone.channels_last = last
        trainer.model.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        totals.append(steps_of(trainer, 3))
    assert totals[0] == pytest.approx(totals[1], rel=1e-2)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="minutes of compiling; test_device_paths.py has other backends")
@pytest.mark.parametrize("name", ["mocov2", "dino"])
def test_compiled_steps_are_the_steps(name: str, tmp_path: Path) -> None:
    totals = []
    for compiled in (False, True):
        settings = {"objective.name": name, "backbone.name": "test_resnet", "training.compile": compiled}
        trainer = trainer_on(DEVICE, tmp_path, **settings)
        trainer.prepare_backbone()
        totals.append(steps_of(trainer, 3))
    assert totals[0] == pytest.approx(totals[1], rel=1e-2)


def test_a_resumed_run_ends_as_one_left_alone(tmp_path: Path) -> None:
    """drop_path draws from the device's generator; kernels that add in any order leave small differences."""
    options = ("--data", photos(), *SHORT, "--max-steps", "6", "--device", DEVICE.type, "--save-every", "3")
    more = ("--set", "training.keep_states=true")
    assert fgssl("pretrain", *options, *more, "--output", tmp_path / "alone").code == 0
    assert fgssl("pretrain", *options, *more, "--output", tmp_path / "cut").code == 0
    for file in (tmp_path / "cut" / "resume").glob("000000006.*"):
        file.unlink()
    (tmp_path / "cut" / "encoder.safetensors").unlink()
    (tmp_path / "cut" / "summary.json").unlink(missing_ok=True)
    assert fgssl("pretrain", "--resume", tmp_path / "cut").code == 0
    ours, expected = (load_file(tmp_path / run / "encoder.safetensors") for run in ("cut", "alone"))
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-2, atol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


@only_cuda
def test_what_to_do_where_memory_runs_out_is_right(tmp_path: Path) -> None:
    """The batch that is said to fit does, and the one that did not does not."""
    settings = {"backbone.name": "resnet18", "backbone.image_size": 128, "training.batch_size": 12}
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    trainer = trainer_on(DEVICE, tmp_path, **settings)
    batch = next(trainer.batches(0))
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 200 * 2**20) / total)
    try:
        with pytest.raises(TrainingFault, match=r"does not fit into the memory of cuda.*fits \(tried\).*--accumulate"):
            trainer.step(0, batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_embeddings_are_those_of_the_cpu(tmp_path: Path) -> None:
    for pool in ("gap", "zoom"):
        for name, device in (("ours", DEVICE.type), ("theirs", "cpu")):
            options = ("--data", photos(), "--pool", pool, "--device", device)
            assert fgssl("embed", plain_run(), *options, "--output", tmp_path / f"{pool}-{name}").code == 0
        found, expected = (load_file(tmp_path / f"{pool}-{name}")["features"] for name in ("ours", "theirs"))
        assert (found * expected).sum(1).min() > 0.999


@pytest.mark.skipif(DEVICE.type == "cuda" and torch.cuda.device_count() < 2, reason="takes two GPUs")
@pytest.mark.skipif(DEVICE.type == "mps", reason="there is one")
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """DDP with `autograd.grad` in the forward, gathered keys and gradients: over NCCL on CUDA."""
    short = ("--objective", "simclr", "--max-steps", "4", "--device", DEVICE.type)
    assert fgssl("pretrain", "--data", photos(), *OPTIONS, *short, "--output", tmp_path / "alone").code == 0
    process = launched("pass", tmp_path / "run", *short)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    ours, expected = (load_file(tmp_path / run / "encoder.safetensors") for run in ("run", "alone"))
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-2, atol=1e-3, msg=lambda text, n=name: f"{n}: {text}")
