"""What a shell completes: names that are known without opening anything. No torch, no network, no data set."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from fgssl.config.schema import TRACKERS
from fgssl.data.sources.presets import PRESETS
from fgssl.registry import OBJECTIVES
from fgssl.runs.folder import ENCODER_FILE, TIMM_PREFIX

Complete = Callable[[str], list[str]]
_REGISTERED = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)


def backbone_names() -> list[str]:
    """timm's architectures, read from its source: to import it takes seconds, and torch with it."""
    spec = importlib.util.find_spec("timm")  # does not import it
    places = [Path(place) / "models" for place in (spec.submodule_search_locations or ())] if spec else []
    files = sorted(path for place in places for path in place.glob("*.py"))
    return sorted({name for path in files for name in _REGISTERED.findall(path.read_text(encoding="utf-8"))})


def among(words: Iterable[str]) -> Complete:
    """Completes one of some words."""
    known = list(words)
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]


def several(words: Iterable[str]) -> Complete:
    """Completes the last of some words with commas between; none twice."""
    known = list(words)

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [f"{before}{comma}{word}" for word in known if word.startswith(last) and word not in given]

    return complete


def backbone(incomplete: str) -> list[str]:
    """An architecture of timm."""
    return [name for name in backbone_names() if name.startswith(incomplete)]


def objective(incomplete: str) -> list[str]:
    """An objective, of plugins that are installed, too."""
    return among(OBJECTIVES)(incomplete)


def source(incomplete: str) -> list[str]:
    """A preset of a data set, or a path."""
    return [*among(["demo", *PRESETS])(incomplete), *_paths(incomplete)]


def checkpoint(incomplete: str) -> list[str]:
    """A finished run below runs/, a path, or timm:NAME."""
    if incomplete.startswith(TIMM_PREFIX):
        return [f"{TIMM_PREFIX}{name}" for name in backbone(incomplete.removeprefix(TIMM_PREFIX))]
    runs = sorted(str(path.parent) for path in Path("runs").glob(f"*/{ENCODER_FILE}"))
    return [*among([*runs, TIMM_PREFIX])(incomplete), *(path for path in _paths(incomplete) if path not in runs)]


def _paths(incomplete: str) -> list[str]:
    """Files and folders that begin so, as typed; folders with a slash behind."""
    folder, _, start = incomplete.rpartition("/")
    where = Path(os.path.expanduser(folder or ("/" if incomplete.startswith("/") else ".")))
    try:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(where))
    except OSError:
        return []
    hidden = start.startswith(".")
    before = incomplete[: len(incomplete) - len(start)]
    return [f"{before}{name}" for name in names if name.startswith(start) and (hidden or not name.startswith("."))]


# setting of a run -> how its value is completed, where its type does not tell
SETTINGS: dict[str, Complete] = {
    "data.source": source,
    "backbone.name": backbone,
    "backbone.init": checkpoint,
    "backbone.freeze": among(("none", "backbone")),
    "objective.name": objective,
    "objective.teacher": checkpoint,
    "objective.teacher_backbone": backbone,
    "training.track": several(TRACKERS),
    "training.cache": among(("auto", "off")),
    "training.device": among(("cpu", "cuda", "mps")),
}
