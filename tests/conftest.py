"""What all tests share: no network, a cache folder of their own, one thread, and tiny pictures made from a seed."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from pictures import ArrayImages, make_picture

# Set before torch or huggingface_hub are imported by any test; subprocesses inherit them.
_CACHE = tempfile.mkdtemp(prefix="fgssl-test-cache-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["FGSSL_CACHE"] = _CACHE
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit the session's folder
    os.environ["FGSSL_TEST_WORKPLACE"] = tempfile.mkdtemp(prefix="fgssl tests 🐦 ")
    atexit.register(shutil.rmtree, os.environ["FGSSL_TEST_WORKPLACE"], ignore_errors=True)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads only wait for each other

settings.register_profile("fgssl", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("fgssl")


@pytest.fixture(autouse=True)
def _threads_as_they_were() -> Iterator[None]:
    """`--threads` is of the process, and sums in another number of threads differ in the last bits."""
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if before is not None and sys.modules["torch"].get_num_threads() != before:
        sys.modules["torch"].set_num_threads(before)


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
