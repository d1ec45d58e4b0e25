"""What every source of images looks like to the rest of fgssl, and two ways to combine sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fgssl.data.decoding import Examined, decode_image, examine_image
from fgssl.errors import FgsslError
from fgssl.runtime.text import shown

if TYPE_CHECKING:
    from PIL.Image import Image


class Remark(NamedTuple):
    """One thing about a source that its user should hear."""

    level: Literal["warning", "note"]
    text: str


class About(NamedTuple):
    """What is known of a set of images besides the images."""

    labels: NDArray[np.int64] | None = None  # (N,) class ids, which agree between the splits of a source
    class_names: tuple[str, ...] | None = None  # of every class id
    unlabelled: str = ""  # why there are no labels: "the column 'label' is missing in 1 of 48 rows"
    remarks: tuple[Remark, ...] = ()  # what the source was taken for and what was left out, to be heard once
    skipped: tuple[str, ...] = ()  # "path: reason" of what a listing passed over, for reports


NOTHING = About()


class Masks(NamedTuple):
    """Where the object of a picture and its class-telling parts are, over the whole of the upright picture."""

    object: NDArray[np.bool_]  # (H, W), of the picture's shape but maybe not its size
    parts: NDArray[np.bool_] | None = None  # of the same size; None where a set does not tell


class ImageSet:
    """An ordered set of images, with or without labels; picklable, and cheap to hand to forked workers.

    A set of its own adds `__len__`, `fingerprint`, and `content`, or else `load` and `examine`. What `about` holds are
    its attributes.

    Args:
        source: The source as the user wrote it ("cub", "./photos", "owner/name").
        split: The split these images are from ("train"; "all" where the source has no splits).
        about: Labels and remarks.
    """

    def __init__(self, source: str, split: str = "all", about: About = NOTHING) -> None:
        self.source, self.split = source, split
        self.labels, self.class_names, self.unlabelled, self.remarks, self.skipped = about

    def __len__(self) -> int:
        raise NotImplementedError

    def counted(self) -> str:
        """How many images of what these are: "3 images of cub[train]"."""
        return f"{len(self)} images of {self.source}[{self.split}]"

    def name(self, index: int) -> str:
        """The name of one image for results and look-ups: its true path (see `os.fsdecode`), or "cub[train]#17"."""
        return f"{self.source}[{self.split}]#{index}"

    def identifier(self, index: int) -> str:
        """The same in printable characters, for messages."""
        return shown(self.name(index))

    def split_of(self, index: int) -> str:
        """The split that one image is from: of splits joined together its own."""
        return self.split

    def content(self, index: int) -> bytes | str:
        """The encoded image, or the path of its file."""
        raise NotImplementedError

    def load(self, index: int, min_side: int | None = None) -> Image:
        """One image, upright and RGB, as `fgssl.data.decoding_image`. Raises UnreadableImage."""
        return decode_image(self.content(index), min_side, name=self.identifier(index))

    def examine(self, index: int, min_side: int | None = None) -> Examined:
        """As `load`, with what is known of the stored picture: its size, mode, format, a digest of its content."""
        return examine_image(self.content(index), min_side, name=self.identifier(index))

    def has_mask(self, index: int) -> bool:
        """Whether somebody has marked the object of an image."""
        return self.masks(index) is not None

    def masks(self, index: int) -> Masks | None:
        """Where the object and its parts are; None where nobody has marked them. Their size is the stored picture's."""
        return None

    def fingerprint(self) -> str:
        """Hex identity of the set's content, cheap to compute, for caches."""
        raise NotImplementedError


class Indirect(ImageSet):
    """Images of other sets: what a set of its own adds is where each of them is."""

    def locate(self, index: int) -> tuple[ImageSet, int]:
        raise NotImplementedError

    def name(self, index: int) -> str:
        images, inner = self.locate(index)
        return images.name(inner)

    def split_of(self, index: int) -> str:
        images, inner = self.locate(index)
        return images.split_of(inner)

    def load(self, index: int, min_side: int | None = None) -> Image:
        images, inner = self.locate(index)
        return images.load(inner, min_side)

    def examine(self, index: int, min_side: int | None = None) -> Examined:
        images, inner = self.locate(index)
        return images.examine(inner, min_side)

    def has_mask(self, index: int) -> bool:
        images, inner = self.locate(index)
        return images.has_mask(inner)

    def masks(self, index: int) -> Masks | None:
        images, inner = self.locate(index)
        return images.masks(inner)


class Subset(Indirect):
    """Some images of a set, in the order of their indices (M,); repeats allowed."""

    def __init__(self, images: ImageSet, indices: Sequence[int] | NDArray[np.int64]) -> None:
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(images)):
            raise IndexError(f"indices outside 0..{len(images) - 1}")
        self._images, self._indices = images, chosen
        labels = None if images.labels is None else images.labels[chosen]
        about = About(labels, images.class_names, images.unlabelled, images.remarks, images.skipped)
        super().__init__(images.source, images.split, about)

    def __len__(self) -> int:
        return len(self._indices)

    def counted(self) -> str:
        """Those of a part are not all that its user knows of."""
        if len(self) == len(self._images) or self.split != self._images.split:  # else it has a name of its own
            return super().counted()
        return f"{len(self)} images taken from the {self._images.counted()}"

    def locate(self, index: int) -> tuple[ImageSet, int]:
        return self._images, int(self._indices[index])

    def fingerprint(self) -> str:
        return _digest(self._images.fingerprint().encode() + self._indices.tobytes())


class Concatenated(Indirect):
    """Several sets one after the other; labels are kept where every part has them and all name the same classes."""

    def __init__(self, parts: Sequence[ImageSet]) -> None:
        if not parts:
            raise FgsslError("no image set to join", "give at least one split")
        self._parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        labels = [part.labels for part in parts if part.labels is not None]
        labelled = len(labels) == len(parts) and len({part.class_names for part in parts}) == 1
        reasons = [f"{part.split}: {part.unlabelled}" for part in parts if part.unlabelled]
        about = About(
            np.concatenate(labels) if labelled else None,
            parts[0].class_names if labelled else None,
            "; ".join(reasons) or ("" if labelled else "its splits name different classes"),
            tuple(dict.fromkeys(remark for part in parts for remark in part.remarks)),
            tuple(line for part in parts for line in part.skipped),
        )
        super().__init__(parts[0].source, "+".join(part.split for part in parts), about)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, index: int) -> tuple[ImageSet, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} outside 0..{len(self) - 1}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part], index - (int(self._ends[part - 1]) if part else 0)

    def fingerprint(self) -> str:
        return _digest("\n".join(part.fingerprint() for part in self._parts).encode())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
