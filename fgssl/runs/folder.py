"""The run folder: its files, how fgssl knows one as its own, and the rules for writing into it.

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
from fgssl.config.resolve import Resolved, load_config
from fgssl.config.resumed import Change, as_begun, changed, with_changes
from fgssl.config.schema import PretrainConfig, flatten, nested
from fgssl.drawing import PAGE, PICTURE
from fgssl.errors import FgsslError
from fgssl.runs.lock import LOCK_FILE
from fgssl.runtime.files import TEMPORARY, check_folder, not_writable, refuse_file, write_text

CONFIG_FILE, METRICS_FILE, SUMMARY_FILE = "config.yaml", "metrics.jsonl", "summary.json"
REPORT_FILE = "report.html"
ENCODER_FILE = "encoder.safetensors"
TRACKERS = "trackers"  # folder of what trackers know the run by
CANDIDATES = "candidates"  # folder of the weights that the encoder was chosen from
TIMM_PREFIX = "timm:"  # of a checkpoint argument that names one of timm's models
NAMES = (TIMM_PREFIX, "hf-hub:", "hf_hub:", "local-dir:")
PICKLES = (".pth", ".pt", ".bin", ".tar", ".ckpt")
WEIGHTS = ("model.safetensors", "timm/model.safetensors", "pytorch_model.bin")  # of another tool's folder
_HEADER = "# The resolved settings of this run; it is also a recipe: fgssl pretrain --recipe FILE\n"


def _begins(start: bytes, *, cut_off: bool = False) -> Callable[[Path], bool]:
    def is_own(path: Path) -> bool:
        with path.open("rb") as file:
            found = file.read(len(start))
        return found == start or (cut_off and start.startswith(found))

    return is_own


def _holds(*keys: str) -> Callable[[Path], bool]:
    return lambda path: set(keys) <= set(json.loads(path.read_text(encoding="utf-8")))


def _holds_tensors(path: Path, *, key: str = "") -> bool:
    with safe_open(path, framework="np") as file:
        return not key or key in (file.metadata() or {})


_named = Path.is_file  # by its name alone, so that damaged ones go, too
_STATE = "[0-9]" * 9
# Everything that a run writes, and how a file of ours is known.
RUN_FILES: dict[str, Callable[[Path], bool]] = {
    CONFIG_FILE: _begins(_HEADER.encode()[:38]),
    METRICS_FILE: _begins(b'{"epoch"', cut_off=True),  # or none may be there yet
    SUMMARY_FILE: _holds("steps", "versions"),
    ENCODER_FILE: functools.partial(_holds_tensors, key="fgssl"),
    f"{CANDIDATES}/*.safetensors": functools.partial(_holds_tensors, key="fgssl"),
    "overview.png": PICTURE.is_own,
    "views.png": PICTURE.is_own,
    "places.png": PICTURE.is_own,
    "curve.png": PICTURE.is_own,
    REPORT_FILE: PAGE.is_own,
    "timm/config.json": _holds("architecture"),
    "timm/model.safetensors": _holds_tensors,
    **{f"{folder}/{_STATE}.{kind}": _named for folder in ("resume", ".resume-removed") for kind in ("pt", "sha256")},
    f"{TRACKERS}/*.id": _named,
    "tensorboard/events.out.tfevents.*": _named,
    f"fault/step-{_STATE}.json": _holds("step", "images"),
    f"fault/step-{_STATE}.safetensors": _holds_tensors,
    **{
        f"{folder}{TEMPORARY}*": _named for folder in ("", "timm/", "resume/", "fault/", f"{CANDIDATES}/")
    },  # of a killed process
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
    refuse_file(output, option="--output")
    if not output.is_dir() or all(path.name.startswith((LOCK_FILE, TEMPORARY)) for path in output.iterdir()):
        return  # empty, or of a process that trains there or was killed before it had begun
    if not is_run(output):
        raise FgsslError(f"output folder '{output}' is not empty, and no run of fgssl's", "choose another --output")
    if not overwrite:
        remedy = "choose another --output, continue it with --resume, or replace it with --overwrite"
        raise FgsslError(f"output folder '{output}' is not empty", remedy)
    check_places(output)


def check_places(output: Path) -> list[Path]:
    """The files of a run that fgssl wrote. Raises FgsslError for a link or another's file at one of their places."""
    found = [(path, name) for name in RUN_FILES for path in output.glob(name)]
    own = [path for path, name in found if _is_own(path, name)]
    links = [path for name in (LOCK_FILE, *RUN_FOLDERS) if (path := output / name).is_symlink()]
    # a temporary file of another process may be gone by now
    for path in (*links, *(path for path, _ in found if path not in own and os.path.lexists(path))):
        problem = f"'{path}' is {'a link' if path.is_symlink() else 'no file that fgssl wrote'}"
        raise FgsslError(f"{problem}, and the run would write there", "move it away, or choose another --output")
    return own


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
    if is_run(output):
        # last what a run is known by: a process that is killed here leaves a run
        for path in sorted(check_places(output), key=lambda path: path.name in (CONFIG_FILE, ENCODER_FILE)):
            path.unlink(missing_ok=True)
        for name in RUN_FOLDERS:
            with contextlib.suppress(OSError):
                (output / name).rmdir()


def write_config(output: Path, config: PretrainConfig, origins: dict[str, str]) -> None:
    """Write the resolved settings as a recipe that repeats the run; loaders are chosen anew on the next machine."""
    chosen = origins.get("training.workers", "").startswith("derived")
    flat = {**flatten(config), **({"training.workers": None} if chosen else {})}
    write_text(output / CONFIG_FILE, _HEADER + yaml.safe_dump(nested(flat), sort_keys=False, allow_unicode=True))


def resumed(run: Path, asked: Resolved, *, allow_changes: bool) -> tuple[Resolved, list[Change]]:
    """The settings of a run to continue, and what is asked to change in them.

    Raises FgsslError: no run, or a change that makes another run of it, unless allowed.
    """
    config = run / CONFIG_FILE
    if not config.is_file() or not is_run(run):
        what = "its config.yaml is no run's" if config.is_file() else "no config.yaml"
        raise FgsslError(f"'{run}' is not a run folder ({what})", "give the folder of an unfinished run")
    check_places(run)
    saved = as_begun(load_config(config))
    changes = changed(saved, asked)
    return with_changes(saved, changes, allow=allow_changes, run=str(run)), changes


def truncate_metrics(output: Path, step: int) -> None:
    """Keep the lines up to `step`: what was logged after the saved state is about to be logged again."""
    path, kept = output / METRICS_FILE, ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line cut off by a crash
            kept += f"{line}\n" if json.loads(line)["step"] <= step else ""
    write_text(path, kept)


def versions() -> dict[str, str]:
    """Of everything that decides a result."""
    found = {"fgssl": __version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "timm", "accelerate", "datasets", "numpy", "pillow"):
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
    """The encoder file that a checkpoint argument names; None for weights of another tool, FgsslError for nothing."""
    path = Path(checkpoint).expanduser()
    found = path / ENCODER_FILE if path.is_dir() else path
    if checkpoint.startswith(NAMES) or (not found.is_file() and any((path / name).is_file() for name in WEIGHTS)):
        return None
    if found.is_file():
        return None if found.suffix in PICKLES else found
    if path.is_dir():
        remedy = "give a finished run's folder; an unfinished one goes on with fgssl pretrain --resume"
        raise FgsslError(f"folder '{checkpoint}' holds no {ENCODER_FILE}", remedy)
    raise FgsslError(f"no checkpoint '{checkpoint}'", "give a run folder, a .safetensors file of fgssl, or timm:NAME")
