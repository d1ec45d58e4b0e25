"""An encoder probed with labels: splits -> features -> a classifier by one of four protocols -> what it is worth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError, SettingError
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.feature_file import FeatureTable
from fgssl.evaluation.probing.classifiers import FewShotResult, ProbeResult, few_shot, knn_classify, linear_probe
from fgssl.evaluation.probing.scores import ClassifierResult, Fit, Share, draw_labels, judge, run_trials
from fgssl.evaluation.probing.sgd import SgdRecipe, train_on_crops
from fgssl.evaluation.probing.splits import ProbeSplits
from fgssl.evaluation.subject import Subject, labels_of

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ProbeOptions:
    """How to probe."""

    protocol: str = "cached"  # logistic regression; "sgd": the paper's; "knn": nearest neighbours
    fractions: tuple[float, ...] = (1.0,)  # of the train labels, each drawn by class
    tries: int = 1  # draws of each fraction below 1
    seed: int = 0  # of the draws, the slice the regularisation is chosen on, crops and initial weights
    epochs: int = 100  # of "sgd"
    k: int = 20  # of "knn"
    temperature: float = 0.07  # of "knn"


class ProbeReport(NamedTuple):
    """What came of a probe."""

    shares: list[Share]  # one a fraction, in the order asked for
    train: Embeddings
    test: Embeddings
    protocol: str


def run_probe(subject: Subject | FeatureTable, splits: ProbeSplits, options: ProbeOptions) -> ProbeReport:
    """Embed both splits, fit every try of every fraction of the labels, and judge each on the test split.

    Raises:
        FgsslError: A fraction that leaves a class without images, or too few classes; told before anything is embedded
            wherever the labels show it.
    """
    if options.protocol not in _FITS:
        raise SettingError(f"unknown protocol '{options.protocol}'", f"choose one of {', '.join(_FITS)}, fewshot")
    if options.protocol == "sgd" and not isinstance(subject, Subject):
        raise FgsslError("--protocol sgd embeds new crops in every epoch, and a file holds features only",
                         "use --protocol cached, or give the encoder")  # fmt: skip
    if options.epochs < 1:
        raise SettingError(f"--epochs is {options.epochs}", "it must be at least 1")
    draw = partial(draw_labels, fractions=options.fractions, tries=options.tries, seed=options.seed)
    draw(labels_of(splits.train, "the probe needs them"))
    train, test = subject.embed(splits.train), subject.embed(splits.test)
    task = _Task(subject, splits.train, train, test, train.known_labels, test.known_labels, options)
    draws = draw(task.labels)  # again: an unreadable image has no row
    shares = run_trials(draws, task.fit_all(sum(map(len, draws))))
    return ProbeReport(shares, train, test, f"{_method(shares)}; {splits.protocol}{_drawn(shares)}")


def run_few_shot(
    subject: Subject | FeatureTable,
    images: ImageSet,
    *,
    shots: Sequence[int],
    ways: int | None,
    episodes: int,
    seed: int = 0,
) -> list[FewShotResult]:
    """Nearest class mean over episodes of one labelled split, for each number of shots. Raises FgsslError."""
    labels_of(images, "few-shot episodes are drawn by them")
    found = subject.embed(images)
    run = partial(few_shot, found.features, found.known_labels, ways=ways, episodes=episodes, seed=seed)
    show = partial(subject.reporter.progress, "drawing episodes")
    return [run(shots=count, progress=show) for count in shots]


def _method(shares: Sequence[Share]) -> str:
    """How every try was classified: with its own numbers where there is one, else share by share."""
    results = [share.trials[0].result for share in shares]  # the tries of a share have as many images of each class
    first = results[0]
    if not isinstance(first, ProbeResult):
        if len({result.protocol for result in results}) == 1:
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
    return "".join(
        f"; {share.fraction:g} of the labels drawn by class with seeds {', '.join(map(str, share.seeds))}"
        for share in shares
        if share.fraction < 1
    )


class _Task(NamedTuple):
    """What every try of a probe shares; each protocol is a method that fits one try and judges it."""

    subject: Subject | FeatureTable
    images: ImageSet  # the train split
    train: Embeddings
    test: Embeddings
    labels: Tensor  # of `train`
    truth: Tensor  # of `test`
    options: ProbeOptions

    @property
    def classes(self) -> int:
        named = len(self.train.class_names or ())
        return max(named, int(self.labels.max()) + 1, int(self.truth.max()) + 1)

    def fit_all(self, tries: int) -> Fit:
        """The protocol's fit of one try, with progress over all of them."""
        fit_one, title = _FITS[self.options.protocol]
        places = itertools.count()

        def fit(rows: Tensor, seed: int) -> ClassifierResult:
            place = next(places)

            def show(done: int, total: int) -> None:
                self.subject.reporter.progress(title, place * total + done, tries * total)

            return fit_one(self, rows, seed, show)

        return fit

    def cached(self, rows: Tensor, seed: int, show: Progress) -> ClassifierResult:
        sets = self.train.features[rows], self.labels[rows], self.test.features, self.truth
        return linear_probe(*sets, classes=self.classes, seed=seed, progress=show)

    def knn(self, rows: Tensor, _seed: int, show: Progress) -> ClassifierResult:
        sets = self.train.features[rows], self.labels[rows], self.test.features, self.truth
        options = self.options
        return knn_classify(
            *sets, k=options.k, temperature=options.temperature, classes=self.classes, progress=show
        )  # fmt: skip

    def sgd(self, rows: Tensor, seed: int, show: Progress) -> ClassifierResult:
        recipe, subject = SgdRecipe(epochs=self.options.epochs), self.subject
        assert isinstance(subject, Subject)  # run_probe refuses others
        positions = torch.from_numpy(self.train.positions)[rows]
        model = train_on_crops(
            subject.encoder, self.images, positions, pool=subject.pool, width=self.train.features.shape[1],
            classes=self.classes, recipe=recipe, seed=seed, forward=subject.batch_size, progress=show,
            cache=subject.cache, decoding=partial(subject.reporter.progress, f"decoding {self.images.split}"),
        )  # fmt: skip
        scores = self.test.features @ model.weight + model.bias
        unseen = torch.ones(self.classes, dtype=torch.bool)
        unseen[self.labels[rows]] = False
        words = f"linear layer on l2-normalised features of random-resized crops, {recipe.words()}"
        return judge(scores.masked_fill(unseen, float("-inf")), self.truth, words)


_FITS = {
    "cached": (_Task.cached, "fitting the probe"),
    "sgd": (_Task.sgd, "training the probe"),
    "knn": (_Task.knn, "voting"),
}
