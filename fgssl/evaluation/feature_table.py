"""Any model's features in an encoder's place: rows of features.safetensors found by the names of their images."""

from __future__ import annotations

import hashlib
import os
from typing import NoReturn

import numpy as np
import torch

from fgssl.data.images import About, ImageSet
from fgssl.errors import FgsslError, UnreadableImage
from fgssl.evaluation.embed import Embeddings, rows_of
from fgssl.evaluation.feature_file import FeatureFile, is_feature_file, read_features
from fgssl.runtime.reporting import Reporter
from fgssl.runtime.text import shown

SEPARATOR = "+"


def is_feature_table(name: str) -> bool:
    """Whether a name is a file of features, or several joined by "+" (train.safetensors+test.safetensors)."""
    return is_feature_file(name) or all(is_feature_file(part) for part in name.split(SEPARATOR))


class FeatureTable:
    """Features of images by name; embeds as an encoder's `Subject` does, by looking up.

    Args:
        name: A file of features, or several of one encoder joined by "+".
        reporter: Told of progress by those who use the table.

    Attributes:
        files: As read.
        pool: The pooling the files tell of, None where they do not or differ.

    Raises:
        FgsslError: As `read_features`; files of different widths, or one image twice with different features.
    """

    def __init__(self, name: str, *, reporter: Reporter | None = None) -> None:
        self.name, self.reporter = name, reporter or Reporter()
        self.files = [read_features(part) for part in ([name] if is_feature_file(name) else name.split(SEPARATOR))]
        widths = {file.embeddings.features.shape[1] for file in self.files}
        if len(widths) > 1:
            raise FgsslError(
                f"the files of '{name}' hold features of different widths {sorted(widths)}",
                "take both from the same encoder with the same pooling",
            )
        self.features = torch.cat([file.embeddings.features for file in self.files])
        pools = {file.pool for file in self.files}
        self.pool = pools.pop() if len(pools) == 1 else None
        self._rows: dict[str, int] = {}
        for row, image in enumerate(image for file in self.files for image in file.embeddings.identifiers):
            former = self._rows.setdefault(image_key(image), row)
            if former != row and not torch.equal(self.features[former], self.features[row]):
                raise FgsslError(f"'{name}' holds {shown(image)} twice with different features", "keep one")

    def name_faults(self, *_found: Embeddings) -> None:
        """As `Subject.name_faults`: a file of features has none."""

    def embed(self, images: ImageSet) -> Embeddings:
        """The features of a split's images, in its order; its labels are the split's own.

        Raises:
            FgsslError: Images without features, counted and the first named.
        """
        found = [self._rows.get(image_key(images.name(index))) for index in range(len(images))]
        missing = [index for index, row in enumerate(found) if row is None]
        if missing:
            raise FgsslError(
                f"'{self.name}' has no features of {len(missing)} of {len(found)} images of {images.source} "
                f"[{images.split}], such as {images.identifier(missing[0])}",
                f"images are found by the `paths` in the metadata; join files of several splits with {SEPARATOR}",
            )
        rows = [row for row in found if row is not None]
        return rows_of(images, self.features[rows], np.arange(len(rows)))


class FeatureImages(ImageSet):
    """The images that a file of features tells of, as a split without pixels.

    Args:
        file: With or without labels.
    """

    def __init__(self, file: FeatureFile) -> None:
        found = file.embeddings
        labels = None if found.labels is None else found.labels.numpy()
        super().__init__(file.path, file.split or "all", About(labels, found.class_names, found.unlabelled))
        self._names = found.identifiers

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The image's name."""
        return self._names[index]

    def load(self, index: int, min_side: int | None = None) -> NoReturn:
        """Raises UnreadableImage: there are features only."""
        raise UnreadableImage(f"'{self.source}' holds features, not pictures")

    examine = load

    def fingerprint(self) -> str:
        """Of the names."""
        return hashlib.blake2b("\n".join(self._names).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def image_key(name: str) -> str:
    """The same for one file named from different folders; a name that is no path stays itself."""
    return os.path.abspath(name) if os.path.sep in name or os.path.exists(name) else name
