"""From a config to a run that can start: data opened, backbone built, every derived value filled in and explained.

From scratch AdamW and a sharp temperature learn faster; a trained CNN takes the paper's SGD; a trained transformer
AdamW at low rates with warm-up and stochastic depth, as is usual (Bao et al. 2021, He et al. 2022).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from fgssl import backbones
from fgssl.backbones import Backbone, InitialWeights
from fgssl.config.defaults import Draft, Recommended, RunFacts, derive_objective
from fgssl.config.resolve import AS_BEGUN, PATHS, Resolved, build
from fgssl.config.schema import DataConfig, PretrainConfig, flatten
from fgssl.data import DRAWN, PRESETS, absolute, default_split, load_images, no_split
from fgssl.data.cache.map_store import entry_bytes
from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError, SettingError
from fgssl.objectives import OBJECTIVES
from fgssl.runtime.machine import automatic_workers, feeds_itself, resolve_device, resolve_precision, sensible_threads
from fgssl.training.diagnosis import check_memory, memory_needs
from fgssl.training.teacher import Teacher, open_teacher
from fgssl.training.trackers import require_trackers

BATCH_SIZES = (128, 64, 32)  # the paper's, and less where that leaves too few steps
SIGNAL_IMAGES = 256  # of the training split, the same all through a run
SIGNAL_SHARE = 0.01  # of a run's work
STEPS_PER_EPOCH = 46  # what the paper has on CUB
DROP_PATH, LAYER_DECAY = 0.1, 0.75
LOCAL_SHARE = 0.43  # side of a local view: 96 of 224 pixels in Caron et al. 2020 (SwAV)
TRAINS = (
    "objective.name", "backbone.drop_path", "backbone.batch_norm", "backbone.whitening", "optimizer.layer_decay",
    "training.choose", "training.checkpoint_gradients", "training.compile", "objective.anchor",
    "backbone.adapt", "backbone.lora_rank", "training.head_epochs", "views.place",
)  # fmt: skip
FROM_DEFAULTS = ("default", *(f"{name} default" for name in DRAWN))  # origins of values that nobody asked for


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


def starts_trained(values: Draft | Mapping[str, Any]) -> bool:
    """Whether the backbone starts from weights that have learned something."""
    return bool(values["backbone.pretrained"] or values["backbone.init"])


def start_backbone(draft: Draft, *, load_weights: bool) -> tuple[Backbone, InitialWeights | None]:
    """The backbone as the run starts with it, and what --init brought; what the start decides is filled in."""
    init, told = draft["backbone.init"], draft.origins.get
    draft.derive("backbone.pretrained", init is None, "timm's weights" if init is None else "--init brings its own")
    _derive_freeze(draft)
    freeze = draft["backbone.freeze"]
    if init is not None and told("backbone.name") in FROM_DEFAULTS:  # the one that the weights belong to
        file, origin = backbones.weights_file(init), backbones.origin_of(init)
        if origin is None and file is not None:  # not a bare tag of the default backbone
            raise backbones.unknown_origin(init)
        if origin is not None:
            draft.decide("backbone.name", origin.architecture, "from --init")
            if told("backbone.image_size") in FROM_DEFAULTS and origin.image_size is not None:
                draft.decide("backbone.image_size", origin.image_size, "from --init")
    name, options = draft["backbone.name"], {key: draft[f"backbone.{key}"] for key in ("image_size", "output_stride")}
    started = starts_trained(draft)
    may_drop = draft["backbone.drop_path"] is None and told("backbone.drop_path") != AS_BEGUN and freeze != "backbone"
    if may_drop and started and backbones.survey_backbone(name, **options).transformer:
        with contextlib.suppress(FgsslError):  # not every transformer offers it
            backbones.survey_backbone(name, drop_path=DROP_PATH, **options)
            draft.derive("backbone.drop_path", DROP_PATH, "usual for a trained transformer")
    options |= {"drop_path": draft["backbone.drop_path"], "local_size": _derive_local_views(draft, name, options)}
    backbone = backbones.build_backbone(name, pretrained=draft["backbone.pretrained"] and load_weights, **options)
    initial = backbones.load_initial_weights(backbone, init) if init is not None and load_weights else None
    draft.derive("backbone.image_size", backbone.image_size, "the model's own size")
    draft.derive("backbone.output_stride", None, "the model's own")
    if freeze != "none":
        backbones.freeze_backbone(backbone, None if freeze == "backbone" else int(freeze))
    if draft["backbone.adapt"] == "norm":
        backbones.adapt_norms(backbone)
    if draft["backbone.adapt"] == "lora":
        backbones.adapt_lora(backbone, draft["backbone.lora_rank"], seed=draft["training.seed"])
    if told("backbone.drop_path") != AS_BEGUN:
        draft.derive("backbone.drop_path", None, "none: for trained transformers alone")
    if draft["rationale.enabled"]:
        backbone.bring_along(draft["rationale.stages"] - 1)
    kept = "trained weights go on with the statistics they came with, as a small batch's ruin the features"
    reason = kept if started else "from scratch there are no statistics to keep"
    draft.derive("backbone.batch_norm", "rest" if started else "batch", reason)
    reason = "makes trained weights better at once, without a step" if started else "made for trained weights"
    draft.derive("backbone.whitening", started, reason)
    _derive_stages(draft, backbone)
    _derive_windows(draft)
    _derive_choice(draft, backbone)
    if draft["backbone.batch_norm"] == "rest":
        backbones.rest_batch_norm(backbone)
    return backbone, initial


def derive_optimizer(draft: Draft, backbone: Backbone) -> None:
    """Optimiser, rates, decay and warm-up that suit the start; of the objective's paper, else MoCo v2's or BYOL's."""
    started, frozen, usual = starts_trained(draft), backbone.frozen, "usual for a trained transformer"
    fine_tuned = started and backbone.transformer and not frozen
    own: Recommended = OBJECTIVES[draft["objective.name"]].paper
    paper = f"recommended for {draft['objective.name']}"
    if started and not frozen and not fine_tuned:
        draft.derive("optimizer.name", own.name, own.reason)
    heads = "only the heads train, from scratch"
    reason = heads if frozen else usual if fine_tuned else "learns faster from scratch"
    draft.derive("optimizer.name", "adamw", reason)
    name, batch, epochs, warmup = draft["optimizer.name"], draft["training.batch_size"], draft["training.epochs"], 0.0
    if name == "adamw":
        trained = own.lr if own.name == name and not fine_tuned else 1e-4
        rate = trained if started and not frozen else 1e-3
        why = "usual for adamw, less on trained weights" if rate < 1e-3 else "usual for adamw"
        draft.derive("optimizer.lr", rate, f"{why}; {heads}" if frozen else why)
        draft.derive("optimizer.weight_decay", 0.05, "usual for adamw")
    else:
        known = draft["objective.name"] if own.name == name else "byol" if name == "lars" else "mocov2"
        its: Recommended = OBJECTIVES[known].paper
        paper, warmup, scratch = f"recommended for {known}", its.warmup, name == "sgd" and not started
        rate, why = (4 * its.lr, f"four times what is {paper}, from scratch") if scratch else (its.lr, paper)
        draft.derive("optimizer.lr", rate * batch / its.batch, f"{rate:g} x batch / {its.batch} ({why})")
        draft.derive("optimizer.weight_decay", its.weight_decay, paper)
    if fine_tuned:
        draft.derive("optimizer.layer_decay", LAYER_DECAY, usual)
        reason = "a tenth of the run, at most 5 epochs, for a trained transformer"
        draft.derive("optimizer.warmup_epochs", min(5.0, epochs / 10), reason)
    draft.derive("optimizer.layer_decay", 1.0, heads if frozen else "all layers at one rate")
    reason = f"a tenth of the run, at most 10 epochs, {paper}" if warmup else f"none, {paper}"
    draft.derive("optimizer.warmup_epochs", min(10.0, warmup * epochs), reason)


def _derive_local_views(draft: Draft, name: str, options: dict[str, Any]) -> int | None:
    """Number and size of the small views; the size, None where there are none."""
    frozen, offered = draft["backbone.freeze"] == "backbone", OBJECTIVES[draft["objective.name"]].local_views
    reason = "the maps of a frozen backbone are of whole views" if frozen else "paper" if offered else "not its kind"
    draft.derive("views.local_count", 0 if frozen else offered, reason)
    if not draft["views.local_count"]:
        draft.derive("views.local_size", None, "no local views")
        return None
    whole = backbones.survey_backbone(name, **options)
    stride = whole.image_size // whole.map_size[0]
    size = stride * max(1, round(LOCAL_SHARE * whole.image_size / stride))
    draft.derive("views.local_size", size, f"{LOCAL_SHARE} of {whole.image_size} (paper), a multiple of {stride}")
    size = int(draft["views.local_size"])
    if size >= whole.image_size:
        raise SettingError(f"views.local_size {size} is not below the image size {whole.image_size}", "make it smaller")
    return size


def _derive_places(draft: Draft, epochs: int) -> None:
    """When they are first found, and how long they hold; SettingError where the run is over by then."""
    if draft["views.place"] == "anywhere":
        draft.derive("views.place_warmup", None, "crops lie anywhere")
        return
    draft.derive("views.place_warmup", max(1, epochs // 5), "a fifth of the run (ContrastiveCrop)")
    if (warmup := draft["views.place_warmup"]) >= epochs:
        problem = f"views.place_warmup {warmup} leaves views.place nothing of a run of {epochs} epochs"
        raise SettingError(problem, "lower it, or train longer")


def _derive_freeze(draft: Draft) -> None:
    """Trained weights rest unless something was asked for that only training them has: whitening alone helps in every
    set measured, training after it in some only (docs/trained-weights.md)."""
    if not starts_trained(draft):
        draft.derive("backbone.freeze", "none", "there is nothing to keep yet")
    asked = [key for key in TRAINS if draft.origins.get(key, "default") not in FROM_DEFAULTS]
    if asked:
        draft.derive("backbone.freeze", "none", f"{asked[0]} was asked for, which trains it")
    draft.derive(
        "backbone.freeze", "backbone", "trained weights are whitened; --objective NAME or --freeze none trains"
    )


def _derive_stages(draft: Draft, backbone: Backbone) -> None:
    asked = draft["backbone.stages"] or 1
    if asked > 1 and not draft["backbone.whitening"]:
        problem = f"backbone.stages {asked} without backbone.whitening"
        raise FgsslError(problem, "turn whitening on, or leave the stages out")
    if draft["backbone.whitening"]:
        offered = backbone.stages
        if asked > offered:
            raise FgsslError(f"backbone.stages {asked}: {backbone.name} hands out {offered}", f"use 1 to {offered}")
        draft.derive("backbone.stages", offered, "whitened together: earlier stages tell what the last has lost")
    else:
        draft.derive("backbone.stages", None, "without whitening the last alone")


def _derive_windows(draft: Draft) -> None:
    """The whitening of windows is one of several views of them, as that of the features is."""
    able = bool(draft["backbone.whitening"])
    if draft["rationale.windows"] == "common" and not able:
        raise FgsslError("rationale.windows common without backbone.whitening", "turn whitening on, or leave it out")
    if able and draft["rationale.enabled"]:
        draft.derive("rationale.windows", "common", "what the places of all pictures share finds objects best")
    draft.derive("rationale.windows", "branch", "made for trained weights that are whitened")


def _derive_choice(draft: Draft, backbone: Backbone) -> None:
    """Between weights, which a frozen backbone has one set of; whitened, as whitening moves them most."""
    able = bool(draft["backbone.whitening"] and not backbone.frozen)
    if draft["training.choose"] and not able:
        remedy = "leave it out, or turn on backbone.whitening and train the backbone"
        raise FgsslError("training.choose has one set of weights, or none that is whitened, to choose from", remedy)
    reason = (
        "only the heads train: one set of weights" if backbone.frozen else "made for trained weights that are whitened"
    )
    reason = "training can make trained weights worse: the best is kept" if able else reason
    draft.derive("training.choose", able, reason)
