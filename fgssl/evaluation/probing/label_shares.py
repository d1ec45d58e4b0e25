"""A classifier on shares of the labels, each drawn several times: what a fifth of them would give, and how surely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fgssl.errors import FgsslError
from fgssl.evaluation.bootstrap import Interval, bootstrap_interval
from fgssl.evaluation.probing.scores import ClassifierResult, Confusion, confusions
from fgssl.evaluation.probing.splits import stratified_fraction

Fit = Callable[[Tensor, int], ClassifierResult]  # rows of the train images (M,), seed -> its result on the test images


class Draw(NamedTuple):
    """Labelled images of one try."""

    fraction: float
    seed: int
    rows: Tensor  # (M,) int64 rows of the train images, ascending


class Trial(NamedTuple):
    """One try and what came of it."""

    draw: Draw
    result: ClassifierResult


@dataclass(frozen=True)
class Share:
    """All tries of one fraction of the labels, judged on the same test images."""

    fraction: float
    trials: tuple[Trial, ...]

    @property
    def labels(self) -> int:
        """Labelled images in each try."""
        return len(self.trials[0].draw.rows)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the tries."""
        return tuple(trial.draw.seed for trial in self.trials)

    def values(self, name: str) -> list[float]:
        """A metric of `ClassifierResult.to_dict` in each try."""
        return [trial.result.to_dict()[name] for trial in self.trials]

    def mean(self, name: str) -> float:
        """Mean of a metric over the tries."""
        return sum(self.values(name)) / len(self.trials)

    def spread(self, name: str) -> float | None:
        """Standard deviation of a metric over the tries (n - 1), None for one try."""
        return float(torch.tensor(self.values(name)).double().std(correction=1)) if len(self.trials) > 1 else None

    def interval(self, seed: int = 0) -> Interval:
        """Top-1 with its 95 % bootstrap interval over the test images, in percent; each counts its mean over tries."""
        return bootstrap_interval(self.correct(), seed=seed).percent()

    def correct(self) -> Tensor:
        """(M,) float64: the share of tries in which each test image was right."""
        return torch.stack([trial.result.correct.double() for trial in self.trials]).mean(0)

    def per_class(self) -> Tensor:
        """(classes,) float64 top-1 of each class, mean over the tries; NaN for a class without test images."""
        return torch.stack([trial.result.per_class for trial in self.trials]).mean(0)

    def confusions(self, test_labels: Tensor, most: int = 20) -> tuple[Confusion, ...]:
        """The most frequent mistakes, summed over the tries."""
        predictions = torch.cat([trial.result.predictions for trial in self.trials])
        return confusions(predictions, test_labels.repeat(len(self.trials)), len(self.per_class()), most)


def draw_labels(labels: Tensor, fractions: Sequence[float], *, tries: int = 1, seed: int = 0) -> list[list[Draw]]:
    """The labelled images of every try, by fraction; a fraction of 1 has one try, because nothing is drawn.

    Args:
        labels: (N,) classes of the train images.
        fractions: Each in (0, 1].
        tries: Draws of each fraction, with seeds `seed`, `seed + 1`, ...
        seed: Of the first.

    Raises:
        FgsslError: No fraction or one twice, less than one try, or as `stratified_fraction`.
    """
    if tries < 1:
        raise FgsslError(f"{tries} tries of each fraction of the labels", "use --tries 1 or more")
    if not fractions or len(set(fractions)) != len(fractions):
        raise FgsslError(f"fractions of the labels {list(fractions)}", "name each once, such as --labels 1.0,0.5,0.2")
    return [
        [Draw(f, s, stratified_fraction(labels, f, seed=s)) for s in range(seed, seed + (1 if f == 1 else tries))]
        for f in fractions
    ]


def run_trials(draws: Sequence[Sequence[Draw]], fit: Fit) -> list[Share]:
    """Fit and judge every try, in order."""
    return [Share(draw[0].fraction, tuple(Trial(d, fit(d.rows, d.seed)) for d in draw)) for draw in draws]
