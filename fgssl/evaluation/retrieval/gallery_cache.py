"""Embeddings of a gallery kept on disk, so that the second search in it is instant.

One file a gallery below `features/` of the cache folder (see `fgssl.data.cache`), named after where it comes from
(source, split, checkpoint, pooling) and what it was made of (every image's name, size and time of change; weights and
preprocessing). When either changes the file does not fit any more: it is made anew, and the old one goes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fgssl.data.cache.folder import cache_folder, cache_label
from fgssl.data.cache.pixels import RETRIED_FAULTS, Fault, PixelStore
from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError
from fgssl.evaluation.embed import Embeddings, evaluation_view, rows_of
from fgssl.evaluation.subject import Subject
from fgssl.runs.encoder_file import identity
from fgssl.runtime.files import atomic_path
from fgssl.runtime.text import shown

FORMAT = "fgssl-kept-features-1"


def kept_embeddings(subject: Subject, images: ImageSet) -> Embeddings:
    """Embeddings of a gallery from the cache, computed and kept first where they are not there.

    A disk that is full or cannot be written only costs the time of the next search. Raises FgsslError as
    `Subject.embed`.
    """
    if subject.cache == "off":
        return subject.embed(images)
    path = _path(subject, images)
    kept = _read(path, images)
    if kept is not None and not _mended(subject, images, kept):
        return kept
    found = subject.embed(images)
    told = {"source": images.source, "split": images.split, "pool": subject.pool, "checkpoint": subject.checkpoint}
    with contextlib.suppress(FgsslError):
        _write(path, found, told)
        for former in path.parent.glob(f"*-{path.name.split('-')[-2]}-*"):
            if former != path:
                former.unlink(missing_ok=True)
    return found


def _path(subject: Subject, images: ImageSet) -> Path:
    """The file that would hold these embeddings: LABEL-PLACE-CONTENT.safetensors, the last two hashes."""
    place = (os.path.abspath(images.source), images.split, subject.pool, os.path.abspath(subject.checkpoint))
    view = evaluation_view(subject.encoder, subject.pool)
    content = (images.fingerprint(), identity(subject.encoder), repr(view), FORMAT)
    names = [hashlib.blake2b(repr(part).encode(), digest_size=12).hexdigest() for part in (place, content)]
    folder = cache_folder() if subject.cache == "auto" else Path(subject.cache).expanduser()
    label = cache_label(images.source, images.split)
    return folder / "features" / f"{'-'.join((label, *names))}.safetensors"


def _write(path: Path, found: Embeddings, told: dict[str, str]) -> None:
    tensors = {"features": found.features.contiguous(), "positions": torch.from_numpy(found.positions)}
    faults = json.dumps([dataclasses.asdict(fault) for fault in found.faults])
    about = {key: shown(value) for key, value in told.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT, "faults": faults, **about})


def _read(path: Path, images: ImageSet) -> Embeddings | None:
    try:
        with safe_open(path, framework="pt") as file:
            features, index = file.get_tensor("features"), file.get_tensor("positions").numpy()
            faults = tuple(Fault(**fault) for fault in json.loads(file.metadata()["faults"]))
        if len(features) != len(index) or len(index) + len(faults) != len(images):
            return None
        return rows_of(images, features, index, faults)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError):  # not there, or damaged by somebody
        return None


def _mended(subject: Subject, images: ImageSet, kept: Embeddings) -> bool:
    """Whether an image that could not be read can be read now: `chmod` changes neither size nor time of a file."""
    fresh = PixelStore(images, evaluation_view(subject.encoder, subject.pool))
    return any(not isinstance(fresh.read(fault.index), str) for fault in kept.faults[:RETRIED_FAULTS])
