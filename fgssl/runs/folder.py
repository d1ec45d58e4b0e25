"""The run folder: its files, how fgssl knows one as its own, and the rules for writing into it.

RUN/config.yaml           every resolved setting; `fgssl pretrain --resume RUN` reads it
RUN/metrics.jsonl         a line every few steps, without gaps or repeats
RUN/summary.json          sizes, versions, retrieval of the initial and the trained encoder
RUN/encoder.safetensors   what evaluation reads (`fgssl.runs.encoder_file`)

What else lies there is the user's and stays, also in the folders that a run makes; links are not followed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import yaml
from safetensors import safe_open

from fgssl import __version__
from fgssl.config.schema import PretrainConfig, flatten, nested
from fgssl.drawing import PICTURE
from fgssl.errors import FgsslError
from fgssl.runs.lock import LOCK_FILE
from fgssl.runtime.files import TEMPORARY, check_folder, not_writable, write_text

CONFIG_FILE, METRICS_FILE, SUMMARY_FILE = "config.yaml", "metrics.jsonl", "summary.json"
ENCODER_FILE = "encoder.safetensors"
TIMM_PREFIX = "timm:"  # of a checkpoint argument that names one of timm's models
NAMES = (TIMM_PREFIX, "hf-hub:", "hf_hub:", "local-dir:")
PICKLES = (".pth", ".pt", ".bin", ".tar", ".ckpt")
WEIGHTS = ("model.safetensors", "timm/model.safetensors", "pytorch_model.bin")  # of another tool's folder
_HEADER = "# The resolved settings of this run; it is also a recipe: fgssl pretrain --recipe FILE\n"


def _begins(start: bytes) -> Callable[[Path], bool]:
    def is_own(path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(len(start)) == start

    return is_own


def _holds(*keys: str) -> Callable[[Path], bool]:
    return lambda path: set(keys) <= set(json.loads(path.read_text(encoding="utf-8")))


def _is_metrics(path: Path) -> bool:
    with path.open("rb") as file:  # a line may be cut off, or none may be there yet
        return b'{"epoch"'.startswith(file.read(8))


def _holds_tensors(path: Path, *, key: str = "") -> bool:
    with safe_open(path, framework="np") as file:
        return not key or key in (file.metadata() or {})


def _is_named(_path: Path) -> bool:
    return True  # so that damaged ones go, too


_STATE = "[0-9]" * 9
# Everything that a run writes, and how a file of ours is known.
RUN_FILES: dict[str, Callable[[Path], bool]] = {
    CONFIG_FILE: _begins(_HEADER.encode()[:38]),
    METRICS_FILE: _is_metrics,
    SUMMARY_FILE: _holds("steps", "versions"),
    ENCODER_FILE: functools.partial(_holds_tensors, key="fgssl"),
    "overview.png": PICTURE.is_own,
    "views.png": PICTURE.is_own,
    "timm/config.json": _holds("architecture"),
    "timm/model.safetensors": _holds_tensors,
    **{f"{folder}/{_STATE}.{kind}": _is_named for folder in ("resume", ".resume-removed") for kind in ("pt", "sha256")},
    f"fault/step-{_STATE}.json": _holds("step", "images"),
    f"fault/step-{_STATE}.safetensors": _holds_tensors,
    **{f"{folder}{TEMPORARY}*": _is_named for folder in ("", "timm/", "resume/", "fault/")},  # of a killed process
}
RUN_FOLDERS = tuple(sorted({name.partition("/")[0] for name in RUN_FILES if "/" in name}))


def is_run(folder: Path) -> bool:
    """Whether a folder is known as a run: by its settings or its encoder, which fgssl wrote."""
    return any(_is_own(folder / name, name) for name in (CONFIG_FILE, ENCODER_FILE))


def _is_own(path: Path, name: str) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    try:
        return RUN_FILES[name](path)
    except Exception:  # whatever a foreign file makes a reader raise
        return False


def check_output(output: Path, *, overwrite: bool = False) -> None:
    """Decides whether a new run may be written to a folder. Raises FgsslError; changes nothing."""
    if output.exists() and not output.is_dir():
        raise FgsslError(f"output '{output}' is a file", "choose a folder with --output")
    if not output.is_dir() or all(path.name.startswith((LOCK_FILE, TEMPORARY)) for path in output.iterdir()):
        return  # empty, or of a process that trains there or was killed before it had begun
    if not is_run(output):
        raise FgsslError(f"output folder '{output}' is not empty, and no run of fgssl's", "choose another --output")
    if not overwrite:
        raise FgsslError(
            f"output folder '{output}' is not empty",
            "choose another --output, continue it with --resume, or replace it with --overwrite",
        )
    check_places(output)


def check_places(output: Path) -> list[Path]:
    """The files of a run that fgssl wrote. Raises FgsslError for a link or another's file at one of their places."""
    own = list[Path]()
    for folder in (LOCK_FILE, *RUN_FOLDERS):
        if (output / folder).is_symlink():
            raise _foreign(output / folder)
    for name in RUN_FILES:
        for path in output.glob(name):
            if _is_own(path, name):
                own.append(path)
            elif os.path.lexists(path):  # and not another process's temporary file, gone by now
                raise _foreign(path)
    return own


def _foreign(path: Path) -> FgsslError:
    what = "a link" if path.is_symlink() else "no file that fgssl wrote"
    return FgsslError(f"'{path}' is {what}, and the run would write there", "move it away, or choose another --output")


def prepare_output(output: Path, *, overwrite: bool) -> None:
    """Make the run folder; of one with content what fgssl wrote is removed, where that may be. Raises FgsslError."""
    try:
        check_output(output, overwrite=overwrite)
        remove_run(output)
        check_folder(output)
    except OSError as error:
        raise not_writable(output, error) from error


def remove_run(output: Path) -> None:
    """Remove what fgssl wrote of a run; the files of others stay, and with them their folders."""
    if not is_run(output):
        return
    # last what a run is known by: a process that is killed here leaves a run
    for path in sorted(check_places(output), key=lambda path: path.name in (CONFIG_FILE, ENCODER_FILE)):
        path.unlink(missing_ok=True)
    for name in RUN_FOLDERS:
        with contextlib.suppress(OSError):
            (output / name).rmdir()


def write_config(output: Path, config: PretrainConfig, origins: dict[str, str]) -> None:
    """Write the resolved settings as a recipe that repeats the run; loaders are chosen anew on the next machine."""
    flat = flatten(config)
    if origins.get("training.workers", "").startswith("derived"):
        flat["training.workers"] = None
    write_text(output / CONFIG_FILE, _HEADER + yaml.safe_dump(nested(flat), sort_keys=False, allow_unicode=True))


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


def versions() -> dict[str, str]:
    """Of everything that decides a result."""
    names = ("torch", "torchvision", "timm", "accelerate", "datasets", "numpy", "pillow")
    found = {"fgssl": __version__, "python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def newest_run(root: Path) -> Path:
    """The run folder below `root` whose encoder was written last. Raises FgsslError when there is none."""
    found = sorted(root.glob(f"*/{ENCODER_FILE}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FgsslError(f"no finished run in '{root}/'", "give --checkpoint, or train one with fgssl pretrain")
    return found[-1].parent


def encoder_path(checkpoint: str) -> Path | None:
    """The encoder file that a checkpoint argument names, None for weights of another tool, by name or by path.

    Opening either is `fgssl.runs.encoder_file`'s. Raises FgsslError when there is nothing.
    """
    path = Path(checkpoint).expanduser()
    if checkpoint.startswith(NAMES):
        return None
    if path.is_dir():
        if not (path / ENCODER_FILE).is_file() and any((path / name).is_file() for name in WEIGHTS):
            return None
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
    return None if path.suffix in PICKLES else path
