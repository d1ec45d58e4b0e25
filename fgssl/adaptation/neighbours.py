"""How much features tell of classes, judged without a label: how far nearest neighbours stand out.

Of features that tell classes apart, unrelated pictures' are at right angles, give or take, and the few of one class lie
together. So a picture's nearest neighbour is more similar than the others are: by how much says which of two windows
of one encoder tells more (`nearness`), and by how many standard deviations which of several encoders does
(`standing_out`), whose features spread differently. Pictures are compared with others alone, never with views of
themselves: that training makes views of one picture agree says nothing of its class (docs/trained-weights.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.adaptation.whitening import CHUNK, fit_whitening


def held_out_standing_out(views: Tensor) -> float:
    """`standing_out` of every other picture, whitened by what the rest tell; of views (V, N, D), N 6 or more."""
    layer = fit_whitening(views[:, ::2])
    return standing_out(layer(views[0, 1::2]))


def standing_out(features: Tensor) -> float:
    """By how many standard deviations a picture's nearest neighbour is more similar than the others, on average.

    Of the cosine similarities of each of (N, D) features of any length to the N - 1 others, N 3 or more. A maximum of
    N - 1 unrelated ones is some 3 above their mean; a class of similar pictures among K classes stands out by up to
    the root of K; of features that are all the same nothing does: 0.
    """
    found = list[Tensor]()
    for similarity, others in _similarities(features.double()):
        mean = similarity.nanmean(1)
        spread = (similarity - mean[:, None]).square().nanmean(1).sqrt()
        found.append((others.amax(1) - mean) / spread.clamp(min=1e-6))
    return float(torch.cat(found).mean())


def nearness(features: Tensor) -> float:
    """How much more similar a picture's nearest neighbour is than others are on average, in [0, 2].

    Mean over the rows of (N, D) features of any length, N 3 or more; cosine similarity, a row itself left out.
    """
    found = [others.amax(1) - similarity.nanmean(1) for similarity, others in _similarities(features)]
    return float(torch.cat(found).mean())


def _similarities(features: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosine similarities of some rows at a time to all, (M, N): their own as NaN, and as minus infinity."""
    unit = functional.normalize(features, dim=1)
    for start in range(0, len(unit), CHUNK):
        similarity = unit[start : start + CHUNK] @ unit.T
        own = torch.arange(len(similarity))
        similarity[own, own + start] = torch.nan
        yield similarity, similarity.nan_to_num(-torch.inf)
