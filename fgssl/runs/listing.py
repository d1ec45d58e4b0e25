"""The runs below a folder: what each is of, whether it is finished, and how well it did."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fgssl.errors import FgsslError
from fgssl.runs.folder import CONFIG_FILE, ENCODER_FILE, METRICS_FILE, RUN_FOLDERS, SUMMARY_FILE, is_run
from fgssl.runs.lock import LOCK_FILE, is_held

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # as safe, and ten times as fast
DEEPEST = 4  # folders below the one that is asked for
LINE_BYTES = 65_536  # of the end of metrics.jsonl, which hold its last line


class RunEntry(NamedTuple):
    """One run; None for what its files do not tell."""

    folder: Path
    data: str | None
    backbone: str | None
    objective: str | None
    rationale: bool | None
    status: str  # finished, running, stopped
    step: int | None
    total_steps: int | None
    rank1: float | None  # leave-one-out in the test split, in the encoder's default pooling
    seed: int | None
    changed: float  # seconds since the epoch, of the newest of its files

    @property
    def age(self) -> float:
        """Seconds since something was written."""
        return max(0.0, time.time() - self.changed)


def list_runs(root: Path) -> list[RunEntry]:
    """Every run in a folder and in those below it, the newest first. Raises FgsslError where there is no folder."""
    if not root.is_dir():
        raise FgsslError(f"no folder '{root}'", "give the folder that holds the runs")
    found = [_entry(folder) for folder in _run_folders(root, DEEPEST)]
    return sorted(found, key=lambda entry: entry.changed, reverse=True)


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif depth:
        try:
            below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        except OSError:  # another user's
            below = []
        for path in below:
            yield from _run_folders(path, depth - 1)


def _entry(folder: Path) -> RunEntry:
    config, summary, last = _config(folder), _document(folder / SUMMARY_FILE), _last_line(folder / METRICS_FILE)
    running = is_held(folder)
    finished = not running and (folder / ENCODER_FILE).is_file() and bool(summary)
    objective, rationale = _of(config, "objective", "name"), _of(config, "rationale", "enabled")
    steps = summary.get("steps") if finished else last.get("step", 0)
    total = summary.get("total_steps") if finished else last.get("total_steps")
    return RunEntry(
        folder, _word(_of(config, "data", "source")), _word(_of(config, "backbone", "name")), _word(objective),
        rationale if isinstance(rationale, bool) else None,
        "running" if running else "finished" if finished else "stopped",
        _whole(steps), _whole(total), _rank1(summary, bool(rationale)) if finished else None,
        _whole(_of(config, "training", "seed")), _changed(folder),
    )  # fmt: skip


def _rank1(summary: dict[str, Any], rationale: bool) -> float | None:
    """Of the trained encoder in its default pooling, which `fgssl.encoder.Encoder.default_pool` says."""
    rows = summary.get("retrieval")
    for row in rows if isinstance(rows, list) else ():
        if (
            isinstance(row, dict)
            and row.get("encoder") == "trained"
            and row.get("pool") == ("zoom" if rationale else "gap")
        ):
            value = row.get("rank1")
            return float(value) if isinstance(value, (int, float)) else None
    return None


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = yaml.load((folder / CONFIG_FILE).read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a file of JSON lines, however long that is."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LINE_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):  # the last may be cut off
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        return found if isinstance(found, dict) else {}
    return {}


def _changed(folder: Path) -> float:
    times = [folder.stat().st_mtime]
    for name in (CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, ENCODER_FILE, LOCK_FILE, *RUN_FOLDERS):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _of(tree: dict[str, Any], section: str, key: str) -> Any:
    values = tree.get(section)
    return values.get(key) if isinstance(values, dict) else None


def _word(value: Any) -> str | None:
    return None if value is None or isinstance(value, (dict, list)) else str(value)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
