"""Checkpoint + data set -> embeddings of a split: the common first half of probe, retrieve, embed and compare."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fgssl.config.schema import DataConfig
from fgssl.data import DRAWN, PRESETS, default_split, load_images, no_split, parse_named
from fgssl.data.images import ImageSet
from fgssl.encoder import POOLS, Encoder, Pool
from fgssl.errors import FgsslError, SettingError
from fgssl.evaluation.embed import MAX_UNREADABLE, Embeddings, embed, reject_unreadable
from fgssl.evaluation.kept import KeptEmbeddings
from fgssl.runs.encoder_file import load_encoder, own_setting
from fgssl.runtime.machine import keep_freed_memory, resolve_device, scratch_memory
from fgssl.runtime.reporting import Reporter

if TYPE_CHECKING:
    from accelerate import PartialState

SHIFTS: tuple[Literal["object", "crop"], ...] = ("object", "crop")
NAMED_FAULTS = 10  # unreadable images that a verb names


@dataclass(frozen=True)
class EvaluationOptions:
    """How a checkpoint is opened and used: what every evaluation takes, and hands on whole."""

    data: str | None = None  # data source; None is the one the encoder was trained on
    masks: str | None = None  # folder of its objects' masks
    shift: str | None = None  # object or crop: lay it off the centre (`data.shift`); none: as it is
    backbone: str | None = None  # architecture of a checkpoint that does not tell it
    image_size: int | None = None  # as `backbone`: see `load_encoder`
    pool: str | None = None  # one of `POOLS`; None is zoom where there is a rationale, else gap
    batch_size: int = 64  # images per forward
    device: str | None = None  # None is the best at hand
    cache: str = "auto"  # of decoded pictures and galleries: auto, off or a folder
    memory_bytes: int | None = None  # bound on the scratch memory of scores; None is by the machine
    reporter: Reporter = field(default_factory=Reporter)  # told of progress, and of images that are left out

    @property
    def scratch(self) -> int:
        """Bytes that scores may take."""
        return self.memory_bytes or scratch_memory()


@dataclass(frozen=True)
class Subject:
    """What is evaluated: an encoder with its pooling, and where the images come from."""

    checkpoint: str  # as its user wrote it
    encoder: Encoder
    data: DataConfig
    pool: Pool
    batch_size: int
    cache: str
    reporter: Reporter

    def embed(self, images: ImageSet, *, unreadable: float = MAX_UNREADABLE) -> Embeddings:
        """Embeddings of a split in its order; what could not be read, up to a share, is named in warnings."""
        return self.embed_all(images, (self.pool,), unreadable=unreadable)[self.pool]

    def embed_all(
        self, images: ImageSet, pools: Sequence[Pool], *, unreadable: float = MAX_UNREADABLE
    ) -> dict[Pool, Embeddings]:
        """The same, pooled in several ways from one pass; what an earlier verb has left in the cache is read."""
        show, together = self.reporter.progress, processes()
        files = KeptEmbeddings(images, self.encoder, self.checkpoint, self.cache)
        read = {pool: files.read(pool, together) for pool in pools}
        found = {pool: kept for pool, kept in read.items() if kept is not None}
        if left := [pool for pool in pools if pool not in found]:
            made = embed(
                self.encoder, images, pools=left, batch_size=self.batch_size, cache=self.cache, together=together,
                unreadable=unreadable,
                progress=partial(show, f"embedding {images.split}"), decoding=partial(show, f"decoding {images.split}"),
            )  # fmt: skip
            for pool, new in made.items():
                files.write(pool, new)
            found |= made
        reject_unreadable([fault.reason for fault in found[pools[0]].faults], images, most=unreadable)
        self.name_faults(found[pools[0]])
        return found

    def name_faults(self, found: Embeddings) -> None:
        """A warning for each of the first images that could not be read, and how many more there are."""
        reasons = list(dict.fromkeys(fault.reason for fault in found.faults))
        for reason in reasons[:NAMED_FAULTS]:
            self.reporter.warn(f"left out: {reason}")
        if reasons[NAMED_FAULTS:]:
            self.reporter.warn(f"left out: {len(reasons) - NAMED_FAULTS} more, which fgssl data check names")


def processes() -> PartialState | None:
    """The connected processes, where torchrun or accelerate started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import PartialState

    return PartialState(cpu=True)  # features travel on the CPU


def open_subject(checkpoint: str, options: EvaluationOptions) -> Subject:
    """Load the encoder of a checkpoint, and settle data and pooling. Raises FgsslError where it lacks either."""
    if options.pool is not None and options.pool not in POOLS:
        raise SettingError(f"unknown --pool '{options.pool}'", f"choose one of {', '.join(POOLS)}")
    if options.batch_size < 1:
        raise SettingError(f"--batch-size is {options.batch_size}", "it must be at least 1")
    device = resolve_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    encoder = load_encoder(checkpoint, backbone=options.backbone, image_size=options.image_size)
    pool = encoder.default_pool() if options.pool is None else next(p for p in POOLS if p == options.pool)
    encoder.require(pool)
    data = _remembered(checkpoint, encoder) if options.data is None else DataConfig(source=options.data)
    data = asked_data(data, options)
    return Subject(checkpoint, encoder.to(device), data, pool, options.batch_size, options.cache, options.reporter)


def asked_data(data: DataConfig, options: EvaluationOptions) -> DataConfig:
    """A data set with the masks and the shift that are asked for. Raises SettingError for a shift that is none."""
    if options.shift not in (None, "none", "object", "crop"):
        raise SettingError(f"unknown --shift '{options.shift}'", "choose one of none, object, crop")
    shift = data.shift if options.shift is None else next((s for s in SHIFTS if s == options.shift), None)
    return replace(data, masks=options.masks or data.masks, shift=shift)


def _remembered(checkpoint: str, encoder: Encoder) -> DataConfig:
    """The data set that an encoder was trained on, as its file says: a preset, or what the run beside it says as well.

    A file may come from anybody, and to open a source lists a folder or asks the hub.
    """
    if encoder.config is None:
        raise FgsslError(f"'{checkpoint}' remembers no data set", "name one with --data")
    data = encoder.config.data
    if data.source not in (*DRAWN, *PRESETS) and data.source != own_setting(checkpoint, "data", "source"):
        raise FgsslError(
            f"'{checkpoint}' says that it was trained on '{data.source}', and no config.yaml of its run beside it does",
            "name the data with --data",
        )
    if data.masks is not None and data.masks != own_setting(checkpoint, "data", "masks"):
        data = replace(data, masks=None)
    named = parse_named(data.source)
    folder = data.source if named is None else named.folder
    if os.path.isabs(folder) and not os.path.exists(folder):
        problem = f"the data set that '{checkpoint}' remembers is not here: {data.source}"
        raise FgsslError(problem, "name one with --data")
    return data


def open_split(data: DataConfig, split: str | None, role: Literal["train", "test"]) -> ImageSet:
    """A named split, or the source's own for "train" or "test"; a source without a test split gives its only one."""
    if split is None:
        split = default_split(data, role) or default_split(data, "train")
    if split is None:
        raise no_split(data, role, option="--split")
    return load_images(data, split)


def labels_of(images: ImageSet, why: str) -> Tensor:
    """The labels (N,) of a split. Raises FgsslError where it has none; `why` says what needs them."""
    if images.labels is None:
        reason = f" ({images.unlabelled})" if images.unlabelled else ""
        raise FgsslError(
            f"{images.source} [{images.split}] has no labels{reason}, and {why}",
            "use class folders or a labelled data set; without labels work fgssl retrieve --query, explore, compare, "
            "embed and visualize",
        )
    return torch.from_numpy(images.labels)
