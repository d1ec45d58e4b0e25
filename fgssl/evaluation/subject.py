"""Checkpoint + data set -> embeddings of a split: the common first half of probe, retrieve and embed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fgssl.config.schema import DataConfig
from fgssl.data import default_split, load_images, no_split
from fgssl.data.images import ImageSet
from fgssl.encoder import POOLS, Encoder, Pool
from fgssl.errors import FgsslError
from fgssl.evaluation.embed import Embeddings, embed
from fgssl.runs.encoder_file import data_of, load_encoder
from fgssl.runtime.distributed import Share, launched_share
from fgssl.runtime.machine import keep_freed_memory, resolve_device
from fgssl.runtime.reporting import Reporter

BATCH_SIZE = 64


class Subject(NamedTuple):
    """What is evaluated: an encoder with its pooling, and where the images come from."""

    encoder: Encoder
    data: DataConfig
    pool: Pool
    batch_size: int
    device: torch.device
    reporter: Reporter
    share: Share | None = None
    cache: str = "auto"  # of decoded pictures: see `open_pixels`

    def embed(self, images: ImageSet) -> Embeddings:
        """Embeddings of a split in its order."""
        return self.embed_all(images, (self.pool,))[self.pool]

    def embed_all(self, images: ImageSet, pools: Sequence[Pool]) -> dict[Pool, Embeddings]:
        """Embeddings of a split in its order, pooled in several ways from one pass."""
        title = f"embedding {images.split}"
        return embed(
            self.encoder,
            images,
            pools=pools,
            batch_size=self.batch_size,
            device=self.device,
            cache=self.cache,
            share=self.share,
            progress=lambda done, total: self.reporter.progress(title, done, total),
            decoding=lambda done, total: self.reporter.progress(f"decoding {images.split}", done, total),
        )


def open_subject(
    checkpoint: str,
    *,
    data: str | None = None,
    pool: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    cache: str | None = None,
    reporter: Reporter | None = None,
) -> Subject:
    """Load the encoder and settle data and pooling.

    Args:
        checkpoint: Run folder, encoder file or `timm:NAME`.
        data: A source other than the one the encoder remembers.
        pool: gap, rationale, concat, zoom or cls (default: zoom where there is a branch, else gap).
        batch_size: Images per forward.
        device: Where to compute.
        cache: Of decoded pictures: auto, off or a folder (default: auto).
        reporter: Told of progress.

    Raises:
        FgsslError: bad checkpoint, unknown pooling, nothing to pool so with, or no data named anywhere.
    """
    if pool is not None and pool not in POOLS:
        raise FgsslError(f"unknown --pool '{pool}'", f"choose one of {', '.join(POOLS)}")
    if batch_size is not None and batch_size < 1:
        raise FgsslError(f"--batch-size is {batch_size}", "it must be at least 1")
    where = resolve_device(device)
    if where.type == "cpu":
        keep_freed_memory()
    encoder = load_encoder(checkpoint)
    chosen = encoder.default_pool() if pool is None else next(p for p in POOLS if p == pool)
    encoder.require(chosen)
    source = _data(checkpoint, encoder) if data is None else DataConfig(source=data)
    return Subject(
        encoder.to(where),
        source,
        chosen,
        batch_size or BATCH_SIZE,
        where,
        reporter or Reporter(),
        launched_share(),
        cache or "auto",
    )


def _data(checkpoint: str, encoder: Encoder) -> DataConfig:
    """The data set an encoder remembers, if it does and the data are here."""
    remembered = data_of(encoder)
    if remembered is None:
        raise FgsslError(f"'{checkpoint}' remembers no data set", "name one with --data")
    if os.path.isabs(remembered.source) and not os.path.exists(remembered.source):
        raise FgsslError(
            f"the data set that '{checkpoint}' remembers is not here: {remembered.source}", "name one with --data"
        )
    return remembered


def open_split(data: DataConfig, split: str | None, role: str) -> ImageSet:
    """A named split, or the source's own for "train" or "test"; a source without a test split gives its only one."""
    if split is None:
        split = default_split(data, "train" if role == "train" else "test") or default_split(data, "train")
    if split is None:
        raise no_split(data, role, option="--split")
    return load_images(data, split)


def overlapping(first: ImageSet, second: ImageSet) -> bool:
    """Whether two splits of a source, each maybe several joined by "+", share a split."""
    return bool(set(first.split.split("+")) & set(second.split.split("+")))


def require_labels(images: ImageSet, why: str) -> None:
    """Raises FgsslError where a split has no labels, before anything is embedded; `why` says what needs them."""
    if images.labels is None:
        raise FgsslError(
            f"{images.source} [{images.split}] has no labels"
            f"{f' ({images.unlabelled})' if images.unlabelled else ''}, and {why}",
            "use class folders or a labelled data set; fgssl embed and visualize work without labels",
        )
