"""A run followed in TensorBoard, Weights & Biases, trackio or MLflow: the lines of metrics.jsonl, and its pictures.

They are Accelerate's own trackers, by the names that its `log_with` takes. Each lives in a thread of its own, which the
steps never wait for: what fails or hangs there costs one warning. A resumed run goes on in the run it had there, whose
name lies in `trackers/`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image

from fgssl.config.schema import PretrainConfig, flatten, nested
from fgssl.errors import FgsslError
from fgssl.runs.folder import TRACKERS
from fgssl.runtime.extras import require
from fgssl.runtime.files import make_folder, write_text
from fgssl.runtime.reporting import Reporter

PROJECT = "fgssl"
LAST_SECONDS = 60.0  # that the end of a run waits for what is still to be sent
Task = Callable[[Any], None]  # of one of Accelerate's trackers


def chosen_trackers(config: PretrainConfig) -> list[str]:
    """Their names, each once."""
    return list(dict.fromkeys(filter(None, (config.training.track or "").split(","))))


def require_trackers(config: PretrainConfig) -> None:
    """Raises FgsslError, before the work, where the library of one that was asked for is not here."""
    for name in chosen_trackers(config):
        require(name, extra=name)


class Trackers:
    """All trackers of a run, in its main process."""

    def __init__(self, config: PretrainConfig, output: Path, reporter: Reporter) -> None:
        self.config, self.output, self.reporter = config, output, reporter
        self.threads: list[_Thread] = []
        self._stack = contextlib.ExitStack()

    def begin(self, step: int) -> None:
        """Open them, for a run of which so many steps are done."""
        names = chosen_trackers(self.config)
        if not names:
            return
        make_folder(self.output / TRACKERS)
        # some greet their user on stdout, where only results belong
        silence = self._stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        self._stack.enter_context(contextlib.redirect_stdout(silence))
        for name in names:
            path = self.output / TRACKERS / f"{name}.id"
            known = path.read_text(encoding="utf-8").strip() if step and path.is_file() else None
            self.threads.append(_Thread(name, self.output, self.config, step, known))
            self.threads[-1].start()

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """A line of metrics.jsonl; what is null there is left out."""
        values = {key: value for key, value in row.items() if value is not None}
        self._send(lambda tracker: tracker.log(values, step=step))

    def show(self, name: str, step: int) -> None:
        """A picture of the run folder, where there is one."""
        path = self.output / f"{name}.png"
        if path.is_file():
            self._send(lambda tracker: _show(tracker, name, path, step))

    def close(self) -> None:
        """Send what is left and end them, waiting no longer than for a while."""
        until = time.monotonic() + LAST_SECONDS
        for thread in self.threads:
            thread.tasks.put(None)
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                thread.fault = f"no answer within {LAST_SECONDS:g} s"
        self._send(None)
        self.threads = []
        self._stack.close()

    def _send(self, task: Task | None) -> None:
        for thread in self.threads:
            if thread.fault and not thread.told:
                thread.told = True
                self.reporter.warn(f"--track {thread.name}: {thread.fault}; the run goes on without it")
            elif task is not None and not thread.fault:
                thread.tasks.put(task)


class _Thread(threading.Thread):
    """One tracker: opened, fed and closed in the same thread, as some keep their run by thread."""

    def __init__(self, name: str, output: Path, config: PretrainConfig, step: int, known: str | None) -> None:
        super().__init__(name=name, daemon=True)
        self.kind = LOGGER_TYPE_TO_CLASS.get(name)  # here: a thread that comes late may find another
        self.output, self.config, self.step, self.known = output, config, step, known
        self.tasks: queue.Queue[Task | None] = queue.Queue()
        self.fault, self.told = "", False

    def run(self) -> None:
        try:
            tracker, identity = _opened(self.kind, self.name, self.output, self.config, self.step, self.known)
            write_text(self.output / TRACKERS / f"{self.name}.id", f"{identity}\n")
            while (task := self.tasks.get()) is not None:
                task(tracker)
            tracker.finish()
        except BaseException as error:  # of code that is not ours; some exit
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            self.fault = f"{type(error).__name__}: {reason}"


def _opened(
    kind: Any, name: str, output: Path, config: PretrainConfig, step: int, known: str | None
) -> tuple[Any, str]:
    """One of Accelerate's trackers, started and told the settings, and what it knows its run by."""
    settings, identity, title = flatten(config), known or uuid.uuid4().hex, output.resolve().name
    if kind is None:
        raise FgsslError(f"this version of Accelerate does not know {name}", "pip install -U accelerate")
    if name == "tensorboard":  # purged is what was logged after the state that is gone on with
        tracker = kind(name, logging_dir=output, purge_step=step + 1 if step else None)
        tracker.start()
        if not step:  # as text: its table of parameters would need an event file and a folder of its own
            text = yaml.safe_dump(nested(settings), sort_keys=False)
            tracker.log({"config": "".join(f"    {line}\n" for line in text.splitlines())}, step=0)
        return tracker, identity
    if name == "mlflow":
        tracker = kind(experiment_name=PROJECT, run_id=known, run_name=title)
        tracker.start()
        if known is None:
            tracker.store_init_configuration(settings)
        return tracker, str(tracker.tracker.info.run_id)
    if name == "wandb":
        quiet = require(name, extra=name).Settings(silent=True)
        place = {"id": identity, "name": title, "resume": "allow", "dir": str(output), "settings": quiet}
        tracker = kind(os.environ.get("WANDB_PROJECT", PROJECT), config=settings, **place)
    else:
        place = {"name": f"{title}-{identity[:6]}", "resume": "allow", "embed": False}
        tracker = kind(PROJECT, config=settings, **place)
    tracker.start()
    return tracker, identity


def _show(tracker: Any, name: str, path: Path, step: int) -> None:
    if tracker.name == "mlflow":
        tracker.log_artifact(str(path))
    elif tracker.name == "trackio":
        tracker.log({name: require("trackio", extra="trackio").Image(str(path))}, step=step)
    else:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))[None]  # (1, H, W, 3)
        tracker.log_images(
            {name: pixels}, step=step, **({"dataformats": "NHWC"} if tracker.name == "tensorboard" else {})
        )
