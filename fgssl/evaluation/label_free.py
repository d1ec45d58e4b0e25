"""Signals that need no labels: is the encoder collapsed, spread, steady under augmentation, are neighbours kept?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fgssl.config.schema import ViewsConfig
from fgssl.data.cache.build import PixelStore, Shrunk
from fgssl.data.feed.views import ViewDataset, view_pairs
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
        return (
            f"effective rank {self.effective_rank:.1f}, alignment {self.alignment:.3f}, "
            f"uniformity {self.uniformity:.2f}, same neighbours {self.neighbour_overlap:.3f} "
            f"(chance {self.neighbour_chance:.3f})"
        )


def label_free_signals(first: Tensor, second: Tensor) -> Signals:
    """The signals of features of two random views of the same images.

    Rank and uniformity are of the first view (Garrido et al. 2023, Wang and Isola 2020).

    Args:
        first: (N, D) features of one view of each image, N at least 2.
        second: (N, D) features of the other.

    Raises:
        FgsslError: Fewer than two images, features with NaN, or views of different shapes.
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
    """The signals of an encoder on given views; it is used in eval mode and left as it was.

    Args:
        encoder: On the device that computes.
        views: (2, N, 3, S, S) uint8.
        pool: How the feature map becomes the feature.
        batch_size: Images per forward.
    """
    with evaluated(encoder):
        features = [
            torch.cat([encoder(part.to(encoder.device), pool).float().cpu() for part in torch.split(view, batch_size)])
            for view in views
        ]
    return label_free_signals(*features)


def feature_stats(features: Tensor) -> dict[str, float]:
    """What features alone tell: effective rank of all of them, uniformity of up to `UNIFORMITY_IMAGES` spread evenly.

    Args:
        features: (N, D).
    """
    features = check_features(features)
    stats = {"images": len(features), "width": features.shape[1], "effective_rank": effective_rank(features)}
    if len(features) > 1:
        stats["uniformity"] = uniformity(features[:: -(-len(features) // UNIFORMITY_IMAGES)])
    return stats


def view_stats(encoder: Encoder, images: ImageSet, *, pool: Pool, batch_size: int = 64) -> dict[str, float]:
    """What two random views of a sample of images tell: alignment, neighbour overlap and its chance level.

    The views are drawn as in the encoder's own training, or as MoCo v2's for an encoder that fgssl did not train.

    Args:
        encoder: On the device that computes.
        images: At least two readable ones for any result.
        pool: How the feature map becomes the feature.
        batch_size: Images per forward.

    Returns:
        The signals and `view_images`, the number of images they are of; nothing for fewer than two.
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
