"""A classifier and all that it needs in one safetensors: an encoder file (`fgssl.runs.encoder_file`), and beside it

classifier.weight     (D, C) and classifier.bias (C,), on l2-normalised features
classifier.examples   (N, D) float16 features of the labelled pictures, classifier.labels (N,) their classes
metadata              `fgssl_classifier`: JSON of `Told`
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fgssl.encoder import POOLS, Encoder, Pool
from fgssl.errors import FgsslError
from fgssl.runs.encoder_file import load_encoder, save_encoder
from fgssl.runtime.files import OutputKind

_KEY, FORMAT = "fgssl_classifier", "fgssl-classifier-1"
_TENSORS = ("weight", "bias", "examples", "labels")


@dataclass(frozen=True)
class Told:
    """What a classifier says of itself."""

    classes: tuple[str, ...]  # names of the C classes
    paths: tuple[str, ...]  # of the N labelled pictures
    pool: Pool
    temperature: float
    protocol: str  # how it was fitted and measured, in words
    held_out: dict[str, Any] | None  # what it was worth; None where nothing was held out
    checkpoint: str  # as its user wrote it
    data: str
    format: str = FORMAT


@dataclass(frozen=True)
class Classifier:
    """A linear classifier above an encoder, with the pictures it was fitted on."""

    encoder: Encoder
    weight: Tensor  # (D, C)
    bias: Tensor  # (C,)
    examples: Tensor  # (N, D), l2-normalised
    labels: Tensor  # (N,) int64
    told: Told

    def scores(self, features: Tensor) -> Tensor:
        """Log-odds of l2-normalised features: (M, D) -> (M, C), whose softmax is the confidence."""
        return (features @ self.weight + self.bias) / self.told.temperature


def save_classifier(path: Path, classifier: Classifier) -> None:
    """Write a classifier whole or not at all."""
    tensors = {name: getattr(classifier, name) for name in _TENSORS}
    tensors["examples"] = classifier.examples.half()  # cosines to four digits, at half the size
    more = {f"classifier.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_encoder(path, classifier.encoder, more=more, told={_KEY: json.dumps(dataclasses.asdict(classifier.told))})


def load_classifier(path: str) -> Classifier:
    """A classifier with its encoder. Raises FgsslError: not there, damaged, or no classifier."""
    remedy = "fit one with fgssl classify fit"
    if not Path(path).expanduser().is_file():
        raise FgsslError(f"no classifier '{path}'", remedy)
    found = _read(Path(path).expanduser())
    if found is None:
        raise FgsslError(f"'{path}' holds no classifier", remedy)
    encoder = load_encoder(path)
    try:
        told = _checked(json.loads(found[0]), found[1])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FgsslError(f"'{path}' is damaged: its classifier does not fit together", remedy) from error
    encoder.require(told.pool)
    tensors = {name: found[1][name].float() for name in _TENSORS if name != "labels"}
    return Classifier(encoder, labels=found[1]["labels"].long(), told=told, **tensors)


def _read(path: Path) -> tuple[str, dict[str, Tensor]] | None:
    """What a classifier says of itself, and its tensors; None for another file, which others tell more of."""
    try:
        with safe_open(path, framework="pt") as file:
            said = (file.metadata() or {}).get(_KEY)
            return None if said is None else (said, {name: file.get_tensor(f"classifier.{name}") for name in _TENSORS})
    except (SafetensorError, OSError, ValueError):
        return None


def _checked(said: dict[str, Any], tensors: dict[str, Tensor]) -> Told:
    """Raises ValueError, TypeError or KeyError where a file's parts do not fit each other."""
    if said["format"] != FORMAT or said["pool"] not in POOLS or not 0 < float(said["temperature"]) < float("inf"):
        raise ValueError("format")
    names = {key: tuple(map(str, said[key])) for key in ("classes", "paths")}
    width, classes, count = tensors["weight"].shape[0], len(names["classes"]), len(names["paths"])
    shapes = {"weight": (width, classes), "bias": (classes,), "examples": (count, width), "labels": (count,)}
    if any(tuple(tensors[name].shape) != shape for name, shape in shapes.items()) or count == 0:
        raise ValueError("shapes")
    labels = tensors["labels"]
    if labels.is_floating_point() or not bool(((labels >= 0) & (labels < classes)).all()):
        raise ValueError("labels")
    return Told(**{**said, **names})


def _is_own(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return _KEY in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False


CLASSIFIER = OutputKind("a classifier", (".safetensors",), _is_own, makes_folder=True)


def class_names(names: tuple[str, ...] | None, present: Tensor) -> tuple[str, ...]:
    """Names of the classes that have pictures; their numbers where they have no names."""
    return tuple(str(number) if names is None else names[number] for number in present.tolist())


def numbered(labels: Tensor, present: Tensor) -> Tensor:
    """Labels (N,) as places in `present` (P,), ascending; -1 for a class that is not there."""
    place = torch.searchsorted(present, labels).clamp_max(len(present) - 1)
    return torch.where(present[place] == labels, place, -1)
