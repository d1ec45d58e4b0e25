"""Metrics of features without labels, the signals of an encoder that they are, and the metrics of plugins."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fgssl.config.schema import ViewsConfig
from fgssl.data.cache.pixels import PixelStore, Shrunk
from fgssl.data.feed import ViewDataset, view_pairs
from fgssl.data.images import ImageSet
from fgssl.encoder import Encoder, Pool, evaluated
from fgssl.errors import FgsslError
from fgssl.evaluation.features import check_features, check_widths, unit_rows
from fgssl.evaluation.retrieval.ranking import search
from fgssl.registry import METRICS

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


def added_metrics(features: Tensor, labels: Tensor) -> dict[str, float]:
    """What the metrics of plugins say of features (N, D) and labels (N,). Raises FgsslError where one fails."""
    found: dict[str, float] = {}
    for name, metric in METRICS.items():
        origin = f"the metric {name} of {METRICS.origin(name)}"
        try:
            values = {str(key): float(value) for key, value in metric(features, labels).items()}
        except Exception as error:  # of code that is not ours
            raise FgsslError(f"{origin} fails: {type(error).__name__}: {error}", "mend it, or leave it out") from error
        if found.keys() & values.keys():
            raise FgsslError(f"{origin} and another one both return {min(found.keys() & values.keys())}", "rename one")
        found |= values
    return found


def effective_rank(features: Tensor) -> float:
    """RankMe of (N, D), not centred: exp of the entropy of the singular values (Garrido et al. 2023, equation 1)."""
    wide = check_features(features).double()
    wide = wide.T if wide.shape[0] < wide.shape[1] else wide
    # squares of the singular values from the smaller product, in float64: far faster than a decomposition
    singular = torch.linalg.eigvalsh(wide.T @ wide).clamp_min(0).sqrt()
    singular = singular[singular > 1e-7 * singular[-1]]  # below, the square roots are rounding noise
    # of no singular value the sum is 0, and the rank 1
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


def relative_std(features: Tensor) -> float:
    """Std of length-1 features (N, D) times sqrt(D): 0 is collapse, 1 evenly spread (Chen and He 2021, 4.1)."""
    unit = unit_rows(check_features(features)).double()
    return float(unit.std(0).mean() * math.sqrt(unit.shape[1]))


def alignment(first: Tensor, second: Tensor, *, power: float = 2) -> float:
    """Mean distance^power, 0 to 2^power, of the length-1 features (N, D) of two views (Wang and Isola 2020)."""
    first, second = check_features(first, "first view"), check_features(second, "second view")
    check_widths(first, second, ("first view", "second view"))
    _check_same_images(first, second)
    distance = torch.linalg.vector_norm(unit_rows(first) - unit_rows(second), dim=1)
    return float(distance.double().pow(power).mean())


def _check_same_images(first: Tensor, second: Tensor) -> None:
    if len(first) != len(second):
        raise FgsslError(f"{len(first)} features against {len(second)}", "give both views of the same images")


def uniformity(features: Tensor, *, scale: float = 2) -> float:
    """Log of the mean of exp(-scale distance^2) over pairs of length-1 features (N, D) (Wang and Isola 2020)."""
    features = unit_rows(check_features(features))
    rows = len(features)
    if rows < 2:
        raise FgsslError("uniformity of one image", "give two or more")
    total = 0.0
    for first in range(0, rows, 1024):
        squared = (2 - 2 * (features[first : first + 1024] @ features.T)).clamp_min(0).double()
        squared.diagonal(first).fill_(float("inf"))
        total += float((-scale * squared).exp().sum())
    return math.log(total / (rows * (rows - 1)))


def neighbour_overlap(first: Tensor, second: Tensor, *, k: int = 10) -> float:
    """Share of an image's k nearest others by cosine that two views (N, D) have in common, k / (N - 1) by chance."""
    return float(same_neighbours(first, second, k=k).mean())


def same_neighbours(first: Tensor, second: Tensor, *, k: int | None = None) -> Tensor:
    """The same (N,) float64 of each image, whose mean it is; k by default as in the signals."""
    k = _neighbours(len(first)) if k is None else k
    _check_same_images(first, second)
    if not 1 <= k < len(first):
        raise FgsslError(f"{k} neighbours among {len(first)} images", f"use k from 1 to {len(first) - 1}")
    near, other = search(first, top=k).indices, search(second, top=k).indices
    return (near[:, :, None] == other[:, None, :]).any(2).double().mean(1)


def _neighbours(images: int) -> int:
    return min(NEIGHBOURS, max(1, images - 1))


class Signals(NamedTuple):
    """Label-free signals of one encoder; `MEANINGS` says what each is."""

    effective_rank: float
    alignment: float
    uniformity: float
    neighbour_overlap: float
    neighbour_chance: float

    def in_words(self, start: Signals | None = None) -> str:
        """For a line of the log, beside those before the first step."""
        named = {"effective rank": ".1f", "alignment": ".3f", "uniformity": ".2f", "same neighbours": ".3f"}
        words = list[str]()
        for place, (name, shown) in enumerate(named.items()):
            notes = [] if start is None else [f"start {start[place]:{shown}}"]
            notes += [f"chance {self.neighbour_chance:.3f}"] if place == 3 else []
            words.append(f"{name} {self[place]:{shown}}" + (f" ({', '.join(notes)})" if notes else ""))
        return ", ".join(words)


def label_free_signals(first: Tensor, second: Tensor) -> Signals:
    """The signals of features (N, D), N at least 2, of two random views; rank and uniformity are of the first."""
    others, k = max(1, len(first) - 1), _neighbours(len(first))
    alike, overlap = alignment(first, second), neighbour_overlap(first, second, k=k)
    return Signals(effective_rank(first), alike, uniformity(first), overlap, k / others)


def signals_of(encoder: Encoder, views: Tensor, *, pool: Pool = "gap", batch_size: int = 64) -> Signals:
    """The signals of an encoder, used in eval mode and left as it was, on given views (2, N, 3, S, S) uint8."""
    return label_free_signals(*view_features(encoder, views, pool=pool, batch_size=batch_size))


@torch.no_grad()
def view_features(encoder: Encoder, views: Tensor, *, pool: Pool = "gap", batch_size: int = 64) -> list[Tensor]:
    """The features (N, D) of both views (2, N, 3, S, S) uint8, by an encoder in eval mode, left as it was."""
    with evaluated(encoder):
        return [
            torch.cat([encoder(part.to(encoder.device), pool).float().cpu() for part in torch.split(view, batch_size)])
            for view in views
        ]


def feature_stats(features: Tensor) -> dict[str, float]:
    """What features (N, D) alone tell: effective rank of all, uniformity of up to `UNIFORMITY_IMAGES` spread evenly."""
    features = check_features(features)
    stats = {"images": len(features), "width": features.shape[1], "effective_rank": effective_rank(features)}
    if len(features) > 1:
        stats["uniformity"] = uniformity(features[:: -(-len(features) // UNIFORMITY_IMAGES)])
    return stats


def view_stats(encoder: Encoder, images: ImageSet, *, pool: Pool, batch_size: int = 64) -> dict[str, float]:
    """What two random views of some images, as the encoder's training (else MoCo v2) draws them, tell of two."""
    drawn = ViewsConfig() if encoder.config is None else encoder.config.views
    size = encoder.view_size(pool)
    pixels = PixelStore(images, Shrunk(round(1.3 * size)))  # decoded as they are met: they are few
    pairs = view_pairs(ViewDataset(pixels, drawn, size=size, seed=0), VIEW_IMAGES)
    if pairs.shape[1] < 2:
        return {}
    _, alike, _, overlap, chance = signals_of(encoder, pairs, pool=pool, batch_size=batch_size)
    return {"view_images": pairs.shape[1], "alignment": alike, "neighbour_overlap": overlap, "neighbour_chance": chance}
