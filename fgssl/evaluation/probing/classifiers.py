"""Frozen features judged by classifiers: the linear probe, the nearest neighbours' vote, the nearest class mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fgssl.errors import FgsslError, SettingError
from fgssl.evaluation.bootstrap import Interval
from fgssl.evaluation.features import Progress, check_features, check_labels, check_widths, silent, unit_rows
from fgssl.evaluation.probing.linear import Linear, fit_logistic
from fgssl.evaluation.probing.scores import ClassifierResult, judge
from fgssl.evaluation.probing.splits import Rows, rows_by_class, stratified_split
from fgssl.evaluation.retrieval.ranking import search

# 0.1 to 10,000, for features of unit variance; an encoder whose features crowd together needs weaker regularisation
COSTS = tuple(10 ** (half / 2) for half in range(-2, 9))
HELD_OUT = 0.2
_METHOD = "logistic regression on L2-normalised frozen features, C"


class Sets(NamedTuple):
    """What a classifier is fitted on, and what it is judged on."""

    train: Tensor  # (N, D)
    train_labels: Tensor  # (N,)
    test: Tensor  # (M, D)
    test_labels: Tensor  # (M,)


@dataclass(frozen=True)
class ProbeResult(ClassifierResult):
    """A linear probe."""

    cost: float  # the inverse strength of regularisation chosen, scikit-learn's C
    tried: tuple[tuple[float, float], ...]  # costs with top-1 in percent on the held-out slice; empty without one
    converged: bool  # the final fit met its tolerance
    choice: str  # on which images the cost was chosen, in words
    method: str  # the protocol without what differs from try to try


def linear_probe(
    sets: Sets, *, classes: int | None = None, costs: Sequence[float] = (), seed: int = 0, progress: Progress = silent
) -> ProbeResult:
    """The `cached` protocol: logistic regression on frozen, length-1 features.

    A grid of regularisations is fitted on four fifths of the train images of each class; the one with the best top-1 on
    the remaining fifth (the stronger one if equal) is refitted on all train images. The test images take no part in the
    choice. A class with one train image is only fitted, not held out; if no class has two, the middle of the grid is
    taken unseen, and the protocol says so. Test images of a class without train images count as wrong.

    Args:
        classes: By default one more than the largest label.
        costs: Inverse strengths of regularisation to choose from (scikit-learn's C); by default `COSTS` over the total
            variance of the train features, so that the grid fits crowded and spread features alike.
        seed: Of the held-out slice.
        progress: Called with (fits done, fits), the last being the refit.

    Raises FgsslError: features or labels that do not fit, or fewer than two classes to train on.
    """
    sets, classes = _prepare(sets, classes)
    fitted = fit_chosen(sets.train, sets.train_labels, costs=costs, seed=seed, progress=progress)
    words = f"{_METHOD} = {fitted.cost:.3g} of {fitted.values} values, {fitted.choice}"
    judged = judge(fitted.scores(sets.test, classes), sets.test_labels, words)
    method = f"{_METHOD} of {fitted.values} values"
    return ProbeResult(
        **vars(judged), cost=fitted.cost, tried=fitted.tried, converged=fitted.model.converged, choice=fitted.choice,
        method=method,
    )  # fmt: skip


class ChosenFit(NamedTuple):
    """A logistic regression whose regularisation was chosen on a slice of the images that it is then fitted on."""

    model: Linear  # of the classes that have images
    present: Tensor  # (P,) those classes, ascending
    cost: float  # as the next ones, see `ProbeResult`
    tried: tuple[tuple[float, float], ...]
    choice: str
    values: int  # costs there were to choose from
    held: Tensor  # (H,) rows of the slice; none where no class has two images
    held_scores: Tensor  # (H, P) of the slice, by the chosen cost fitted without it

    def scores(self, features: Tensor, classes: int) -> Tensor:
        """(N, D) -> (N, classes); minus infinity for classes that had no image."""
        found = features.new_full((len(features), classes), float("-inf"))
        found[:, self.present] = features @ self.model.weight[0] + self.model.bias[0]
        return found


def fit_chosen(
    features: Tensor, labels: Tensor, *, costs: Sequence[float] = (), seed: int = 0, progress: Progress = silent
) -> ChosenFit:
    """The fit of `linear_probe`, which says how, of length-1 features (N, D) with labels (N,)."""
    if not costs:
        variance = float(features.var(dim=0, correction=0).sum())
        costs = [cost / max(variance, 1e-6) for cost in COSTS]
    costs = sorted(costs)
    if costs[0] <= 0:
        raise FgsslError(f"a probe with costs {costs}", "give positive inverse strengths of regularisation")
    present, targets = torch.unique(labels, return_inverse=True)
    if len(present) < 2:
        raise FgsslError("the train images are all of one class", "a probe needs two classes or more")
    kept, held = stratified_split(targets, HELD_OUT, seed=seed)
    place, choice = len(costs) // 2, "not chosen: no class has two train images"
    tried: tuple[tuple[float, float], ...] = ()
    held_scores = features.new_zeros(0, len(present))
    if len(held):
        # the refit comes last
        models = fit_logistic(
            features[kept], targets[kept], costs=costs, progress=lambda done, fits: progress(done, fits + 1)
        )
        scores = features[held] @ models.weight + models.bias[:, None]  # (G, H, P)
        top1 = 100 * (scores.argmax(dim=2) == targets[held]).double().mean(dim=1)
        place = int(top1.argmax())  # the first, so the stronger, of the best
        tried, held_scores = tuple(zip(costs, top1.tolist(), strict=True)), scores[place]
        choice = f"chosen on {len(held)} of {len(targets)} train images, then refitted on all"
    model = fit_logistic(features, targets, costs=[costs[place]], tolerance=1e-5)
    progress(len(costs) + 1, len(costs) + 1)
    return ChosenFit(model, present, costs[place], tried, choice, len(costs), held, held_scores)


def knn_classify(
    sets: Sets, *, k: int = 20, temperature: float = 0.07, classes: int | None = None, progress: Progress = silent
) -> ClassifierResult:
    """Weighted nearest neighbours (Wu et al. 2018, section 3.4): the k nearest, or all, vote with exp(cosine / T).

    Equal votes go to the smaller label, equally near neighbours by row. The rest is as in `linear_probe`.
    """
    if k < 1 or temperature <= 0:
        raise SettingError(f"nearest neighbours with k = {k}, temperature {temperature}", "use k >= 1, temperature > 0")
    sets, classes = _prepare(sets, classes)
    near = search(sets.test, sets.train, top=k, normalize=False, progress=progress)
    # relative to the nearest, so that no temperature overflows
    votes = ((near.scores.double() - near.scores[:, :1].double()) / temperature).exp()
    voted = sets.train_labels[near.indices]  # (M, k)
    scores = votes.new_full((len(sets.test), classes), float("-inf"))
    # a class without a vote is never among the best five, however few have one
    scores = scores.scatter_(1, voted, 0.0).scatter_add_(1, voted, votes)
    used = min(k, len(sets.train))
    cut = "" if used == k else f" (all there are; {k} asked)"
    protocol = f"{used} nearest train images by cosine{cut}, votes exp(cosine / {temperature:g})"
    return judge(scores, sets.test_labels, protocol)


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
    progress: Progress = silent,
) -> FewShotResult:
    """Nearest class mean over random episodes (Snell et al. 2017, without training; cosine as in Chen et al. 2019).

    Of features (N, D) with labels (N,), an episode draws `ways` classes (None: all, which is harder and closer to real
    use) with more than `shots` images, and from each `shots` supports and up to `queries` others. A query goes to the
    class whose mean of length-1 supports is nearest by cosine. Raises FgsslError where too few classes are so large.
    """
    if min(shots, episodes, queries) < 1 or (ways is not None and ways < 2):
        raise SettingError(f"few-shot with {shots} shots, {ways} ways", "use at least 1 shot, 1 query and 2 ways")
    features = unit_rows(check_features(features)).cpu()
    groups = rows_by_class(check_labels(labels, len(features)).cpu())
    usable = [group for group in groups if len(group) > shots]
    drawn = len(usable) if ways is None else ways
    if len(usable) < max(2, drawn):
        problem = f"{len(usable)} classes have more than {shots} images, {max(2, drawn)} are needed"
        raise FgsslError(problem, "use fewer shots or ways, or another split")
    generator = np.random.default_rng(seed)
    accuracy = torch.zeros(episodes, dtype=torch.float64)
    for episode in range(episodes):
        chosen = generator.permutation(len(usable))[:drawn] if ways is not None else np.arange(drawn)
        accuracy[episode] = _episode(features, [usable[place] for place in chosen], shots, queries, generator)
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


def _prepare(sets: Sets, classes: int | None) -> tuple[Sets, int]:
    """Checked features of length 1 and labels in [0, classes)."""
    train, test = check_features(sets.train, "train features"), check_features(sets.test, "test features")
    check_widths(train, test, ("train features", "test features"))
    train_labels = check_labels(sets.train_labels, len(train), "train labels").to(train.device)
    test_labels = check_labels(sets.test_labels, len(test), "test labels").to(test.device)
    smallest, largest = (int(label) for label in torch.cat([train_labels, test_labels]).aminmax())
    classes = largest + 1 if classes is None else classes
    if smallest < 0 or largest >= classes:
        raise FgsslError(f"label {min(smallest, 0) or largest} with {classes} classes", "number the classes from 0")
    return Sets(unit_rows(train), train_labels, unit_rows(test), test_labels), classes
