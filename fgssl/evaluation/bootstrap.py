"""Bootstrap intervals over queries or images: how far a number could move with other photographs.

Ours, as `scipy.stats.bootstrap` has no p of a paired difference, no means of class means, and draws for every metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fgssl.errors import FgsslError

_Array = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A mean with its interval, in the unit of the values."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """How much better one encoder is than another on the same queries."""

    difference: float  # mean of a - b
    low: float  # of the interval of the difference
    high: float
    p: float  # two-sided: twice the share of resamples whose difference has the other sign, at most 1


def bootstrap_interval(
    values: Tensor | npt.ArrayLike, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Percentile bootstrap interval of the mean of values (N,), one a query (Efron 1979).

    The values are taken as independent; queries of one class are not quite, so real intervals are a little wider.
    Raises FgsslError: no values, NaN among them, or a level or number of resamples out of range.
    """
    array = _checked(values, resamples, level)
    low, high = _quantiles(_resampled_means(array, resamples, seed), level)
    return Interval(float(array.mean()), float(low), float(high))


def paired_bootstrap(
    a: Tensor | npt.ArrayLike, b: Tensor | npt.ArrayLike, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Comparison:
    """Is `a` (N,) better than `b` (N,) on the same queries? What both find hard cancels; p is never 0."""
    first, second = _checked(a, resamples, level), _checked(b, resamples, level)
    if len(first) != len(second):
        problem = f"{len(first)} queries against {len(second)}"
        raise FgsslError(problem, "compare two encoders on the same queries in the same order")
    means = _resampled_means(first - second, resamples, seed)
    low, high = _quantiles(means, level)
    # the observed sample counts as one resample: p is never 0
    tail = min(int((means <= 0).sum()), int((means >= 0).sum())) + 1
    difference = float((first - second).mean())
    return Comparison(difference, float(low), float(high), min(1.0, 2 * tail / (resamples + 1)))


def metric_intervals(
    values: Mapping[str, Tensor], labels: Tensor, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """Intervals of several metrics (Q,) of the same queries of classes `labels` (Q,), all from the same resamples.

    `macro_NAME` is that of the mean of the class means; a class that a resample misses is left out of its mean.
    """
    columns = np.stack([_checked(value, resamples, level) for value in values.values()], axis=1)  # (Q, M)
    order = np.argsort(labels.numpy(), kind="stable")
    columns, classes = columns[order], labels.numpy()[order]
    starts = np.flatnonzero(np.diff(classes, prepend=classes[0] - 1))
    resampled = zip(*_resampled_columns(columns, starts, resamples, seed), strict=True)  # micro, macro
    sizes = np.diff([*starts, len(classes)])
    exact = (columns.mean(axis=0), (np.add.reduceat(columns, starts) / sizes[:, None]).mean(axis=0))
    found: dict[str, Interval] = {}
    for prefix, means, value in zip(("", "macro_"), resampled, exact, strict=True):
        ends = _quantiles(np.concatenate(means), level)
        for name, *interval in zip(values, value, *ends, strict=True):
            found[f"{prefix}{name}"] = Interval(*map(float, interval))
    return found


def _resampled_columns(
    columns: _Array, starts: npt.NDArray[np.intp], resamples: int, seed: int
) -> Iterator[tuple[_Array, _Array]]:
    """Means and means of class means, each (b, M), of resamples of the rows of `columns`, which are in class order."""
    generator, total = np.random.default_rng(seed), len(columns)
    rows = max(1, 250_000 // total)  # resamples held at once: few enough to stay in the processor's cache
    for first in range(0, resamples, rows):
        drawn = generator.integers(total, size=(min(rows, resamples - first), total), dtype=np.int32)
        # how often each query was drawn says all, and is cheaper to work with than the draws
        times = np.stack([np.bincount(draw, minlength=total) for draw in drawn]).astype(np.float64)
        size = np.add.reduceat(times, starts, axis=1)  # (b, classes)
        sums = [np.add.reduceat(times * column, starts, axis=1) for column in columns.T]
        present = (size > 0).sum(axis=1)
        macro = [(total_of / np.maximum(size, 1)).sum(axis=1) / present for total_of in sums]
        yield times @ columns / total, np.stack(macro, axis=1)


def _resampled_means(array: _Array, resamples: int, seed: int) -> _Array:
    generator = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // len(array))  # draws held at once
    counts = (min(rows, resamples - first) for first in range(0, resamples, rows))
    drawn = (generator.integers(len(array), size=(count, len(array))) for count in counts)
    return np.concatenate([array[rows].mean(axis=1) for rows in drawn])


def _quantiles(means: _Array, level: float) -> _Array:
    ends: _Array = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends


def _checked(values: Tensor | npt.ArrayLike, resamples: int, level: float) -> _Array:
    raw = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    array = np.asarray(raw, dtype=np.float64).ravel()
    if len(array) == 0 or not np.isfinite(array).all():
        raise FgsslError("a bootstrap over no values, or over NaN", "give one finite value a query")
    if resamples < 1 or not 0 < level < 1:
        raise FgsslError(f"bootstrap of {resamples} resamples at level {level}", "use at least 1 and a level in (0, 1)")
    return array
