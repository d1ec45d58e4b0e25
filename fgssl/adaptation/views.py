"""The views that whitening is fitted on: one evaluation view and several random crops of each picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fgssl.adaptation.whitening import fit_whitening
from fgssl.config.presets import VIEW_PRESETS
from fgssl.config.schema import ViewsConfig
from fgssl.data.cache.pixels import PixelStore
from fgssl.data.feed.views import Key, ViewDataset
from fgssl.encoder import Encoder, evaluated
from fgssl.errors import UnreadableImage
from fgssl.rationale import pool_places
from fgssl.views import EvaluationView

PICTURES = 5000  # more do not change a scatter of a few thousand channels
PAIRS = 2  # of random views a picture, beside its evaluation view
BATCH = 32
# where a picture is cut and mirrored says nothing of its class in any set; what its colour says nobody knows
CROPS = ViewsConfig(preset="geometric", crop_min=0.16, **VIEW_PRESETS["geometric"])


def whiten(encoder: Encoder, pixels: PixelStore, *, seed: int, progress: Callable[[int, int], None]) -> bool:
    """Fit the encoder's whitening on pictures of a training split; it is used in eval mode and left in its mode.

    Args:
        encoder: On the device that computes.
        pixels: The split, decoded somewhat larger than the views.
        seed: Of the random views.
        progress: Called with (done, total) pictures.

    Returns:
        Whether there were pictures enough: two that can be read.
    """
    size = encoder.backbone.image_size
    crops = ViewDataset(pixels, CROPS, size=size, seed=seed)
    whole = EvaluationView(size, encoder.backbone.crop_pct, encoder.backbone.interpolation)
    rows = np.unique(np.linspace(0, len(pixels) - 1, min(PICTURES, len(pixels))).astype(np.int64))
    parts = []
    with torch.inference_mode(), evaluated(encoder):
        for start in range(0, len(rows), BATCH):
            batch = list(_views(pixels, crops, whole, rows[start : start + BATCH].tolist()))
            if batch:
                parts.append(_pooled(encoder, torch.stack(batch, 1)))
            progress(min(start + BATCH, len(rows)), len(rows))
    found = torch.cat(parts, 1) if parts else torch.empty(1, 0, 0)
    if found.shape[1] < 2:
        return False
    whitening = fit_whitening(found.clone())
    layer = nn.Linear(*whitening.weight.shape)
    layer.load_state_dict(whitening._asdict())
    encoder.whitening = layer.requires_grad_(False).to(encoder.device)
    return True


def _views(pixels: PixelStore, crops: ViewDataset, whole: EvaluationView, rows: list[int]) -> Iterator[Tensor]:
    """(V, 3, S, S) uint8 of each picture that can be read."""
    for row in rows:
        try:
            picture = pixels[row]
        except UnreadableImage:
            continue
        first = torch.from_numpy(np.array(whole(Image.fromarray(picture)))).permute(2, 0, 1)
        pairs = [crops.make([picture], [Key(epoch, row)])[:, 0] for epoch in range(PAIRS)]
        yield torch.cat([first[None], *pairs])


def _pooled(encoder: Encoder, views: Tensor) -> Tensor:
    """(V, N, 3, S, S) uint8 -> (V, N, C) means over the map, on the CPU."""
    return torch.stack(
        [pool_places(encoder.backbone(encoder.normalize(view.to(encoder.device)))).cpu() for view in views]
    )
