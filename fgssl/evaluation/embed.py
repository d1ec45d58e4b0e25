"""Encoder x images -> embeddings, in the order of the split, each image exactly once."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fgssl.data.cache.pixels import Fault, PixelStore, open_pixels
from fgssl.data.images import ImageSet
from fgssl.encoder import LOOKS, Encoder, Pool, evaluated
from fgssl.errors import FgsslError
from fgssl.evaluation.controls import Windows, told_windows
from fgssl.evaluation.features import Progress, silent
from fgssl.evaluation.parts import Part, PartFiles, part_rows
from fgssl.runs.encoder_file import identity
from fgssl.runtime.machine import automatic_workers
from fgssl.runtime.processes import ignore_stop_signals

if TYPE_CHECKING:
    from accelerate import PartialState

MAX_UNREADABLE = 0.1  # of a split; above it something is wrong with the split, not with an image


class Embeddings(NamedTuple):
    """Features of the readable images of a split, all of the same rows."""

    features: Tensor  # (N, D) float32, l2-normalised, on the CPU
    labels: Tensor | None  # (N,) int64
    identifiers: tuple[str, ...]  # true names, see `ImageSet.name`
    class_names: tuple[str, ...] | None
    positions: np.ndarray  # (N,) int64, of the rows' images in the split
    faults: tuple[Fault, ...]  # images of the split that could not be read and have no row
    unlabelled: str = ""  # why there are no labels, see `ImageSet.unlabelled`

    @property
    def known_labels(self) -> Tensor:
        """The labels. Raises FgsslError where there are none."""
        if self.labels is None:
            raise FgsslError("no labels, and this needs them", "use class folders or a labelled data set")
        return self.labels

    def class_of(self, row: int) -> str | None:
        """The class of a picture by name, by its number where there are no names; None without labels."""
        if self.labels is None:
            return None
        label = int(self.labels[row])
        return str(label) if self.class_names is None else self.class_names[label]


@dataclass(frozen=True)
class ImageBatch:
    """Evaluation views of some images of a split."""

    images: Tensor  # (N, 3, S, S) uint8
    index: np.ndarray  # (N,)
    faults: tuple[Fault, ...]


@torch.inference_mode()
def embed(
    encoder: Encoder,
    images: ImageSet,
    *,
    pools: Sequence[Pool],
    batch_size: int = 64,
    device: torch.device | None = None,
    workers: int | None = None,
    cache: str = "auto",
    together: PartialState | None = None,
    unreadable: float = MAX_UNREADABLE,
    progress: Progress = silent,
    decoding: Progress = silent,
) -> dict[Pool, Embeddings]:
    """Embed a split and pool it in each of the asked ways: every image once, in the order of the split.

    Args:
        encoder: In any mode; it is used in eval mode and restored.
        pools: All made from the same forward pass but those that look again, which take larger pictures, each its own.
        batch_size: Images per forward; the result does not depend on it.
        device: By default where the encoder is.
        workers: Loader processes, by default by the machine; `cache` and `decoding` are those of `open_pixels`.
        together: The processes that embed together, each calling this alike; every one gets the whole result.
        unreadable: The largest share of the images that may be unreadable; but one must be readable.
        progress: Called with (done, total) images embedded.

    A large split is embedded in parts that are kept in the cache until it is whole: stopped, it goes on where it was.

    Raises FgsslError: more of the images are unreadable, or the encoder lacks what to pool with.
    """
    encoder.to(device or encoder.device)
    world, rank = (together.num_processes, together.process_index) if together else (1, 0)
    workers = automatic_workers(world=world) if workers is None else workers
    parts = part_rows(len(images), batch_size)
    own = parts[rank * len(parts) // world : (rank + 1) * len(parts) // world]
    passes = [group for group in ([p for p in pools if p not in LOOKS], *([p] for p in pools if p in LOOKS)) if group]
    told = [told_windows(encoder, images, group[0], encoder.view()) for group in passes]
    found: dict[Pool, Embeddings] = {}
    with evaluated(encoder):
        for number, (group, windows) in enumerate(zip(passes, told, strict=True)):
            view = encoder.view(group[0])
            with together.local_main_process_first() if together else contextlib.nullcontext():
                pixels = open_pixels(images, view, cache=cache, workers=workers, progress=decoding)
            how = repr((view, batch_size, encoder.device.type, autocast_type(encoder.device)))
            # nobody says whether the masks that windows come from have changed
            files = PartFiles(images, "off" if windows else cache, functools.partial(identity, encoder), how, group)
            kept = {rows: part for rows in own if (part := files.read(rows)) is not None}
            left, done = [rows for rows in own if rows not in kept], sum(map(len, kept))
            batches = image_batches(pixels, batch_size, workers=workers, rows=left)
            for rows in left:
                part = kept[rows] = Part(group)
                while len(part) < len(rows):
                    done += _add(part, next(batches), encoder, windows)
                    progress(number * len(images) + min(done * world, len(images)), len(passes) * len(images))
                files.write(rows, part)
            found |= _joined(_gathered([kept[rows] for rows in own], together), images, unreadable)
            files.remove()
    return {pool: found[pool] for pool in pools}


def _add(part: Part, batch: ImageBatch, encoder: Encoder, windows: Windows | None) -> int:
    """Embed a batch; how many images it had."""
    part.faults.extend(batch.faults)
    part.rows.extend(batch.index.tolist())
    if len(batch.index):
        told = None if windows is None else windows(batch.index.tolist()).to(encoder.device)
        found = encoder.embeddings(batch.images.to(encoder.device), tuple(part.features), told)
        for pool, pooled in found.items():
            part.features[pool].append(pooled.cpu())
    return len(batch.index) + len(batch.faults)


def autocast_type(device: torch.device) -> str:
    """What autocast computes in there, "" where it is off."""
    on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return str(torch.get_autocast_dtype(device.type)) if on else ""


def _gathered(parts: list[Part], together: PartialState | None) -> list[Part]:
    if together is None:
        return parts
    from accelerate.utils import gather_object

    found: list[Part] = gather_object(parts)
    return found


def _joined(parts: Sequence[Part], images: ImageSet, unreadable: float) -> dict[Pool, Embeddings]:
    """The parts of all processes, in the order of the split."""
    faults = tuple(fault for part in parts for fault in part.faults)
    reject_unreadable([fault.reason for fault in faults], images, most=unreadable)
    index = np.array([row for part in parts for row in part.rows], dtype=np.int64)
    return {
        pool: rows_of(images, torch.cat([rows for part in parts for rows in part.features[pool]]), index, faults)
        for pool in parts[0].features
    }


def rows_of(images: ImageSet, features: Tensor, index: np.ndarray, faults: tuple[Fault, ...] = ()) -> Embeddings:
    """Features (N, D) of the images at `index` (N,) of a split, with their labels and names."""
    labels = None if images.labels is None else torch.from_numpy(images.labels[index])
    names = tuple(images.name(row) for row in index.tolist())
    return Embeddings(features, labels, names, images.class_names, index, faults, images.unlabelled)


def reject_unreadable(reasons: Sequence[str], images: ImageSet, *, most: float = MAX_UNREADABLE) -> None:
    """Raises FgsslError when more than that share of a split, or all of it, cannot be read, naming the first few."""
    total = len(images)
    if len(reasons) > most * total or 0 < total == len(reasons):
        shown = "; ".join(reason.rstrip(".") for reason in reasons[:3]) + (" ..." if len(reasons) > 3 else "")
        raise FgsslError(f"{len(reasons)} of {images.counted()} cannot be read: {shown}", "remove or replace them")


def image_batches(
    pixels: PixelStore, batch_size: int, *, workers: int = 0, rows: Sequence[range] | None = None
) -> Iterator[ImageBatch]:
    """Batches of evaluation views in order, of all images or of some `rows`; unreadable ones are left out and named."""
    some = [range(len(pixels))] if rows is None else rows
    parts = [rows[first : first + batch_size] for rows in some for first in range(0, len(rows), batch_size)]
    # from the cache a batch is a copy: processes would only add to its cost
    workers = 0 if not pixels.decodes or len(parts) <= 1 else workers
    yield from DataLoader(
        _Batches(pixels), batch_size=None, sampler=parts, num_workers=workers, worker_init_fn=ignore_stop_signals
    )


class _Batches(Dataset[ImageBatch]):
    """Whole batches by their rows."""

    def __init__(self, pixels: PixelStore) -> None:
        self.pixels = pixels

    def __getitem__(self, rows: Sequence[int]) -> ImageBatch:
        found = [(row, self.pixels.read(row)) for row in rows]
        faults = tuple(Fault(row, view) for row, view in found if isinstance(view, str))
        views = {row: view for row, view in found if not isinstance(view, str)}
        images = torch.from_numpy(np.stack([*views.values()])) if views else torch.empty(0, 1, 1, 3, dtype=torch.uint8)
        return ImageBatch(images.permute(0, 3, 1, 2), np.array([*views], dtype=np.int64), faults)
