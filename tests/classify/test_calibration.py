"""The temperature against a search over a grid, the calibration error against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fgssl.classify.calibration import calibration_error, fit_temperature, measure
from fgssl.errors import FgsslError


def slow_error(confidence: list[float], correct: list[bool], bins: int) -> float:
    """Guo et al. 2017, equation 3, as it is written."""
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        rows = [row for row, p in enumerate(confidence) if low < p <= high or (number == 0 and p == 0)]
        if rows:
            accuracy = sum(correct[row] for row in rows) / len(rows)
            sure = sum(confidence[row] for row in rows) / len(rows)
            total += len(rows) / len(confidence) * abs(accuracy - sure)
    return 100 * total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_calibration_error_is_that_of_a_loop(bins: int) -> None:
    generator = torch.Generator().manual_seed(bins)
    confidence = torch.rand(300, generator=generator, dtype=torch.float64)
    confidence[:3] = torch.tensor([0.0, 1.0, 0.35])
    correct = torch.rand(300, generator=generator) < 0.6
    assert calibration_error(confidence, correct, bins=bins) == pytest.approx(
        slow_error(confidence.tolist(), correct.tolist(), bins)
    )


def test_the_calibration_error_by_hand() -> None:
    confidence, correct = torch.tensor([0.9, 0.9, 0.6, 0.6]), torch.tensor([True, False, True, True])
    # one bin 0.4 too sure, one 0.4 too unsure, half of the pictures each
    assert calibration_error(confidence, correct, bins=10) == pytest.approx(40, abs=1e-4)
    with pytest.raises(FgsslError, match="no prediction"):
        calibration_error(torch.zeros(0), torch.zeros(0, dtype=torch.bool))


def drawn(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores, and labels drawn by what they say."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return scores, torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0]


def test_scores_that_say_too_much_are_brought_back() -> None:
    scores, labels = drawn(20_000, 5)
    assert fit_temperature(scores, labels) == pytest.approx(1, rel=0.03)
    assert fit_temperature(4 * scores, labels) == pytest.approx(4 * fit_temperature(scores, labels), rel=1e-6)
    loud, kept = (measure(4 * scores, labels, temperature=t).calibration_error for t in (1.0, 4.0))
    assert loud > 10 and kept < 2


def test_the_temperature_is_the_best_of_a_grid() -> None:
    scores, labels = drawn(60, 4, seed=1)
    targets = torch.full_like(scores, 1 / 62 / 3)
    targets[range(60), labels] = 1 - 1 / 62
    grid = [math.exp(step / 500) for step in range(-1500, 1500)]
    losses = [float(-(targets * (scores / t).log_softmax(1)).sum()) for t in grid]
    assert fit_temperature(scores, labels) == pytest.approx(grid[losses.index(min(losses))], rel=0.003)


def test_a_slice_that_is_all_right_does_not_make_it_sure_of_everything() -> None:
    labels = torch.arange(20) % 4
    scores = torch.nn.functional.one_hot(labels, 4).double()
    confidence = float((scores / fit_temperature(scores, labels)).softmax(1).amax(1)[0])
    assert confidence == pytest.approx(1 - 1 / 22, abs=1e-6)
    assert fit_temperature(scores[:0], labels[:0]) == 1


def test_abstaining_is_counted() -> None:
    scores = torch.tensor([[0.6, 0.4], [0.85, 0.15], [0.96, 0.04], [0.99, 0.01]]).log()
    found = measure(scores, torch.tensor([0, 1, 0, -1]), temperature=1.0)
    assert found.images == 4 and found.accuracy.value == 50  # an unknown class is wrong
    answers = {each.confidence: (each.answered, each.accuracy) for each in found.answers}
    assert answers[0.5] == (100, 50) and answers[0.8] == (75, pytest.approx(100 / 3)) and answers[0.95] == (50, 50)
    assert measure(scores[:1], torch.tensor([0]), temperature=1.0).answers[-1].accuracy is None
