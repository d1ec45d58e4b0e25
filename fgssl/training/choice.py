"""What a run leaves as its encoder: of several weights the best, judged without a label.

Training from trained weights can make them worse, and its loss does not tell. So the weights that the run began with,
those of its last step, the moving average and the middle between start and end (Wortsman et al. 2022, WiSE-FT) are
each whitened and judged on training pictures (`fgssl.adaptation.judge`). The best is the run's encoder, the others lie
beside it. Of a frozen backbone there is one candidate.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgssl.adaptation import START, Judgement, best_of, embed_views, fit_whitening, fit_windows, judge, whiten
from fgssl.backbones import Backbone, merge_lora
from fgssl.config.schema import flatten
from fgssl.data.cache.pixels import PixelStore
from fgssl.encoder import Encoder
from fgssl.objectives.momentum import MomentumObjective
from fgssl.runs.encoder_file import load_encoder, save_encoder
from fgssl.runs.folder import CANDIDATES, ENCODER_FILE
from fgssl.training.model import KEYS_KEPT
from fgssl.training.setup import Setup
from fgssl.training.start import starts_trained

LEAST, MOST = 6, 1000  # pictures that judge, whitened by one half of them and judged by the other
TRAINED = "trained"
Weights = dict[str, Tensor]  # of a timm model


class Choice(NamedTuple):
    """The encoder of a run, and what it was chosen from."""

    encoder: Encoder
    name: str = TRAINED
    judged: Mapping[str, Judgement] = MappingProxyType({})  # of each candidate; empty where there was one

    def to_dict(self) -> dict[str, Any] | None:
        """For the summary; None where there was nothing to choose."""
        judged = {name: one._asdict() for name, one in self.judged.items()}
        return {"weights": self.name, "judged": judged} if judged else None

    def sentence(self) -> str:
        """Which weights were taken, for whoever runs it."""
        told = ", ".join(
            f"{name} {one.standing_out:.2f} sd and {100 * one.reciprocity:.1f} %" for name, one in self.judged.items()
        )
        judged = f"How far nearest neighbours stand out, and how many are mutual: {told}"
        saved = f"{ENCODER_FILE} holds the {self.name} weights"
        if self.name != START:
            return f"{saved}. {judged}"
        trained = f"what was trained, maps included, is in {CANDIDATES}/{TRAINED}.safetensors"
        return f"{saved}, as no others are better by both signs; {trained}. {judged}"


def candidate_path(output: Path, name: str) -> Path:
    """Where the weights of that name lie beside the run's encoder."""
    return output / CANDIDATES / f"{name}.safetensors"


def keep_start(setup: Setup) -> None:
    """Write what the run begins with, where it may be what it ends with."""
    if setup.plan.config.training.choose:
        path = candidate_path(setup.output, START)
        path.parent.mkdir(exist_ok=True)
        save_encoder(path, _start_of(setup))


def start_encoder(setup: Setup) -> Encoder | None:
    """The trained weights that the run began with, as they are used without it; None where they are not at hand."""
    path = candidate_path(setup.output, START)
    if path.is_file():
        return Encoder(load_encoder(str(path)).backbone).eval()
    frozen = setup.plan.backbone.frozen and starts_trained(flatten(setup.plan.config))
    return Encoder(setup.plan.backbone).eval() if frozen else None


def choose_encoder(setup: Setup) -> Choice:
    """Whiten and, where the run is to choose, judge each candidate; write the best as the run's encoder."""
    model, config = setup.model, setup.plan.config
    for part in list(model.modules()):  # the encoder's, and the one that follows it
        if isinstance(part, Backbone):
            merge_lora(part)
    encoder, pixels, seed = model.encoder, setup.views.pixels, config.training.seed
    encoder.keys = model.objective.sample_keys(KEYS_KEPT)
    choice = Choice(encoder)
    if config.training.choose:
        choice = _judged(setup, _candidates(setup))
    elif config.backbone.whitening:
        show = functools.partial(setup.reporter.progress, "whitening")
        if not whiten(encoder, pixels, stages=config.backbone.stages or 1, seed=seed, progress=show):
            setup.reporter.warn("the features are not whitened: fewer than two training pictures can be read")
    _look_again(setup, choice.encoder)
    save_encoder(setup.output / ENCODER_FILE, choice.encoder)
    return choice


def _look_again(setup: Setup, encoder: Encoder) -> None:
    """Fit the second look of the run's encoder, where the run is to."""
    config = setup.plan.config
    if config.rationale.windows != "common" or encoder.whitening is None:
        return
    pixels, show = (
        PixelStore(setup.plan.train, encoder.view("zoom")),
        functools.partial(setup.reporter.progress, "finding objects"),
    )
    if not fit_windows(encoder, pixels, seed=config.training.seed, progress=show):
        setup.reporter.warn("zoom looks where the branch does: too few pictures can be read, or they are all alike")
        return
    place = "in the middle: it tells more than" if encoder.finder is None else "at"
    weight = f"{encoder.look_weight:.2f} times what the whole picture does"
    setup.reporter.note(f"zoom looks {place} what all pictures share; its window weighs {weight}")


def _start_of(setup: Setup) -> Encoder:
    """With the backbone's present weights, without what is trained beside them: branch and heads fit other maps."""
    config = setup.plan.config
    return Encoder(setup.plan.backbone, config=replace(config, rationale=replace(config.rationale, enabled=False)))


def _candidates(setup: Setup) -> dict[str, Weights]:
    """By name; the average where the objective has one."""
    objective, trained = setup.model.objective, _weights(setup.plan.backbone)
    found = {TRAINED: trained}
    if isinstance(objective, MomentumObjective) and isinstance(objective.key_backbone, Backbone):
        found["averaged"] = _weights(objective.key_backbone)
    path = candidate_path(setup.output, START)
    if not path.is_file():  # of a run begun before there was a choice
        return found
    start = {key: value.to(trained[key].device) for key, value in _weights(load_encoder(str(path)).backbone).items()}
    middle = {k: v.lerp(trained[k], 0.5) if v.is_floating_point() else trained[k] for k, v in start.items()}
    return {START: start, "interpolated": middle, **found}


def _weights(backbone: Backbone) -> Weights:
    return {key: value.clone() for key, value in backbone.model.state_dict().items()}


def _judged(setup: Setup, candidates: dict[str, Weights]) -> Choice:
    """The best; every candidate is written beside the encoder, whitened like it."""
    encoder, backbone, config = setup.model.encoder, setup.plan.backbone, setup.plan.config
    pixels, told = setup.views.pixels, setup.reporter.progress
    stages, seed, judged = config.backbone.stages or 1, config.training.seed, dict[str, Judgement]()
    for name, weights in candidates.items():
        backbone.model.load_state_dict(weights)
        show = functools.partial(told, f"judging the {name} weights")
        views = embed_views(encoder, pixels, stages=stages, seed=seed, progress=show, most=MOST)
        if views.features.shape[1] < LEAST:
            setup.reporter.warn(f"the weights of the last step are kept: fewer than {LEAST} pictures can be read")
            backbone.model.load_state_dict(candidates[TRAINED])
            return Choice(encoder)
        finite = bool(torch.isfinite(views.features).all())
        judged[name] = judge(views.features) if finite else Judgement()
        own = _start_of(setup) if name == START else encoder
        if finite:
            own.whiten_by(fit_whitening(views.features), stages=stages)
        save_encoder(candidate_path(setup.output, name), own)
    best = best_of(judged)
    chosen = load_encoder(str(candidate_path(setup.output, best))).to(encoder.device)
    if len(pixels) > MOST:  # by more pictures than it was judged on
        whiten(chosen, pixels, stages=stages, seed=seed, progress=functools.partial(told, "whitening"))
    choice = Choice(chosen, best, judged)
    setup.reporter.note(choice.sentence())
    return choice
