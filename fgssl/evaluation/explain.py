"""What an encoder looks at: GradCAM of the self-supervised loss and the fitted rationale, for any pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fgssl.data.decoding import decode_image
from fgssl.drawing import ExplainRow, Window, explain_sheet
from fgssl.encoder import Encoder
from fgssl.errors import FgsslError

SHOWN_SIZE = 448  # side of a picture cut for showing, in pixels


class Maps(NamedTuple):
    """The maps of one picture over its evaluation view."""

    gradcam: NDArray[np.float32] | None  # (H, W), not negative; None without projection head (and keys)
    rationale: NDArray[np.float32] | None  # (H, W), sums to 1; None without a branch, as `window`
    window: Window | None = None  # what `--pool zoom` looks at more closely


def shown(encoder: Encoder, picture: Image.Image, *, size: int = SHOWN_SIZE) -> Image.Image:
    """The part of a picture that the encoder sees, at a size to look at."""
    return encoder.view()._replace(size=size)(picture)


def explain(
    encoder: Encoder, pictures: Sequence[Image.Image], *, batch_size: int = 16, with_gradcam: bool = True
) -> list[Maps]:
    """GradCAM (left out on demand: it takes several passes) and rationale of each upright RGB picture of any size."""
    half = encoder.backbone.image_size / encoder.view_size("zoom") / 2  # of a window's side, as a share of the view's
    found: list[Maps] = []
    for start in range(0, len(pictures), batch_size):
        images = encoder.seen(pictures[start : start + batch_size])
        cams = rationales = [None] * len(images)
        windows: list[Window | None] = [None] * len(images)
        if with_gradcam and encoder.has_loss_gradcam:
            cams = list(encoder.loss_gradcam(images).cpu().numpy())
        if encoder.rationale is not None:
            with torch.no_grad():
                feature_map = encoder.backbone(encoder.normalize(images))
                rationales = list(encoder.attention(feature_map).cpu().numpy())
                centres = encoder.window_centres(feature_map).tolist()
            windows = [Window(x - half, y - half, x + half, y + half) for y, x in centres]
        found.extend(Maps(*each) for each in zip(cams, rationales, windows, strict=True))
    return found


def visualize(encoder: Encoder, paths: Sequence[Path], *, title: str) -> Image.Image:
    """A sheet of pictures with their maps side by side. Raises FgsslError where the encoder has none to draw."""
    if encoder.rationale is None and not encoder.has_loss_gradcam:
        raise FgsslError(
            f"the encoder {encoder.backbone.name} holds no projection head and no rationale: there are no maps to draw",
            "give an encoder trained by fgssl pretrain with --checkpoint",
        )
    pictures = [decode_image(path) for path in paths]
    rows = [
        ExplainRow(shown(encoder, picture), path.name, maps.gradcam, maps.rationale, window=maps.window)
        for picture, path, maps in zip(pictures, paths, explain(encoder, pictures), strict=True)
    ]
    return explain_sheet(rows, title=title)
