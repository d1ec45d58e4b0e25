"""What an encoder looks at, for any pictures: the maps that it has, and what a pooling sees enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fgssl.data.decoding import decode_image
from fgssl.drawing import ExplainRow, Window, explain_sheet
from fgssl.encoder import LOOKS, Encoder, Pool
from fgssl.errors import FgsslError
from fgssl.evaluation.looks import decided_by, windows_of

SHOWN_SIZE = 448  # side of a picture cut for showing, in pixels


class Maps(NamedTuple):
    """The maps of one picture over its evaluation view, and what is looked at again."""

    gradcam: NDArray[np.float32] | None  # (H, W), not negative; None without projection head (and keys)
    rationale: NDArray[np.float32] | None  # (H, W), sums to 1; None without a branch
    common: NDArray[np.float32] | None = None  # (H, W), not negative; None unless it finds the window of `zoom`
    attention: NDArray[np.float32] | None = None  # (H, W), of the class token, sums to 1; None where there is none
    windows: tuple[Window, ...] = ()  # of the pooling, the most prominent first; none where it looks once

    @property
    def window(self) -> Window | None:
        """The first of the windows."""
        return self.windows[0] if self.windows else None


def shown(encoder: Encoder, picture: Image.Image, *, size: int = SHOWN_SIZE) -> Image.Image:
    """The part of a picture that the encoder sees, at a size to look at."""
    return encoder.view()._replace(size=size)(picture)


def explain(
    encoder: Encoder,
    pictures: Sequence[Image.Image],
    *,
    pool: Pool | None = None,
    batch_size: int = 16,
    with_gradcam: bool = True,
) -> list[Maps]:
    """The maps of each upright RGB picture of any size, and where a pooling (by default the encoder's) looks again.

    GradCAM takes several passes and is left out on demand. Raises FgsslError as `Encoder.require`.
    """
    pool, found = encoder.default_pool() if pool is None else pool, list[Maps]()
    for start in range(0, len(pictures), batch_size):
        images = encoder.seen(pictures[start : start + batch_size], pool)
        whole = encoder.shrunk(images) if pool in LOOKS else images
        none: list[None] = [None] * len(images)
        cams: Sequence[Any] = none
        if with_gradcam and encoder.has_loss_gradcam:
            cams = list(encoder.loss_gradcam(whole).cpu().numpy())
        with torch.no_grad():
            feature_map = encoder.backbone(encoder.normalize(whole))
            windows = windows_of(encoder.look_windows(images, feature_map, pool)) if pool in LOOKS else [()] * len(cams)
            drawn = [
                none if encoder.rationale is None else encoder.attention(feature_map).cpu().numpy(),
                none if encoder.finder is None else encoder.finder(feature_map).cpu().numpy(),
                none if not encoder.backbone.has_class_attention else encoder.class_attention(whole).cpu().numpy(),
            ]
        found.extend(Maps(*each) for each in zip(cams, *drawn, windows, strict=True))
    return found


def visualize(encoder: Encoder, paths: Sequence[Path], *, title: str, pool: Pool | None = None) -> Image.Image:
    """A sheet of pictures with their maps side by side. Raises FgsslError where the encoder has none to draw."""
    pool = encoder.default_pool() if pool is None else pool
    if not (encoder.rationale or encoder.finder or encoder.has_loss_gradcam or encoder.backbone.has_class_attention):
        raise FgsslError(
            f"the encoder {encoder.backbone.name} holds no projection head and no rationale: there are no maps to draw",
            "give an encoder trained by fgssl pretrain with --checkpoint",
        )
    pictures, decided = [decode_image(path) for path in paths], decided_by(encoder, pool)
    rows = [
        ExplainRow(shown(encoder, picture), path.name, *maps, decided=decided)
        for picture, path, maps in zip(pictures, paths, explain(encoder, pictures, pool=pool), strict=True)
    ]
    return explain_sheet(rows, title=title, pool=pool)
