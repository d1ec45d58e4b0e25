"""An encoder probed with labels: splits -> features -> a classifier by one of four protocols -> document, files."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgssl.data.images import ImageSet
from fgssl.data.sources.files import list_line
from fgssl.errors import FgsslError, SettingError
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.feature_file import FeatureTable
from fgssl.evaluation.features import Progress
from fgssl.evaluation.probing.classifiers import FewShotResult, ProbeResult, Sets, few_shot, knn_classify, linear_probe
from fgssl.evaluation.probing.linear import SgdRecipe, train_on_crops
from fgssl.evaluation.probing.scores import ClassifierResult, Share, draw_labels, judge, run_trials
from fgssl.evaluation.probing.splits import ProbeSplits
from fgssl.evaluation.subject import Subject, labels_of
from fgssl.runtime.files import Inputs, OutputKind, check_folder, check_output, write_text
from fgssl.runtime.text import csv_text, json_text

Source = Subject | FeatureTable  # of embeddings

TABLES = ("probe.json", "per_class.csv", "confusions.csv")
METRICS = ("top1", "top5", "mean_per_class")


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

    @property
    def class_names(self) -> list[str]:
        """A name for every class, its number where it has none; two of the same name stay apart."""
        named, count = self.train.class_names or (), len(self.shares[0].results[0].per_class)
        names = [*named, *map(str, range(len(named), count))]
        return [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names)]


def run_probe(subject: Source, splits: ProbeSplits, options: ProbeOptions) -> ProbeReport:
    """Embed both splits, fit every try of every fraction of the labels, and judge it. Raises FgsslError early."""
    if options.protocol not in _TITLES:
        raise SettingError(f"unknown protocol '{options.protocol}'", f"choose one of {', '.join(_TITLES)}, fewshot")
    if options.protocol == "sgd" and not isinstance(subject, Subject):
        raise FgsslError("--protocol sgd embeds new crops in every epoch, and a file holds features only",
                         "use --protocol cached, or give the encoder")  # fmt: skip
    if options.epochs < 1:
        raise SettingError(f"--epochs is {options.epochs}", "it must be at least 1")
    draw = partial(draw_labels, fractions=options.fractions, tries=options.tries, seed=options.seed)
    draw(labels_of(splits.train, "the probe needs them"))
    task = _Task(subject, splits.train, subject.embed(splits.train), subject.embed(splits.test), options)
    draws = draw(task.train.known_labels)  # again: an unreadable image has no row
    tries, places = sum(map(len, draws)), itertools.count()

    def fit(rows: Tensor, seed: int) -> ClassifierResult:
        place = next(places)

        def show(done: int, total: int) -> None:
            subject.reporter.progress(_TITLES[options.protocol], place * total + done, tries * total)

        fitted: ClassifierResult = getattr(task, options.protocol)(rows, seed, show)
        return fitted

    shares = run_trials(draws, fit)
    drawn = [(share.fraction, ", ".join(map(str, share.seeds))) for share in shares if share.fraction < 1]
    words = "".join(f"; {fraction:g} of the labels drawn by class with seeds {seeds}" for fraction, seeds in drawn)
    return ProbeReport(shares, task.train, task.test, f"{_method(shares)}; {splits.protocol}{words}")


def run_few_shot(
    subject: Source, images: ImageSet, *, shots: Sequence[int], ways: int | None, episodes: int, seed: int = 0
) -> list[FewShotResult]:
    """Nearest class mean over episodes of one labelled split, for each number of shots. Raises FgsslError."""
    labels_of(images, "few-shot episodes are drawn by them")
    found = subject.embed(images)
    run = partial(few_shot, found.features, found.known_labels, ways=ways, episodes=episodes, seed=seed)
    show = partial(subject.reporter.progress, "drawing episodes")
    return [run(shots=count, progress=show) for count in shots]


def _method(shares: Sequence[Share]) -> str:
    """How every try was classified: with its own numbers where there is one, else share by share."""
    # the tries of a share have as many images of each class
    results = {share.fraction: share.results[0] for share in shares}
    probes = {fraction: result for fraction, result in results.items() if isinstance(result, ProbeResult)}
    protocols = {result.protocol for result in results.values()}
    if len(protocols) == 1 and (not probes or sum(len(share.results) for share in shares) == 1):
        return protocols.pop()
    if not probes:
        return ", ".join(f"{result.protocol} (share {fraction:g})" for fraction, result in results.items())
    choices = ", ".join(f"share {fraction:g} {result.choice}" for fraction, result in probes.items())
    return f"{next(iter(probes.values())).method}, for each try its own: {choices}"


_TITLES = {"cached": "fitting the probe", "sgd": "training the probe", "knn": "voting"}


class _Task(NamedTuple):
    """What every try of a probe shares; each protocol is the method of its name, which fits one try and judges it."""

    subject: Source
    images: ImageSet  # the train split
    train: Embeddings
    test: Embeddings
    options: ProbeOptions

    @property
    def classes(self) -> int:
        named = len(self.train.class_names or ())
        return max(named, int(self.train.known_labels.max()) + 1, int(self.test.known_labels.max()) + 1)

    def sets(self, rows: Tensor) -> Sets:
        train, test = self.train, self.test
        return Sets(train.features[rows], train.known_labels[rows], test.features, test.known_labels)

    def cached(self, rows: Tensor, seed: int, show: Progress) -> ClassifierResult:
        return linear_probe(self.sets(rows), classes=self.classes, seed=seed, progress=show)

    def knn(self, rows: Tensor, _seed: int, show: Progress) -> ClassifierResult:
        k, temperature = self.options.k, self.options.temperature
        return knn_classify(self.sets(rows), k=k, temperature=temperature, classes=self.classes, progress=show)

    def sgd(self, rows: Tensor, seed: int, show: Progress) -> ClassifierResult:
        assert isinstance(self.subject, Subject)  # run_probe refuses others
        recipe, positions = SgdRecipe(epochs=self.options.epochs), torch.from_numpy(self.train.positions)[rows]
        sizes = {"width": self.train.features.shape[1], "classes": self.classes}
        model = train_on_crops(
            self.subject, self.images, recipe, positions=positions, **sizes, seed=seed, progress=show
        )
        scores = self.test.features @ model.weight + model.bias
        unseen = torch.ones(self.classes, dtype=torch.bool)
        unseen[self.train.known_labels[rows]] = False
        words = f"linear layer on l2-normalised features of random-resized crops, {recipe.words()}"
        return judge(scores.masked_fill(unseen, float("-inf")), self.test.known_labels, words)


def probe_document(report: ProbeReport) -> dict[str, Any]:
    """Everything but the labelled images; the first fraction's numbers are repeated at the top."""
    results = [_share(share, report) for share in report.shares]
    return {
        "protocol": report.protocol,
        **{name: results[0][name] for name in ("labels", *METRICS, "top1_low", "top1_high")},
        "test_images": len(report.test.identifiers),
        "results": results,
    }


def _share(share: Share, report: ProbeReport) -> dict[str, Any]:
    interval, names = share.interval(), report.class_names
    found: dict[str, Any] = {"fraction": share.fraction, "labels": len(share.draws[0].rows)}
    found |= {"tries": len(share.results), "seeds": share.seeds, "protocol": share.results[0].protocol}
    for name in METRICS:
        found |= {name: share.mean(name), f"{name}_spread": share.spread(name), f"{name}_tries": share.values(name)}
    found |= {"top1_low": interval.low, "top1_high": interval.high}
    # JSON has no NaN
    known = [None if math.isnan(value) else value for value in share.per_class().tolist()]
    found["per_class"] = dict(zip(names, known, strict=True))
    wrong = share.confusions(report.test.known_labels)
    found["confusions"] = [{"label": names[a], "predicted": names[b], "images": images} for a, b, images in wrong]
    return found


def _is_own(path: Path) -> bool:
    """All files of a probe are known by the document beside them."""
    try:
        found = json.loads(path.with_name("probe.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"checkpoint", "protocol", "results"} <= found.keys()


_PROBE_FILE = OutputKind("a file of a probe", (".json", ".csv", ".txt"), _is_own)


def check_probe_folder(folder: Path, *, inputs: Inputs = (), overwrite: bool = False) -> None:
    """Makes the folder and refuses, before the work, to lose files in it that no probe wrote. Raises FgsslError."""
    check_folder(folder)
    for path in (*(folder / name for name in TABLES), *folder.glob("labels-*-seed*.txt")):
        check_output(path, kind=_PROBE_FILE, inputs=inputs, overwrite=overwrite)


def write_probe(folder: Path, document: dict[str, Any], report: ProbeReport) -> None:
    """probe.json, per_class.csv, confusions.csv, and a list of labelled images, as `--data list.txt` reads, a try."""
    shares, names = document["results"], report.class_names
    counts = report.test.known_labels.bincount(minlength=len(names)).tolist()
    classes: list[list[Any]] = [["class", "test images", *(f"top1 at {share['fraction']:g}" for share in shares)]]
    for name, count in zip(names, counts, strict=True):
        values = [share["per_class"][name] for share in shares]
        classes.append([name, count, *("" if value is None else f"{value:.2f}" for value in values)])
    pairs = [["fraction", "class", "taken for", "images"]]
    pairs += [[f"{share['fraction']:g}", *pair.values()] for share in shares for pair in share["confusions"]]
    texts = dict(zip(TABLES, (json_text(document) + "\n", csv_text(classes), csv_text(pairs)), strict=True))
    images, labels = report.train.identifiers, report.train.known_labels.tolist()
    for draw in (draw for share in report.shares for draw in share.draws):
        lines = [list_line(images[row], names[labels[row]]) for row in draw.rows.tolist()]
        texts[f"labels-{draw.fraction:g}-seed{draw.seed}.txt"] = "".join(lines)
    for name, text in texts.items():
        write_text(folder / name, text)
