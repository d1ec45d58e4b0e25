"""What every source of images looks like to the rest of fgssl, and two ways to combine sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fgssl.errors import FgsslError

if TYPE_CHECKING:
    from PIL.Image import Image

    from fgssl.data.decoding.decode import Examined


@runtime_checkable
class ImageSet(Protocol):
    """An ordered set of images, with or without labels; picklable, and cheap to hand to forked workers.

    Attributes:
        source: The source as the user wrote it ("cub", "./photos", "owner/name").
        split: The split these images are from ("train"; "all" where the source has no splits).
        labels: Class of every image (N,), or None where there are none. Ids agree between the splits of a source.
        class_names: Name of every class id, or None where there are no labels.
    """

    source: str
    split: str
    labels: NDArray[np.int64] | None  # (N,)
    class_names: tuple[str, ...] | None

    def __len__(self) -> int:
        """Number of images."""
        ...

    def identifier(self, index: int) -> str:
        """A printable name of one image for messages and results: its path, or "cub[train]#17"."""
        ...

    def load(self, index: int, min_side: int | None = None) -> Image:
        """Decodes one image: upright, RGB.

        Args:
            index: Which image, 0..N-1.
            min_side: Allows a cheaper, smaller decode whose short side in pixels is still at least this (or the
                original's, where that is shorter). None decodes at full size.

        Raises:
            UnreadableImage: The image cannot be read; the message names it and the reason.
        """
        ...

    def examine(self, index: int, min_side: int | None = None) -> Examined:
        """As `load`, with what is known of the stored picture: its size, mode, format, a digest of its content."""
        ...

    def fingerprint(self) -> str:
        """Hex identity of the set's content, cheap to compute, for caches."""
        ...


class Subset:
    """Some images of a set, in a given order.

    Args:
        images: The whole set.
        indices: Which of its images (M,); repeats allowed.
    """

    def __init__(self, images: ImageSet, indices: Sequence[int] | NDArray[np.int64]) -> None:
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(images)):
            raise IndexError(f"indices outside 0..{len(images) - 1}")
        self._images = images
        self._indices = chosen
        self.source = images.source
        self.split = images.split
        self.labels = None if images.labels is None else images.labels[chosen]
        self.class_names = images.class_names

    def __len__(self) -> int:
        return len(self._indices)

    def identifier(self, index: int) -> str:
        return self._images.identifier(int(self._indices[index]))

    def load(self, index: int, min_side: int | None = None) -> Image:
        return self._images.load(int(self._indices[index]), min_side)

    def examine(self, index: int, min_side: int | None = None) -> Examined:
        return self._images.examine(int(self._indices[index]), min_side)

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self._images.fingerprint().encode(), digest_size=16)
        digest.update(self._indices.tobytes())
        return digest.hexdigest()


class Concatenated:
    """Several sets one after the other, for instance train and validation of one source.

    Labels are kept where every part has them and all parts name the same classes.

    Args:
        parts: The sets, in order; at least one.
    """

    def __init__(self, parts: Sequence[ImageSet]) -> None:
        if not parts:
            raise FgsslError("no image set to join", "give at least one split")
        self._parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self.source = parts[0].source
        self.split = "+".join(part.split for part in parts)
        labels = [part.labels for part in parts if part.labels is not None]
        same_classes = len({part.class_names for part in parts}) == 1
        labelled = len(labels) == len(parts) and same_classes
        self.labels = np.concatenate(labels) if labelled else None
        self.class_names = parts[0].class_names if labelled else None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[ImageSet, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} outside 0..{len(self) - 1}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part], index - (int(self._ends[part - 1]) if part else 0)

    def identifier(self, index: int) -> str:
        part, inner = self._locate(index)
        return part.identifier(inner)

    def load(self, index: int, min_side: int | None = None) -> Image:
        part, inner = self._locate(index)
        return part.load(inner, min_side)

    def examine(self, index: int, min_side: int | None = None) -> Examined:
        part, inner = self._locate(index)
        return part.examine(inner, min_side)

    def fingerprint(self) -> str:
        joined = "\n".join(part.fingerprint() for part in self._parts)
        return hashlib.blake2b(joined.encode(), digest_size=16).hexdigest()
