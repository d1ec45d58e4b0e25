"""The second look of a whitened encoder, fitted in closed form: where it looks, its whitening, and what it weighs.

What windows show differs from what whole pictures do, so they have a whitening of their own, by crops of the windows.
Where objects are small and lie anywhere the windows say nearly all; where they fill the picture a window loses some of
them. Which it is, no label is needed for: among features that tell the pictures apart, a picture's nearest neighbour
stands out from the others. So the window weighs more the further its nearest neighbours stand out beyond those of the
whole pictures (docs/rationale.md has what it gave).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.adaptation.whitening import BATCH, CHUNK, Progress, fit_whitening, sample_rows
from fgssl.data.cache.pixels import PixelStore
from fgssl.encoder import WINDOW_WEIGHT, Encoder, evaluated
from fgssl.errors import UnreadableImage
from fgssl.rationale import Colocalizer, PlaceScatter, cut_windows, fullest_windows, pool_stages

PICTURES = 1000
CROPS = 2  # of each window, beside it
LEAST_CROP = 0.3  # of the window's area
POWER = 4  # of how much further nearest neighbours stand out; even, windows weigh WINDOW_WEIGHT
WEIGHTS = (0.25, 2.0)


def fit_windows(encoder: Encoder, pixels: PixelStore, *, seed: int, progress: Progress) -> bool:
    """Fit where a whitened encoder looks again; False where too few pictures can be read, or nothing is common to them.

    `pixels` are evaluation views of the size that `zoom` takes. `progress` is told (done, total) of two passes.
    """
    rows = sample_rows(len(pixels), PICTURES)
    total = 2 * len(rows)
    with torch.no_grad(), evaluated(encoder):
        scatter = PlaceScatter(encoder.backbone.channels)
        for start in range(0, len(rows), BATCH):
            images = _read(pixels, rows[start : start + BATCH])
            if len(images):
                scatter.add(encoder.maps(_whole(encoder, images.to(encoder.device)))[0])
            progress(min(start + BATCH, len(rows)), total)
        colocalizer = scatter.colocalizer()
        if colocalizer is None:
            return False
        colocalizer, random = colocalizer.to(encoder.device), torch.Generator().manual_seed(seed)
        wholes, looks = list[Tensor](), list[Tensor]()
        for start in range(0, len(rows), BATCH):
            images = _read(pixels, rows[start : start + BATCH])
            if len(images):
                whole, views = _looks(encoder, colocalizer, images.to(encoder.device), random)
                wholes.append(whole)
                looks.append(views)
            progress(len(rows) + min(start + BATCH, len(rows)), total)
    features, views = torch.cat(wholes), torch.cat(looks, 1)
    if len(features) < 3:
        return False
    layer = fit_whitening(views)
    encoder.look_by(colocalizer, layer, weight=_weight(encoder, features, layer(views[0])))
    return True


def _read(pixels: PixelStore, rows: list[int]) -> Tensor:
    """(N, 3, Z, Z) uint8 of those that can be read."""
    found = []
    for row in rows:
        try:
            found.append(torch.from_numpy(pixels[row].copy()).permute(2, 0, 1))
        except UnreadableImage:
            continue
    return torch.stack(found) if found else torch.empty(0)


def _whole(encoder: Encoder, images: Tensor) -> Tensor:
    size = encoder.backbone.image_size
    return functional.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)


def _looks(
    encoder: Encoder, colocalizer: Colocalizer, images: Tensor, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pooled features of whole pictures (N, D), and of the windows and random crops of them (1 + CROPS, N, D)."""
    size, device = encoder.backbone.image_size, images.device
    share = size / images.shape[-1]
    maps = encoder.maps(_whole(encoder, images))
    centres, found = fullest_windows(colocalizer(maps[0]), share), list[Tensor]()
    for crop in range(1 + CROPS):
        sides = torch.full((len(images),), share)
        if crop:
            sides *= torch.empty(len(images)).uniform_(LEAST_CROP, 1, generator=random).sqrt()
        shifts = (torch.rand(len(images), 2, generator=random) - 0.5) * (share - sides)[:, None]
        view = cut_windows(images, centres + shifts.to(device), size, sides=sides.to(device))
        found.append(pool_stages(encoder.maps(view)).cpu())
    return pool_stages(maps).cpu(), torch.stack(found)


def _weight(encoder: Encoder, wholes: Tensor, windows: Tensor) -> float:
    """What a window weighs beside the whole picture, whose weight is 1; of (N, D) whole pictures, windows whitened."""
    layer: nn.Module = encoder.whitening or nn.Identity()
    whole, window = prominence(layer.cpu()(wholes)), prominence(windows)
    layer.to(encoder.device)
    ratio = window / max(whole, torch.finfo(torch.float32).eps)
    return min(max(WINDOW_WEIGHT * max(ratio, 0.0) ** POWER, WEIGHTS[0]), WEIGHTS[1])


def prominence(features: Tensor) -> float:
    """How far a picture's nearest neighbour stands out from all others, in deviations of their similarities.

    Mean over the rows of (N, D) features of any length, N 3 or more; cosine similarity, a row itself left out.
    """
    unit, found = functional.normalize(features, dim=1), list[Tensor]()
    for start in range(0, len(unit), CHUNK):
        similarity = unit[start : start + CHUNK] @ unit.T
        own = torch.arange(len(similarity))
        similarity[own, own + start] = torch.nan
        mean = similarity.nanmean(1)
        deviation = (similarity - mean[:, None]).square().nanmean(1).sqrt()
        nearest = similarity.nan_to_num(-torch.inf).amax(1)
        found.append((nearest - mean) / deviation.clamp(min=torch.finfo(deviation.dtype).eps))
    return float(torch.cat(found).mean())
