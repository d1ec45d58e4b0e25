"""What only a GPU does, as far as a CPU can tell: a step on `meta`, where nothing can be read back, and fp16's scaler.

On the `meta` device tensors have shapes and no numbers: a step that reads one, which on a GPU waits for all that was
asked of it, fails there. So do views made on the device.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from mps_operators import missing_on_mps
from tiny_trainer import tiny_trainer
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from fgssl.backbones import build_backbone
from fgssl.config.schema import RationaleConfig, ViewsConfig
from fgssl.data.cache.pixels import PixelStore, Shrunk
from fgssl.data.feed import Key, ViewDataset
from fgssl.encoder import Encoder
from fgssl.objectives import OBJECTIVES
from fgssl.rationale import RationaleHead, cut_windows
from fgssl.runs.resume_state import load_state, random_state, restore_random_state
from fgssl.runtime.machine import resolve_device, sent
from fgssl.training.loop import Progress, Trainer
from fgssl.training.model import build_optimizer

ARANGE = torch.arange
META, CPU = torch.device("meta"), torch.device("cpu")


def moved_trainer(folder: Path, **settings: object) -> Trainer:
    """A trainer all of whose state is on the `meta` device, and whose views are made there."""
    trainer = tiny_trainer(folder, **settings)
    plan = trainer.plan._replace(device=META)
    trainer.model.to(META)
    trainer.views.on_device = True
    optimizer = build_optimizer(trainer.model, plan.config.optimizer, META, backbone=plan.backbone)
    moved = Trainer(dataclasses.replace(trainer.setup, plan=plan, optimizer=optimizer, wrapped=trainer.model))
    moved.model.train()
    return moved


class Copies(TorchDispatchMode):
    """Counts copies from the CPU to the device that are waited for, and notes all operators."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []
        self.operators: set[object] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.operators.add(func)
        there = kwargs.get("device")
        if func is torch.ops.aten._to_copy.default and args[0].device == CPU and there == META:
            self.waited += [] if kwargs.get("non_blocking") else [str(tuple(args[0].shape))]
        return func(*args, **kwargs)


@contextlib.contextmanager
def on_meta() -> Iterator[Copies]:
    """Autocast and accelerate know nothing of the device; what is sent is sent as to CUDA."""
    with (
        mock.patch("torch.autocast", lambda *_args, **_options: contextlib.nullcontext()),
        mock.patch("fgssl.data.feed.sent", lambda tensor, device: tensor.to(device, non_blocking=True)),
        mock.patch("fgssl.training.feed.sent", lambda tensor, device: tensor.to(device, non_blocking=True)),
        Copies() as copies,
    ):
        yield copies


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "distill"])
def test_a_step_never_waits_for_the_device(name: str, tmp_path: Path) -> None:
    """Views made on it, loss, GradCAM, fit, optimiser, momentum and the log's window; MPS has each operator."""
    more = {"views.local_count": 2, "views.local_size": 32} if name == "dino" else {}
    trainer = moved_trainer(tmp_path, **{"objective.name": name, "optimizer.name": "sgd", **more})
    trainer.model.objective.arrange = lambda pictures, _epoch: pictures  # once an epoch, what is near is read
    batches = trainer.batches(0)
    with on_meta() as copies:
        for step in range(2):
            batch = next(batches)
            output = trainer.step(step, batch)
            trainer.log.window.add(step + 1, output, seconds=1.0, waited=0.0)
        assert output.total.device == META and output.total.shape == ()
    assert copies.waited == [] and missing_on_mps(copies.operators) == set()
    with pytest.raises((RuntimeError, NotImplementedError)):  # so that the check is one
        output.total.item()


def test_what_waits_is_found(tmp_path: Path) -> None:
    """The check itself: a number read, and a copy waited for."""
    trainer = moved_trainer(tmp_path)
    batch = next(trainer.batches(0))
    forward = trainer.model.forward

    def reads(*arguments: object) -> object:
        output = forward(*arguments)
        if output.loss > 0:
            output.loss.item()
        return output

    with on_meta() as copies:
        torch.ones(3).to(META)
        assert copies.waited == ["(3,)"]
        with mock.patch.object(trainer.model, "forward", reads), pytest.raises(RuntimeError, match="meta"):
            trainer.step(0, batch)


def test_every_pooling_is_made_of_what_mps_has() -> None:
    backbone = build_backbone("test_resnet", image_size=64)
    encoder = Encoder(backbone, RationaleHead(backbone.channels, RationaleConfig())).eval()
    with torch.no_grad(), Copies() as copies:
        encoder.embeddings(torch.zeros(2, 3, encoder.view_size("zoom"), encoder.view_size("zoom")), ("zoom",))
        encoder.embeddings(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), ("gap", "rationale", "concat"))
    assert copies.operators and missing_on_mps(copies.operators) == set()
    assert missing_on_mps([torch.ops.aten.mode.default]) == {"aten.mode"}  # the check is one


def test_a_window_is_cut_alike_where_there_is_no_border_padding() -> None:
    """MPS before torch 2.13 (pytorch 125098); windows reach beyond the picture by half a pixel, and by more."""
    images, centres = torch.rand(3, 3, 20, 20), torch.tensor([[0.5, 0.41], [0.2, 0.8], [0.05, 0.97]])
    expected, sample = cut_windows(images, centres, 12), functional.grid_sample
    padded: list[str] = []

    def noted(pictures: torch.Tensor, grid: torch.Tensor, *, padding_mode: str, align_corners: bool) -> torch.Tensor:
        padded.append(padding_mode)
        return sample(pictures.as_subclass(torch.Tensor), grid, padding_mode=padding_mode, align_corners=align_corners)

    class OnMPS(torch.Tensor):
        device = mock.Mock(type="mps")

    with (
        mock.patch("fgssl.rationale.windows.functional.grid_sample", noted),
        mock.patch("torch.arange", lambda n, **_: ARANGE(n)),
    ):
        found = cut_windows(images.as_subclass(OnMPS), centres, 12)
    assert padded == ["zeros"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_views_of_the_device_keep_their_levels_under_autocast(memory_images) -> None:
    """A frozen backbone's maps are made under autocast; levels of bf16 are up to two apart."""
    views = ViewDataset(PixelStore(memory_images(4), Shrunk(40)), ViewsConfig(), size=32, seed=0, on_device=True)
    batch = views.__getitems__([Key(0, index) for index in range(4)])
    exact = batch.views_on(CPU)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(batch.views_on(CPU), exact)


def test_only_cuda_is_not_waited_for() -> None:
    for name, waits in (("cuda", False), ("cuda:1", False), ("mps", True), ("cpu", True)):
        tensor = mock.Mock()
        sent(tensor, torch.device(name))
        assert tensor.to.call_args.kwargs == {"non_blocking": not waits}


# ---- fp16


def scaled_trainer(folder: Path, scale: float) -> tuple[Trainer, torch.amp.GradScaler]:
    """A trainer with the gradient scaler that accelerate gives fp16 on CUDA."""
    trainer = tiny_trainer(folder, **{"optimizer.name": "adamw", "optimizer.lr": 0.001})
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
    trainer.setup.accelerator.scaler = scaler
    wrapper = type(trainer.optimizer)
    trainer.optimizer = wrapper(trainer.optimizer.optimizer, scaler=scaler)
    return trainer, scaler


def test_a_step_whose_gradients_overflow_changes_no_weight_and_the_next_one_does(tmp_path: Path) -> None:
    """GradCAM is taken of the loss itself, within the forward: neither it nor the log sees the scale."""
    trainer, scaler = scaled_trainer(tmp_path, 2.0**127)
    plain = tiny_trainer(tmp_path, **{"optimizer.name": "adamw", "optimizer.lr": 0.001})
    trainer.model.load_state_dict(plain.model.state_dict())
    batch, trained = next(trainer.batches(0)), dict(trainer.model.named_parameters())
    before = {name: weight.detach().clone() for name, weight in trained.items()}
    output, expected = trainer.step(0, batch), plain.step(0, batch)
    for name in ("loss", "fit", "target_entropy"):
        assert torch.equal(getattr(output, name), getattr(expected, name)), name
    assert scaler.get_scale() == 2.0**126
    assert all(torch.equal(before[name], weight) for name, weight in trained.items())
    trainer.log.window.add(1, output, seconds=1.0, waited=0.0)
    assert trainer.log.window.first_fault() is None
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**10})
    trainer.step(1, batch)
    changed = [name for name, weight in trained.items() if not torch.equal(before[name], weight)]
    assert len(changed) > len(trained) / 4 and all(weight.isfinite().all() for weight in trained.values())


def test_a_resumed_run_goes_on_with_the_scale(tmp_path: Path) -> None:
    trainer, scaler = scaled_trainer(tmp_path, 2.0**8)
    for step, batch in zip(range(3), trainer.batches(0), strict=False):
        trainer.step(step, batch)
    assert scaler.get_scale() == 2.0**9
    trainer._save(Progress(3, 1.0, [], {}))
    other, begun = scaled_trainer(tmp_path / "other", 2.0**16)
    saved = load_state(tmp_path)
    assert saved is not None
    other.restore(saved)
    assert begun.state_dict() == scaler.state_dict()


# ---- generators, devices


def test_the_devices_generators_are_saved_where_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA is not woken by a run on the CPU; a state of before there was one of MPS is read."""
    set_states: dict[str, torch.Tensor] = {}
    for name in ("cuda", "mps"):
        module = getattr(torch, name)
        monkeypatch.setattr(module, "get_rng_state", lambda name=name: torch.tensor([len(name)], dtype=torch.uint8))
        monkeypatch.setattr(module, "set_rng_state", lambda state, name=name: set_states.update({name: state}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert random_state()["cuda"] is None and "mps" not in random_state()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    state = random_state()
    restore_random_state({key: value for key, value in state.items() if key != "mps"})
    assert set_states.keys() == {"cuda"}
    restore_random_state(state)
    assert set_states == {"cuda": torch.tensor([4], dtype=torch.uint8), "mps": torch.tensor([3], dtype=torch.uint8)}


def test_more_processes_than_gpus_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for key, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "4"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(key, value)
    for name in (None, "auto", "cuda", "cuda:0"):
        with pytest.raises(Exception, match=r"'cuda:3' is not on this machine \(2 CUDA devices\); start 2 processes"):
            resolve_device(name)


def test_a_run_on_the_cpu_after_one_on_cuda_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")  # as a run on another device of the same process leaves it
    assert tiny_trainer(tmp_path).setup.accelerator.device == CPU


# ---- torch.compile


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["mocov2", "dino"])
def test_compiled_steps_are_the_steps(name: str, backend: str, tmp_path: Path) -> None:
    """dino's small views are another shape, which torch traces with sizes left open; signals compile nothing."""
    more = {
        "objective.name": name,
        "backbone.name": "test_resnet",
        "training.signals_every": 2,
        "training.log_every": 1,
    }
    more |= {"views.local_count": 2, "views.local_size": 32} if name == "dino" else {}
    traced: list[int] = []

    def counted(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        traced.append(len(inputs))
        return torch._dynamo.lookup_backend(backend)(module, inputs)

    compile_ = torch.compile
    found, graphs = {}, []
    for compiled in (False, True):
        trainer = tiny_trainer(tmp_path / str(compiled), **more, **{"training.compile": compiled})
        (tmp_path / str(compiled)).mkdir(exist_ok=True)
        with mock.patch("torch.compile", lambda call, *_a, **_o: compile_(call, backend=counted)):
            trainer.prepare_backbone()
        outputs = []
        for step, batch in zip(range(3), trainer.batches(0), strict=False):
            outputs.append(trainer.step(step, batch))
            trainer.log.signals.after(step + 1)
            graphs.append(len(traced))
        found[compiled] = ([output.total for output in outputs], trainer.model.state_dict())
    assert graphs[3] > 0 and graphs[5] == graphs[4]
    torch.testing.assert_close(found[True][0], found[False][0], rtol=1e-4, atol=1e-5)
    for key, value in found[False][1].items():
        torch.testing.assert_close(found[True][1][key], value, rtol=1e-3, atol=1e-4)
