"""The resume state of a run: written whole, the previous one kept.

RUN/resume/000001234.pt is after step 1234; its checksum is written later: a state without a matching one was cut off.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fgssl.errors import FgsslError
from fgssl.runtime.files import TEMPORARY, atomic_path, write_text

STATES_KEPT = 2
REMOVED = ".resume-removed"
_STATE_NAME = re.compile(rf"\d{{9}}\.(pt|sha256)|{re.escape(TEMPORARY)}.*")


class Loaded(NamedTuple):
    """A state and what was wrong with newer ones."""

    state: dict[str, Any]
    step: int
    warnings: tuple[str, ...]


def save_state(run: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state after `step` steps; keep it and the one before."""
    folder = run / "resume"
    path = folder / f"{step:09d}.pt"
    with atomic_path(path) as temporary:
        torch.save(state, temporary)
        digest = _digest(temporary)
    write_text(path.with_suffix(".sha256"), digest)
    states = _states(folder)
    # a state after this step is a damaged one that the run was resumed from before
    kept = [state for state in states if state.stem <= path.stem][-STATES_KEPT:]
    old = [state.with_suffix(suffix) for state in set(states) - set(kept) for suffix in (".pt", ".sha256")]
    cut_off = (f"{TEMPORARY}*", ".[0-9]*.pt.*")  # of a process killed while it wrote, by the names now and then
    for file in (*old, *(file for pattern in cut_off for file in folder.glob(pattern))):
        file.unlink(missing_ok=True)


def load_state(run: Path) -> Loaded | None:
    """The newest undamaged state, or None where none was saved yet. Raises FgsslError where all are damaged."""
    warnings = list[str]()
    for path in reversed(_states(run / "resume")):
        try:
            if path.with_suffix(".sha256").read_text().strip() != _digest(path):
                raise ValueError("checksum differs")
            state = torch.load(path, map_location="cpu", weights_only=True)
            return Loaded(state, int(path.stem), tuple(warnings))
        except Exception as error:  # on damaged bytes torch's reader raises nearly anything
            warnings.append(f"state {path.name} is damaged ({error}): using the one before")
    if warnings:
        raise FgsslError(f"every saved state in '{run}/resume' is damaged", "start the run again with --overwrite")
    return None


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.pt"))


def has_state(run: Path) -> bool:
    """Whether any state was saved, damaged or not."""
    return bool(_states(run / "resume"))


def remove_states(run: Path) -> None:
    """Of a finished run: they are several times the size of its encoder. Files of others stay."""
    folder = run / "resume"
    with contextlib.suppress(OSError):
        if all(_STATE_NAME.fullmatch(path.name) for path in folder.iterdir()):
            os.replace(folder, run / REMOVED)  # first: a process killed here leaves all states or none
        for path in (*_states(folder), *folder.glob("[0-9]*.sha256")):
            path.unlink()
    shutil.rmtree(run / REMOVED, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """Of this process: torch, its device, numpy and Python, in types the weights-only loader takes."""
    name, keys, *rest = np.random.get_state()
    # asked for where it was not used, it would take some of a GPU's memory for a run on the CPU
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state() if used else None
    mps = {"mps": torch.mps.get_rng_state()} if torch.backends.mps.is_available() else {}
    numpy = [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest]
    return {"torch": torch.get_rng_state(), "cuda": cuda, **mps, "numpy": numpy, "python": random.getstate()}


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo of `random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
