"""An encoder probed with labels: splits -> features -> a classifier by one of four protocols -> what it is worth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.probing.classifiers import ProbeResult, knn_classify, linear_probe
from fgssl.evaluation.probing.few_shot import FewShotResult, few_shot
from fgssl.evaluation.probing.label_shares import Fit, Share, draw_labels, run_trials
from fgssl.evaluation.probing.scores import ClassifierResult, judge
from fgssl.evaluation.probing.sgd import SgdRecipe
from fgssl.evaluation.probing.sgd_crops import train_on_crops
from fgssl.evaluation.probing.splits import ProbeSplits
from fgssl.evaluation.subject import Subject, require_labels
from fgssl.runtime.reporting import Reporter

PROTOCOLS = ("cached", "sgd", "knn", "fewshot")


@dataclass(frozen=True)
class ProbeOptions:
    """How to probe.

    Attributes:
        protocol: "cached" (logistic regression on features made once), "sgd" (the paper's: a linear layer trained on
            new random crops each epoch) or "knn" (nearest neighbours).
        fractions: Of the train labels, each drawn by class.
        tries: Draws of each fraction below 1.
        seed: Of the draws, the slice the regularisation is chosen on, crops and initial weights.
        epochs: Of "sgd".
        k: Of "knn".
        temperature: Of "knn".
    """

    protocol: str = "cached"
    fractions: tuple[float, ...] = (1.0,)
    tries: int = 1
    seed: int = 0
    epochs: int = 100
    k: int = 20
    temperature: float = 0.07


class ProbeReport(NamedTuple):
    """What came of a probe."""

    shares: list[Share]  # one a fraction, in the order asked for
    train: Embeddings
    test: Embeddings
    protocol: str


class FeatureSource(Protocol):
    """What makes features: a `Subject`, or a `FeatureTable` in its place."""

    @property
    def pool(self) -> str | None:
        """How they are pooled, where that is known."""
        ...

    @property
    def reporter(self) -> Reporter:
        """Told of progress."""
        ...

    def embed(self, images: ImageSet) -> Embeddings:
        """Features of a split, in its order."""
        ...


def run_probe(subject: FeatureSource, splits: ProbeSplits, options: ProbeOptions) -> ProbeReport:
    """Embed both splits, fit every try of every fraction of the labels, and judge each on the test split.

    Args:
        subject: What makes the features.
        splits: Labelled images.
        options: Protocol, fractions, tries.

    Raises:
        FgsslError: A fraction that leaves a class without images, or too few classes; told before anything is embedded
            wherever the labels show it.
    """
    if options.protocol not in PROTOCOLS[:3]:
        raise FgsslError(f"unknown protocol '{options.protocol}'", f"choose one of {', '.join(PROTOCOLS)}")
    if options.protocol == "sgd" and not isinstance(subject, Subject):
        raise FgsslError("--protocol sgd embeds new crops in every epoch, and a file holds features only",
                         "use --protocol cached, or give the encoder")  # fmt: skip
    if options.epochs < 1:
        raise FgsslError(f"--epochs is {options.epochs}", "it must be at least 1")
    assert splits.train.labels is not None and splits.test.labels is not None
    draw = partial(draw_labels, fractions=options.fractions, tries=options.tries, seed=options.seed)
    draw(torch.from_numpy(splits.train.labels))
    train, test = subject.embed(splits.train), subject.embed(splits.test)
    labels = train.require_labels(splits.train.split)
    draws = draw(labels)  # again: an unreadable image has no row
    task = _Task(subject, splits, train, test, options, _class_count(train, test))
    shares = run_trials(draws, _fit_all(task, sum(map(len, draws))))
    return ProbeReport(shares, train, test, f"{_method(shares)}; {splits.protocol}{_drawn(shares)}")


def run_few_shot(
    subject: FeatureSource, images: ImageSet, *, shots: Sequence[int], ways: int | None, episodes: int, seed: int = 0
) -> list[FewShotResult]:
    """Nearest class mean over episodes drawn from one labelled split, for each number of shots.

    Raises:
        FgsslError: No labels, or too few images in too many classes.
    """
    require_labels(images, "few-shot episodes are drawn by them")
    found = subject.embed(images)
    labels = found.require_labels(images.split)

    def show(done: int, total: int) -> None:
        subject.reporter.progress("drawing episodes", done, total)

    return [
        few_shot(found.features, labels, shots=s, ways=ways, episodes=episodes, seed=seed, progress=show) for s in shots
    ]


def _method(shares: Sequence[Share]) -> str:
    """How every try was classified: with its own numbers where there is one, else share by share."""
    results = [share.trials[0].result for share in shares]  # the tries of a share have as many images of each class
    first = results[0]
    if not isinstance(first, ProbeResult):
        different = dict.fromkeys(result.protocol for result in results)
        if len(different) == 1:
            return first.protocol
        return ", ".join(f"{r.protocol} (share {s.fraction:g})" for s, r in zip(shares, results, strict=True))
    if len(shares) == 1 and len(shares[0].trials) == 1:
        return first.protocol
    choices = [
        f"{share.fraction:g} {result.choice}"
        for share, result in zip(shares, results, strict=True)
        if isinstance(result, ProbeResult)
    ]
    return f"{first.method}, for each try its own: share {', share '.join(choices)}"


def _drawn(shares: Sequence[Share]) -> str:
    """What was drawn, in words."""
    parts = [
        f"{share.fraction:g} of the labels drawn by class with seeds {', '.join(map(str, share.seeds))}"
        for share in shares
        if share.fraction < 1
    ]
    return "".join(f"; {part}" for part in parts)


def _class_count(train: Embeddings, test: Embeddings) -> int:
    assert train.labels is not None and test.labels is not None
    return max(len(train.class_names or ()), int(train.labels.max()) + 1, int(test.labels.max()) + 1)


class _Task(NamedTuple):
    """What every try of a probe shares."""

    subject: FeatureSource
    splits: ProbeSplits
    train: Embeddings
    test: Embeddings
    options: ProbeOptions
    classes: int

    @property
    def train_labels(self) -> Tensor:
        return self.train.require_labels(self.splits.train.split)

    @property
    def test_labels(self) -> Tensor:
        return self.test.require_labels(self.splits.test.split)


def _fit_all(task: _Task, tries: int) -> Fit:
    """The protocol's fit of one try, with progress over all of them."""
    fit_one, title = _FITS[task.options.protocol]
    places = itertools.count()

    def fit(rows: Tensor, seed: int) -> ClassifierResult:
        place = next(places)

        def show(done: int, total: int) -> None:
            task.subject.reporter.progress(title, place * total + done, tries * total)

        return fit_one(task, rows, seed, show)

    return fit


Progress = Callable[[int, int], None]


def _cached(task: _Task, rows: Tensor, seed: int, show: Progress) -> ClassifierResult:
    features, labels = task.train.features[rows], task.train_labels[rows]
    return linear_probe(
        features, labels, task.test.features, task.test_labels, classes=task.classes, seed=seed, progress=show
    )


def _knn(task: _Task, rows: Tensor, _seed: int, show: Progress) -> ClassifierResult:
    return knn_classify(
        task.train.features[rows],
        task.train_labels[rows],
        task.test.features,
        task.test_labels,
        k=task.options.k,
        temperature=task.options.temperature,
        classes=task.classes,
        progress=show,
    )


def _sgd(task: _Task, rows: Tensor, seed: int, show: Progress) -> ClassifierResult:
    recipe, subject = SgdRecipe(epochs=task.options.epochs), task.subject
    assert isinstance(subject, Subject)  # run_probe refuses others

    def decoding(done: int, total: int) -> None:
        subject.reporter.progress(f"decoding {task.splits.train.split}", done, total)

    positions = torch.from_numpy(task.train.positions)[rows]
    model = train_on_crops(
        subject.encoder, task.splits.train, positions, pool=subject.pool, width=task.train.features.shape[1],
        classes=task.classes, recipe=recipe, seed=seed, forward=subject.batch_size, progress=show,
        cache=subject.cache, decoding=decoding,
    )  # fmt: skip
    scores = model.scores(task.test.features)
    unseen = torch.ones(task.classes, dtype=torch.bool)
    unseen[task.train_labels[rows]] = False
    words = f"linear layer on l2-normalised features of random-resized crops, {recipe.words()}"
    return judge(scores.masked_fill(unseen, float("-inf")), task.test_labels, words)


_FITS = {
    "cached": (_cached, "fitting the probe"),
    "sgd": (_sgd, "training the probe"),
    "knn": (_knn, "voting"),
}
