"""What every source of images looks like to the rest of fgssl, and two ways to combine sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fgssl.data.decoding.decode import Examined, decode_image, examine_image
from fgssl.errors import FgsslError
from fgssl.runtime.text import shown

if TYPE_CHECKING:
    from PIL.Image import Image


class Remark(NamedTuple):
    """One thing about a source that its user should hear."""

    level: Literal["warning", "note"]
    text: str


@runtime_checkable
class ImageSet(Protocol):
    """An ordered set of images, with or without labels; picklable, and cheap to hand to forked workers.

    Attributes:
        source: The source as the user wrote it ("cub", "./photos", "owner/name").
        split: The split these images are from ("train"; "all" where the source has no splits).
        labels: Class of every image (N,), or None where there are none. Ids agree between the splits of a source.
        class_names: Name of every class id, or None where there are no labels.
        unlabelled: Why there are no labels, in words: "the column 'label' is missing in 1 of 48 rows".
        remarks: What the source was taken for and what of it was left out, for the user to hear once.
    """

    source: str
    split: str
    labels: NDArray[np.int64] | None  # (N,)
    class_names: tuple[str, ...] | None
    unlabelled: str
    remarks: tuple[Remark, ...]

    def __len__(self) -> int:
        """Number of images."""
        ...

    def name(self, index: int) -> str:
        """The name of one image for results and look-ups: its true path (see `os.fsdecode`), or "cub[train]#17"."""
        ...

    def identifier(self, index: int) -> str:
        """The same in printable characters, for messages."""
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


class BaseImages:
    """What most image sets share; a set of its own adds `__len__`, `name`, `load`, `examine` and `fingerprint`."""

    source = ""
    split = "all"
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None
    unlabelled = ""
    remarks: tuple[Remark, ...] = ()

    def name(self, index: int) -> str:
        return f"{self.source}[{self.split}]#{index}"

    def identifier(self, index: int) -> str:
        return shown(self.name(index))


class EncodedImages(BaseImages):
    """The decoding half of an `ImageSet` whose images are stored as files or bytes."""

    def content(self, index: int) -> bytes | str:
        """The encoded image, or the path of its file."""
        raise NotImplementedError

    def load(self, index: int, min_side: int | None = None) -> Image:
        return decode_image(self.content(index), min_side, name=self.identifier(index))

    def examine(self, index: int, min_side: int | None = None) -> Examined:
        return examine_image(self.content(index), min_side, name=self.identifier(index))


class _Indirect(BaseImages):
    """Images of other sets: what a set of its own adds is where each of them is."""

    def _locate(self, index: int) -> tuple[ImageSet, int]:
        raise NotImplementedError

    def name(self, index: int) -> str:
        images, inner = self._locate(index)
        return images.name(inner)

    def load(self, index: int, min_side: int | None = None) -> Image:
        images, inner = self._locate(index)
        return images.load(inner, min_side)

    def examine(self, index: int, min_side: int | None = None) -> Examined:
        images, inner = self._locate(index)
        return images.examine(inner, min_side)


class Subset(_Indirect):
    """Some images of a set, in a given order.

    Args:
        images: The whole set.
        indices: Which of its images (M,); repeats allowed.
    """

    def __init__(self, images: ImageSet, indices: Sequence[int] | NDArray[np.int64]) -> None:
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(images)):
            raise IndexError(f"indices outside 0..{len(images) - 1}")
        self._images, self._indices = images, chosen
        self.source, self.split, self.class_names = images.source, images.split, images.class_names
        self.unlabelled, self.remarks = images.unlabelled, images.remarks
        self.labels = None if images.labels is None else images.labels[chosen]

    def __len__(self) -> int:
        return len(self._indices)

    def _locate(self, index: int) -> tuple[ImageSet, int]:
        return self._images, int(self._indices[index])

    def fingerprint(self) -> str:
        return _digest(self._images.fingerprint().encode() + self._indices.tobytes())


class Concatenated(_Indirect):
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
        same = len({part.class_names for part in parts}) == 1
        labelled = len(labels) == len(parts) and same
        self.labels = np.concatenate(labels) if labelled else None
        self.class_names = parts[0].class_names if labelled else None
        reasons = [f"{part.split}: {part.unlabelled}" for part in parts if part.unlabelled]
        self.unlabelled = "; ".join(reasons) or ("" if labelled else "its splits name different classes")
        self.remarks = tuple(dict.fromkeys(remark for part in parts for remark in part.remarks))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[ImageSet, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} outside 0..{len(self) - 1}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part], index - (int(self._ends[part - 1]) if part else 0)

    def fingerprint(self) -> str:
        return _digest("\n".join(part.fingerprint() for part in self._parts).encode())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
