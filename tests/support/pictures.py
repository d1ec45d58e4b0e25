"""Tiny pictures made from a seed, and an image set of them in memory."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from fgssl.data.decoding import Examined
from fgssl.data.images import ImageSet
from fgssl.errors import UnreadableImage


def make_picture(seed: int, width: int, height: int) -> Image.Image:
    """A smooth, colourful picture: noise of 5 x 5 values enlarged, with a little fine noise on top."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8))


class ArrayImages(ImageSet):
    """An `ImageSet` in memory; the images in `broken` are unreadable."""

    def __init__(self, pictures: list[Image.Image], broken: tuple[int, ...] = ()) -> None:
        super().__init__("memory")
        self.pictures, self.broken = pictures, broken
        self.loads = 0

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, index: int) -> str:
        return f"memory#{index}"

    def load(self, index: int, min_side: int | None = None) -> Image.Image:
        self.loads += 1
        if index in self.broken:
            raise UnreadableImage(f"unreadable image memory#{index}: is broken", "replace or remove it")
        return self.pictures[index]

    def examine(self, index: int, min_side: int | None = None) -> Examined:
        picture = self.load(index)
        digest = hashlib.md5(picture.tobytes()).digest()
        return Examined(picture, *picture.size, picture.mode, "memory", False, digest)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.broken).encode())
        for picture in self.pictures:
            digest.update(repr(picture.size).encode() + picture.tobytes())
        return digest.hexdigest()
