"""The files of a run folder that are plain text, and the rules for writing into one.

RUN/config.yaml      every resolved setting; `fgssl pretrain --resume RUN` reads it
RUN/metrics.jsonl    a line every few steps, without gaps or repeats
RUN/summary.json     sizes, versions, retrieval of the initial and the trained encoder
"""

from __future__ import annotations

import json
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from fgssl import __version__
from fgssl.config.schema import PretrainConfig, flatten, nested
from fgssl.errors import FgsslError
from fgssl.runs.lock import LOCK_FILE
from fgssl.runtime.files import make_folder, not_writable, write_text

CONFIG_FILE, METRICS_FILE, SUMMARY_FILE = "config.yaml", "metrics.jsonl", "summary.json"
ENCODER_FILE = "encoder.safetensors"
TIMM_PREFIX = "timm:"  # of a checkpoint argument that names one of timm's models
RUN_FILES = (CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, "encoder.safetensors", "overview.png", "views.png")
RUN_FOLDERS = ("timm", "resume", ".resume-removed", "fault")


def prepare_output(output: Path, *, overwrite: bool) -> None:
    """Make the run folder, refusing one with content unless told to overwrite; only a run's own files are removed.

    Raises:
        FgsslError: it has content, is a file, or cannot be written.
    """
    try:
        if output.exists() and not output.is_dir():
            raise FgsslError(f"output '{output}' is a file", "choose a folder with --output")
        if output.is_dir() and any(path.name != LOCK_FILE for path in output.iterdir()):
            if not overwrite:
                raise _taken(output)
            for name in RUN_FILES:
                (output / name).unlink(missing_ok=True)
            for name in RUN_FOLDERS:
                shutil.rmtree(output / name, ignore_errors=True)
        make_folder(output)
        probe = output / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise not_writable(output, error) from error


def check_free(output: Path) -> None:
    """Refuses a folder with content, as `prepare_output` will; one that is locked is left to the lock's own words."""
    if output.is_dir() and not (output / LOCK_FILE).exists() and any(output.iterdir()):
        raise _taken(output)


def _taken(output: Path) -> FgsslError:
    return FgsslError(
        f"output folder '{output}' is not empty",
        "choose another --output, continue it with --resume, or replace it with --overwrite",
    )


def write_config(output: Path, config: PretrainConfig, origins: dict[str, str]) -> None:
    """Write the resolved settings as a recipe that repeats the run; loaders are chosen anew on the next machine."""
    flat = flatten(config)
    if origins.get("training.workers", "").startswith("derived"):
        flat["training.workers"] = None
    header = "# The resolved settings of this run; it is also a recipe: fgssl pretrain --recipe FILE\n"
    write_text(output / CONFIG_FILE, header + yaml.safe_dump(nested(flat), sort_keys=False, allow_unicode=True))


def truncate_metrics(output: Path, step: int) -> None:
    """Keep the lines up to `step`: what was logged after the saved state is about to be logged again."""
    path = output / METRICS_FILE
    kept = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):  # a line cut off by a crash
                continue
    write_text(path, "".join(f"{line}\n" for line in kept))


def write_summary(output: Path, summary: dict[str, Any]) -> None:
    """Write summary.json."""
    write_text(output / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Of everything that decides a result."""
    names = ("torch", "torchvision", "timm", "accelerate", "datasets", "numpy", "pillow")
    found = {"fgssl": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def newest_run(root: Path) -> Path:
    """The run folder below `root` whose encoder was written last. Raises FgsslError when there is none."""
    found = sorted(root.glob("*/encoder.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FgsslError(f"no finished run in '{root}/'", "give --checkpoint, or train one with fgssl pretrain")
    return found[-1].parent


def encoder_path(checkpoint: str) -> Path:
    """The encoder file a checkpoint argument names. Raises FgsslError when there is none."""
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        path = path / ENCODER_FILE
        if not path.is_file():
            raise FgsslError(
                f"folder '{checkpoint}' holds no {ENCODER_FILE}",
                "give a finished run's folder; an unfinished one goes on with fgssl pretrain --resume",
            )
    if not path.is_file():
        raise FgsslError(
            f"no checkpoint '{checkpoint}'", "give a run folder, a .safetensors file of fgssl, or timm:NAME"
        )
    return path
