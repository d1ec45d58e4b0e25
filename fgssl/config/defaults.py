"""What an objective uses unless told otherwise: widths, temperature, momentum, and its paper's optimiser."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from fgssl.config.schema import OBJECTIVE_SETTINGS
from fgssl.errors import FgsslError

LARGEST_QUEUE = 65_536
LONGEST_AVERAGE = {"mocov2": 1000.0, "byol": 250.0}  # steps: momentum 0.999 and 0.996, as in the paper
STEP_FORWARDS = {"mocov2": 4, "byol": 8, "simsiam": 6, "simclr": 6}  # work on an image; a backward counts as two


class Derive(Protocol):
    """Fills in a value that was left open, and remembers why."""

    def __call__(self, key: str, value: Any, reason: str) -> None: ...


class Recommended(NamedTuple):
    """An optimiser and its settings."""

    name: str
    lr: float  # for the batch below; proportional to the batch
    batch: int
    weight_decay: float
    warmup: float  # share of the run, at most 10 epochs


PAPER_OPTIMIZERS: dict[str, Recommended] = {
    "mocov2": Recommended("sgd", 0.03, 128, 1e-4, 0.0),
    "byol": Recommended("lars", 0.3, 256, 1.5e-6, 0.1),
    "simsiam": Recommended("sgd", 0.05, 256, 1e-4, 0.0),
    "simclr": Recommended("lars", 0.3, 256, 1e-6, 0.1),
}


def derive_objective(
    values: dict[str, Any], derive: Derive, *, channels: int, images: int, total_steps: int, started: bool
) -> None:
    """Fill in what the objective needs; what it has no use for is said to be so.

    Args:
        values: `section.key` to value; what the objective needs is filled in.
        derive: Fills in a value that is still open.
        channels: Of the backbone's map.
        images: In the training split.
        total_steps: Of the run.
        started: Whether the backbone starts from trained weights.

    Raises:
        FgsslError: a queue shorter than the batch.
    """
    name = values["objective.name"]
    _derive_widths(name, values, derive, channels)
    if name == "mocov2":
        _derive_queue(values, derive, images, started=started)
    if name in OBJECTIVE_SETTINGS["temperature"]:
        # grocery, resnet18, 64 px, 4 epochs, one seed: test -> train rank-1 14.2 with 0.1 against 13.2 with 0.2
        derive("objective.temperature", 0.2 if started else 0.1, "paper" if started else "learns faster from scratch")
    if name in OBJECTIVE_SETTINGS["momentum"]:
        # the paper's 0.999 averages over a fifth of its 4,600 steps on CUB; shorter runs need a quicker average
        longest = LONGEST_AVERAGE[name]
        horizon = min(longest, max(10.0, total_steps / 5))
        derive(
            "objective.momentum",
            round(1 - 1 / horizon, 5),
            f"averages over a fifth of the run, at most {longest:,.0f} steps",
        )
        risen = name == "byol"
        derive(
            "objective.momentum_end", 1.0 if risen else values["objective.momentum"], "paper" if risen else "no rise"
        )
    for key, owners in OBJECTIVE_SETTINGS.items():
        if name not in owners:
            derive(f"objective.{key}", None, f"{name} has none")


def derive_rates(values: dict[str, Any], derive: Derive, *, started: bool, frozen: bool) -> None:
    """Fill in learning rate and weight decay that suit the optimiser, the objective and the start.

    Args:
        values: `section.key` to value; `optimizer.name` is filled in.
        derive: Fills in a value that is still open.
        started: Whether the backbone starts from trained weights.
        frozen: Whether it keeps them.
    """
    optimizer, batch = values["optimizer.name"], values["training.batch_size"]
    if optimizer == "adamw":
        gentle = started and not frozen
        derive("optimizer.lr", 1e-4 if gentle else 1e-3, "usual for adamw, less on trained weights")
        derive("optimizer.weight_decay", 0.05, "usual for adamw")
        return
    paper = _paper_of(optimizer, values["objective.name"])
    lr, why = paper.lr, "paper"
    if optimizer == "sgd" and not started:
        lr, why = 4 * lr, "four times the paper's, from scratch"
    derive("optimizer.lr", lr * batch / paper.batch, f"{lr:g} x batch / {paper.batch} ({why})")
    derive("optimizer.weight_decay", paper.weight_decay, "paper")


def derive_warmup(values: dict[str, Any], derive: Derive) -> None:
    """Fill in the warm-up of the optimiser's paper; AdamW goes without."""
    optimizer = values["optimizer.name"]
    share = 0.0 if optimizer == "adamw" else _paper_of(optimizer, values["objective.name"]).warmup
    epochs = min(10.0, share * values["training.epochs"])
    derive("optimizer.warmup_epochs", epochs, "paper: a tenth of the run, at most 10 epochs" if share else "paper")


def _paper_of(optimizer: str, objective: str) -> Recommended:
    """The objective's own recommendation; for another optimiser that of MoCo v2 or BYOL."""
    own = PAPER_OPTIMIZERS[objective]
    return own if own.name == optimizer else PAPER_OPTIMIZERS["byol" if optimizer == "lars" else "mocov2"]


def _derive_widths(name: str, values: dict[str, Any], derive: Derive, channels: int) -> None:
    """Those of the papers for ResNet-50's 2,048 channels, in proportion."""
    if name == "byol":
        derive("objective.projector_hidden", 2 * channels, "twice the map's channels")
        derive("objective.projector_dim", 256, "paper")
        derive("objective.predictor_hidden", values["objective.projector_hidden"], "the projector's")
    elif name == "simsiam":
        derive("objective.projector_hidden", channels, "the map's channels")
        derive("objective.projector_dim", channels, "the map's channels")
        derive("objective.predictor_hidden", max(1, values["objective.projector_dim"] // 4), "a quarter of its input")
    else:
        derive("objective.projector_hidden", channels, "the map's channels")
        derive("objective.projector_dim", 128 if name == "simclr" else 256, "paper")


def _derive_queue(values: dict[str, Any], derive: Derive, images: int, *, started: bool) -> None:
    """From scratch the negatives are of the same step: while weights move fast, older keys are told by their age."""
    batch, asked = values["training.batch_size"], values["objective.queue_size"]
    if asked is not None and asked < batch:
        raise FgsslError(
            f"objective.queue_size {asked} is smaller than the batch of {batch}",
            "make the queue at least one batch long, or leave it out",
        )
    if values["objective.batch_negatives"] is False or started:
        derive("objective.queue_size", max(batch, min(LARGEST_QUEUE, images // 2)), "half an epoch of keys")
    derive("objective.queue_size", batch, "one batch, from scratch: older keys are told by their age")
    derive("objective.batch_negatives", not started, "paper" if started else "from scratch")
