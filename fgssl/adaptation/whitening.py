"""View whitening: what changes in the features when only the view of a picture does is damped.

Within-class covariance normalisation (Hatch et al., 2006), in closed form, divides features by their scatter within a
class. Without labels two things stand in for a class: the views of one picture, whose scatter is nuisance by
construction, and pictures that are each other's nearest neighbours, most of which are of one class. The backbone stays
as it is: what comes out is one linear layer after the pooling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from fgssl.config.defaults import VIEW_PRESETS
from fgssl.config.schema import ViewsConfig
from fgssl.data.cache.pixels import PixelStore
from fgssl.data.feed import Key, ViewDataset
from fgssl.encoder import Encoder, evaluated
from fgssl.errors import UnreadableImage
from fgssl.rationale import pool_stages
from fgssl.views import EvaluationView

PICTURES = 2000  # in five views each: more hardly change a scatter of a few thousand numbers
PAIRS = 2  # of random views a picture, beside its evaluation view
BATCH = 32
# where a picture is cut and mirrored says nothing of its class in any set; what its colour says nobody knows
CROPS = ViewsConfig(preset="geometric", crop_min=0.16, **VIEW_PRESETS["geometric"])
SHRINKAGE = 0.3  # of the scatter towards a multiple of the identity, in units of its mean eigenvalue
NEIGHBOURS = 3  # pictures are taken for one class when each is among the other's so many nearest
ROUNDS = 2  # neighbours are found in the features as they are whitened so far
CHUNK = 1024  # rows of similarities held at once
Progress = Callable[[int, int], None]


def whiten(encoder: Encoder, pixels: PixelStore, *, stages: int, seed: int, progress: Progress) -> bool:
    """Fit the encoder's whitening on pictures of a training split; False where not even two of them can be read.

    Of the last so many of the backbone's stages together. `progress` is told (done, total) of the pictures.
    """
    views = embed_views(encoder, pixels, stages=stages, seed=seed, progress=progress).features
    if views.shape[1] < 2:
        return False
    encoder.whiten_by(fit_whitening(views), stages=stages)
    return True


class ViewFeatures(NamedTuple):
    """Features of several views of each picture that could be read."""

    features: Tensor  # (V, N, D) float32 on the CPU, not normalised; the evaluation view first, then random crops
    positions: Tensor  # (N,) of the pictures in the split


def embed_views(
    encoder: Encoder,
    pixels: PixelStore,
    *,
    stages: int,
    seed: int,
    progress: Progress,
    most: int = PICTURES,
    rows: Sequence[int] = (),
) -> ViewFeatures:
    """Pooled features, not whitened, of the evaluation view and four random crops of some pictures.

    Of those at `rows`, or else of at most so many, evenly over the split; decoded somewhat larger than the views.
    Computes on the encoder's device, in eval mode, and leaves it in its mode.
    """
    rows = rows or sample_rows(len(pixels), most)
    size = encoder.backbone.image_size
    crops = ViewDataset(pixels, CROPS, size=size, seed=seed)
    whole = EvaluationView(size, encoder.backbone.crop_pct, encoder.backbone.interpolation)
    parts, positions = list[Tensor](), list[int]()
    with torch.no_grad(), evaluated(encoder):
        for start in range(0, len(rows), BATCH):
            found = dict(_views(pixels, crops, whole, rows[start : start + BATCH]))
            if found:
                views = torch.stack(list(found.values()), 1).to(encoder.device)  # (V, N, 3, S, S)
                maps = (encoder.backbone.forward_stages(encoder.normalize(view), stages) for view in views)
                parts.append(torch.stack([pool_stages(of_view).cpu() for of_view in maps]))
                positions += found
            progress(min(start + BATCH, len(rows)), len(rows))
    features = torch.cat(parts, 1) if parts else torch.empty(1 + 2 * PAIRS, 0, 0)
    return ViewFeatures(features, torch.tensor(positions, dtype=torch.int64))


def sample_rows(total: int, most: int = PICTURES) -> list[int]:
    """Positions of at most so many of a split's pictures, evenly over it."""
    rows: list[int] = np.unique(np.linspace(0, total - 1, min(most, total)).astype(np.int64)).tolist()
    return rows


def _views(
    pixels: PixelStore, crops: ViewDataset, whole: EvaluationView, rows: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """Position and views (V, 3, S, S) uint8 of each picture that can be read."""
    for row in rows:
        try:
            picture = pixels[row]
        except UnreadableImage:
            continue
        first = torch.from_numpy(np.array(whole(Image.fromarray(picture)))).permute(2, 0, 1)
        pairs = [crops.make([picture], [Key(epoch, row)])[:, 0] for epoch in range(PAIRS)]
        yield row, torch.cat([first[None], *pairs])


def fit_whitening(views: Tensor) -> nn.Linear:
    """The inverse root of what changes with the view and between nearest neighbours, about the mean of the first view.

    Of pooled features (V, N, D) of 2 or more views of 2 or more pictures, the evaluation view first; on the CPU. The
    triangular root differs from the symmetric by a rotation, which no similarity sees, and takes seconds, not minutes.
    """
    mean, averaged = views[0].mean(0), views.mean(0)
    within = sum((_scatter(view - averaged) for view in views), torch.zeros(()))
    of_views = _unit(within)
    weight = _inverse_root(of_views)
    for _ in range(ROUNDS):
        pairs = mutual_neighbours(functional.normalize((averaged - mean) @ weight.T, dim=1), NEIGHBOURS)
        weight = _inverse_root(of_views + _unit(_scatter(views[0][pairs[:, 0]] - views[0][pairs[:, 1]])))
    layer = nn.Linear(*weight.shape).requires_grad_(False)
    layer.load_state_dict({"weight": weight, "bias": -(weight @ mean)})
    return layer


def mutual_neighbours(features: Tensor, count: int) -> Tensor:
    """(P, 2) pairs i < j of l2-normalised (N, D) rows that are each among the other's `count` nearest."""
    rows = len(features)
    near = torch.zeros(rows, rows, dtype=torch.bool)
    for start in range(0, rows, CHUNK):
        similarity = features[start : start + CHUNK] @ features.T
        similarity.diagonal(start).fill_(-torch.inf)
        near[start : start + CHUNK].scatter_(1, similarity.topk(min(count, rows - 1), dim=1).indices, True)
    return (near & near.T).triu().nonzero()


def _scatter(differences: Tensor) -> Tensor:
    """(N, D) -> (D, D): sum of their outer products."""
    product: Tensor = differences.T @ differences
    return product


def _unit(scatter: Tensor) -> Tensor:
    """Scaled to a mean eigenvalue of 1; a scatter of nothing stays nothing."""
    mean: Tensor = scatter.trace() / len(scatter)
    return torch.div(scatter, mean.clamp(min=torch.finfo(scatter.dtype).tiny))


def _inverse_root(scatter: Tensor) -> Tensor:
    """W, lower triangular, with W^T W = (S / mean eigenvalue + SHRINKAGE I)^(-1)."""
    identity = torch.eye(len(scatter), dtype=torch.float64)
    root = torch.linalg.cholesky(_unit(scatter).double() + SHRINKAGE * identity)
    inverse: Tensor = torch.linalg.solve_triangular(root, identity, upper=False)
    return inverse.to(scatter.dtype)
