"""What all tests share: no network, a cache folder of their own, one thread, and tiny pictures made from a seed."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from fgssl.data.decode import Examined
from fgssl.errors import UnreadableImage

# Set before torch or huggingface_hub are imported by any test; subprocesses inherit them.
_CACHE = tempfile.mkdtemp(prefix="fgssl-test-cache-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["FGSSL_CACHE"] = _CACHE
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads only wait for each other

settings.register_profile("fgssl", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("fgssl")


def make_picture(seed: int, width: int, height: int) -> Image.Image:
    """A smooth, colourful picture: noise of 5 x 5 values enlarged, with a little fine noise on top."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8))


class ArrayImages:
    """An `ImageSet` in memory; the images in `broken` are unreadable."""

    source, split, labels, class_names = "memory", "all", None, None

    def __init__(self, pictures: list[Image.Image], broken: tuple[int, ...] = ()) -> None:
        self.pictures, self.broken = pictures, broken
        self.loads = 0

    def __len__(self) -> int:
        return len(self.pictures)

    def identifier(self, index: int) -> str:
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


@pytest.fixture
def memory_images() -> Callable[..., ArrayImages]:
    """`memory_images(count, broken=(2,))`: pictures of differing sizes, 30 to 60 pixels, in memory."""

    def build(count: int, broken: tuple[int, ...] = ()) -> ArrayImages:
        return ArrayImages([make_picture(i, 30 + 7 * i % 31, 30 + 11 * i % 31) for i in range(count)], broken)

    return build


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder with 3 classes of 4 pictures (32 to 43 pixels, PNG and JPEG)."""
    folder = tmp_path / "pictures"
    for index in range(12):
        place = folder / f"class{index % 3}"
        place.mkdir(parents=True, exist_ok=True)
        suffix = "png" if index % 2 else "jpg"
        make_picture(index, 32 + index, 43 - index).save(place / f"{index:02d}.{suffix}")
    return folder
