"""Features in safetensors files, fgssl's own and any other model's, and such files in an encoder's place.

features      (N, D) floating point; all that is needed
labels        (N,) integers, where there are any; -1 is missing; without `class_names` they are just numbers
metadata      optional: `paths` and `class_names` as JSON lists, `source`, `split`, `pool`, `checkpoint`, `encoder`
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fgssl import __version__
from fgssl.data.images import About, ImageSet
from fgssl.errors import FgsslError
from fgssl.evaluation.embed import Embeddings, rows_of
from fgssl.evaluation.features import check_features, check_labels
from fgssl.runtime.files import atomic_path
from fgssl.runtime.reporting import Reporter
from fgssl.runtime.text import shown

FORMAT = "fgssl-features-1"
SEPARATOR = "+"  # between files that are read as one
MISSING = -1  # a label that is not known, as hub data sets mark it
_SHAPE_REMEDY = "give a safetensors file with `features` (N, D) and, to be scored, `labels` (N,)"


class FeatureFile(NamedTuple):
    """Features with what their file says about them; None where it says nothing."""

    path: str  # as the user wrote it
    embeddings: Embeddings  # features as the file has them: float32 (or `half`), not scaled
    source: str | None = None  # the data source that was embedded
    split: str | None = None
    pool: str | None = None
    checkpoint: str | None = None  # the encoder, as its user wrote it
    encoder: str | None = None  # its identity, see `fgssl.runs.encoder_file.identity`


def _header(path: str | Path) -> tuple[set[str], dict[str, str]]:
    """Names of the tensors, and metadata; nothing for what is no safetensors file, or cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys()), dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return set(), {}


def is_feature_file(name: str) -> bool:
    """Whether a path holds features rather than an encoder; reads the file's header alone and never raises."""
    path = os.path.expanduser(name)
    return os.path.isfile(path) and "features" in _header(path)[0]


def is_feature_table(name: str) -> bool:
    """Whether a name is a file of features, or several joined by "+" (train.safetensors+test.safetensors)."""
    return is_feature_file(name) or all(is_feature_file(part) for part in name.split(SEPARATOR))


def read_features(name: str, *, half: bool = False) -> FeatureFile:
    """Features, labels and names of a safetensors file. Raises FgsslError: not there, damaged, or they do not fit.

    Features of 16 bits become float32, unless `half`: then they stay in the file, which is mapped into memory.
    """
    tensors, metadata = _read(name)
    features, called = tensors["features"], f"features of '{name}'"
    if not (half and features.dtype == torch.float16 and features.ndim == 2 and len(features)):
        features = check_features(features, called)
    rows, labels, unlabelled = len(features), tensors.get("labels"), "it holds no tensor `labels`"
    class_names = None if labels is None else _names(metadata, "class_names", name)
    if labels is not None:
        labels = check_labels(labels, rows, f"labels of '{name}'")
        beyond = "no class" if class_names is None else f"beyond its {len(class_names)} class names"
        end = torch.iinfo(torch.int32).max if class_names is None else len(class_names)
        wrong = ((labels < MISSING) | (labels >= end)).nonzero()[:, 0].tolist()
        if wrong:
            at = f"(row {wrong[0]}: {int(labels[wrong[0]])})"
            raise FgsslError(f"'{name}' has labels {beyond} {at}", _SHAPE_REMEDY)
        if missing := int((labels == MISSING).sum()):  # unlabelled, as a parquet table would be
            labels, class_names, unlabelled = None, None, f"they are missing ({MISSING}) in {missing} of {rows} rows"
    paths = _names(metadata, "paths", name)
    if paths is not None and len(paths) != rows:
        raise FgsslError(f"'{name}' names {len(paths)} paths for {rows} rows of features", _SHAPE_REMEDY)
    identifiers = paths or tuple(f"{name}#{row}" for row in range(rows))
    told = {key: metadata.get(key) for key in FeatureFile._fields[2:]}
    embeddings = Embeddings(features, labels, identifiers, class_names, np.arange(rows), (), unlabelled)
    return FeatureFile(name, embeddings, **told)


def _read(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = os.path.expanduser(name)
    if not os.path.isfile(path):
        raise FgsslError(f"no file of features '{name}'", "write one with fgssl embed")
    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            if "features" not in keys:
                holds = ", ".join(sorted(keys)[:4]) + (" ..." if len(keys) > 4 else "")
                raise FgsslError(f"'{name}' holds no tensor `features` (it holds {holds or 'nothing'})", _SHAPE_REMEDY)
            wanted = keys & {"features", "labels"}
            return {key: file.get_tensor(key) for key in wanted}, dict(file.metadata() or {})
    except PermissionError as error:
        raise FgsslError(f"cannot read '{name}': {error.strerror}", "check its permissions") from error
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FgsslError(f"'{name}' is cut off or not a safetensors file ({reason})", _SHAPE_REMEDY) from error


def _names(metadata: dict[str, str], key: str, name: str) -> tuple[str, ...] | None:
    """A list of strings from the metadata, None where there is none."""
    try:
        found: Any = json.loads(metadata.get(key, "null"))
    except ValueError:
        found = 0
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise FgsslError(f"`{key}` in the metadata of '{name}' is not a JSON list of strings", _SHAPE_REMEDY)
    return tuple(found)


def is_own_features(path: Path) -> bool:
    """Whether fgssl wrote the file."""
    return _header(path)[1].get("format") == FORMAT


def lasting_names(embeddings: Embeddings) -> list[str]:
    """The name of each row: a path that means the same in any folder; the name of an image that is no file as it is."""
    return [os.path.abspath(name) if os.path.exists(name) else name for name in embeddings.identifiers]


def save_features(path: Path, embeddings: Embeddings, **told: str) -> None:
    """Write features, labels where there are any, names and what else is `told`; faults and positions are not kept."""
    tensors = {"features": embeddings.features.contiguous()}
    if embeddings.labels is not None:
        tensors["labels"] = embeddings.labels.to(torch.int64).contiguous()
    paths = json.dumps(lasting_names(embeddings))
    metadata = {"format": FORMAT, "fgssl": __version__, "paths": paths}
    metadata["class_names"] = json.dumps(embeddings.class_names)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata | {key: shown(value) for key, value in told.items()})


class FeatureTable:
    """Features of images by name, of a file or several joined by "+"; embeds as a `Subject` does, by looking up."""

    def __init__(self, name: str, *, reporter: Reporter | None = None) -> None:
        self.name, self.reporter = name, reporter or Reporter()
        self.files = [read_features(part) for part in ([name] if is_feature_file(name) else name.split(SEPARATOR))]
        widths = {file.embeddings.features.shape[1] for file in self.files}
        if len(widths) > 1:
            problem = f"the files of '{name}' hold features of different widths {sorted(widths)}"
            raise FgsslError(problem, "take both from the same encoder with the same pooling")
        self.features = torch.cat([file.embeddings.features for file in self.files])
        pools = {file.pool for file in self.files}
        self.pool = pools.pop() if len(pools) == 1 else None
        self._rows: dict[str, int] = {}
        for row, image in enumerate(image for file in self.files for image in file.embeddings.identifiers):
            former = self._rows.setdefault(image_key(image), row)
            if former != row and not torch.equal(self.features[former], self.features[row]):
                raise FgsslError(f"'{name}' holds {shown(image)} twice with different features", "keep one")

    def embed(self, images: ImageSet) -> Embeddings:
        """The features of a split's images, with its own labels. Raises FgsslError for images without features."""
        rows = [self._rows.get(image_key(images.name(index)), -1) for index in range(len(images))]
        if -1 in rows:
            raise FgsslError(
                f"'{self.name}' has no features of {rows.count(-1)} of {len(rows)} images of {images.source} "
                f"[{images.split}], such as {images.identifier(rows.index(-1))}",
                f"images are found by the `paths` in the metadata; join files of several splits with {SEPARATOR}",
            )
        return rows_of(images, self.features[rows], np.arange(len(rows)))


class FeatureImages(ImageSet):
    """The images that a file of features tells of, with or without labels, as a split without pixels."""

    def __init__(self, file: FeatureFile) -> None:
        found = file.embeddings
        labels = None if found.labels is None else found.labels.numpy()
        super().__init__(file.path, file.split or "all", About(labels, found.class_names, found.unlabelled))
        self._names = found.identifiers

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]


def image_key(name: str) -> str:
    """The same for one file named from different folders; a name that is no path stays itself."""
    return os.path.abspath(name) if os.path.sep in name or os.path.exists(name) else name
