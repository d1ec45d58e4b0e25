"""The maps of earlier stages, read in the same pass as the last: what it has lost is often still there.

CNNs and hierarchical transformers count their stages themselves; of a row of equal blocks every quarter is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fgssl.backbones.plan import MapRoute, read_map

MOST = 3  # earlier stages: before them are edges and colours
WIDEST = 4096  # numbers that an embedding may have in all


class Stages(NamedTuple):
    """The stages before the last map, nearest first: places among ``forward_intermediates``, and their channels."""

    places: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    last: int = 0  # place of the last map, where it is read there
    sizes: tuple[tuple[int, int], ...] = ()  # height and width of each

    def first(self, count: int) -> Stages:
        """The nearest so many."""
        return self._of(range(len(self.places))[:count])

    def narrow(self, channels: int) -> Stages:
        """The nearest so many that an embedding has at most `WIDEST` numbers."""
        count = len(self.places)
        while self.first(count).width(channels) > WIDEST and count:
            count -= 1
        return self.first(count)

    def finer(self, size: tuple[int, int]) -> Stages:
        """The nearest of each size that is above that of the last map, and of those before."""
        chosen = list[int]()
        for place, own in enumerate(self.sizes):
            if own[0] > size[0] and own[1] > size[1]:
                chosen.append(place)
                size = own
        return self._of(chosen)

    def at(self, places: Sequence[int]) -> Stages:
        """Those at these places."""
        return self._of([number for number, place in enumerate(self.places) if place in places])

    def _of(self, chosen: Sequence[int]) -> Stages:
        places, channels = (tuple(of[number] for number in chosen) for of in (self.places, self.channels))
        return Stages(places, channels, self.last, tuple(self.sizes[number] for number in chosen))

    def width(self, channels: int) -> int:
        """Numbers of an embedding: the last map's channels, and mean and deviation of each of these."""
        return channels + 2 * sum(self.channels)


@torch.no_grad()
def earlier_stages(model: nn.Module, images: Tensor, route: MapRoute) -> Stages:
    """Those that a model in eval mode hands out: at most `MOST`, and none where it has no such way."""
    if not hasattr(model, "forward_intermediates"):
        return Stages()
    try:
        last = read_map(model, images, route)
        options = {"output_fmt": "NCHW", "intermediates_only": True, "norm": False}
        maps = model.forward_intermediates(images, **options)  # type: ignore[operator]
        step = max(1, len(maps) // 4)
        # what forward_features returns may be the last of them (resnet) or come after it (efficientnet)
        after = 0 if maps[-1].shape == last.shape else step
        places = [place for place in range(len(maps) - 1 - step + after, -1, -step) if maps[place].ndim == 4]
        channels = tuple(maps[place].shape[1] for place in places)
        sizes = tuple((maps[place].shape[2], maps[place].shape[3]) for place in places)
        stages = Stages(tuple(places), channels, len(maps) - 1, sizes).first(MOST)
        same = torch.allclose(read_stages(model, images, route, stages)[0], last, atol=1e-4 * float(last.abs().max()))
    except Exception:  # timm's models raise all kinds where they have no such way
        return Stages()
    return stages if same else Stages()


def read_stages(model: nn.Module, images: Tensor, route: MapRoute, stages: Stages) -> list[Tensor]:
    """The last map, as `read_map` reads it, and those of the stages, each (N, C, h, w), in one pass."""
    if not stages.places:
        return [read_map(model, images, route)]
    intermediates = route.kind == "intermediates"
    indices = [*reversed(stages.places), *([stages.last] if intermediates else [])]
    options = {"norm": intermediates and route.final_norm, "output_fmt": "NCHW", "intermediates_only": intermediates}
    found = model.forward_intermediates(images, indices=indices, **options)  # type: ignore[operator]
    if intermediates:
        return list(reversed(found))
    last, earlier = found
    return [last.permute(0, 3, 1, 2) if route.kind == "nhwc" else last, *reversed(earlier)]
