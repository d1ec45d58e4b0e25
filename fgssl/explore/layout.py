"""Embeddings as points of a plane, neighbours beside each other: UMAP, of a sample where there are very many.

Of 10,000 embeddings UMAP takes 25 seconds of one core, PaCMAP 7, openTSNE more than 100. But groups found in PaCMAP's
plane tell less of kinds: on photographs of groceries their adjusted mutual information is 0.46, in UMAP's 0.58.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgssl.evaluation.features import Progress, silent
from fgssl.evaluation.retrieval.ranking import Neighbours, search
from fgssl.runtime.extras import require

EXTRA = "explore"
FEWEST = 32  # pictures from which on neighbours make a layout; fewer are shown by their principal axes
LARGEST = 20_000  # pictures laid out at once: time and memory stay bounded, and a screen shows no more
NEIGHBOURS = 15  # UMAP's own default
_AXES = 50  # principal axes that UMAP measures distances in where neighbours do not tell
_PLACED_BY = 5  # laid out pictures that place another one

Points = NDArray[np.float32]
Rows = NDArray[np.int64]


def need_library(images: int) -> None:
    """Import what the layout of so many pictures takes. Raises FgsslError where it is not installed."""
    if images >= FEWEST:
        require("umap", extra=EXTRA)


def lay_out(
    features: Tensor, neighbours: Neighbours, *, seed: int = 0, progress: Progress = silent
) -> tuple[Points, Rows]:
    """A plane of pictures (N, 2) in which near ones are near, and the rows that were laid out by themselves.

    UMAP (McInnes et al. 2018) of the exact nearest neighbours by cosine, begun at the first two principal axes, so that
    a seed gives one layout. Of more than 20,000 pictures as many are drawn and laid out, and the others stand at the
    mean of their five nearest among these.

    Args:
        features: (N, D), l2-normalised.
        neighbours: Of each row the nearest other rows, 14 of them where there are so many.
        progress: Told of the search for a sample's neighbours and places.
    """
    count = len(features)
    if count < FEWEST:
        return _principal(features, 2).numpy(), np.arange(count)
    if count <= LARGEST:
        return _umap(features, neighbours, seed), np.arange(count)
    drawn = np.sort(np.random.default_rng(seed).permutation(count)[:LARGEST])
    sample, others = torch.from_numpy(drawn), torch.from_numpy(np.setdiff1d(np.arange(count), drawn))
    near = search(features[sample], top=NEIGHBOURS - 1, normalize=False)
    points = np.empty((count, 2), np.float32)
    points[drawn] = _umap(features[sample], near, seed)
    places = search(features[others], features[sample], top=_PLACED_BY, normalize=False, progress=progress).indices
    points[others.numpy()] = points[drawn][places.numpy()].mean(1)
    return points, drawn


def _umap(features: Tensor, neighbours: Neighbours, seed: int) -> Points:
    umap: Any = require("umap", extra=EXTRA)
    axes = _principal(features, _AXES).numpy()
    itself = torch.arange(len(features))[:, None]
    indices = torch.cat([itself, neighbours.indices[:, : NEIGHBOURS - 1]], 1)
    distances = torch.cat([torch.zeros(len(features), 1), 1 - neighbours.scores[:, : NEIGHBOURS - 1]], 1).clamp_min(0)
    spread = axes[:, :2] / max(float(axes[:, :2].std()), 1e-12)
    # packed closely: what belongs together is a blot on the map, and is found as a group
    model = umap.UMAP(
        n_neighbors=indices.shape[1], min_dist=0.0, init=spread, random_state=seed, n_jobs=1,
        precomputed_knn=(indices.numpy().astype(np.int32), distances.numpy().astype(np.float32)),
        force_approximation_algorithm=True,  # else the neighbours of few pictures are sought again
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one seed means one thread
        return np.asarray(model.fit_transform(axes), np.float32)


def _principal(features: Tensor, most: int) -> Tensor:
    """(N, D) -> (N, K) float32 along the first principal axes, at least two; zeros where there are fewer."""
    centred = features - features.mean(0)
    _, axes = torch.linalg.eigh((centred.T @ centred).double())  # ascending
    kept = axes.flip(1)[:, :most].float()
    # an axis and its opposite are one: the sign is by the largest entry, so that machines agree
    kept = kept * kept.gather(0, kept.abs().argmax(0, keepdim=True)).sign()
    found = centred @ kept
    return torch.nn.functional.pad(found, (0, max(0, 2 - found.shape[1])))
