"""Few-shot classification by the nearest class mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fgssl.errors import FgsslError
from fgssl.evaluation.bootstrap import Interval
from fgssl.evaluation.features import check_features, check_labels, unit_rows
from fgssl.evaluation.probing.splits import Rows, rows_by_class


@dataclass(frozen=True)
class FewShotResult:
    """Accuracy over episodes, in percent."""

    accuracy: Interval  # mean over the episodes, with its 95 % interval: 1.96 standard errors of that mean
    episodes: Tensor  # (E,) float64 accuracy of each
    ways: int  # classes in an episode
    skipped: int  # classes with too few images to take part
    protocol: str  # what was done, in one line


def few_shot(
    features: Tensor,
    labels: Tensor,
    *,
    shots: int = 1,
    ways: int | None = 5,
    episodes: int = 600,
    queries: int = 15,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FewShotResult:
    """Nearest class mean over random episodes (Snell et al. 2017, without training; cosine as in Chen et al. 2019).

    An episode draws `ways` classes and from each `shots` supports and up to `queries` other images. A query, scaled
    to length 1, goes to the class whose mean of length-1 supports is nearest by cosine.

    Args:
        features: (N, D).
        labels: (N,) classes; those with `shots` images or fewer take no part and are counted.
        shots: Supports of a class.
        ways: Classes of an episode; None takes all of them in every episode (harder, and closer to real use).
        episodes: Number of episodes.
        queries: At most this many queries of a class in an episode; 15 is the convention.
        seed: Of the episodes.
        progress: Called with (episodes done, episodes).

    Raises:
        FgsslError: Bad features or labels, numbers below 1, or fewer classes with enough images than `ways`.
    """
    if min(shots, episodes, queries) < 1 or (ways is not None and ways < 2):
        raise FgsslError(f"few-shot with {shots} shots, {ways} ways", "use at least 1 shot, 1 query and 2 ways")
    features = unit_rows(check_features(features)).cpu()
    groups = rows_by_class(check_labels(labels, len(features)).cpu())
    usable = [group for group in groups if len(group) > shots]
    drawn = len(usable) if ways is None else ways
    if len(usable) < max(2, drawn):
        raise FgsslError(
            f"{len(usable)} classes have more than {shots} images, {max(2, drawn)} are needed",
            "use fewer shots or ways, or another split",
        )
    generator = np.random.default_rng(seed)
    accuracy = torch.zeros(episodes, dtype=torch.float64)
    for episode in range(episodes):
        chosen = generator.permutation(len(usable))[:drawn] if ways is not None else np.arange(drawn)
        accuracy[episode] = _episode(features, [usable[place] for place in chosen], shots, queries, generator)
        if progress is not None:
            progress(episode + 1, episodes)
    mean = float(accuracy.mean())
    error = 1.96 * float(accuracy.std(correction=1)) / episodes**0.5 if episodes > 1 else float("nan")
    protocol = (
        f"{'all ' if ways is None else ''}{drawn}-way {shots}-shot nearest class mean by cosine, {episodes} episodes, "
        f"up to {queries} queries a class"
    )
    interval = Interval(mean, mean - error, mean + error)
    return FewShotResult(interval, accuracy, drawn, len(groups) - len(usable), protocol)


def _episode(
    features: Tensor, classes: Sequence[Rows], shots: int, queries: int, generator: np.random.Generator
) -> float:
    """Accuracy of one episode in percent."""
    rows = [generator.permutation(group)[: shots + queries] for group in classes]
    means = torch.stack([features[row[:shots]].mean(dim=0) for row in rows])
    asked = features[np.concatenate([row[shots:] for row in rows])]
    truth = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row) - shots for row in rows]))
    found = (asked @ unit_rows(means).T).argmax(dim=1)
    return 100 * float((found == truth).double().mean())
