"""What the benchmarks share: arguments, turns of a clock, processes apart, and the report of what ran on what."""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torchvision import transforms

from fgssl.config.resolve import load_config
from fgssl.config.schema import ViewsConfig
from fgssl.runs.folder import versions
from fgssl.runtime.machine import available_cores
from fgssl.training.plan import Plan, make_plan

SHARED: dict[str, dict[str, Any]] = {
    "--data": {"default": "demo", "help": "as in fgssl pretrain --data"},
    "--backbone": {"default": "resnet18"},
    "--image-size": {"type": int, "default": 96},
    "--batch-size": {"type": int, "default": 64},
    "--workers": {"type": int, "help": "loader processes [as fgssl chooses]"},
    "--device": {"help": "[the best there is]"},
    "--threads": {"type": int, "help": "of torch [as it likes]"},
    "--output": {"type": Path, "help": "also write the JSON here"},
}

SETTINGS = {
    "data": "data.source", "backbone": "backbone.name", "image_size": "backbone.image_size",
    "batch_size": "training.batch_size", "workers": "training.workers", "device": "training.device",
}  # fmt: skip


def parser(doc: str | None, *names: str) -> argparse.ArgumentParser:
    """Arguments by those names of `SHARED`; each benchmark adds its own."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in names:
        made.add_argument(name, **SHARED[name])
    return made


def begin(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments given, with the threads set."""
    arguments = made.parse_args()
    if getattr(arguments, "threads", None):
        torch.set_num_threads(arguments.threads)
    return arguments


def plan_for(arguments: argparse.Namespace, **settings: Any) -> Plan:
    """The run that the arguments ask for, from random weights and without its own evaluation."""
    flags = {setting: getattr(arguments, name) for name, setting in SETTINGS.items() if hasattr(arguments, name)}
    given = {"backbone.pretrained": False, "training.evaluate": False, **settings}
    return make_plan(load_config(flags={**flags, **given}))


def torchvision_views(views: ViewsConfig, size: int) -> transforms.Compose:
    """torchvision's transforms of PIL images for these parameters, to uint8 tensors."""
    low, high = views.blur_sigma_min * size / 224, views.blur_sigma_max * size / 224
    blur = transforms.GaussianBlur(2 * max(1, round(4 * high)) + 1, (low, high))
    jitter = transforms.ColorJitter(views.brightness, views.contrast, views.saturation, views.hue)
    return transforms.Compose([
        transforms.RandomResizedCrop(size, scale=(views.crop_min, views.crop_max)),
        transforms.RandomApply([jitter], views.jitter), transforms.RandomGrayscale(views.grayscale),
        transforms.RandomApply([blur], views.blur), transforms.RandomSolarize(128, views.solarize),
        transforms.RandomHorizontalFlip(views.flip), transforms.PILToTensor(),
    ])  # fmt: skip


def timed(call: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds of a call, the device's work included."""
    start = time.perf_counter()
    call()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm: int = 1,
    clock: Callable[[Callable[[], object]], float] = timed,
) -> dict[str, list[float]]:
    """Seconds of each call, round by round, so that other load on the machine meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn, (name, call) in itertools.product(range(warm + rounds), calls.items()):
        taken = clock(call)
        if turn >= warm:
            seconds[name].append(taken)
    return seconds


def processor_seconds(call: Callable[[], object]) -> float:
    """Of this process alone: other load hardly matters."""
    start = time.process_time()
    call()
    return time.process_time() - start


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the ratios of each round."""
    return statistics.median(one / other for one, other in zip(above, below, strict=True))


def apart(call: Callable[..., Any], *arguments: Any, timeout: float | None = None, start: str = "spawn") -> Any:
    """What a function of a module returns in a process of its own; RuntimeError where it fails, dies or takes too long.

    `start` is "fork" where what is large has been imported, "spawn" where memory is measured.
    """
    context = multiprocessing.get_context(start)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, call, arguments))  # type: ignore[attr-defined]
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout):
            raise RuntimeError(f"no result in {timeout} s")
        result, problem = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"exit status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if problem:
        raise RuntimeError(problem)
    return result


def _send(sender: Connection, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send((call(*arguments), ""))
    except Exception as error:  # whatever it is becomes the caller's
        sender.send((None, " ".join(f"{type(error).__name__}: {error}".split())[:300]))


def sweep(names: Iterable[str], check: Callable[[str], dict[str, Any]], table: Path) -> dict[str, dict[str, Any]]:
    """A row of each name, kept as JSON lines beside the table: started again, the sweep goes on where it was."""
    kept = table.with_suffix(".jsonl")
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    done = {row["module"]: row for row in map(json.loads, lines) if "error" not in row}
    rows = {}
    for name in names:
        if name not in done:
            try:
                done[name] = {"module": name, **check(name)}
            except RuntimeError as error:
                done[name] = {"module": name, "error": str(error)}
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[name]) + "\n")
        rows[name] = done[name]
        print(rows[name], flush=True)
    return rows


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines]


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """What it ran on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "unknown processor"
    graphics = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else None
    return {"processor": name, "cores": available_cores(), "threads": torch.get_num_threads(), "gpu": graphics}


def report(
    arguments: argparse.Namespace,
    found: dict[str, Any],
    lines: Iterable[str] = (),
    *,
    device: torch.device | None = None,
    libraries: Mapping[str, str] = {},
) -> None:
    """A table for people on stderr; all as one JSON document on stdout, and in --output where that is asked for."""
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    heads = {"settings": settings, "machine": machine(device), "versions": {**versions(), **libraries}}
    for head in heads.values():
        print(", ".join(f"{key} {value}" for key, value in head.items() if value is not None), file=sys.stderr)
    print("", *lines, sep="\n", file=sys.stderr)
    text = json.dumps({**heads, **found}, indent=2, default=str)
    if getattr(arguments, "output", None) is not None:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)
