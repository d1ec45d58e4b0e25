"""Why a hit is one: the windows that `--pool parts` saw in a query and its hits, and which of them are alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from fgssl.drawing import Part, Window
from fgssl.encoder import Encoder, evaluated


@torch.no_grad()
def matched_parts(encoder: Encoder, pictures: Sequence[Image.Image]) -> list[list[Part]]:
    """The parts of each picture, of which the first is the query, numbered from 1.

    A part of another picture has the number of the query's part that it is most like, by the cosine of their features.
    """
    images = encoder.seen(pictures, "parts")
    with evaluated(encoder):
        peaks = encoder.part_windows(encoder.maps(encoder.shrunk(images))[0])
        features = encoder.part_features(images, peaks)
    own = features[0, peaks.present[0]]
    found = []
    for row in range(len(pictures)):
        there = peaks.present[row]
        numbers = list(range(1, len(own) + 1)) if row == 0 else best_matches(features[row, there], own)
        windows = peaks.windows[row, there].tolist()
        found.append([Part(_window(*window), number) for window, number in zip(windows, numbers, strict=True)])
    return found


def best_matches(parts: Tensor, query: Tensor) -> list[int]:
    """For each part (P, D) the number, from 1, of the query's part (Q, D) with the largest cosine; all of length 1."""
    return [number + 1 for number in (parts @ query.T).argmax(1).tolist()]


def _window(row: float, column: float, side: float) -> Window:
    return Window(column - side / 2, row - side / 2, column + side / 2, row + side / 2)
