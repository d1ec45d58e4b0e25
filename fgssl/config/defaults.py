"""Filling in what a run was not told: each value with its reason. What an objective needs is in its own file."""

from __future__ import annotations

from typing import Any, NamedTuple

from fgssl.config.schema import optional_settings
from fgssl.registry import OBJECTIVES


class Draft:
    """A run's settings, `section.key` to value and to where it came from, while what is open (None) is filled in."""

    def __init__(self, values: dict[str, Any], origins: dict[str, str]) -> None:
        self.values, self.origins = dict(values), dict(origins)

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def derive(self, key: str, value: Any, reason: str) -> None:
        """Fill in a value that is still open."""
        if self.values[key] is None:
            self.decide(key, value, reason)

    def decide(self, key: str, value: Any, reason: str) -> None:
        """Give a value whatever stood there."""
        self.values[key], self.origins[key] = value, f"derived: {reason}"


class RunFacts(NamedTuple):
    """What the defaults of an objective depend on."""

    channels: int  # of the backbone's map
    images: int  # in the training split
    total_steps: int
    started: bool  # from trained weights


class Recommended(NamedTuple):
    """An optimiser and its settings."""

    name: str
    lr: float  # for the batch below; proportional to the batch
    batch: int
    weight_decay: float
    warmup: float  # share of the run, at most 10 epochs


def derive_objective(draft: Draft, run: RunFacts) -> None:
    """Fill in what the objective needs; what it has no use for is said to be so.

    Raises:
        FgsslError: a value that does not fit the run.
    """
    name = draft["objective.name"]
    objective = OBJECTIVES[name]
    objective.derive(draft, run)
    if (plugin := OBJECTIVES.origin(name)) is not None:
        draft.decide("objective.plugin", plugin, "where the objective came from")
    for key in optional_settings():
        if key not in objective.uses:
            draft.derive(f"objective.{key}", None, f"{name} has none")


def derive_rates(draft: Draft, *, started: bool, frozen: bool) -> None:
    """Fill in learning rate and weight decay that suit the optimiser, the objective and the start.

    Args:
        draft: Its `optimizer.name` is filled in.
        started: Whether the backbone starts from trained weights.
        frozen: Whether it keeps them.
    """
    optimizer, batch = draft["optimizer.name"], draft["training.batch_size"]
    if optimizer == "adamw":
        gentle = started and not frozen
        draft.derive("optimizer.lr", 1e-4 if gentle else 1e-3, "usual for adamw, less on trained weights")
        draft.derive("optimizer.weight_decay", 0.05, "usual for adamw")
        return
    paper = _paper_of(optimizer, draft["objective.name"])
    lr, why = paper.lr, "paper"
    if optimizer == "sgd" and not started:
        lr, why = 4 * lr, "four times the paper's, from scratch"
    draft.derive("optimizer.lr", lr * batch / paper.batch, f"{lr:g} x batch / {paper.batch} ({why})")
    draft.derive("optimizer.weight_decay", paper.weight_decay, "paper")


def derive_warmup(draft: Draft) -> None:
    """Fill in the warm-up of the optimiser's paper; AdamW goes without."""
    optimizer = draft["optimizer.name"]
    share = 0.0 if optimizer == "adamw" else _paper_of(optimizer, draft["objective.name"]).warmup
    epochs = min(10.0, share * draft["training.epochs"])
    draft.derive(
        "optimizer.warmup_epochs", epochs, "paper: a tenth of the run, at most 10 epochs" if share else "paper"
    )


def _paper_of(optimizer: str, objective: str) -> Recommended:
    """The objective's own recommendation; for another optimiser that of MoCo v2 or BYOL."""
    own: Recommended = OBJECTIVES[objective].paper
    other: Recommended = OBJECTIVES["byol" if optimizer == "lars" else "mocov2"].paper
    return own if own.name == optimizer else other
