"""The label-free signals of a run, each beside its value before the first step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgssl.config.schema import flatten
from fgssl.data.feed import view_pairs
from fgssl.evaluation.bootstrap import paired_bootstrap
from fgssl.evaluation.metrics import Signals, label_free_signals, same_neighbours, view_features
from fgssl.training.plan import SIGNAL_IMAGES
from fgssl.training.setup import Setup
from fgssl.training.start import starts_trained

END, START = "sample_", "start_"  # before the names of the signals in metrics.jsonl


class Measured(NamedTuple):
    """The signals of an encoder on the sample."""

    signals: Signals
    shares: Tensor  # (N,) float64, of each image the neighbours found again; their mean is `neighbour_overlap`


class RunSignals:
    """Measures the encoder of a run, in one process, on pairs of views of a few training images, always the same."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.start: Measured | None = None
        self._pairs: Tensor | None = None  # drawn when they are first due

    def begin(self) -> None:
        """Before the first step; nothing where no signals are wanted, or a frozen backbone's never change."""
        plan = self.setup.plan
        if plan.config.training.signals_every and not plan.backbone.frozen:
            self.start = self._measure()
            if self.start is not None:
                self._note(0, self.start.signals.in_words())

    def after(self, step: int) -> dict[str, float]:
        """What metrics.jsonl is told; after the last step neighbours that got worse are warned of."""
        found = self._measure()
        if found is None:
            return {}
        start = None if self.start is None else self.start.signals
        self._note(step, found.signals.in_words(start))
        if step == self.setup.plan.total_steps and self.start is not None and is_worse(found.shares, self.start.shares):
            self.setup.reporter.warn(self._warning(found.signals, self.start.signals))
        told = {f"{END}{name}": value for name, value in found.signals._asdict().items()}
        before = {} if start is None else start._asdict()
        return told | {f"{START}{name}": value for name, value in before.items() if name != "neighbour_chance"}

    def state(self) -> dict[str, Any] | None:
        return None if self.start is None else {"signals": list(self.start.signals), "shares": self.start.shares}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Of a run saved before there was one: none."""
        self.start = None if state is None else Measured(Signals(*state["signals"]), state["shares"])

    def recall(self, summary: dict[str, Any]) -> None:
        """Of a finished run whose states are gone; each image's share is, too."""
        if told := summary.get("signals"):
            start = told["start"] | {"neighbour_chance": told["end"]["neighbour_chance"]}
            self.start = Measured(Signals(**start), torch.empty(0))

    def _measure(self) -> Measured | None:
        self._pairs = view_pairs(self.setup.views, SIGNAL_IMAGES) if self._pairs is None else self._pairs
        if self._pairs.shape[1] < 2:
            return None
        with self.setup.accelerator.autocast(), self.setup.model.objective.uncompiled():
            features = view_features(self.setup.model.encoder, self._pairs)
        return Measured(label_free_signals(*features), same_neighbours(*features))

    def _note(self, step: int, words: str) -> None:
        images = 0 if self._pairs is None else self._pairs.shape[1]
        self.setup.reporter.note(f"step {step}: {images} training images in two views: {words}")

    def _warning(self, end: Signals, start: Signals) -> str:
        now, before = f"{end.neighbour_overlap:.3f}", f"{start.neighbour_overlap:.3f} before the first step"
        problem = f"the features got worse: same neighbours {now} after {before}, and beyond chance"
        if not starts_trained(flatten(self.setup.plan.config)):
            return f"{problem}; try another --lr, and look at views.png: a pair must show the same thing"
        return f"{problem}; look at fgssl compare {self.setup.output} before you use them, and try a lower --lr"


def is_worse(end: Tensor, start: Tensor) -> bool:
    """Whether shares (N,) in [0, 1] fell beyond chance: the 95 % interval of the paired difference is below 0."""
    return len(end) == len(start) and paired_bootstrap(end, start).high < 0  # not so many: other images, on resume


def start_and_end(last: dict[str, float]) -> dict[str, dict[str, float]] | None:
    """The signals in the last line of the log, for the summary; None where the start's are not known."""
    found = {side: {name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)}
             for side, prefix in (("start", START), ("end", END))}  # fmt: skip
    return found if found["start"] else None
