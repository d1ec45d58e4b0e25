"""The embedding of the encoder in this folder, for who has timm and not fgssl: `pip install timm safetensors`.

    python embed.py features.npy a.jpg b.jpg

or in Python, with this file on the path:

    from embed import Embedder
    features = Embedder(".")([Image.open("a.jpg")])  # (1, D), of length 1: products are cosine similarities

It is what `fgssl embed` gives. With `pool="gap"` that is the mean of the last feature map beside mean and deviation of
maps of earlier stages, whitened where the encoder is. With `pool="zoom"` there is the same again of a
window that is cut out of a larger picture and, where the encoder's rationale says where that is, of the places of the
maps weighted by it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

SIGMA = 0.25  # of the prior that objects stand in the middle
PLACES = 40  # a side in which a map is looked through for its fullest window
RATIONALE_WEIGHT = 0.5
GEM_EXPONENT = 3.0


class Embedder(nn.Module):
    """Pictures of any size -> (N, D) l2-normalised. Reads `encoder.safetensors` in a folder, and nothing else.

    `pool` is "gap", or "zoom", which looks twice; by default what fgssl takes for this encoder.
    """

    def __init__(self, folder: str | Path = ".", *, pool: str | None = None) -> None:
        super().__init__()
        with safe_open(Path(folder) / "encoder.safetensors", framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        backbone, self.reading = json.loads(metadata["fgssl"])["backbone"], json.loads(metadata["reading"])
        self.pool = pool or self.reading["pool"]
        if self.pool not in ("gap", "zoom"):
            raise ValueError(f"pool {self.pool!r}: choose gap or zoom")
        self.model = timm.create_model(backbone["architecture"], **backbone["model_args"])
        self.model.load_state_dict(_part(tensors, "backbone"))
        self.whitening, self.window_whitening = (
            _linear(_part(tensors, f"{name}whitening")) for name in ("", "window_")
        )
        self.branch, self.objects = (_part(tensors, name) for name in ("rationale", "colocalizer"))
        self.eval()

    @torch.no_grad()
    def forward(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures, turned upright by their EXIF -> (N, D)."""
        upright = [ImageOps.exif_transpose(picture).convert("RGB") for picture in pictures]
        images = torch.stack([torch.from_numpy(np.array(self.view(picture))) for picture in upright])
        images = images.permute(0, 3, 1, 2).float()  # levels 0 to 255
        if self.pool == "gap":
            return _finished(pooled(self.maps(images)[0]), self.whitening)
        size = self.reading["size"]
        maps, finer = self.maps(functional.interpolate(images, (size, size), mode="bilinear", antialias=True))
        parts, attention = [_finished(pooled(maps), self.whitening)], None
        if self.branch and not self.objects:
            attention = self.attention(maps[0], finer)
            weighted = pooled(maps, attention, gem=self.reading["branch"]["pool"] == "gem")
            parts.append(RATIONALE_WEIGHT * _finished(weighted, self.whitening))
        window = cut(images, self.centres(maps[0], attention), size)
        seen = _finished(pooled(self.maps(window)[0]), self.window_whitening or self.whitening)
        return functional.normalize(torch.cat([*parts, self.reading["window_weight"] * seen], 1), dim=1)

    def view(self, picture: Image.Image) -> Image.Image:
        """timm's evaluation transform in one resize: the short side to size / crop_pct, then the central square."""
        data: dict[str, Any] = self.reading["data"]
        size = self.reading["size" if self.pool == "gap" else "zoom_size"]
        short = math.floor(size / data["crop_pct"])
        resized = [int(short * side / min(picture.size)) for side in picture.size]
        starts = [round((side - size) / 2) for side in resized]
        corners = [
            edge * own / side
            for edges in (starts, [start + size for start in starts])
            for edge, own, side in zip(edges, picture.size, resized)  # noqa: B905
        ]
        ends = min(corners[2], picture.width), min(corners[3], picture.height)
        # no more than the filter reaches: Pillow 13 orders its two passes by the shape of what it is given
        reach = math.ceil(3 * max(1.0, min(picture.size) / short)) + 1
        left, top = (max(0, math.floor(corner) - reach) for corner in corners[:2])
        around = (
            left,
            top,
            min(picture.width, math.ceil(ends[0]) + reach),
            min(picture.height, math.ceil(ends[1]) + reach),
        )
        box = (corners[0] - left, corners[1] - top, ends[0] - left, ends[1] - top)
        return picture.crop(around).resize((size, size), Image.Resampling[data["interpolation"].upper()], box=box)

    def maps(self, levels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(N, 3, S, S) -> the maps to pool: the last (N, C, h, w), then those of earlier stages, the nearest first.

        And the finer ones that the rationale sees beside the last.
        """
        mean, std = (255 * torch.tensor(self.reading["data"][key]).view(3, 1, 1) for key in ("mean", "std"))
        images = ((levels - mean) / std).contiguous()
        kind, places, finer, last, norm = (
            self.reading[key] for key in ("kind", "places", "finer", "last", "final_norm")
        )
        own, before = kind == "intermediates", sorted({*places, *finer}, reverse=True)
        if not before and not own:
            return [self._last(self.model.forward_features(images))], []
        indices = [*reversed(before), *([last] if own else [])] if before else 1
        options = {"norm": own and norm, "output_fmt": "NCHW", "intermediates_only": own}
        found = self.model.forward_intermediates(images, indices=indices, **options)
        features, earlier = (found[-1], found[:-1]) if own else (self._last(found[0]), found[1])
        at = dict(zip(before, reversed(earlier)))  # noqa: B905
        return [features, *(at[place] for place in places)], [at[place] for place in finer]

    def _last(self, features: Tensor) -> Tensor:
        return features.permute(0, 3, 1, 2) if self.reading["kind"] == "nhwc" else features

    def attention(self, feature_map: Tensor, finer: Sequence[Tensor] = ()) -> Tensor:
        """The rationale's map: (N, C, h, w) -> (N, h, w), not negative, summing to 1; of the finest map's size."""
        told, branch = self.reading["branch"], self.branch
        seen = [feature_map, *finer]
        weights = torch.split(branch["project.weight"], [each.shape[1] for each in seen], 1)
        parts = [functional.conv2d(each, own) for each, own in zip(seen, weights)]  # noqa: B905
        found = torch.stack([functional.interpolate(part, seen[-1].shape[2:], mode="bilinear") for part in parts]).sum(
            0
        )
        if told["branch_norm"] == "batch":
            mean, variance, scale, shift = (
                branch[f"norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
            )
            found = functional.batch_norm(found, mean, variance, scale, shift)
        found = torch.relu(found)
        if told["combine"] == "linear":
            found = torch.einsum("nkhw,k->nhw", found, functional.softplus(branch["readout"]))
        else:
            found = found.amax(1)
        rows = found.flatten(1)
        if told["fit"] == "kl" and told["normalization"] == "none" and told["axis"] == "all":
            return torch.softmax(rows / told["prediction_temperature"], 1).view_as(found)
        if told["fit"] == "kl" or told["normalization"] != "none":
            rows = rows - rows.amin(1, keepdim=True)
            rows = rows / rows.amax(1, keepdim=True).clamp(min=1e-12)
        total = rows.sum(1, keepdim=True)
        even = torch.full_like(rows, 1 / rows.shape[1])
        return torch.where(total > 1e-12, rows / total.clamp(min=1e-12), even).view_as(found)

    def centres(self, feature_map: Tensor, attention: Tensor | None) -> Tensor:
        """(N, 2) row and column, in (0, 1), of the middle of each window."""
        share = self.reading["size"] / self.reading["zoom_size"]
        if self.objects:  # where most of what the places of all pictures share is
            direction, unit = self.objects["direction"], functional.normalize(feature_map, dim=1)
            found = torch.relu(torch.einsum("nchw,c->nhw", unit, direction) - self.objects["mean"] @ direction)
            count = max(PLACES, *found.shape[1:])
            side = max(1, round(share * count))
            finer = functional.interpolate(found[:, None], (count, count), mode="bilinear")
            sums = functional.avg_pool2d(finer, side, 1)[:, 0]
            best, windows = sums.flatten(1).argmax(1), sums.shape[1]
            middle = torch.stack([best // windows, best % windows], 1) / count + side / 2 / count
            known = found.flatten(1).amax(1, keepdim=True) > 0
        else:  # the mean place of the rationale, or of nothing, times a Gaussian around the middle
            found = torch.ones_like(feature_map[:, 0]) if attention is None else attention
            rows, columns = ((torch.arange(size) + 0.5) / size for size in found.shape[1:])
            weights = found * torch.exp(-((rows[:, None] - 0.5) ** 2 + (columns - 0.5) ** 2) / (2 * SIGMA**2))
            total = weights.sum((1, 2))[:, None]
            known = total > 0
            middle = torch.stack([(weights.sum(2) * rows).sum(1), (weights.sum(1) * columns).sum(1)], 1) / total
        return torch.where(known, middle, 0.5).clamp(share / 2, 1 - share / 2)


def cut(images: Tensor, centres: Tensor, size: int) -> Tensor:
    """Windows (N, 3, size, size) around centres (N, 2), between pixels, from (N, 3, Z, Z); a pixel is a pixel."""
    steps = (torch.arange(size) + 0.5 - size / 2) / images.shape[-1]
    rows, columns = (2 * (centres[:, axis, None] + steps) - 1 for axis in (0, 1))
    shape = (len(images), size, size)
    grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], 3)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def pooled(maps: Sequence[Tensor], attention: Tensor | None = None, *, gem: bool = False) -> Tensor:
    """Mean of the last map, then mean and deviation of each earlier one, over the places as weighted: (N, D)."""
    own = None if attention is None else _spread(attention, maps[0])
    found = [_generalised_mean(maps[0], own) if gem and own is not None else _mean(maps[0], own)]
    for earlier in maps[1:]:
        weights = None if attention is None else _spread(attention, earlier)
        mean = _mean(earlier, weights)
        found += [mean, _mean((earlier - mean[:, :, None, None]).square(), weights).clamp(min=0).sqrt()]
    return torch.cat(found, 1)


def _spread(attention: Tensor, maps: Tensor) -> Tensor:
    """Weights (N, H, W) over the places of maps (N, C, h, w) of another size, summing to 1 again."""
    if attention.shape[1:] == maps.shape[2:]:
        return attention
    mode = "area" if attention.shape[1] > maps.shape[2] else "bilinear"
    found = functional.interpolate(attention[:, None], maps.shape[2:], mode=mode)[:, 0]
    return found / found.sum((1, 2), keepdim=True).clamp(min=1e-12)


def _mean(maps: Tensor, weights: Tensor | None) -> Tensor:
    return maps.mean((2, 3)) if weights is None else torch.einsum("nchw,nhw->nc", maps, weights)


def _generalised_mean(maps: Tensor, weights: Tensor) -> Tensor:
    peak = maps.amax((1, 2, 3))[:, None].clamp(min=1e-12)
    powered = (maps / peak[:, :, None, None]).clamp(min=0).pow(GEM_EXPONENT)
    return peak * _mean(powered, weights).pow(1 / GEM_EXPONENT)


def _finished(features: Tensor, layer: nn.Module | None) -> Tensor:
    return functional.normalize(features if layer is None else layer(features), dim=1)


def _linear(weights: dict[str, Tensor]) -> nn.Linear | None:
    if not weights:
        return None
    out_features, in_features = weights["weight"].shape
    layer = nn.Linear(in_features, out_features)
    layer.load_state_dict(weights)
    return layer


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}


if __name__ == "__main__":
    embedder = Embedder(Path(__file__).parent)
    rows = [embedder([Image.open(name)]) for name in sys.argv[2:]]
    np.save(sys.argv[1], torch.cat(rows).numpy())
