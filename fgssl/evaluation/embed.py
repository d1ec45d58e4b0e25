"""Encoder x images -> embeddings, in the order of the split, each image exactly once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fgssl.data.cache.build import Fault, PixelStore, open_pixels
from fgssl.data.images import ImageSet
from fgssl.encoder import Encoder, Pool
from fgssl.errors import FgsslError
from fgssl.runtime.distributed import Share
from fgssl.runtime.machine import automatic_workers
from fgssl.runtime.stopping import ignore_stop_signals
from fgssl.views import EvaluationView

Progress = Callable[[int, int], None]
MAX_UNREADABLE = 0.1  # of a split; above it something is wrong with the split, not with an image


class Embeddings(NamedTuple):
    """Features of the readable images of a split, all of the same rows."""

    features: Tensor  # (N, D) float32, l2-normalised, on the CPU
    labels: Tensor | None  # (N,) int64
    identifiers: tuple[str, ...]
    class_names: tuple[str, ...] | None
    positions: np.ndarray  # (N,) int64, of the rows' images in the split
    faults: tuple[Fault, ...]  # images of the split that could not be read and have no row

    def require_labels(self, split: str) -> Tensor:
        """The labels, or one clear line."""
        if self.labels is None:
            raise FgsslError(
                f"{split} has no labels, and this needs them",
                "use class folders or a labelled data set; fgssl embed and visualize work without labels",
            )
        return self.labels


@dataclass(frozen=True)
class ImageBatch:
    """Evaluation views of some images of a split."""

    images: Tensor  # (N, 3, S, S) uint8
    index: np.ndarray  # (N,)
    faults: tuple[Fault, ...]


def evaluation_view(encoder: Encoder, pool: Pool = "gap") -> EvaluationView:
    """The one deterministic view of the encoder's own crop and interpolation, at the size that a pooling takes."""
    backbone = encoder.backbone
    return EvaluationView(encoder.view_size(pool), backbone.crop_pct, backbone.interpolation)


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
    share: Share | None = None,
    progress: Progress | None = None,
    decoding: Progress | None = None,
) -> dict[Pool, Embeddings]:
    """Embed a split and pool it in each of the asked ways: every image once, in the order of the split.

    Args:
        encoder: In any mode; it is used in eval mode and restored.
        images: The split.
        pools: Poolings, all made from the same forward pass but zoom, which takes larger pictures and its own.
        batch_size: Images per forward; the result does not depend on it.
        device: Where to compute (default: where the encoder is).
        workers: Loader processes (default: by machine).
        cache: See `open_pixels`.
        share: Of the processes that embed together, each calling this alike; every one gets the whole result.
        progress: Called with (done, total) images embedded.
        decoding: Called with (done, total) images decoded, where they are not in the cache yet.

    Raises:
        FgsslError: more than a tenth of the images is unreadable, or the encoder lacks what to pool with.
    """
    device = device or encoder.device
    training = encoder.training
    encoder.to(device).eval()
    passes = [group for group in ([p for p in pools if p != "zoom"], [p for p in pools if p == "zoom"]) if group]
    total = len(passes) * len(images)
    found: dict[Pool, Embeddings] = {}
    try:
        for number, group in enumerate(passes):

            def embedded(done: int, _total: int, before: int = number * len(images)) -> None:
                if progress is not None:
                    progress(before + done, total)

            found |= _embed_pass(
                encoder, images, group, batch_size=batch_size, device=device, workers=workers, cache=cache,
                share=share, progress=embedded, decoding=decoding,
            )  # fmt: skip
    finally:
        encoder.train(training)
    return {pool: found[pool] for pool in pools}


def _embed_pass(
    encoder: Encoder,
    images: ImageSet,
    pools: Sequence[Pool],
    *,
    batch_size: int,
    device: torch.device,
    workers: int | None,
    cache: str,
    share: Share | None,
    progress: Progress,
    decoding: Progress | None,
) -> dict[Pool, Embeddings]:
    """Poolings that take pictures of one size."""
    world = 1 if share is None else share.world
    workers = automatic_workers(world=world) if workers is None else workers
    view = evaluation_view(encoder, pools[0])
    with share.first_alone() if share else contextlib.nullcontext():
        pixels = open_pixels(images, view, cache=cache, workers=workers, progress=decoding)
    rows = range(len(images)) if share is None else share.part(len(images))
    features: dict[Pool, list[Tensor]] = {pool: [] for pool in pools}
    kept: list[np.ndarray] = []
    faults: list[Fault] = []
    done = 0
    for batch in image_batches(pixels, batch_size, workers=workers, rows=rows):
        faults.extend(batch.faults)
        kept.append(batch.index)
        done += len(batch.index) + len(batch.faults)
        if len(batch.index):
            for pool, pooled in encoder.embeddings(batch.images.to(device), pools).items():
                features[pool].append(pooled.cpu())
        progress(min(done * world, len(images)), len(images))
    if share is not None:
        parts = share.gather((features, kept, faults))
        features = {pool: [part for found, _, _ in parts for part in found[pool]] for pool in pools}
        kept = [index for _, found, _ in parts for index in found]
        faults = [fault for _, _, found in parts for fault in found]
    reject_unreadable([fault.reason for fault in faults], len(images), f"{images.source}[{images.split}]")
    index = np.concatenate(kept)
    labels = None if images.labels is None else torch.from_numpy(images.labels[index])
    identifiers = tuple(images.identifier(int(i)) for i in index)
    return {
        pool: Embeddings(torch.cat(features[pool]), labels, identifiers, images.class_names, index, tuple(faults))
        for pool in pools
    }


def reject_unreadable(reasons: Sequence[str], total: int, name: str) -> None:
    """Raise when more than a tenth of a split cannot be read, naming the first few."""
    if len(reasons) > MAX_UNREADABLE * total:
        shown = "; ".join(reason.rstrip(".") for reason in reasons[:3])
        raise FgsslError(
            f"{len(reasons)} of {total} images of {name} cannot be read: {shown}{' ...' if len(reasons) > 3 else ''}",
            "remove or replace them",
        )


def image_batches(
    pixels: PixelStore, batch_size: int, *, workers: int = 0, rows: range | None = None
) -> Iterator[ImageBatch]:
    """Batches of evaluation views in order, of all images or of `rows`; unreadable ones are left out and reported."""
    rows = range(len(pixels)) if rows is None else rows
    loader = DataLoader(
        _Indexed(pixels),
        batch_size=batch_size,
        sampler=rows,
        collate_fn=_collate,
        # from the cache a batch is a copy: processes would only add to its cost
        num_workers=0 if not pixels.decodes or len(rows) <= batch_size else workers,
        worker_init_fn=ignore_stop_signals,
    )
    yield from loader


class _Indexed(torch.utils.data.Dataset["tuple[int, np.ndarray | str]"]):
    def __init__(self, pixels: PixelStore) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray | str]:
        return index, self.pixels.read(index)


def _collate(rows: list[tuple[int, np.ndarray | str]]) -> ImageBatch:
    readable = [(i, p) for i, p in rows if not isinstance(p, str)]
    faults = tuple(Fault(i, p) for i, p in rows if isinstance(p, str))
    if not readable:
        return ImageBatch(torch.empty(0, 3, 1, 1, dtype=torch.uint8), np.empty(0, np.int64), faults)
    stacked = torch.from_numpy(np.stack([p for _, p in readable]))  # (N, S, S, 3)
    return ImageBatch(stacked.permute(0, 3, 1, 2), np.array([i for i, _ in readable]), faults)
