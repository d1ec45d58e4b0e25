"""Windows that nobody's map has chosen: anywhere, and where the mask of the object says. What a map has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fgssl.data.images import ImageSet, Masks
from fgssl.encoder import Encoder, Pool
from fgssl.errors import FgsslError
from fgssl.views import EvaluationView

Windows = Callable[[Sequence[int]], Tensor]  # rows of a set -> (N, 3): row and column of the middle, and side
AROUND = 1.15  # side of the window at a mask, of the mask's box
LEAST = 0.2  # of the view's side: a closer look shows no more
MASK_SIZE = 256  # pixels of a mask as it is looked at


def told_windows(encoder: Encoder, images: ImageSet, pool: Pool, view: EvaluationView) -> Windows | None:
    """Where zoom:random and zoom:mask look at the images of a set; None for other poolings.

    Raises FgsslError where the set has no masks and the pooling asks for them.
    """
    share = encoder.backbone.image_size / encoder.view_size(pool)
    if pool == "zoom:random":
        return lambda rows: torch.stack([random_window(int(row), share) for row in rows])
    if pool != "zoom:mask":
        return None
    if not any(images.has_mask(row) for row in range(len(images))):
        problem = f"--pool zoom:mask: {images.source} [{images.split}] has no masks to tell where the objects are"
        raise FgsslError(problem, "name a folder of them by --masks")

    def windows(rows: Sequence[int]) -> Tensor:
        known = [images.masks(int(row)) for row in rows]
        return torch.stack([mask_window(None if masks is None else seen_mask(masks.object, view)) for masks in known])

    return windows


def random_window(row: int, share: float) -> Tensor:
    """A window of a side anywhere within the picture, by its row in the set alone: (3,)."""
    place = np.random.default_rng(row).uniform(share / 2, 1 - share / 2, 2)
    return torch.tensor([*place, share], dtype=torch.float32)


def mask_window(mask: NDArray[np.bool_] | None) -> Tensor:
    """The window around what a mask (H, W) of the view holds, inside the picture: (3,); all of it where none is."""
    if mask is None or not mask.any():
        return torch.tensor([0.5, 0.5, 1.0])
    ends = [np.flatnonzero(mask.any(axis))[[0, -1]] + np.array([0, 1]) for axis in (1, 0)]  # of rows, of columns
    low, high = np.array(ends).T / np.array(mask.shape)
    side = float(np.clip(AROUND * (high - low).max(), LEAST, 1))
    middle = np.clip((low + high) / 2, side / 2, 1 - side / 2)
    return torch.tensor([*middle, side], dtype=torch.float32)


def seen_mask(mask: NDArray[np.bool_], view: EvaluationView, size: int = MASK_SIZE) -> NDArray[np.bool_]:
    """What an evaluation view shows of a mask (H, W): (size, size)."""
    drawn = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(view._replace(interpolation="nearest", size=size)(drawn)) > 127


def seen_masks(masks: Masks, view: EvaluationView, size: int = MASK_SIZE) -> list[NDArray[np.bool_]]:
    """The same of the object, and of its parts where they are known."""
    return [seen_mask(mask, view, size) for mask in masks if mask is not None]
