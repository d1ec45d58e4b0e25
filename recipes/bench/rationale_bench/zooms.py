"""Second looks and their controls: a window where the rationale points, in the middle, and more pixels of the whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.encoder import RATIONALE_WEIGHT, Encoder
from fgssl.rationale import cut_windows, window_centres

LARGER = 2**0.5  # side of the larger picture: it costs what two looks do


def looks(encoder: Encoder, images: Tensor) -> dict[str, Tensor]:
    """Looks put side by side, by the name of the row, in the precision of the training; `zoom` is `--pool zoom`.

    Args:
        encoder: In eval mode.
        images: (N, 3, Z, Z) uint8, as `--pool zoom` takes them.
    """
    half = encoder.config is not None and encoder.config.training.mixed_precision == "bf16"
    with torch.autocast(encoder.device.type, torch.bfloat16, enabled=half):
        seen = _seen(encoder, images)
    rows = {"gap + middle window": ["gap", "middle"], "middle window": ["middle"]}
    if "rationale" in seen:
        rows["zoom"] = ["gap", "rationale", "window"]
        rows["zoom, middle window"] = ["gap", "rationale", "middle"]
        rows["gap + window"] = ["gap", "window"]
        rows["gap + window + rationale, alike"] = ["gap", "window", "rationale, whole weight"]
    else:
        rows["larger picture"] = ["larger"]
    return {name: functional.normalize(torch.cat([seen[part] for part in parts], 1)) for name, parts in rows.items()}


def _seen(encoder: Encoder, images: Tensor) -> dict[str, Tensor]:
    """Features of what is seen in the whole picture and in windows of it, each (N, C) of unit length."""
    size = encoder.backbone.image_size

    def resized(side: int) -> Tensor:
        return functional.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)

    whole = encoder.maps(resized(size))
    middle = window_centres(torch.ones_like(whole[0][:, 0]), size / encoder.view_size("zoom"))
    seen = {"gap": encoder.pool(whole, "gap")}
    seen["middle"] = encoder.pool(encoder.maps(cut_windows(images, middle, size)), "gap")
    if encoder.rationale is None:
        side = 8 * round(LARGER * size / 8)
        seen["larger"] = encoder.pool(encoder.maps(resized(side)), "gap")
    else:
        seen["rationale, whole weight"] = encoder.pool(whole, "rationale")
        seen["rationale"] = RATIONALE_WEIGHT * seen["rationale, whole weight"]
        centres = encoder.window_centres(whole[0])
        seen["window"] = encoder.pool(encoder.maps(cut_windows(images, centres, size)), "gap")
    return seen
