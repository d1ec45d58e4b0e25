"""Which of several encoders is best, judged without a label: whether views of a picture agree on what is like it.

On 55 encoders (trained, broken, linear maps of features) its rank correlation with rank-1 was 0.85 on groceries and
0.73 on cars, and choosing by it lost 2.0 and 0 rank-1; the effective rank lost 27, alignment 21 to 25. It does not see
everything: instance discrimination makes views of its own pictures agree whatever it does to their classes
(docs/trained-weights.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.adaptation.whitening import CHUNK, fit_whitening


def held_out_agreement(views: Tensor) -> float:
    """`view_agreement` of every other picture, whitened by what the rest tell; of (V, N, D), V odd, N 4 or more."""
    layer = fit_whitening(views[:, ::2])
    return view_agreement(layer(views[:, 1::2]))


def view_agreement(views: Tensor) -> float:
    """How far the random views of a picture are sure of the same, in [0, 1].

    The share of pictures two of whose crops have the same nearest OTHER picture, times the share of crops that find
    their own picture first, both among evaluation views. Either alone is fooled: by features that know no class, or by
    features that know nothing else.

    Takes features (V, N, D) of any length: the evaluation view, then V - 1 crops, which are compared in pairs.
    """
    unit = functional.normalize(views, dim=2)
    whole, crops = unit[0], unit[1:]
    same, own = list[Tensor](), list[Tensor]()
    for first, second in zip(crops[::2], crops[1::2], strict=True):
        for start in range(0, len(whole), CHUNK):
            rows = torch.arange(start, min(start + CHUNK, len(whole)))
            others = []
            for crop in (first, second):
                similarity = crop[rows] @ whole.T
                own.append(similarity.argmax(1) == rows)
                similarity[torch.arange(len(rows)), rows] = -torch.inf
                others.append(similarity.argmax(1))
            same.append(others[0] == others[1])
    return float(torch.cat(same).double().mean() * torch.cat(own).double().mean())
