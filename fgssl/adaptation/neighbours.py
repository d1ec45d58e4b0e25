"""How much features tell of classes, judged without a label by pictures' nearest neighbours among the others.

Two signs, as either alone is fooled. Of features that tell classes apart a picture's nearest neighbour stands out from
the others, which are at right angles, give or take (`standing_out`): but training that draws pictures together at
large does so, too. And pictures of one class are near each other from either side, what is near by chance or to
everything from one (`reciprocity`; k-reciprocal neighbours are trusted in retrieval for that reason, Qin et al., CVPR
2011): but so are pictures that have no class at all. Of two windows of one encoder, whose similarities compare, the
one with the closer neighbours tells more (`nearness`).

Pictures are compared with others alone, never with views of themselves: that training makes views of one picture agree
says nothing of its class (docs/trained-weights.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.adaptation.whitening import CHUNK, fit_whitening

START = "start"  # name of the weights that others are to better


class Judgement(NamedTuple):
    """What is said of an encoder's features, the more the better."""

    standing_out: float = 0.0  # standard deviations, 0 or more
    reciprocity: float = 0.0  # in [0, 1]


def judge(views: Tensor) -> Judgement:
    """Of each half of the pictures, whitened by what the other tells, on average; of views (V, N, D), N 6 or more."""
    halves = (slice(0, None, 2), slice(1, None, 2))
    whitened = [fit_whitening(views[:, one])(views[0, other]) for one, other in (halves, halves[::-1])]
    return Judgement(*(sum(map(sign, whitened)) / len(whitened) for sign in (standing_out, reciprocity)))


def best_of(judged: Mapping[str, Judgement]) -> str:
    """The name of the best; that of the start, where it is among them, unless another is better by both signs."""
    start = judged.get(START)
    better = {name: told for name, told in judged.items() if start is None or all(map(float.__gt__, told, start))}
    return max(better, key=lambda name: better[name].standing_out * better[name].reciprocity, default=START)


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


def reciprocity(features: Tensor) -> float:
    """The share of pictures that are the nearest neighbour of their own nearest neighbour, in [0, 1].

    By cosine similarity of (N, D) features of any length, N 3 or more; of equals the first is the nearest.
    """
    nearest = torch.cat([others.argmax(1) for _, others in _similarities(features)])
    return float((nearest[nearest] == torch.arange(len(nearest))).double().mean())


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
