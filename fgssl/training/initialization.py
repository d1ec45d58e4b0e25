"""How a run starts: the backbone with its weights, what of it is frozen, and the defaults that follow from that.

Three starts have their own defaults. From scratch: AdamW and a sharp temperature learn faster. A trained CNN: the
paper's SGD. A trained transformer or one of its kin (ConvNeXt): AdamW at a low rate, lower still for early layers, with
warm-up and stochastic depth, as such models are fine-tuned elsewhere (Bao et al. 2021, He et al. 2022).
"""

from __future__ import annotations

from typing import Any

from fgssl.backbones import (
    Backbone,
    InitialWeights,
    build_backbone,
    freeze_backbone,
    load_initial_weights,
    origin_of,
    survey_backbone,
)
from fgssl.config.defaults import PAPER_OPTIMIZERS, Derive, derive_rates, derive_warmup
from fgssl.config.resolve import AS_BEGUN
from fgssl.errors import FgsslError

Values = dict[str, Any]
DROP_PATH, LAYER_DECAY = 0.1, 0.75
FROM_DEFAULTS = ("default", "demo default")  # origins of values that nobody asked for


def starts_trained(values: Values) -> bool:
    """Whether the backbone starts from weights that have learned something."""
    return bool(values["backbone.pretrained"] or values["backbone.init"])


def start_backbone(
    values: Values, origins: dict[str, str], derive: Derive, *, load_weights: bool
) -> tuple[Backbone, InitialWeights | None]:
    """The backbone as the run starts with it, and what --init brought.

    Args:
        values: `section.key` to value; what the start decides is filled in.
        origins: Where each value came from.
        derive: Fills in a value that is still open.
        load_weights: Give it its weights; not where a saved state is about to replace them.

    Raises:
        FgsslError: The model, its size, its options or its weights cannot be had.
    """
    derive("backbone.pretrained", values["backbone.init"] is None, "timm's weights unless told otherwise")
    if values["backbone.init"] is not None:
        _follow_init(values, origins)
    options = {key: values[f"backbone.{key}"] for key in ("image_size", "output_stride")}
    if origins.get("backbone.drop_path") != AS_BEGUN:
        _derive_drop_path(values, derive, options)
    backbone = build_backbone(
        values["backbone.name"],
        pretrained=values["backbone.pretrained"] and load_weights,
        drop_path=values["backbone.drop_path"],
        **options,
    )
    initial = None
    if values["backbone.init"] is not None and load_weights:
        initial = load_initial_weights(backbone, values["backbone.init"])
    derive("backbone.image_size", backbone.image_size, "the model's own size")
    derive("backbone.output_stride", None, "the model's own")
    if values["backbone.freeze"] != "none":
        whole = values["backbone.freeze"] == "backbone"
        freeze_backbone(backbone, None if whole else int(values["backbone.freeze"]))
    return backbone, initial


def _follow_init(values: Values, origins: dict[str, str]) -> None:
    """Where no backbone was asked for, the one that the weights belong to, at the size they were trained at."""
    if origins.get("backbone.name") not in FROM_DEFAULTS:
        return
    origin = origin_of(values["backbone.init"])
    if origin is None:
        return
    values["backbone.name"], origins["backbone.name"] = origin.architecture, "derived: from --init"
    if origins.get("backbone.image_size") in FROM_DEFAULTS and origin.image_size is not None:
        values["backbone.image_size"], origins["backbone.image_size"] = origin.image_size, "derived: from --init"


def _derive_drop_path(values: Values, derive: Derive, options: dict[str, Any]) -> None:
    name = values["backbone.name"]
    if values["backbone.drop_path"] is not None or not starts_trained(values):
        return
    if values["backbone.freeze"] == "backbone" or not survey_backbone(name, **options).transformer:
        return
    try:
        survey_backbone(name, drop_path=DROP_PATH, **options)
    except FgsslError:  # not every transformer offers it
        return
    derive("backbone.drop_path", DROP_PATH, "usual for a trained transformer")


def derive_optimizer(values: Values, derive: Derive, backbone: Backbone) -> None:
    """Optimiser, rates, decay and warm-up that suit the start."""
    started, frozen = starts_trained(values), backbone.frozen
    fine_tuned = started and backbone.transformer and not frozen
    if frozen:
        derive("optimizer.name", "adamw", "only the heads train")
    elif fine_tuned:
        derive("optimizer.name", "adamw", "usual for a trained transformer")
    else:
        paper = PAPER_OPTIMIZERS[values["objective.name"]].name
        derive("optimizer.name", paper if started else "adamw", "paper" if started else "learns faster from scratch")
    derive_rates(values, derive, started=started, frozen=frozen)
    if fine_tuned:
        derive("optimizer.layer_decay", LAYER_DECAY, "usual for a trained transformer")
        epochs = min(5.0, values["training.epochs"] / 10)
        derive("optimizer.warmup_epochs", epochs, "a tenth of the run, at most 5 epochs, for a trained transformer")
    else:
        derive("optimizer.layer_decay", 1.0, "all layers at one rate")
        derive_warmup(values, derive)
