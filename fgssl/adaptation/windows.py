"""The second look of a whitened encoder, fitted in closed form: where it looks, its whitening, and what it weighs.

What windows show differs from what whole pictures do, so they have a whitening of their own, by crops of the windows.
Where objects are small and lie anywhere the windows say nearly all; where they fill the picture a window loses some of
them. Which it is, no label is needed for: of whitened features, unrelated pictures' are at right angles, and the more
they tell of a class, the closer a picture's nearest neighbour is. So the window weighs more the closer nearest
neighbours are by windows than by whole pictures, whitened alike. And it is looked for by what all pictures share only
where neighbours are closer by such windows than by those in the middle: where objects fill their pictures, what those
share may be the sky. On seven sets of training photographs (groceries and cars, as they are and off the centre, by
two networks) that took the better window in six, and the other where it was 1.6 rank-1 behind; whether crops of one
picture agree on its neighbours took it in four.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fgssl.adaptation.neighbours import nearness
from fgssl.adaptation.whitening import BATCH, Progress, fit_whitening, sample_rows
from fgssl.data.cache.pixels import PixelStore
from fgssl.encoder import WINDOW_WEIGHT, Encoder, evaluated
from fgssl.errors import UnreadableImage
from fgssl.rationale import Colocalizer, PlaceScatter, cut_windows, fullest_windows, pool_stages

PICTURES = 1000
CROPS = 2  # of each window, beside it
LEAST_CROP = 0.3  # of the window's area
POWER = 4  # of how much closer nearest neighbours are; equally close, windows weigh WINDOW_WEIGHT
WEIGHTS = (0.25, 2.0)
GAIN = 1.02  # by which neighbours are closer in windows that are looked for than in the middle: less is chance


def fit_windows(encoder: Encoder, pixels: PixelStore, *, seed: int, progress: Progress) -> bool:
    """Fit where a whitened encoder looks again; False where too few pictures can be read, or nothing is common to them.

    `pixels` are evaluation views of the size that `zoom` takes. `progress` is told (done, total) of two passes.
    """
    rows, random = sample_rows(len(pixels), PICTURES), torch.Generator().manual_seed(seed)
    found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    with torch.no_grad(), evaluated(encoder):
        scatter = PlaceScatter(encoder.backbone.channels)
        for images in _batches(pixels, rows, lambda done: progress(done, 2 * len(rows))):
            scatter.add(encoder.maps(encoder.shrunk(images.to(encoder.device)))[0])
        colocalizer = scatter.colocalizer()
        if colocalizer is None:
            return False
        colocalizer = colocalizer.to(encoder.device)
        for images in _batches(pixels, rows, lambda done: progress(len(rows) + done, 2 * len(rows))):
            looks = _looks(encoder, colocalizer, images.to(encoder.device), random)
            for part, views in zip(found, looks, strict=True):
                part.append(views)
    seen = [torch.cat(part, 1) for part in found]  # of whole pictures, of windows in the middle, of those looked for
    if seen[0].shape[1] < 3:
        return False
    layers = [fit_whitening(views) for views in seen]
    whole, middle, common = (layer(views) for layer, views in zip(layers, seen, strict=True))
    by_whole, by_middle, by_common = (nearness(views[0]) for views in (whole, middle, common))
    looked_for = by_common > GAIN * by_middle
    ratio = (by_common if looked_for else by_middle) / max(by_whole, 1e-6)
    weight = min(max(WINDOW_WEIGHT * max(ratio, 0.0) ** POWER, WEIGHTS[0]), WEIGHTS[1])
    finder = colocalizer if looked_for else Colocalizer(encoder.backbone.channels)  # which finds nothing
    encoder.look_by(finder, layers[1 + looked_for], weight=weight)
    return True


def _batches(pixels: PixelStore, rows: Sequence[int], told: Callable[[int], None]) -> Iterator[Tensor]:
    """Pictures (N, 3, Z, Z) uint8 of those rows that can be read; `told` how many rows are done after each batch."""
    for start in range(0, len(rows), BATCH):
        found = []
        for row in rows[start : start + BATCH]:
            with contextlib.suppress(UnreadableImage):
                found.append(torch.from_numpy(pixels[row].copy()).permute(2, 0, 1))
        if found:
            yield torch.stack(found)
        told(min(start + BATCH, len(rows)))


def _looks(encoder: Encoder, colocalizer: Colocalizer, images: Tensor, random: torch.Generator) -> list[Tensor]:
    """Pooled features (1 + CROPS, N, D) of whole pictures and random crops of them, and likewise of two windows.

    Of the one in the middle, and of the one that is looked for.
    """
    share = encoder.backbone.image_size / images.shape[-1]
    maps = encoder.maps(encoder.shrunk(images))
    centres = fullest_windows(colocalizer(maps[0]), share)
    middle = torch.full_like(centres, 0.5)
    _, *crops = _squares(middle, 1.0, random)  # the whole itself is seen already

    def features(square: Tensor) -> Tensor:
        cut = cut_windows(images, square[:, :2], encoder.backbone.image_size, sides=square[:, 2])
        return pool_stages(encoder.maps(cut)).cpu()

    whole = [pool_stages(maps).cpu(), *map(features, crops)]
    windows = (_squares(places, share, random) for places in (middle, centres))
    return [torch.stack(whole), *(torch.stack([features(square) for square in squares]) for squares in windows)]


def _squares(centres: Tensor, share: float, random: torch.Generator) -> list[Tensor]:
    """Windows (N, 3) of that share around the centres (N, 2), then CROPS random ones within each."""
    found, count = list[Tensor](), len(centres)
    for crop in range(1 + CROPS):
        sides = torch.full((count,), share)
        if crop:
            sides *= torch.empty(count).uniform_(LEAST_CROP, 1, generator=random).sqrt()
        shifts = (torch.rand(count, 2, generator=random) - 0.5) * (share - sides)[:, None]
        found.append(torch.cat([centres + shifts.to(centres.device), sides[:, None].to(centres.device)], 1))
    return found
