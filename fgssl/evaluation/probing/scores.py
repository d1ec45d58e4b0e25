"""Scores of classes against the true ones: accuracies, the table by class, and what was taken for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fgssl.evaluation.metrics import accuracy, per_class_accuracy, topk_accuracy


class Confusion(NamedTuple):
    """How often images of one class were taken for another."""

    label: int
    predicted: int
    images: int


@dataclass(frozen=True)
class ClassifierResult:
    """Predictions on a test set, and what they are worth; percentages.

    Attributes:
        top1: Share of test images whose class has the best score.
        top5: Share whose class is among the 5 best (among all, with fewer classes).
        mean_per_class: Mean over the classes in the test set of their own top-1.
        per_class: (classes,) float64 top-1 of each class, NaN for a class without test images.
        predictions: (M,) int64.
        correct: (M,) bool, for a bootstrap.
        confusions: The most frequent mistakes, most frequent first.
        protocol: What was done, in one line, to stand beside the number.
    """

    top1: float
    top5: float
    mean_per_class: float
    per_class: Tensor
    predictions: Tensor
    correct: Tensor
    confusions: tuple[Confusion, ...]
    protocol: str

    def to_dict(self) -> dict[str, float]:
        """The three percentages by name."""
        return {"top1": self.top1, "top5": self.top5, "mean_per_class": self.mean_per_class}


def judge(scores: Tensor, labels: Tensor, protocol: str) -> ClassifierResult:
    """What scores (M, C) of test images with labels (M,) are worth; minus infinity is a class not known."""
    scores, labels = scores.cpu(), labels.cpu()
    predictions, classes = scores.argmax(dim=1), scores.shape[1]
    per_class = per_class_accuracy(predictions, labels, classes=classes)
    return ClassifierResult(
        top1=accuracy(predictions, labels),
        top5=topk_accuracy(scores, labels, k=5),
        mean_per_class=float(per_class.nanmean()),
        per_class=per_class,
        predictions=predictions,
        correct=predictions == labels,
        confusions=confusions(predictions, labels, classes),
        protocol=protocol,
    )


def confusions(predictions: Tensor, labels: Tensor, classes: int, most: int = 20) -> tuple[Confusion, ...]:
    """The most frequent mistakes, at most `most`; equally frequent ones by label, then by prediction."""
    wrong = predictions != labels
    pairs, counts = torch.unique(labels[wrong] * classes + predictions[wrong], return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:most]
    return tuple(Confusion(*divmod(int(pairs[i]), classes), int(counts[i])) for i in order)
