"""How a run starts: the backbone with its weights, what of it is frozen, and the defaults that follow from that.

Three starts have their own defaults. From scratch: AdamW and a sharp temperature learn faster. A trained CNN: the
paper's SGD. A trained transformer or one of its kin (ConvNeXt): AdamW at a low rate, lower still for early layers, with
warm-up and stochastic depth, as such models are fine-tuned elsewhere (Bao et al. 2021, He et al. 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fgssl.backbones import (
    Backbone,
    InitialWeights,
    build_backbone,
    freeze_backbone,
    load_initial_weights,
    origin_of,
    rest_batch_norm,
    survey_backbone,
    unknown_origin,
    weights_file,
)
from fgssl.config.defaults import Draft, derive_rates, derive_warmup
from fgssl.config.resolve import AS_BEGUN
from fgssl.errors import FgsslError
from fgssl.objectives import OBJECTIVES

DROP_PATH, LAYER_DECAY = 0.1, 0.75
FROM_DEFAULTS = ("default", "demo default")  # origins of values that nobody asked for


def starts_trained(values: Draft | Mapping[str, Any]) -> bool:
    """Whether the backbone starts from weights that have learned something."""
    return bool(values["backbone.pretrained"] or values["backbone.init"])


def start_backbone(draft: Draft, *, load_weights: bool) -> tuple[Backbone, InitialWeights | None]:
    """The backbone as the run starts with it, and what --init brought; what the start decides is filled in."""
    init, freeze = draft["backbone.init"], draft["backbone.freeze"]
    draft.derive("backbone.pretrained", init is None, "timm's weights unless told otherwise")
    if init is not None:
        _follow_init(draft)
    options = {key: draft[f"backbone.{key}"] for key in ("image_size", "output_stride")}
    if draft.origins.get("backbone.drop_path") != AS_BEGUN:
        _derive_drop_path(draft, options)
    backbone = build_backbone(
        draft["backbone.name"],
        pretrained=draft["backbone.pretrained"] and load_weights,
        drop_path=draft["backbone.drop_path"],
        **options,
    )
    initial = load_initial_weights(backbone, init) if init is not None and load_weights else None
    draft.derive("backbone.image_size", backbone.image_size, "the model's own size")
    draft.derive("backbone.output_stride", None, "the model's own")
    if freeze != "none":
        freeze_backbone(backbone, None if freeze == "backbone" else int(freeze))
    _derive_adaptation(draft, backbone)
    return backbone, initial


def _follow_init(draft: Draft) -> None:
    """Where no backbone was asked for, the one that the weights belong to, at the size they were trained at."""
    if draft.origins.get("backbone.name") not in FROM_DEFAULTS:
        return
    source = draft["backbone.init"]
    file, origin = weights_file(source), origin_of(source)
    if origin is None and file is None:  # a bare tag of the default backbone
        return
    if origin is None:
        raise unknown_origin(source)
    draft.decide("backbone.name", origin.architecture, "from --init")
    if draft.origins.get("backbone.image_size") in FROM_DEFAULTS and origin.image_size is not None:
        draft.decide("backbone.image_size", origin.image_size, "from --init")


def _derive_drop_path(draft: Draft, options: dict[str, Any]) -> None:
    name = draft["backbone.name"]
    if draft["backbone.drop_path"] is not None or not starts_trained(draft):
        return
    if draft["backbone.freeze"] == "backbone" or not survey_backbone(name, **options).transformer:
        return
    try:
        survey_backbone(name, drop_path=DROP_PATH, **options)
    except FgsslError:  # not every transformer offers it
        return
    draft.derive("backbone.drop_path", DROP_PATH, "usual for a trained transformer")


def _derive_adaptation(draft: Draft, backbone: Backbone) -> None:
    """Statistics that belong to trained weights are kept; from scratch there are none yet."""
    started = starts_trained(draft)
    reason = "the statistics that trained weights came with" if started else "no statistics to keep yet"
    draft.derive("backbone.batch_norm", "rest" if started else "batch", reason)
    draft.derive("backbone.whitening", started, "helps trained weights" if started else "for trained weights")
    if draft["backbone.batch_norm"] == "rest":
        rest_batch_norm(backbone)


def derive_optimizer(draft: Draft, backbone: Backbone) -> None:
    """Optimiser, rates, decay and warm-up that suit the start."""
    started, frozen = starts_trained(draft), backbone.frozen
    fine_tuned = started and backbone.transformer and not frozen
    if frozen:
        draft.derive("optimizer.name", "adamw", "only the heads train")
    elif fine_tuned:
        draft.derive("optimizer.name", "adamw", "usual for a trained transformer")
    elif started:
        draft.derive("optimizer.name", OBJECTIVES[draft["objective.name"]].paper.name, "paper")
    else:
        draft.derive("optimizer.name", "adamw", "learns faster from scratch")
    derive_rates(draft, started=started, frozen=frozen)
    if fine_tuned:
        draft.derive("optimizer.layer_decay", LAYER_DECAY, "usual for a trained transformer")
        epochs = min(5.0, draft["training.epochs"] / 10)
        reason = "a tenth of the run, at most 5 epochs, for a trained transformer"
        draft.derive("optimizer.warmup_epochs", epochs, reason)
    else:
        draft.derive("optimizer.layer_decay", 1.0, "all layers at one rate")
        derive_warmup(draft)
