"""Pictures whose objects are small and anywhere, made of photographs that have them in the middle.

Two ways (`data.shift`), both onto a square canvas over another, blurred picture of the same set:

    object   what the mask shows is cut out and laid down, its longer side 0.3 to 0.5 of the canvas
    crop     the whole photograph is laid down, its longer side 0.45 to 0.7, fading into the other at its edge

or of another share (`data.shift_min`, `data.shift_max`).

The place is uniform over where an evaluation view, 0.875 of the side, shows all of the object. A picture is a function
of the seed, its name below the source and the names beside it: neither the order of the set nor the process matters.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fgssl.data.decoding import Examined
from fgssl.data.images import About, ImageSet, Masks
from fgssl.data.masks import Masked, mask_picture
from fgssl.errors import FgsslError, SettingError, UnreadableImage
from fgssl.runtime.text import shown

VERSION = 1  # raise it when a change of the code changes a picture, so that caches notice
SHARES = {"object": (0.3, 0.5), "crop": (0.45, 0.7)}  # longer side of what is laid down, of the canvas' side
BLUR = (0.03, 0.06)  # of the background, as a share of the canvas' side
EDGE, FADE = 0.004, 0.08  # softness of the cut, and the width over which a whole photograph fades, likewise
MARGIN = 1 / 16  # which an evaluation view does not show
MOST = 1024  # pixels of a canvas' side
TRIED = 5  # backgrounds, until one can be read
BACKGROUND = 256  # pixels of a background before it is enlarged: blurred, it has no more to show

Box = tuple[float, float, float, float]  # left, top, right, bottom
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class Drawn(NamedTuple):
    """What chance says of a picture."""

    share: float  # of the canvas' side
    blur: float
    place: tuple[float, float]  # from left to right and from top to bottom, 0 to 1
    other: int  # where the search for a background begins, in the order of names


class Layout(NamedTuple):
    """What of a picture comes where on its canvas."""

    region: Box  # of the picture
    width: float  # of the region on the canvas, as the next three in canvas sides
    height: float
    left: float
    top: float

    def side(self, size: tuple[int, int]) -> int:
        """Pixels of a canvas on which a picture of some size keeps its own, at most MOST."""
        left, _, right, _ = self.region
        return max(1, min(MOST, round((right - left) * size[0] / self.width)))

    def cut(self, picture: Image.Image, side: int, filter_: Image.Resampling) -> Image.Image:
        """The region of a picture (or of its mask) as large as it is on a canvas of `side` pixels."""
        size = max(1, round(self.width * side)), max(1, round(self.height * side))
        left, top, right, bottom = self.region
        box = (left * picture.width, top * picture.height, right * picture.width, bottom * picture.height)
        return picture.resize(size, filter_, box=box)

    def corner(self, side: int) -> tuple[int, int]:
        """Where the region begins, in pixels."""
        return round(self.left * side), round(self.top * side)


class Shifted(ImageSet):
    """The images of a set, each laid off the centre of another. Raises FgsslError where a mask is asked and missing.

    `share` bounds the longer side of what is laid down, of the canvas' side: None is as `SHARES`.
    """

    def __init__(
        self, images: ImageSet, how: str, *, share: tuple[float | None, float | None] = (None, None), seed: int = 0
    ) -> None:
        about = About(images.labels, images.class_names, images.unlabelled, images.remarks, images.skipped)
        super().__init__(images.source, images.split, about)
        self._images, self._how, self._seed = images, how, seed
        least, most = (own if told is None else told for told, own in zip(share, SHARES[how], strict=True))
        if least > most:
            problem = f"what is laid down by {how} would be at least {least:g} and at most {most:g} of the picture"
            raise SettingError(problem, "make data.shift_min the smaller")
        self._share = least, most
        self._keys = [_key(images, row) for row in range(len(images))]
        self._order = sorted(range(len(images)), key=self._keys.__getitem__)  # others are drawn by name
        if how == "object":
            _require_masks(images)

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return self._images.name(index)

    def load(self, index: int, min_side: int | None = None) -> Image.Image:
        drawn = self._drawn(index)
        mask = self._mask(index) if self._how == "object" else None
        picture = self._images.load(index, None if min_side is None else _needed(min_side, drawn, mask))
        layout = _layout(drawn, picture.size, mask)
        side = layout.side(picture.size)
        canvas = self._background(index, drawn, side)
        canvas.paste(
            layout.cut(picture, side, Image.Resampling.BICUBIC), layout.corner(side), _alpha(layout, side, mask)
        )
        return canvas

    def examine(self, index: int, min_side: int | None = None) -> Examined:
        picture = self.load(index, min_side)
        digest = hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
        return Examined(picture, picture.width, picture.height, picture.mode, "laid", False, digest)

    def has_mask(self, index: int) -> bool:
        return self._how == "crop" or self._images.has_mask(index)

    def masks(self, index: int) -> Masks | None:
        """Where the object is on the canvas, by the mask of its photograph; where that has none, the whole of it is."""
        known = self._images.masks(index)
        if known is None and self._how == "crop":
            picture = self._images.load(index, BACKGROUND)  # for its shape alone
            known = Masks(np.ones((picture.height, picture.width), np.bool_))
        if known is None:
            return None
        height, width = known.object.shape
        layout = _layout(self._drawn(index), (width, height), known.object if self._how == "object" else None)
        side = layout.side((width, height))
        return Masks(*(None if mask is None else _laid(mask, layout, side) for mask in known))  # type: ignore[arg-type]

    def fingerprint(self) -> str:
        masks = self._images.mask_fingerprint() if self._how == "object" and isinstance(self._images, Masked) else ""
        own = () if self._share == SHARES[self._how] else self._share
        told = (self._images.fingerprint(), masks, self._how, self._seed, VERSION, *own)
        return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()

    def _drawn(self, index: int) -> Drawn:
        digest = hashlib.blake2b(f"{self._seed}/{self._keys[index]}".encode(), digest_size=16).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "big"))
        share, blur = rng.uniform(*self._share), rng.uniform(*BLUR)
        return Drawn(share, blur, (rng.uniform(), rng.uniform()), int(rng.integers(len(self._order))))

    def _mask(self, index: int) -> NDArray[np.bool_]:
        known = self._images.masks(index)
        if known is None or not known.object.any():
            raise UnreadableImage(f"the mask of {self._images.identifier(index)} is empty", "draw it, or remove both")
        return known.object

    def _background(self, index: int, drawn: Drawn, side: int) -> Image.Image:
        """Another picture of the set, out of focus: the first that can be read of a few."""
        count = len(self._order)
        others = (self._order[(drawn.other + step) % count] for step in range(min(count, TRIED)))
        for other in others:
            if other != index or count == 1:
                with contextlib.suppress(UnreadableImage):
                    return _blurred(self._images.load(other, BACKGROUND), side, drawn.blur)
        raise UnreadableImage(f"no background for {self.identifier(index)} can be read", "replace what is damaged")


def mask_box(mask: NDArray[np.bool_]) -> Box:
    """The smallest box around what a mask (H, W) holds, as shares of its width and height."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def _key(images: ImageSet, row: int) -> str:
    """The name of an image below its source, which is the same wherever the source lies."""
    name, root = images.name(row), os.path.abspath(os.path.expanduser(images.source))
    absolute = os.path.abspath(name)
    below = os.path.relpath(absolute, root) if absolute.startswith(f"{root}{os.sep}") else name
    return shown(below)


def _require_masks(images: ImageSet) -> None:
    missing = [row for row in range(len(images)) if not images.has_mask(row)]
    if missing:
        problem = f"{len(missing)} of {len(images)} pictures of {images.source} [{images.split}] have no mask"
        named = f"such as {images.identifier(missing[0])}"
        raise FgsslError(f"{problem}, {named}", "name the folder of masks (data.masks), or use data.shift=crop")


def _layout(drawn: Drawn, size: tuple[int, int], mask: NDArray[np.bool_] | None) -> Layout:
    """The layout of a picture of some size; a mask says that its object is cut out."""
    region = WHOLE if mask is None else mask_box(mask)
    across, down = (region[2] - region[0]) * size[0], (region[3] - region[1]) * size[1]
    relative = drawn.share / max(across, down)
    width, height = across * relative, down * relative
    left, top = (_start(at, length) for at, length in zip(drawn.place, (width, height), strict=True))
    return Layout(region, width, height, left, top)


def _start(at: float, length: float) -> float:
    """Left or top end of a piece of some length: uniform where it fits between the margins, in the middle where not."""
    room = 1 - 2 * MARGIN - length
    return MARGIN + at * room if room > 0 else (1 - length) / 2


def _needed(min_side: int, drawn: Drawn, mask: NDArray[np.bool_] | None) -> int:
    """The shorter side of a picture from which a canvas of `min_side` pixels can be made."""
    if mask is None:
        return math.ceil(min_side * drawn.share)
    left, top, right, bottom = mask_box(mask)
    height, width = mask.shape
    longer = max((right - left) * width, (bottom - top) * height)
    return int(np.ceil(min_side * drawn.share * min(width, height) / longer))


def _alpha(layout: Layout, side: int, mask: NDArray[np.bool_] | None) -> Image.Image:
    """How much of each pixel that is laid down shows."""
    if mask is not None:
        cut = layout.cut(mask_picture(mask), side, Image.Resampling.BILINEAR)
        return cut.filter(ImageFilter.GaussianBlur(EDGE * side))
    size = max(1, round(layout.width * side)), max(1, round(layout.height * side))
    across, down = (_ramp(length, FADE * side) for length in size)
    return Image.fromarray(np.rint(255 * down[:, None] * across).astype(np.uint8))


def _ramp(length: int, fade: float) -> NDArray[np.float64]:
    """From 0 at both ends to 1, smoothly, over `fade` pixels."""
    ends = np.minimum(np.arange(length) + 0.5, length - np.arange(length) - 0.5)
    part = np.clip(ends / max(fade, 0.5), 0, 1)
    smooth: NDArray[np.float64] = part * part * (3 - 2 * part)
    return smooth


def _blurred(picture: Image.Image, side: int, blur: float) -> Image.Image:
    """The middle square of a picture, out of focus, `side` pixels wide."""
    short, (width, height) = min(picture.size), picture.size
    box = ((width - short) / 2, (height - short) / 2, (width + short) / 2, (height + short) / 2)
    small = picture.resize((BACKGROUND, BACKGROUND), Image.Resampling.BILINEAR, box=box)
    return small.filter(ImageFilter.GaussianBlur(blur * BACKGROUND)).resize((side, side), Image.Resampling.BILINEAR)


def _laid(mask: NDArray[np.bool_], layout: Layout, side: int) -> NDArray[np.bool_]:
    """A mask (H, W) of the photograph on the canvas, (side, side)."""
    canvas = Image.new("L", (side, side))
    canvas.paste(layout.cut(mask_picture(mask), side, Image.Resampling.NEAREST), layout.corner(side))
    return np.asarray(canvas) > 127
