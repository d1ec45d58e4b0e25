"""Whom a run learns from beside its pictures: a frozen teacher, or its own start, by what they make of the pictures.

A teacher's features of the training split are made once, before the first step, and kept in a file of the cache folder,
where a resumed run, the other processes and later runs find them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from fgssl.adaptation import ViewFeatures, embed_views, fit_whitening
from fgssl.adaptation.whitening import Progress, sample_rows
from fgssl.config.defaults import Draft
from fgssl.data.cache.folder import cache_folder, cache_label
from fgssl.data.cache.pixels import PixelStore
from fgssl.data.cache.tensors import keep_tensors
from fgssl.data.images import ImageSet
from fgssl.encoder import Encoder
from fgssl.errors import FgsslError, SettingError
from fgssl.evaluation.embed import embed
from fgssl.objectives import OBJECTIVES
from fgssl.objectives.relations import Relations
from fgssl.runs.encoder_file import identity, load_encoder
from fgssl.runtime.reporting import HangDetector

if TYPE_CHECKING:
    from fgssl.training.plan import Plan

FORMAT = "fgssl-targets-1"
CHUNK = 1024  # pictures whose views' features are held at once

Open = Callable[[int], PixelStore]  # the training split, decoded for views of a size


class Teacher(NamedTuple):
    """What a plan knows of a teacher, which is opened again where its features are not in the cache."""

    checkpoint: str
    backbone: str | None  # of weights that do not tell it
    identity: str


class Taught(NamedTuple):
    """What a run learns from; None where it has no such thing."""

    teacher: Relations | None
    start: Relations | None  # of an anchored run


def open_teacher(draft: Draft) -> Teacher | None:
    """The teacher of an objective that has one, whose features decide the width of the projection; or FgsslError."""
    name, checkpoint, backbone = (draft[f"objective.{key}"] for key in ("name", "teacher", "teacher_backbone"))
    if "teacher" not in OBJECTIVES[name].uses:
        return None
    if checkpoint is None:
        raise SettingError(f"the objective {name} has no teacher", "name one: --teacher RUN, FILE or timm:NAME")
    encoder = _load(checkpoint, backbone)
    zoom = draft["objective.teacher_pool"] == "zoom"
    width = encoder.zoom_width() if zoom else encoder.backbone.pooled_width(_stages(encoder))
    draft.derive("objective.projector_dim", width, "the teacher's features")
    if draft["objective.projector_dim"] != width:
        problem = f"objective.projector_dim is {draft['objective.projector_dim']}, the teacher's features have {width}"
        raise FgsslError(problem, "leave it out")
    return Teacher(checkpoint, backbone, identity(encoder))


def _load(checkpoint: str, backbone: str | None) -> Encoder:
    try:
        return load_encoder(checkpoint, backbone=backbone)
    except FgsslError as error:
        remedy = error.remedy.replace("--backbone", "--teacher-backbone").replace("--checkpoint", "--teacher")
        raise FgsslError(f"--teacher: {error.problem}", remedy) from error


def _stages(encoder: Encoder) -> int:
    """Those of its own whitening; without one all that it offers."""
    return encoder.backbone.stages if encoder.whitening is None else encoder.stages


def learned_from(plan: Plan, opened: Open, accelerator: Accelerator, detector: HangDetector) -> Taught:
    """The relations that the run is to learn and to keep, equal in all processes; the first makes what is not cached.

    Anchored to is the whitened mean of the start's last map: the student's goes through the same whitening.
    """
    told, of_teacher, of_start = plan.teacher, None, None
    made = functools.partial(_relations, plan, opened, accelerator, detector)
    if told is not None:
        pool = plan.config.objective.teacher_pool
        of_teacher = made(lambda: _load(told.checkpoint, told.backbone), told.identity, stages=None, pool=pool)
    if plan.config.objective.anchor > 0:
        start = Encoder(plan.backbone)
        of_start = made(lambda: start, identity(start), stages=1)
    return Taught(of_teacher, of_start)


def _relations(
    plan: Plan,
    opened: Open,
    accelerator: Accelerator,
    detector: HangDetector,
    load: Callable[[], Encoder],
    teacher: str,
    *,
    stages: int | None,
    pool: Literal["gap", "zoom"] = "gap",
) -> Relations:
    seed, images, is_main = plan.config.training.seed, plan.train, accelerator.is_local_main_process
    told = repr((FORMAT, teacher, stages, images.fingerprint(), seed if pool == "gap" else pool)).encode()
    name = f"{cache_label(images.source, images.split)}-{hashlib.sha256(told).hexdigest()[:32]}.safetensors"
    path, place = cache_folder() / "targets" / name, "waiting for the teacher's features"
    if not is_main:
        detector.at(place)
    with accelerator.local_main_process_first():
        found = _read(path, len(images))
        if found is None:
            encoder = load().to(plan.device)
            progress = functools.partial(detector.progress, "teacher's features")
            if pool == "zoom":
                found = {"targets": zoom_targets(encoder, images, progress=progress)}
            else:
                pixels = opened(encoder.backbone.image_size)
                found = make_targets(encoder, pixels, stages=stages or _stages(encoder), seed=seed, progress=progress)
            if stages is None:  # the whitening, which may be large, is for a student without a projector
                found = {"targets": found["targets"]}
            if not keep_tensors(path, found, {"format": FORMAT}):
                detector.warn(f"the teacher's features cannot be kept in '{path.parent}': they would be made again")
    if is_main:
        detector.at(place)
    whitening = None
    if "weight" in found:
        whitening = nn.Linear(found["weight"].shape[1], found["weight"].shape[0])
        whitening.load_state_dict({"weight": found["weight"], "bias": found["bias"]})
    return Relations(found["targets"], teacher=teacher, seed=seed, whitening=whitening)


def make_targets(
    encoder: Encoder, pixels: PixelStore, *, stages: int, seed: int, progress: Progress
) -> dict[str, Tensor]:
    """A teacher's `targets` of every picture, (M, D) float16 l2-normalised, with the whitening's `weight` and `bias`.

    Of a picture the mean of the l2-normalised whitened features of its evaluation view and random crops; zeros where
    it cannot be read. Whitened by the encoder's own, else by one fitted here. Raises FgsslError where fewer than two
    pictures can be read.
    """
    total, rows = len(pixels), sample_rows(len(pixels))

    def embedded(rows: Sequence[int], before: int) -> ViewFeatures:
        def told(done: int, _of: int) -> None:
            progress(before + done, total)

        return embed_views(encoder, pixels, stages=stages, seed=seed, rows=rows, progress=told)

    sample = embedded(rows, 0)
    if sample.features.shape[1] < 2:
        raise FgsslError("fewer than two training pictures can be read for the teacher to see", "replace the others")
    layer = (fit_whitening(sample.features) if encoder.whitening is None else encoder.whitening).state_dict()
    weight, bias = (layer[name].cpu().contiguous() for name in ("weight", "bias"))
    targets = torch.zeros(total, len(bias), dtype=torch.float16)
    left = sorted(set(range(total)).difference(rows))
    chunks = (embedded(left[at : at + CHUNK], len(rows) + at) for at in range(0, len(left), CHUNK))
    for found in (found for found in itertools.chain([sample], chunks) if len(found.positions)):
        parts = (torch.split(tensor, CHUNK, dim) for tensor, dim in zip(found, (1, 0), strict=True))
        for views, positions in zip(*parts, strict=True):
            whitened = functional.normalize(functional.linear(views, weight, bias), dim=2)  # (V, N, D)
            targets[positions] = functional.normalize(whitened.mean(0), dim=1).half()
    return {"targets": targets, "weight": weight, "bias": bias}


def zoom_targets(encoder: Encoder, images: ImageSet, *, progress: Progress) -> Tensor:
    """What two looks at every picture give, (M, D) float16 l2-normalised; zeros where it cannot be read."""
    found = embed(encoder, images, pools=["zoom"], progress=progress)["zoom"]
    targets = torch.zeros(len(images), found.features.shape[1], dtype=torch.float16)
    targets[torch.from_numpy(found.positions)] = found.features.half()
    return targets


def _read(path: Path, images: int) -> dict[str, Tensor] | None:
    with contextlib.suppress(OSError, SafetensorError, KeyError, ValueError):  # not there, or damaged by somebody
        found: dict[str, Tensor] = load_file(path)
        if len(found["targets"]) == images and all(tensor.isfinite().all() for tensor in found.values()):
            os.utime(path)
            return found
    return None
