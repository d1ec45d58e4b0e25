"""Frozen features judged by classifiers: the linear probe, the nearest neighbours' vote, the nearest class mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fgssl.errors import FgsslError, SettingError
from fgssl.evaluation.bootstrap import Interval
from fgssl.evaluation.features import check_features, check_labels, check_widths, unit_rows
from fgssl.evaluation.probing.logistic import fit_logistic
from fgssl.evaluation.probing.scores import ClassifierResult, judge
from fgssl.evaluation.probing.splits import Rows, rows_by_class, stratified_split
from fgssl.evaluation.retrieval.ranking import search

# 0.1 to 10,000, for features of unit variance; an encoder whose features crowd together needs weaker regularisation
COSTS = tuple(10 ** (half / 2) for half in range(-2, 9))
HELD_OUT = 0.2


@dataclass(frozen=True)
class ProbeResult(ClassifierResult):
    """A linear probe."""

    cost: float  # the inverse strength of regularisation chosen, scikit-learn's C
    tried: tuple[tuple[float, float], ...]  # costs with top-1 in percent on the held-out slice; empty without one
    converged: bool  # the final fit met its tolerance
    choice: str  # on which images the cost was chosen, in words
    method: str  # the protocol without what differs from try to try


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    classes: int | None = None,
    costs: Sequence[float] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeResult:
    """The `cached` protocol: logistic regression on frozen, length-1 features.

    A grid of regularisations is fitted on four fifths of the train images of each class; the one with the best top-1 on
    the remaining fifth (the stronger one if equal) is refitted on all train images. The test images take no part in the
    choice. A class with one train image is only fitted, not held out; if no class has two, the middle of the grid is
    taken unseen, and the protocol says so. Test images of a class without train images count as wrong.

    Args:
        train: (N, D) features with `train_labels` (N,).
        test: (M, D) features with `test_labels` (M,).
        classes: By default one more than the largest label.
        costs: Inverse strengths of regularisation to choose from (scikit-learn's C); by default `COSTS` over the total
            variance of the train features, so that the grid fits crowded and spread features alike.
        seed: Of the held-out slice.
        progress: Called with (fits done, fits), the last being the refit.

    Raises:
        FgsslError: Features with NaN or of different widths, labels that do not fit or are out of range, or fewer than
            two classes to train on.
    """
    data = _prepare(train, train_labels, test, test_labels, classes)
    if costs is None:
        variance = float(data.train.var(dim=0, correction=0).sum())
        costs = [cost / max(variance, 1e-6) for cost in COSTS]
    costs, fits = sorted(costs), len(costs) + 1
    if not costs or costs[0] <= 0:
        raise FgsslError(f"a probe with costs {costs}", "give positive inverse strengths of regularisation")
    show = progress or (lambda done, total: None)
    present, targets = torch.unique(data.train_labels, return_inverse=True)
    if len(present) < 2:
        raise FgsslError("the train images are all of one class", "a probe needs two classes or more")
    kept, held = stratified_split(targets, HELD_OUT, seed=seed)
    tried: tuple[tuple[float, float], ...] = ()
    cost, choice = costs[len(costs) // 2], "not chosen: no class has two train images"
    if len(held):
        models = fit_logistic(
            data.train[kept], targets[kept], classes=len(present), costs=costs, progress=lambda d, _: show(d, fits)
        )
        # (G, held) which class each member gives the held-out images
        found = (data.train[held] @ models.weight + models.bias[:, None]).argmax(dim=2)
        shares = (found == targets[held]).double().mean(dim=1)
        tried = tuple(zip(costs, (100 * shares).tolist(), strict=True))
        cost = max(tried, key=lambda pair: pair[1])[0]  # the first, so the stronger, of the best
        choice = f"chosen on {len(held)} of {len(targets)} train images, then refitted on all"
    model = fit_logistic(data.train, targets, classes=len(present), costs=[cost], tolerance=1e-5)
    show(fits, fits)
    scores = data.test.new_full((len(data.test), data.classes), float("-inf"))
    scores[:, present] = data.test @ model.weight[0] + model.bias[0]
    method = "logistic regression on L2-normalised frozen features, C"
    judged = judge(scores, data.test_labels, f"{method} = {cost:.3g} of {len(costs)} values, {choice}")
    return ProbeResult(
        **vars(judged), cost=cost, tried=tried, converged=model.converged, choice=choice,
        method=f"{method} of {len(costs)} values",
    )  # fmt: skip


def knn_classify(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    classes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ClassifierResult:
    """Weighted nearest neighbours, as in Wu et al. 2018 (section 3.4): the k nearest vote with exp(cosine / T).

    Equal votes go to the smaller label, equally near neighbours by row. Arguments and errors are those of
    `linear_probe`; beside them:

    Args:
        k: Neighbours; the field reports 20 and 200. Beyond N, all train images vote, and the protocol says so.
        temperature: T; 0.07 is the convention.
    """
    if k < 1 or temperature <= 0:
        raise SettingError(f"nearest neighbours with k = {k}, temperature {temperature}", "use k >= 1, temperature > 0")
    data = _prepare(train, train_labels, test, test_labels, classes)
    near = search(data.test, data.train, top=k, normalize=False, progress=progress)
    # relative to the nearest, so that no temperature overflows
    votes = ((near.scores.double() - near.scores[:, :1].double()) / temperature).exp()
    voted = data.train_labels[near.indices]  # (M, k)
    scores = votes.new_full((len(data.test), data.classes), float("-inf"))
    # a class without a vote is never among the best five, however few have one
    scores = scores.scatter_(1, voted, 0.0).scatter_add_(1, voted, votes)
    used = min(k, len(data.train))
    cut = "" if used == k else f" (all there are; {k} asked)"
    protocol = f"{used} nearest train images by cosine{cut}, votes exp(cosine / {temperature:g})"
    return judge(scores, data.test_labels, protocol)


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
        queries: Of a class in an episode; 15 is the convention.
        seed: Of the episodes.
        progress: Called with (episodes done, episodes).

    Raises:
        FgsslError: Bad features or labels, numbers below 1, or fewer classes with enough images than `ways`.
    """
    if min(shots, episodes, queries) < 1 or (ways is not None and ways < 2):
        raise SettingError(f"few-shot with {shots} shots, {ways} ways", "use at least 1 shot, 1 query and 2 ways")
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
    interval, skipped = Interval(mean, mean - error, mean + error), len(groups) - len(usable)
    return FewShotResult(interval, accuracy, drawn, skipped, protocol)


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


class _Data(NamedTuple):
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int


def _prepare(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, classes: int | None) -> _Data:
    """Checked features of length 1 and labels in [0, classes)."""
    train, test = check_features(train, "train features"), check_features(test, "test features")
    check_widths(train, test, ("train features", "test features"))
    train_labels = check_labels(train_labels, len(train), "train labels").to(train.device)
    test_labels = check_labels(test_labels, len(test), "test labels").to(test.device)
    largest = int(max(train_labels.max(), test_labels.max()))
    smallest = int(min(train_labels.min(), test_labels.min()))
    classes = largest + 1 if classes is None else classes
    if smallest < 0 or largest >= classes:
        raise FgsslError(f"label {min(smallest, 0) or largest} with {classes} classes", "number the classes from 0")
    return _Data(unit_rows(train), train_labels, unit_rows(test), test_labels, classes)
