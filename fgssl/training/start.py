"""How a run starts: from which weights, what of them trains, and the settings that follow from that.

From scratch AdamW and a sharp temperature learn faster; a trained CNN takes the paper's SGD; a trained transformer
AdamW at low rates with warm-up and stochastic depth, as is usual (Bao et al. 2021, He et al. 2022).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from fgssl import backbones
from fgssl.backbones import Backbone, InitialWeights
from fgssl.config.defaults import Draft, Recommended
from fgssl.config.resumed import AS_BEGUN
from fgssl.data import DRAWN
from fgssl.errors import FgsslError, SettingError
from fgssl.objectives import OBJECTIVES

DROP_PATH, LAYER_DECAY = 0.1, 0.75
LOCAL_SHARE = 0.43  # side of a local view: 96 of 224 pixels in Caron et al. 2020 (SwAV)
TRAINS = (
    "objective.name", "backbone.drop_path", "backbone.batch_norm", "backbone.whitening", "optimizer.layer_decay",
    "training.choose", "training.checkpoint_gradients", "training.compile", "objective.anchor",
    "backbone.adapt", "backbone.lora_rank", "training.head_epochs", "views.place",
)  # fmt: skip
FROM_DEFAULTS = ("default", *(f"{name} default" for name in DRAWN))  # origins of values that nobody asked for


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
