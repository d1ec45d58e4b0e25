"""From a config to a run that can start: data opened, backbone built, every derived value filled in and explained."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from fgssl.backbones import Backbone, InitialWeights
from fgssl.config.defaults import Draft, RunFacts, derive_objective
from fgssl.config.resolve import PATHS, Resolved, build
from fgssl.config.resumed import AS_BEGUN
from fgssl.config.schema import DataConfig, PretrainConfig, flatten
from fgssl.data import DRAWN, PRESETS, absolute, default_split, load_images, no_split
from fgssl.data.cache.map_store import entry_bytes
from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError, SettingError
from fgssl.objectives import OBJECTIVES
from fgssl.runtime.machine import automatic_workers, feeds_itself, resolve_device, resolve_precision, sensible_threads
from fgssl.training.diagnosis import check_memory, memory_needs
from fgssl.training.start import derive_optimizer, start_backbone, starts_trained
from fgssl.training.teacher import Teacher, open_teacher
from fgssl.training.trackers import require_trackers

BATCH_SIZES = (128, 64, 32)  # the paper's, and less where that leaves too few steps
SIGNAL_IMAGES = 256  # of the training split, the same all through a run
SIGNAL_SHARE = 0.01  # of a run's work
STEPS_PER_EPOCH = 46  # what the paper has on CUB


class Plan(NamedTuple):
    """Everything a run needs, and why each value is what it is."""

    config: PretrainConfig  # nothing derived is left open
    origins: dict[str, str]
    train: ImageSet
    test: ImageSet | None
    backbone: Backbone
    device: torch.device
    steps_per_epoch: int
    total_steps: int
    initial: InitialWeights | None = None  # what --init brought
    teacher: Teacher | None = None
    needs: Mapping[str, float] = MappingProxyType({})  # bytes by the setting that decides them

    def warnings(self) -> list[str]:
        backbone, training = self.backbone, self.config.training
        lines = [] if self.initial is None else self.initial.describe()
        if backbone.frozen and not starts_trained(flatten(self.config)):
            lines.append("the frozen backbone has random weights: only the heads will learn (--pretrained or --init)")
        if training.mixed_precision == "bf16" and not backbone.good_in_bf16:
            lines.append(f"{backbone.name} is not known to be good in bf16: compare with --mixed-precision no")
        if training.compile and not backbone.good_compiled and not backbone.frozen:
            lines.append(f"{backbone.name} is not known to be good with --compile: compare with a run without")
        return lines

    def facts(self) -> dict[str, Any]:
        """What the config does not say: sizes and steps; the feature cache is of a frozen backbone's maps."""
        entry = entry_bytes(self.backbone.kept_shape)
        cache = round(len(self.train) * self.config.backbone.cached_views * entry / 1e9, 3)
        return {
            "train_images": len(self.train),
            "test_images": None if self.test is None else len(self.test),
            "labels": self.train.labels is not None,
            "channels": self.backbone.channels,
            "map_size": list(self.backbone.map_size),
            "parameters": self.backbone.parameters_total,
            "parameters_trained": self.backbone.parameters_trained,
            "initial_weights": None if self.initial is None else self.initial._asdict(),
            "feature_cache_gb": cache if self.backbone.frozen else None,
            "steps_per_epoch": self.steps_per_epoch,
            "total_steps": self.total_steps,
        }


class Splits(NamedTuple):
    """What to train on and to evaluate on, in place of the source's own splits."""

    train: ImageSet
    test: ImageSet | None


def make_plan(resolved: Resolved, *, world: int = 1, load_weights: bool = True, splits: Splits | None = None) -> Plan:
    """Open the data, build the backbone and derive what was left open. Raises FgsslError for what the run would meet.

    Args:
        resolved: From `load_config`.
        world: Number of processes.
        load_weights: Give the backbone its initial weights; not where a saved state is about to replace them.
        splits: Images in place of those of the config's source, such as a part of its training split.
    """
    require_trackers(resolved.config)
    draft = Draft(flatten(resolved.config), resolved.origins)
    device = resolve_device(draft["training.device"])
    train, test = _open_splits(resolved.config.data, draft) if splits is None else splits
    for key in PATHS:  # remembered by the encoder file and by a resumed run
        path = os.path.expanduser(draft[key] or "")
        if draft[key] not in (*DRAWN, *PRESETS) and os.path.exists(path):
            draft.values[key] = os.path.abspath(path)
    draft.values["data.source"] = absolute(draft["data.source"])
    _fit_batch(draft, len(train), world)
    steps_per_epoch = len(train) // draft["training.batch_size"]
    total_steps = min(draft["training.epochs"] * steps_per_epoch, draft["training.max_steps"] or 2**62)

    torch.manual_seed(draft["training.seed"])  # the random init of the model is part of the seed
    backbone, initial = start_backbone(draft, load_weights=load_weights)
    if draft["objective.anchor"] > 0 and not starts_trained(draft):
        remedy = "leave it out, or start with --pretrained or --init"
        raise SettingError("objective.anchor holds what trained weights know, and the start has random ones", remedy)
    teacher = open_teacher(draft)
    derive_objective(draft, RunFacts(backbone.channels, len(train), total_steps, starts_trained(draft)))
    derive_optimizer(draft, backbone)
    _derive_places(draft, -(-total_steps // steps_per_epoch))
    if backbone.frozen:
        draft.derive("training.signals_every", total_steps, "once, as a frozen backbone's never change")
    draft.derive("training.log_every", min(10, steps_per_epoch), "10, or an epoch: a point of the curve in each")
    # two forward passes of the sample, as seldom as keeps them within their share, at a line of the log
    log_every, forwards = draft["training.log_every"], OBJECTIVES[draft["objective.name"]].step_forwards
    steps = 2 * min(SIGNAL_IMAGES, len(train)) / (forwards * draft["training.batch_size"])
    every = -(-math.ceil(steps / SIGNAL_SHARE) // log_every) * log_every
    reason = f"{100 * SIGNAL_SHARE:g} % of the run's work; also after the last step"
    draft.derive("training.signals_every", every, reason)
    if draft.origins.get("training.threads") != AS_BEGUN:
        on_cpu = device.type == "cpu"
        draft.derive("training.threads", *(sensible_threads() if on_cpu else (torch.get_num_threads(), "torch's own")))
    draft.derive("training.device", str(device), "best at hand")
    draft.values["training.device"] = str(device)  # in full, where `auto` was asked for
    unless = "; none once the cache is built" if feeds_itself(device) else ""
    draft.derive("training.workers", automatic_workers(device, world), f"cores of this machine{unless}")
    asked = draft["training.mixed_precision"]
    precision, reason = resolve_precision(asked, device)
    if asked == "auto":  # bf16 where the machine gains by it and the backbone is known good in it
        if precision == "bf16" and not backbone.good_in_bf16:
            precision, reason = "no", f"{backbone.name} is not known to be good in bf16"
        draft.decide("training.mixed_precision", precision, reason)
    config = build(draft.values)
    size = backbone.map_shapes[-1][1:]  # of the rationale
    needs = memory_needs(config, channels=backbone.channels, map_size=size, images=len(train), world=world)
    check_memory(needs, draft.values, device)
    steps = (steps_per_epoch, total_steps)
    return Plan(config, draft.origins, train, test, backbone, device, *steps, initial, teacher, needs)


def _open_splits(data: DataConfig, draft: Draft) -> Splits:
    train_split, test_split = default_split(data, "train"), default_split(data, "test")
    if train_split is None:
        raise no_split(data, "training", option="--set data.train_split=...")
    train = load_images(data, train_split)
    if len(train) < 2:
        problem = f"'{data.source}' holds one image in its split {train_split}"
        raise FgsslError(problem, "self-supervised training needs at least 2")
    draft.derive("data.train_split", train_split, "the source's own")
    if test_split is None:
        return Splits(train, None)
    draft.derive("data.test_split", test_split, "the source's own")
    return Splits(train, load_images(data, test_split))


def derived_batch(images: int, *, parts: int = 1) -> tuple[int, str]:
    """The batch for a number of images, a multiple of `parts`, and why: 128, 64 or 32, the largest for a long epoch.

    For fewer images the size above 16 and up to 32 that leaves the fewest out; at most all, at least two a part.
    """
    for batch in BATCH_SIZES:
        if images // batch >= STEPS_PER_EPOCH and batch >= 2 * parts:
            return batch // parts * parts, f"{STEPS_PER_EPOCH} steps an epoch or more"
    least = BATCH_SIZES[-1]
    if least < 2 * parts:
        return 2 * parts, f"two images for each of {parts} parts"
    if images <= least:
        return images // parts * parts, f"only {images} images"
    sizes = range(least // parts * parts, least // 2, -parts) or [least // parts * parts]
    batch = min(sizes, key=lambda size: images % size)  # the largest of equals
    return batch, f"leaves out {images % batch} of {images} images an epoch"


def _fit_batch(draft: Draft, images: int, world: int) -> None:
    accumulate = draft["training.accumulate"]
    parts = world * accumulate
    if draft["training.batch_size"] is None:
        if accumulate > 1 and 2 * parts > images:
            problem = f"--accumulate {accumulate} makes more parts than the data ({images} images) have pairs for"
            raise FgsslError(problem, f"use at most {images // (2 * world)}")
        draft.decide("training.batch_size", *derived_batch(images, parts=parts))
    batch = draft["training.batch_size"]
    if batch > images:
        raise FgsslError(f"--batch-size {batch} is larger than the data ({images} images)", f"use at most {images}")
    divided = f"divided into {accumulate} parts by --accumulate"
    for count, what in ((parts if accumulate > 1 else 1, divided), (world, f"shared by {world} processes")):
        if batch % count or batch // count < 2:
            remedy = f"use a multiple of {count}, at least {2 * count}"
            raise FgsslError(f"--batch-size {batch} cannot be {what}", remedy)


def describe(plan: Plan) -> dict[str, dict[str, Any]]:
    """Each `section.key` with its value and origin, for --dry-run and the run's summary."""
    flat = flatten(plan.config)
    return {key: {"value": value, "origin": plan.origins.get(key, "default")} for key, value in flat.items()}


def _derive_places(draft: Draft, epochs: int) -> None:
    """When they are first found, and how long they hold; SettingError where the run is over by then."""
    if draft["views.place"] == "anywhere":
        draft.derive("views.place_warmup", None, "crops lie anywhere")
        return
    draft.derive("views.place_warmup", max(1, epochs // 5), "a fifth of the run (ContrastiveCrop)")
    if (warmup := draft["views.place_warmup"]) >= epochs:
        problem = f"views.place_warmup {warmup} leaves views.place nothing of a run of {epochs} epochs"
        raise SettingError(problem, "lower it, or train longer")
