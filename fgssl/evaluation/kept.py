"""Embeddings that are kept in the cache: what one verb has embedded of a checkpoint, the next one reads."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

import fgssl
from fgssl.data.cache.folder import cache_folder, cache_label
from fgssl.data.cache.pixels import RETRIED_FAULTS, Fault, PixelStore
from fgssl.data.cache.tensors import keep_tensors
from fgssl.data.images import ImageSet
from fgssl.encoder import Encoder, Pool
from fgssl.evaluation.embed import Embeddings, autocast_type, rows_of
from fgssl.runs.encoder_file import identity

if TYPE_CHECKING:
    from accelerate import PartialState

FORMAT = "fgssl-kept-features-2"
LEAST_KEPT = 64  # images; fewer are embedded anew in no time


class KeptEmbeddings:
    """The embeddings of a split by a checkpoint, a file each pooling.

    They are named after where pictures and encoder lie, and what they were made of: when either changes, a file is made
    anew, and the former one goes. A disk that cannot be written only costs the time of the next verb.

    Args:
        images: The split.
        encoder: What embeds it, on the device where it does.
        checkpoint: Where it was opened from.
        cache: The folder, "auto" for the usual one, or "off".
    """

    def __init__(self, images: ImageSet, encoder: Encoder, checkpoint: str, cache: str) -> None:
        self.images, self.encoder, self.on = images, encoder, cache != "off" and len(images) >= LEAST_KEPT
        if not self.on:
            return
        self.folder = (cache_folder() if cache == "auto" else Path(cache).expanduser()) / "features"
        self.place = (os.path.abspath(images.source), images.split, os.path.abspath(checkpoint))
        used = (encoder.device.type, autocast_type(encoder.device), _code())
        self.content = (images.fingerprint(), identity(encoder), used, FORMAT)

    def read(self, pool: Pool, together: PartialState | None) -> Embeddings | None:
        """The embeddings by a pooling, where every process finds them whole."""
        found = self._read(pool) if self._keeps(pool) else None
        if found is not None and found.faults:  # tried again: `chmod` changes neither size nor time of a file
            fresh = PixelStore(self.images, self.encoder.view(pool))
            if not all(isinstance(fresh.read(fault.index), str) for fault in found.faults[:RETRIED_FAULTS]):
                found = None
        return found if _everywhere(found is not None, together) else None

    def write(self, pool: Pool, found: Embeddings) -> None:
        """Keep embeddings, unless they are large for the disk."""
        if not self._keeps(pool):
            return
        tensors = {"features": found.features.contiguous(), "positions": torch.from_numpy(found.positions)}
        notes = {"format": FORMAT, "faults": json.dumps([asdict(fault) for fault in found.faults])}
        path = self._path(pool)
        if keep_tensors(path, tensors, notes):
            for former in path.parent.glob(f"*-{path.name.split('-')[-2]}-*"):
                with contextlib.suppress(OSError):
                    if former != path:
                        former.unlink(missing_ok=True)

    def _keeps(self, pool: Pool) -> bool:
        """Nobody says whether the masks that windows come from have changed."""
        return self.on and pool != "zoom:mask"

    def _path(self, pool: Pool) -> Path:
        """LABEL-PLACE-CONTENT.safetensors."""
        named = ((*self.place, pool), (*self.content, repr(self.encoder.view(pool))))
        digests = [hashlib.blake2b(repr(part).encode(), digest_size=12).hexdigest() for part in named]
        label = cache_label(self.images.source, self.images.split)
        return self.folder / f"{'-'.join((label, *digests))}.safetensors"

    def _read(self, pool: Pool) -> Embeddings | None:
        path = self._path(pool)
        try:
            with safe_open(path, framework="pt") as file:
                features, index = file.get_tensor("features"), file.get_tensor("positions").numpy()
                faults = tuple(Fault(**fault) for fault in json.loads(file.metadata()["faults"]))
            if not len(features) == len(index) == len(self.images) - len(faults):
                return None
            found = rows_of(self.images, features, index, faults)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError):  # not there, or damaged
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return found


def _everywhere(there: bool, together: PartialState | None) -> bool:
    """Whether it is so in all processes: of several machines one may have embedded alone before, and not wait now."""
    if together is None:
        return there
    from accelerate.utils import gather_object

    return all(gather_object([there]))


@functools.cache
def _code() -> str:
    """The version of this package, and when its files were last written: who changes it embeds anew."""
    files = Path(fgssl.__file__).parent.rglob("*.py")
    return f"{fgssl.__version__} {max(file.stat().st_mtime_ns for file in files)}"
