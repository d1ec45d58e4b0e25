"""New pictures -> classes with calibrated confidence, and the labelled pictures that they are most like."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fgssl.classify.classifier import Classifier, load_classifier
from fgssl.config.schema import DataConfig
from fgssl.data.decoding import require_files
from fgssl.data.images import Concatenated, ImageSet
from fgssl.data.sources.files import FileImages, PackedNames
from fgssl.errors import SettingError
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.features import unit_rows
from fgssl.evaluation.retrieval.ranking import Neighbours, search
from fgssl.evaluation.retrieval.scored import gallery_images, true_path
from fgssl.evaluation.subject import EvaluationOptions, Subject
from fgssl.runtime.machine import keep_freed_memory, resolve_device

GUESSES = 3  # most likely classes that are told
_CHUNK = 4096  # pictures scored at a time


class Guess(NamedTuple):
    """A class and how sure the classifier is of it."""

    label: str
    confidence: float  # 0 to 1


class Example(NamedTuple):
    """A labelled picture that a new one is like."""

    path: str
    label: str
    cosine: float


class Prediction(NamedTuple):
    """What is said of one picture."""

    path: str
    label: str | None  # None where the classifier is less sure than asked for
    guesses: list[Guess]  # the most likely classes, most likely first
    examples: list[Example]  # the nearest labelled pictures, nearest first


@dataclass(frozen=True)
class Predictions:
    """What is said of N pictures, in arrays: as many as a disk holds."""

    classifier: Classifier
    names: Sequence[str]
    classes: Tensor  # (N, G) int64, most likely first
    confidence: Tensor  # (N, G)
    nearest: Neighbours  # among the classifier's examples
    abstain: float
    unreadable: tuple[str, ...]  # why pictures have no row

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Prediction]:
        told, labels = self.classifier.told, self.classifier.labels
        for row, name in enumerate(self.names):
            sure = self.confidence[row].tolist()
            guesses = [Guess(told.classes[c], p) for c, p in zip(self.classes[row].tolist(), sure, strict=True)]
            near = zip(self.nearest.indices[row].tolist(), self.nearest.scores[row].tolist(), strict=True)
            examples = [Example(told.paths[e], told.classes[int(labels[e])], cosine) for e, cosine in near]
            yield Prediction(name, guesses[0].label if sure[0] >= self.abstain else None, guesses, examples)


def named_pictures(paths: Sequence[Path]) -> ImageSet:
    """Pictures that were named, and those of folders, in this order. Raises FgsslError for what is not there."""
    require_files([path for path in paths if not path.is_dir()])
    parts, files = list[ImageSet](), list[bytes]()

    def close() -> None:
        if files:
            parts.append(FileImages("pictures", "all", folder=b"", names=PackedNames(files)))
            files.clear()

    for path in paths:
        if path.is_dir():
            close()
            parts.append(gallery_images(DataConfig(source=str(path)), None))
        else:
            files.append(os.fsencode(path))
    close()
    return parts[0] if len(parts) == 1 else Concatenated(parts)


def predict_pictures(
    path: str, pictures: Sequence[Path], options: EvaluationOptions, *, abstain: float = 0.0, examples: int = 3
) -> Predictions:
    """Open a classifier and classify pictures; those that cannot be read are warned of and left out.

    Raises FgsslError for a bad classifier, a picture that is not there, or where none can be read.
    """
    images, classifier = named_pictures(pictures), load_classifier(path)
    told, device = classifier.told, resolve_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    encoder, data = classifier.encoder.to(device), DataConfig(source=told.data)
    subject = Subject(path, encoder, data, told.pool, options.batch_size, options.cache, options.reporter)
    found = subject.embed(images, unreadable=1.0)
    fitted_on = set(map(true_path, told.paths))
    if known := sum(true_path(name) in fitted_on for name in found.identifiers):
        text = f"the classifier was fitted on {known} of these {len(found.identifiers)} pictures"
        options.reporter.warn(f"{text}: each is its own nearest, and the confidence in them proves nothing")
    return predict(classifier, found, abstain=abstain, examples=examples, memory_bytes=options.scratch)


def predict(
    classifier: Classifier,
    found: Embeddings,
    *,
    abstain: float = 0.0,
    examples: int = 3,
    memory_bytes: int | None = None,
) -> Predictions:
    """Classes of embedded pictures. Raises SettingError for an `abstain` beyond [0, 1] or a negative `examples`."""
    if not 0 <= abstain <= 1:
        raise SettingError(f"--abstain is {abstain:g}", "use a confidence from 0 to 1")
    if examples < 1:
        raise SettingError(f"--examples is {examples}", "ask for 1 or more")
    features, best = unit_rows(found.features), min(GUESSES, len(classifier.told.classes))
    parts = [classifier.scores(part).softmax(1).topk(best) for part in torch.split(features, _CHUNK)]
    nearest = search(features, classifier.examples, top=examples, memory_bytes=memory_bytes)
    return Predictions(
        classifier, found.identifiers, torch.cat([part.indices for part in parts]),
        torch.cat([part.values for part in parts]), nearest, abstain, tuple(fault.reason for fault in found.faults),
    )  # fmt: skip
