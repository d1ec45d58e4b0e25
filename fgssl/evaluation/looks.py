"""What a pooling looked at in pictures, and which of it is alike in two of them: why a hit is one.

The one place that says where windows lie over a picture: for sheets, `fgssl visualize` and pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fgssl.drawing import Map, Part, Window
from fgssl.encoder import LOOKS, Encoder, Pool, evaluated
from fgssl.rationale import Peaks

BATCH = 16
Decided = Literal["common", "rationale"]  # the map that says where to look again, as `fgssl.drawing` calls it


class Looks(NamedTuple):
    """What was seen of one picture, in its evaluation view."""

    whole: Tensor  # (D,) l2-normalised, as the whole of each pooling
    windows: tuple[Window, ...] = ()  # the most prominent first; none where the pooling looks once
    parts: Tensor | None = None  # (K, D) l2-normalised, of the windows
    map: Map | None = None  # (h, w), that decides the windows, else the rationale's


def decided_by(encoder: Encoder, pool: Pool) -> Decided | None:
    """Which map says where a pooling looks again; None where none does."""
    if pool not in ("zoom", "parts", "zoom:again"):
        return None
    if encoder.colocalizer is not None:
        return None if encoder.finder is None else "common"
    return None if encoder.rationale is None else "rationale"


@torch.no_grad()
def looks_at(encoder: Encoder, pictures: Sequence[Image.Image], pool: Pool) -> list[Looks]:
    """What a pooling sees of upright pictures of any size, each for itself. Raises FgsslError as `Encoder.require`."""
    found: list[Looks] = []
    with evaluated(encoder):
        for start in range(0, len(pictures), BATCH):
            found += _looks(encoder, encoder.seen(pictures[start : start + BATCH], pool), pool)
    return found


@torch.no_grad()
def windows_in(encoder: Encoder, views: Iterable[Image.Image | None], pool: Pool) -> list[tuple[Window, ...]]:
    """The windows alone, of views as `Encoder.view` has them for this pooling; nothing for None."""
    found: list[tuple[Window, ...]] = []
    with evaluated(encoder):
        rest = iter(views)
        while batch := list(islice(rest, BATCH)):
            there = [torch.from_numpy(np.array(view)).permute(2, 0, 1) for view in batch if view is not None]
            seen: Iterator[tuple[Window, ...]] = iter(())
            if there and pool in LOOKS:
                images = torch.stack(there).to(encoder.device)
                seen = iter(windows_of(encoder.look_windows(images, encoder.maps(encoder.shrunk(images))[0], pool)))
            found += [() if view is None else next(seen, ()) for view in batch]
    return found


def _looks(encoder: Encoder, images: Tensor, pool: Pool) -> list[Looks]:
    maps = encoder.maps(encoder.shrunk(images) if pool in LOOKS else images)
    whole, drawn = encoder.pool(maps, "gap").cpu(), _deciding_map(encoder, maps[0], pool)
    found = [Looks(row) for row in whole]
    if pool in LOOKS:
        peaks = encoder.look_windows(images, maps[0], pool)
        features = encoder.look_features(images, peaks, pool).cpu()
        kept = [each[there.cpu()] for each, there in zip(features, peaks.present, strict=True)]
        seen = zip(found, windows_of(peaks), kept, strict=True)
        found = [look._replace(windows=windows, parts=parts) for look, windows, parts in seen]
    if drawn is not None:
        found = [look._replace(map=map_) for look, map_ in zip(found, drawn.cpu().numpy(), strict=True)]
    return found


def _deciding_map(encoder: Encoder, feature_map: Tensor, pool: Pool) -> Tensor | None:
    if decided_by(encoder, pool) == "common" and encoder.finder is not None:
        found: Tensor = encoder.finder(feature_map)
        return found
    return None if encoder.rationale is None else encoder.attention(feature_map)


def windows_of(peaks: Peaks) -> list[tuple[Window, ...]]:
    """Those of each picture, as they are drawn."""
    rows = zip(peaks.windows.cpu(), peaks.present.cpu(), strict=True)
    return [tuple(_window(*each) for each in windows[there].tolist()) for windows, there in rows]


def numbered(query: Looks) -> list[Part]:
    """The windows of a query, numbered from 1."""
    return [Part(window, number) for number, window in enumerate(query.windows, 1)]


def matched(query: Looks, other: Looks) -> list[Part]:
    """The windows of another picture, each by the number of the query's that it is most like, and how alike they are.

    Alike is the cosine of their features.
    """
    if query.parts is None or other.parts is None:
        return []
    cosines, places = (other.parts @ query.parts.T).max(1)
    found = zip(other.windows, places.tolist(), cosines.tolist(), strict=True)
    return [Part(window, place + 1, cosine) for window, place, cosine in found]


def _window(row: float, column: float, side: float) -> Window:
    return Window(column - side / 2, row - side / 2, column + side / 2, row + side / 2)
