"""What a classifier is worth: accuracies and mistakes of one try, and of several tries on shares of the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fgssl.errors import SettingError
from fgssl.evaluation.bootstrap import Interval, bootstrap_interval
from fgssl.evaluation.probing.splits import stratified_fraction


class Confusion(NamedTuple):
    """How often images of one class were taken for another."""

    label: int
    predicted: int
    images: int


@dataclass(frozen=True)
class ClassifierResult:
    """Predictions on a test set, and what they are worth; percentages."""

    top1: float  # share of test images whose class has the best score
    top5: float  # share whose class is among the 5 best (among all, with fewer classes)
    mean_per_class: float  # mean over the classes in the test set of their own top-1
    per_class: Tensor  # (classes,) float64 top-1 of each class, NaN for a class without test images
    predictions: Tensor  # (M,) int64
    correct: Tensor  # (M,) bool, for a bootstrap
    confusions: tuple[Confusion, ...]  # the most frequent mistakes, most frequent first
    protocol: str  # what was done, in one line, to stand beside the number

    def to_dict(self) -> dict[str, float]:
        """The three percentages by name."""
        return {"top1": self.top1, "top5": self.top5, "mean_per_class": self.mean_per_class}


def judge(scores: Tensor, labels: Tensor, protocol: str) -> ClassifierResult:
    """What scores (M, C) of test images with labels (M,) are worth; minus infinity is a class not known."""
    scores, labels = scores.cpu(), labels.cpu()
    predictions, classes = scores.argmax(dim=1), scores.shape[1]
    correct = predictions == labels
    per_class = 100 * labels.bincount(correct.double(), classes) / labels.bincount(minlength=classes)
    accuracies = 100 * float(correct.double().mean()), topk_accuracy(scores, labels, k=5), float(per_class.nanmean())
    wrong = confusions(predictions, labels, classes)
    return ClassifierResult(*accuracies, per_class, predictions, correct, wrong, protocol)


def topk_accuracy(scores: Tensor, labels: Tensor, *, k: int) -> float:
    """Share of rows whose label (N,) is among the k best scores (N, C), in percent; one of minus infinity never is."""
    own = scores.gather(1, labels[:, None])
    # of equal scores the smaller class is ahead: k = 1 agrees with argmax, and equal scores do not help
    earlier = torch.arange(scores.shape[1]) < labels[:, None]
    ahead = (scores > own).sum(1) + ((scores == own) & earlier).sum(1)
    return 100 * float(((ahead < k) & (own[:, 0] > float("-inf"))).double().mean())


def confusions(predictions: Tensor, labels: Tensor, classes: int) -> tuple[Confusion, ...]:
    """The 20 most frequent mistakes; equally frequent ones by label, then by prediction."""
    wrong = predictions != labels
    pairs, counts = torch.unique(labels[wrong] * classes + predictions[wrong], return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:20]
    return tuple(Confusion(*divmod(int(pairs[i]), classes), int(counts[i])) for i in order)


Fit = Callable[[Tensor, int], ClassifierResult]  # rows of the train images (M,), seed -> its result on the test images


class Draw(NamedTuple):
    """Labelled images of one try."""

    fraction: float
    seed: int
    rows: Tensor  # (M,) int64 rows of the train images, ascending


class Share(NamedTuple):
    """All tries of one fraction of the labels, judged on the same test images; metrics are `to_dict`'s."""

    draws: list[Draw]
    results: list[ClassifierResult]  # of each

    @property
    def fraction(self) -> float:
        """Of the train labels."""
        return self.draws[0].fraction

    @property
    def seeds(self) -> list[int]:
        """Of the tries."""
        return [draw.seed for draw in self.draws]

    def values(self, name: str) -> list[float]:
        """A metric in each try."""
        return [result.to_dict()[name] for result in self.results]

    def mean(self, name: str) -> float:
        """Mean of a metric over the tries."""
        return sum(self.values(name)) / len(self.results)

    def spread(self, name: str) -> float | None:
        """Standard deviation of a metric over the tries (n - 1), None for one try."""
        return float(torch.tensor(self.values(name)).double().std(correction=1)) if len(self.results) > 1 else None

    def interval(self) -> Interval:
        """Top-1 with its 95 % bootstrap interval over the test images, in percent; each counts its mean over tries."""
        return bootstrap_interval(100 * self.correct())

    def correct(self) -> Tensor:
        """(M,) float64: the share of tries in which each test image was right."""
        return torch.stack([result.correct.double() for result in self.results]).mean(0)

    def per_class(self) -> Tensor:
        """(classes,) float64 top-1 of each class, mean over the tries; NaN for a class without test images."""
        return torch.stack([result.per_class for result in self.results]).mean(0)

    def confusions(self, test_labels: Tensor) -> tuple[Confusion, ...]:
        """The most frequent mistakes, summed over the tries."""
        predictions = torch.cat([result.predictions for result in self.results])
        return confusions(predictions, test_labels.repeat(len(self.results)), len(self.per_class()))


def draw_labels(labels: Tensor, fractions: Sequence[float], *, tries: int = 1, seed: int = 0) -> list[list[Draw]]:
    """The labelled images of every try, by fraction, with the seeds `seed`, `seed + 1`, ...; of 1 there is one try."""
    if tries < 1:
        raise SettingError(f"{tries} tries of each fraction of the labels", "use --tries 1 or more")
    if not fractions or len(set(fractions)) != len(fractions):
        raise SettingError(f"fractions of the labels {list(fractions)}", "name each once, such as --labels 1.0,0.5,0.2")
    return [
        [Draw(f, s, stratified_fraction(labels, f, seed=s)) for s in range(seed, seed + (1 if f == 1 else tries))]
        for f in fractions
    ]


def run_trials(draws: Sequence[list[Draw]], fit: Fit) -> list[Share]:
    """Fit and judge every try, in order."""
    return [Share(tries, [fit(draw.rows, draw.seed) for draw in tries]) for tries in draws]
