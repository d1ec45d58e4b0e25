"""The embedding of the encoder in this folder, for who has timm and not fgssl: `pip install timm safetensors`.

    python embed.py features.npy a.jpg b.jpg

or in Python, with this file on the path:

    from embed import Embedder
    features = Embedder(".")([Image.open("a.jpg")])  # (1, D), of length 1: products are cosine similarities

It is what `fgssl embed --pool gap` gives: the mean of the last feature map beside mean and deviation of maps of earlier
stages, whitened where the encoder is. The second, closer look (`--pool zoom`) is in the graph of `fgssl export`.
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


class Embedder(nn.Module):
    """Pictures of any size -> (N, D) l2-normalised. Reads `encoder.safetensors` in a folder, and nothing else."""

    def __init__(self, folder: str | Path = ".") -> None:
        super().__init__()
        with safe_open(Path(folder) / "encoder.safetensors", framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        backbone, self.reading = json.loads(metadata["fgssl"])["backbone"], json.loads(metadata["reading"])
        self.model = timm.create_model(backbone["architecture"], **backbone["model_args"])
        self.model.load_state_dict(_part(tensors, "backbone"))
        whitening = _part(tensors, "whitening")
        self.whitening: nn.Module = nn.Identity()
        if whitening:
            width = len(whitening["bias"])
            self.whitening = nn.Linear(width, width)
            self.whitening.load_state_dict(whitening)
        self.eval()

    @torch.no_grad()
    def forward(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures, turned upright by their EXIF -> (N, D)."""
        upright = [ImageOps.exif_transpose(picture).convert("RGB") for picture in pictures]
        levels = torch.stack([torch.from_numpy(np.array(self.view(picture))) for picture in upright])
        mean, std = (255 * torch.tensor(self.reading["data"][key]) for key in ("mean", "std"))
        last, *earlier = self.maps(((levels - mean) / std).permute(0, 3, 1, 2).contiguous())
        pooled = [last.mean((2, 3))]
        for found in earlier:
            pooled += [found.mean((2, 3)), found.var((2, 3), unbiased=False).sqrt()]
        return functional.normalize(self.whitening(torch.cat(pooled, 1)), dim=1)

    def view(self, picture: Image.Image) -> Image.Image:
        """timm's evaluation transform in one resize: the short side to size / crop_pct, then the central square."""
        data: dict[str, Any] = self.reading["data"]
        size = data["input_size"][1]
        short = math.floor(size / data["crop_pct"])
        resized = [int(short * side / min(picture.size)) for side in picture.size]
        starts = [round((side - size) / 2) for side in resized]
        corners = [
            edge * own / side
            for edges in (starts, [start + size for start in starts])
            for edge, own, side in zip(edges, picture.size, resized)  # noqa: B905
        ]
        box = (corners[0], corners[1], min(corners[2], picture.width), min(corners[3], picture.height))
        return picture.resize((size, size), Image.Resampling[data["interpolation"].upper()], box=box)

    def maps(self, images: Tensor) -> list[Tensor]:
        """(N, 3, S, S) -> the last feature map (N, C, h, w), then those of earlier stages, the nearest first."""
        kind, places, last, norm = (self.reading[key] for key in ("kind", "places", "last", "final_norm"))
        if not places and kind != "intermediates":
            features = self.model.forward_features(images)
            return [features.permute(0, 3, 1, 2) if kind == "nhwc" else features]
        own = kind == "intermediates"
        indices = [*reversed(places), *([last] if own else [])] if places else 1
        options = {"norm": own and norm, "output_fmt": "NCHW", "intermediates_only": own}
        found = self.model.forward_intermediates(images, indices=indices, **options)
        if own:
            return list(reversed(found))
        features, before = found
        return [features.permute(0, 3, 1, 2) if kind == "nhwc" else features, *reversed(before)]


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}


if __name__ == "__main__":
    embedder = Embedder(Path(__file__).parent)
    rows = [embedder([Image.open(name)]) for name in sys.argv[2:]]
    np.save(sys.argv[1], torch.cat(rows).numpy())
