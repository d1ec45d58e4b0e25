"""Second looks and their controls: a window where the rationale points, in the middle, and more pixels of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fgssl.data.cache.build import open_pixels
from fgssl.data.images import ImageSet
from fgssl.encoder import RATIONALE_WEIGHT, Encoder
from fgssl.evaluation.embed import evaluation_view, image_batches
from fgssl.rationale import cut_windows, window_centres, window_share
from fgssl.runtime.reporting import Reporter
from rationale_bench.judging import pooling_row
from rationale_bench.slices import Slice

BATCH = 64
LARGER = 2**0.5  # side of the larger picture: it costs what two looks do
Progress = Callable[[int, int], None]


def looks(encoder: Encoder, images: Tensor) -> dict[str, Tensor]:
    """Features of what is seen in the whole picture and in windows of it, each (N, C) of unit length.

    Args:
        encoder: In eval mode.
        images: (N, 3, Z, Z) uint8, as `--pool zoom` takes them.
    """
    size = encoder.backbone.image_size

    def feature_map(pictures: Tensor) -> Tensor:
        found: Tensor = encoder.backbone(encoder.normalize(pictures))
        return found

    def resized(side: int) -> Tensor:
        return functional.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)

    whole = feature_map(resized(size))
    middle = window_centres(torch.ones_like(whole[:, 0]), size / encoder.view_size("zoom"))
    seen = {"gap": encoder.pool(whole, "gap")}
    seen["middle"] = encoder.pool(feature_map(cut_windows(images, middle, size)), "gap")
    if encoder.rationale is None:
        side = 8 * round(LARGER * size / 8)
        seen["larger"] = encoder.pool(feature_map(resized(side)), "gap")
    else:
        seen["rationale, whole weight"] = encoder.pool(whole, "rationale")
        seen["rationale"] = RATIONALE_WEIGHT * seen["rationale, whole weight"]
        centres = encoder.window_centres(whole)
        seen["window"] = encoder.pool(feature_map(cut_windows(images, centres, size)), "gap")
    return seen


def combined(seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """The looks put side by side, by the name of the row; `zoom` is `--pool zoom`."""
    rows = {"gap + middle window": ["gap", "middle"], "middle window": ["middle"]}
    if "rationale" in seen:
        rows["zoom"] = ["gap", "rationale", "window"]
        rows["zoom, middle window"] = ["gap", "rationale", "middle"]
        rows["gap + window"] = ["gap", "window"]
        rows["gap + window + rationale, alike"] = ["gap", "window", "rationale, whole weight"]
    else:
        rows["larger picture"] = ["larger"]
    return {name: functional.normalize(torch.cat([seen[part] for part in parts], 1)) for name, parts in rows.items()}


@torch.inference_mode()
def embed_looks(encoder: Encoder, images: ImageSet, progress: Progress) -> tuple[dict[str, Tensor], Tensor]:
    """Features by the name of the row, and labels; in the precision of the training."""
    half = encoder.config is not None and encoder.config.training.mixed_precision == "bf16"
    pixels = open_pixels(images, evaluation_view(encoder, "zoom"), cache="auto", workers=0)
    parts: dict[str, list[Tensor]] = {}
    kept: list[np.ndarray] = []
    for batch in image_batches(pixels, BATCH):
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=half):
            seen = looks(encoder, batch.images.to(encoder.device))
        for name, features in combined(seen).items():
            parts.setdefault(name, []).append(features.float().cpu())
        kept.append(batch.index)
        progress(sum(map(len, kept)), len(images))
    assert images.labels is not None
    labels = torch.from_numpy(images.labels[np.concatenate(kept)])
    return {name: torch.cat(features) for name, features in parts.items()}, labels


def zoom_rows(encoder: Encoder, slice_: Slice, *, probe: bool, reporter: Reporter) -> list[dict[str, Any]]:
    """A row of kind "pooling" for each look; none where a window is the whole picture."""
    if encoder.config is not None and window_share(encoder.config.views) >= 1:
        return []
    searched, gallery_labels = embed_looks(
        encoder, slice_.gallery, lambda done, total: reporter.progress("looks at the gallery", done, total)
    )
    asked, labels = embed_looks(
        encoder, slice_.queries, lambda done, total: reporter.progress("looks at the queries", done, total)
    )
    rows = []
    for name, features in asked.items():
        probed = probe and name in ("zoom", "gap + middle window")
        rows.append(pooling_row("", name, searched[name], gallery_labels, features, labels, probe=probed))
    return rows
