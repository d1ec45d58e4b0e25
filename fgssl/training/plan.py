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
from fgssl.config.resolve import Resolved, build
from fgssl.config.schema import DataConfig, PretrainConfig, flatten
from fgssl.data import PRESETS, default_split, load_images, no_split
from fgssl.data.cache.map_store import entry_bytes
from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError
from fgssl.objectives import OBJECTIVES
from fgssl.runtime.machine import automatic_workers, feeds_itself, resolve_device, resolve_precision
from fgssl.training.initialization import derive_optimizer, start_backbone, starts_trained
from fgssl.training.memory_need import check_memory, memory_needs

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
    needs: Mapping[str, float] = MappingProxyType({})  # bytes by the setting that decides them

    def warnings(self) -> list[str]:
        """Lines that should be read before the run starts."""
        lines = [] if self.initial is None else self.initial.describe()
        if self.backbone.frozen and not starts_trained(flatten(self.config)):
            lines.append("the frozen backbone has random weights: only the heads will learn (--pretrained or --init)")
        training = self.config.training
        if training.mixed_precision == "bf16" and not self.backbone.good_in_bf16:
            lines.append(f"{self.backbone.name} is not known to be good in bf16: compare with --mixed-precision no")
        if training.compile and not self.backbone.good_compiled and not self.backbone.frozen:
            lines.append(f"{self.backbone.name} is not known to be good with --compile: compare with a run without")
        return lines

    def facts(self) -> dict[str, Any]:
        """What the config does not say: sizes and steps; the feature cache is of a frozen backbone's maps."""
        entry = entry_bytes((2, self.backbone.channels, *self.backbone.map_size))
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
    """Open the data, build the backbone and derive what was left open.

    Args:
        resolved: From `load_config`.
        world: Number of processes.
        load_weights: Give the backbone its initial weights; not where a saved state is about to replace them.
        splits: Images in place of those of the config's source, such as a part of its training split.

    Raises:
        FgsslError: for anything the run would stumble over.
    """
    draft = Draft(flatten(resolved.config), resolved.origins)
    device = resolve_device(draft["training.device"])
    train, test = _open_splits(resolved.config.data, draft) if splits is None else splits
    for key in ("data.source", "backbone.init"):  # remembered by the encoder file and by a resumed run
        path = os.path.expanduser(draft[key] or "")
        if draft[key] not in ("demo", *PRESETS) and os.path.exists(path):
            draft.values[key] = os.path.abspath(path)
    _fit_batch(draft, len(train), world)
    steps_per_epoch = len(train) // draft["training.batch_size"]
    total_steps = min(draft["training.epochs"] * steps_per_epoch, draft["training.max_steps"] or 2**62)

    torch.manual_seed(draft["training.seed"])  # the random init of the model is part of the seed
    backbone, initial = start_backbone(draft, load_weights=load_weights)
    derive_objective(draft, RunFacts(backbone.channels, len(train), total_steps, starts_trained(draft)))
    derive_optimizer(draft, backbone)
    if backbone.frozen:
        draft.derive("training.signals_every", total_steps, "a frozen backbone's never change")
    _derive_signals(draft, len(train))
    draft.derive("training.device", str(device), "best at hand")
    draft.values["training.device"] = str(device)  # in full, where `auto` was asked for
    unless = "; none once the cache is built" if feeds_itself(device) else ""
    draft.derive("training.workers", automatic_workers(device, world), f"cores of this machine{unless}")
    _derive_precision(draft, backbone, device)
    config = build(draft.values)
    needs = memory_needs(config, channels=backbone.channels, map_size=backbone.map_size, images=len(train), world=world)
    check_memory(needs, draft.values, device)
    return Plan(config, draft.origins, train, test, backbone, device, steps_per_epoch, total_steps, initial, needs)


def _derive_precision(draft: Draft, backbone: Backbone, device: torch.device) -> None:
    """bf16 where the machine gains by it and the backbone is known good in it; asked for, it is as asked."""
    asked = draft["training.mixed_precision"]
    precision, reason = resolve_precision(asked, device)
    if asked != "auto":
        return
    if precision == "bf16" and not backbone.good_in_bf16:
        precision, reason = "no", f"{backbone.name} is not known to be good in bf16"
    draft.decide("training.mixed_precision", precision, reason)


def _open_splits(data: DataConfig, draft: Draft) -> tuple[ImageSet, ImageSet | None]:
    train_split, test_split = default_split(data, "train"), default_split(data, "test")
    if train_split is None:
        raise no_split(data, "training", option="--set data.train_split=...")
    train = load_images(data, train_split)
    if len(train) < 2:
        raise FgsslError(
            f"'{data.source}' holds one image in its split {train_split}", "self-supervised training needs at least 2"
        )
    draft.derive("data.train_split", train_split, "the source's own")
    if test_split is not None:
        draft.derive("data.test_split", test_split, "the source's own")
    return train, None if test_split is None else load_images(data, test_split)


def derived_batch(images: int, *, parts: int = 1) -> tuple[int, str]:
    """The batch for a number of images, a multiple of `parts`, and why: 128, 64 or 32, the largest for a long epoch.

    For fewer images the size above 16 and up to 32 that leaves the fewest of them out of an epoch; all images where
    they are fewer than that. Two images a part where the parts are too many for any of these.
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
    batch, accumulate = draft["training.batch_size"], draft["training.accumulate"]
    if batch is None:
        if accumulate > 1 and 2 * world * accumulate > images:
            raise FgsslError(
                f"--accumulate {accumulate} makes more parts than the data ({images} images) have pairs for",
                f"use at most {images // (2 * world)}",
            )
        batch, why = derived_batch(images, parts=world * accumulate)
        draft.derive("training.batch_size", batch, why)
    if batch > images:
        raise FgsslError(f"--batch-size {batch} is larger than the data ({images} images)", f"use at most {images}")
    parts = world * accumulate
    if accumulate > 1 and (batch % parts or batch // parts < 2):
        raise FgsslError(
            f"--batch-size {batch} cannot be divided into {accumulate} parts by --accumulate",
            f"use a multiple of {parts}, at least {2 * parts}",
        )
    if batch % world or batch // world < 2:
        raise FgsslError(
            f"--batch-size {batch} cannot be shared by {world} processes",
            f"use a multiple of {world}, at least {2 * world}",
        )


def _derive_signals(draft: Draft, images: int) -> None:
    """Two forward passes of the sample, as seldom as keeps them within their share, at a line of the log."""
    forwards = OBJECTIVES[draft["objective.name"]].step_forwards
    steps = 2 * min(SIGNAL_IMAGES, images) / (forwards * draft["training.batch_size"])
    log_every = draft["training.log_every"]
    every = -(-math.ceil(steps / SIGNAL_SHARE) // log_every) * log_every
    reason = f"{100 * SIGNAL_SHARE:g} % of the run's work; also after the last step"
    draft.derive("training.signals_every", every, reason)


def describe(plan: Plan) -> dict[str, dict[str, Any]]:
    """Each `section.key` with its value and origin, for --dry-run and the run's summary."""
    flat = flatten(plan.config)
    return {key: {"value": value, "origin": plan.origins.get(key, "default")} for key, value in flat.items()}
