"""Confidence that means what it says: the temperature of a classifier, and how far confidence is from accuracy."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgssl.errors import FgsslError
from fgssl.evaluation.bootstrap import Interval, bootstrap_interval

BINS = 15
BARS = (0.5, 0.8, 0.9, 0.95)  # confidences for --abstain whose cost is told
_STEEPEST = 1e3  # 1 / temperature is sought between this and its inverse
_HALVINGS = 60


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """The temperature T for which softmax(scores / T) says best how often it is right (Guo et al. 2017, section 4.2).

    Minimises the cross-entropy of scores (N, C) with labels (N,), which were not fitted on these rows, over 1 / T, in
    which it is convex: its slope is bisected. Of few rows all may be right, and no T would be small enough: so the
    targets leave one mistake in N + 2 to the other classes (Platt 1999, section 2.2). Without rows T is 1.
    """
    if not len(labels):
        return 1.0
    scores = scores.double()
    own = scores.gather(1, labels[:, None])[:, 0]
    others = (scores.sum(1) - own) / max(1, scores.shape[1] - 1)
    mistakes = 1 / (len(labels) + 2)
    wanted = float(((1 - mistakes) * own + mistakes * others).mean())
    low, high = 1 / _STEEPEST, _STEEPEST
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        expected = float(((middle * scores).softmax(1) * scores).sum(1).mean())
        low, high = (middle, high) if expected < wanted else (low, middle)
    return 1 / math.sqrt(low * high)


def calibration_error(confidence: Tensor, correct: Tensor, *, bins: int = BINS) -> float:
    """Expected calibration error in percent (Guo et al. 2017, equation 3): 0 is what it should be.

    Confidences (N,) in [0, 1] fall into `bins` of equal width; the error is the mean distance between the accuracy
    and the mean confidence of a bin, each counted by its rows. `correct` (N,) is bool.
    """
    if not len(confidence):
        raise FgsslError("the calibration of no prediction", "give at least one")
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    confidence = confidence.double()
    place = torch.bucketize(confidence, edges[1:-1])  # bins are (low, high]
    gaps = place.bincount(correct.double() - confidence, minlength=bins)
    return 100 * float(gaps.abs().sum()) / len(confidence)


class Answers(NamedTuple):
    """What comes of answering only from a confidence on."""

    confidence: float
    answered: float  # share of the pictures that get an answer, in percent
    accuracy: float | None  # of these, in percent; None where there are none


class HeldOut(NamedTuple):
    """What a classifier is worth on labelled pictures that it was not fitted on."""

    images: int
    accuracy: Interval  # in percent, with its 95 % bootstrap interval
    calibration_error: float  # in percent
    uncalibrated: float  # the same before the temperature
    answers: tuple[Answers, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        parts = {"accuracy": self.accuracy._asdict(), "answers": [each._asdict() for each in self.answers]}
        return self._asdict() | parts


def measure(scores: Tensor, labels: Tensor, *, temperature: float) -> HeldOut:
    """Of scores (N, C) and labels (N,), -1 being a class that the classifier does not know."""
    correct = scores.argmax(1) == labels
    confidence = (scores.double() / temperature).softmax(1).amax(1)
    raw = scores.double().softmax(1).amax(1)
    answers = []
    for bar in BARS:
        given = correct[confidence >= bar].double()
        answers.append(Answers(bar, 100 * len(given) / len(correct), 100 * float(given.mean()) if len(given) else None))
    return HeldOut(
        len(labels), bootstrap_interval(100 * correct.double()), calibration_error(confidence, correct),
        calibration_error(raw, correct), tuple(answers),
    )  # fmt: skip
