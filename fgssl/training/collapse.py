"""Training that goes wrong without an error: collapse, a loss at chance, an absurd learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fgssl.config.schema import OptimizerConfig
from fgssl.errors import TrainingFault

PATIENCE = 3  # lines of the log in a row
LOST_SHARE = 0.9  # of the best that a signal had above its floor
CHANCE_SHARE, CHANCE_STEPS, CHANCE_PART = 0.98, 500, 0.1  # a loss above it, for so many steps and this part of the run
# outside them nothing is learned, or nothing survives
RATES = {"adamw": (1e-7, 0.05), "sgd": (1e-6, 10.0), "lars": (1e-3, 100.0)}
COLLAPSE_REMEDY = "lower --lr, add --set optimizer.warmup_epochs=1, and look at views.png: can a pair be told apart?"


class Spread(NamedTuple):
    """A number of the log that a collapse takes away."""

    words: str
    floor: float  # at a total collapse
    worth_losing: float  # its best must have been that much for its fall to mean anything
    shown: str  # format


SPREADS = {
    "effective_rank": Spread("effective rank", 1.0, 2.0, ".2f"),
    "feature_std": Spread("standard deviation", 0.0, 0.05, ".3f"),
}


class Watch:
    """Looks at each line of the log; every process sees the same lines and comes to the same judgement."""

    def __init__(self, *, total_steps: int, stop_on_collapse: bool = False) -> None:
        self.total_steps, self.stop_on_collapse = total_steps, stop_on_collapse
        self.best = {name: spread.floor for name, spread in SPREADS.items()}
        self.low_lines = dict.fromkeys(SPREADS, 0)
        self.learned_at: int | None = None  # the last step whose loss was below chance
        self.said: set[str] = set()

    def look(self, step: int, means: Mapping[str, float], *, chance: float | None) -> list[str]:
        """What to warn of after `step`, each kind once.

        Args:
            step: Done so far.
            means: `loss`, `effective_rank` and `feature_std` of the line.
            chance: The loss of an encoder that knows nothing; None where the loss does not tell.

        Raises:
            TrainingFault: collapse, where that shall stop the run.
        """
        fallen = " and ".join(filter(None, (self._fallen(name, means[name]) for name in SPREADS)))
        collapse = f"the features collapse: {fallen} by step {step}" if fallen else ""
        if collapse and self.stop_on_collapse:
            raise TrainingFault(collapse, COLLAPSE_REMEDY)
        at_chance = "" if chance is None else self._chance(step, means["loss"], chance)
        found = {"collapse": collapse and f"{collapse}; {COLLAPSE_REMEDY}", "chance": at_chance}
        new = [kind for kind, text in found.items() if text and kind not in self.said]
        self.said |= set(new)
        return [found[kind] for kind in new]

    def look_at_rate(self, config: OptimizerConfig) -> str:
        """A warning where the learning rate is out of all proportion for its optimiser; once a run and rate."""
        text = absurd_rate(config) or ""
        new = text not in self.said
        self.said |= {text} if text else set()
        return text if new else ""

    def state(self) -> dict[str, Any]:
        """What was seen and said, for a saved run."""
        seen = {"best": dict(self.best), "low_lines": dict(self.low_lines), "learned_at": self.learned_at}
        return {**seen, "said": sorted(self.said)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo of `state`; what it lacks stays as it is."""
        self.best |= state.get("best", {})
        self.low_lines |= state.get("low_lines", {})
        self.learned_at = state.get("learned_at", self.learned_at)
        self.said |= set(state.get("said", ()))

    def _fallen(self, name: str, value: float) -> str:
        spread = SPREADS[name]
        best = self.best[name] = max(self.best[name], value)
        lost = value - spread.floor <= (1 - LOST_SHARE) * (best - spread.floor) and best >= spread.worth_losing
        self.low_lines[name] = self.low_lines[name] + 1 if lost else 0
        if self.low_lines[name] < PATIENCE:
            return ""
        return f"their {spread.words} fell from {best:{spread.shown}} to {value:{spread.shown}}"

    def _chance(self, step: int, loss: float, chance: float) -> str:
        if self.learned_at is None or loss < CHANCE_SHARE * chance:
            self.learned_at = step
        idle = step - self.learned_at
        if idle < max(CHANCE_STEPS, CHANCE_PART * self.total_steps):
            return ""
        return (
            f"the loss has been at chance ({loss:.2f} of {chance:.2f}) for {idle} steps, nothing is learned; "
            "try another --lr, ten times more or less, and look at views.png: a pair must show the same thing"
        )


def absurd_rate(config: OptimizerConfig) -> str | None:
    """A warning where the learning rate is out of all proportion for its optimiser."""
    if config.name is None or config.lr is None:
        return None
    low, high = RATES[config.name]
    if low <= config.lr <= high:
        return None
    usable = f"what {config.name} can use ({low:g} to {high:g})"
    return f"--lr {config.lr:g} is outside {usable}: nothing good will come of it"
