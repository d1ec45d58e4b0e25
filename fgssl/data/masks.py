"""Masks of somebody's own: a folder of pictures that show where the objects are, found by the names of the images.

`photos/train/robin/a.jpg` has its mask in any picture below the folder whose name without ending is `a`; where several
are so called, in the one whose folders agree most, from the last on (`masks/train/robin/a.png`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fgssl.data.decoding import decode_image
from fgssl.data.images import About, ImageSet, Indirect, Masks
from fgssl.errors import FgsslError
from fgssl.runtime.text import shown

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pgm")


class Masked(Indirect):
    """The images of a set, which know their masks from a folder. Raises FgsslError where the folder fits none."""

    def __init__(self, images: ImageSet, folder: str) -> None:
        about = About(images.labels, images.class_names, images.unlabelled, images.remarks, images.skipped)
        super().__init__(images.source, images.split, about)
        self._images, by_stem = images, _files_by_stem(folder)
        self._files = [_nearest(images.name(row), by_stem) for row in range(len(images))]
        if not any(self._files):
            problem = f"no mask in {shown(folder)} is named as a picture of {images.source} [{images.split}]"
            raise FgsslError(problem, f"a mask has the name of its picture, such as {_stem(images.identifier(0))}.png")

    def __len__(self) -> int:
        return len(self._images)

    def locate(self, index: int) -> tuple[ImageSet, int]:
        return self._images, index

    def has_mask(self, index: int) -> bool:
        return self._files[index] is not None

    def masks(self, index: int) -> Masks | None:
        """The mask in the folder; None where there is none for this image. Raises UnreadableImage."""
        path = self._files[index]
        return None if path is None else Masks(read_mask(path))

    def fingerprint(self) -> str:
        """Of the images alone: what masks say changes no picture."""
        return self._images.fingerprint()

    def mask_fingerprint(self) -> str:
        """Identity of the masks, by size and time of their files."""
        digest = hashlib.blake2b(digest_size=16)
        for path in self._files:
            told = None if path is None else (os.stat(path).st_size, os.stat(path).st_mtime_ns)
            digest.update(repr((path, told)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def read_mask(path: str | os.PathLike[str]) -> NDArray[np.bool_]:
    """(H, W) of a picture: what is bright, or where all is darker than half (numbers of classes) what is not black."""
    levels = np.asarray(decode_image(path).convert("L"))
    return levels > (127 if levels.max() > 127 else 0)


def mask_picture(mask: NDArray[np.bool_]) -> Image.Image:
    """A mask (H, W) as a picture, black and white."""
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _files_by_stem(folder: str) -> dict[str, list[str]]:
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FgsslError(f"no folder of masks: {shown(folder)}", "give the folder in which they lie, by --masks")
    found: dict[str, list[str]] = {}
    for path in _walk(root):
        found.setdefault(_stem(path), []).append(path)
    return found


def _walk(root: Path) -> Iterator[str]:
    for folder, below, files in os.walk(root):
        below.sort()
        yield from (os.path.join(folder, name) for name in sorted(files) if name.lower().endswith(PICTURES))


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]


def _nearest(name: str, by_stem: dict[str, list[str]]) -> str | None:
    """The file of this stem whose folders agree most with those of the image, from the last on."""
    folders = PurePath(name).parts[-2::-1]

    def agreement(path: str) -> int:
        alike = [one == other for one, other in zip(folders, PurePath(path).parts[-2::-1], strict=False)]
        return (*alike, False).index(False)

    return max(by_stem.get(_stem(name), ()), key=agreement, default=None)
