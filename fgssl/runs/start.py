"""The trained weights that a run began from, as a checkpoint that every verb opens: what training has to beat."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import timm

from fgssl.backbones.initial import local_path
from fgssl.backbones.names import SOURCE_PREFIXES, resolve_source
from fgssl.config.schema import BackboneConfig, PretrainConfig
from fgssl.errors import FgsslError
from fgssl.runs.encoder_file import own_setting
from fgssl.runs.folder import ENCODER_FILE, NAMES, TIMM_PREFIX


class Start(NamedTuple):
    """What `load_encoder` takes to open them as the run did."""

    checkpoint: str
    backbone: str  # for weights that do not tell their architecture
    image_size: int | None  # side in pixels of the run's pictures; an encoder of fgssl keeps its own


def start_of(run: str, config: PretrainConfig) -> Start | None:
    """The start of the run that left the checkpoint `run` with these settings; None from scratch.

    Raises FgsslError where the weights are gone, or only a file that may come from anybody says where they lie.
    """
    told = config.backbone
    if not told.init and not told.pretrained:
        return None
    name = _checkpoint(told)
    key, value = ("init", told.init) if told.init else ("name", told.name)
    if not _registered(name) and own_setting(run, "backbone", key) != value:
        problem = f"'{run}' says that it began from '{value}', and no config.yaml of its run beside it does"
        raise FgsslError(problem, "name these weights yourself")
    if same_weights(name, run):
        raise FgsslError(f"'{run}' was written over the weights that it began from", "name a copy of them yourself")
    return Start(name, told.name, told.image_size)


def same_weights(first: str, second: str) -> bool:
    """Whether two checkpoints are one, told by their names alone."""
    return _spelled(first) == _spelled(second)


def _checkpoint(told: BackboneConfig) -> str:
    if told.init is None:
        return f"{TIMM_PREFIX}{told.name}"
    path = local_path(told.init)
    if path.is_absolute() or path.exists():
        near = os.path.relpath(path)
        return str(path) if near.startswith(os.pardir) else near
    if told.init.startswith(SOURCE_PREFIXES) or timm.is_model(told.init.partition(".")[0]):
        return told.init if told.init.startswith(NAMES) else f"{TIMM_PREFIX}{told.init}"
    return f"{TIMM_PREFIX}{told.name.partition('.')[0]}.{told.init}"  # a tag of the backbone's


def _registered(name: str) -> bool:
    """Whether these are weights that timm itself publishes."""
    bare = name.removeprefix(TIMM_PREFIX)
    return name.startswith(TIMM_PREFIX) and not bare.startswith(SOURCE_PREFIXES)


def _spelled(checkpoint: str) -> str:
    """One spelling of a run folder and its encoder file, and of a timm name with and without its default tag."""
    name = checkpoint.removeprefix(TIMM_PREFIX)
    path = local_path(name)
    if path.exists():
        path = Path(os.path.realpath(path))
        return str(path.parent if path.name == ENCODER_FILE else path)
    if not name.startswith(SOURCE_PREFIXES):
        with contextlib.suppress(FgsslError):
            published = resolve_source(name).published
            return f"{published.get('architecture')}.{published.get('tag')}"
    return name
