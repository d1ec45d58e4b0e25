"""Signals that need no labels: is the encoder collapsed, spread, steady under augmentation, are neighbours kept?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fgssl.config.schema import ViewsConfig
from fgssl.data.cache.pixels import PixelStore, Shrunk
from fgssl.data.feed import ViewDataset, view_pairs
from fgssl.data.images import ImageSet
from fgssl.encoder import Encoder, Pool, evaluated
from fgssl.evaluation.features import check_features
from fgssl.evaluation.metrics import alignment, effective_rank, neighbour_overlap, uniformity

NEIGHBOURS = 10
VIEW_IMAGES = 512  # embedded twice by `view_stats`
UNIFORMITY_IMAGES = 4096  # all pairs of them are compared

MEANINGS: dict[str, str] = {
    "effective_rank": "dimensions in use (RankMe): 1 is collapse, at most the smaller of width and images",
    "alignment": "mean squared distance of two views of an image: 0 is best (and a collapse), 2 is no relation",
    "uniformity": "log of the mean of exp(-2 squared distance) over pairs: 0 is collapse, about -4 evenly spread",
    "neighbour_overlap": f"share of an image's {NEIGHBOURS} nearest others found again from another view: 1 is best",
    "neighbour_chance": "neighbour_overlap of an encoder that knows nothing",
}


class Signals(NamedTuple):
    """Label-free signals of one encoder; `MEANINGS` says what each is."""

    effective_rank: float
    alignment: float
    uniformity: float
    neighbour_overlap: float
    neighbour_chance: float

    def in_words(self) -> str:
        """For a line of the log."""
        rank, alignment, uniformity, overlap, chance = self
        return (
            f"effective rank {rank:.1f}, alignment {alignment:.3f}, uniformity {uniformity:.2f}, "
            f"same neighbours {overlap:.3f} (chance {chance:.3f})"
        )


def label_free_signals(first: Tensor, second: Tensor) -> Signals:
    """The signals of features of two random views of the same images.

    Both are (N, D), N at least 2; rank and uniformity are of the first view (Garrido et al. 2023, Wang and Isola 2020).
    Raises FgsslError for fewer images, features with NaN, or views of different shapes.
    """
    first, second = check_features(first, "first view"), check_features(second, "second view")
    k = max(1, min(NEIGHBOURS, len(first) - 1))
    return Signals(
        effective_rank=effective_rank(first),
        alignment=alignment(first, second),
        uniformity=uniformity(first),
        neighbour_overlap=neighbour_overlap(first, second, k=k),
        neighbour_chance=k / max(1, len(first) - 1),
    )


@torch.no_grad()
def signals_of(encoder: Encoder, views: Tensor, *, pool: Pool = "gap", batch_size: int = 64) -> Signals:
    """The signals of an encoder, used in eval mode and left as it was, on given views (2, N, 3, S, S) uint8."""
    with evaluated(encoder):
        features = [
            torch.cat([encoder(part.to(encoder.device), pool).float().cpu() for part in torch.split(view, batch_size)])
            for view in views
        ]
    return label_free_signals(*features)


def feature_stats(features: Tensor) -> dict[str, float]:
    """What features (N, D) alone tell: effective rank of all, uniformity of up to `UNIFORMITY_IMAGES` spread evenly."""
    features = check_features(features)
    stats = {"images": len(features), "width": features.shape[1], "effective_rank": effective_rank(features)}
    if len(features) > 1:
        stats["uniformity"] = uniformity(features[:: -(-len(features) // UNIFORMITY_IMAGES)])
    return stats


def view_stats(encoder: Encoder, images: ImageSet, *, pool: Pool, batch_size: int = 64) -> dict[str, float]:
    """What two random views of a sample of images tell: alignment, neighbour overlap and its chance level.

    The views are drawn as in the encoder's own training, or as MoCo v2's for an encoder that fgssl did not train.
    `view_images` is the number of images that the signals are of; with fewer than two there are none.
    """
    drawn = ViewsConfig() if encoder.config is None else encoder.config.views
    size = encoder.view_size(pool)
    pixels = PixelStore(images, Shrunk(round(1.3 * size)))  # decoded as they are met: they are few
    pairs = view_pairs(ViewDataset(pixels, drawn, size=size, seed=0), VIEW_IMAGES)
    if pairs.shape[1] < 2:
        return {}
    found = signals_of(encoder, pairs, pool=pool, batch_size=batch_size)
    told = ("alignment", "neighbour_overlap", "neighbour_chance")
    return {"view_images": pairs.shape[1], **{name: getattr(found, name) for name in told}}
