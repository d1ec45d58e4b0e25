"""The demo set: birds drawn by code whose 16 kinds differ in beak, crown and wing pattern and in nothing else.

It needs no download, and is the yardstick for "does the model look at the right place": every image comes with the
exact mask of the bird and of its class-telling parts.

Each of the three parts comes in four kinds, and a class is one row of an orthogonal array: any two parts tell the
class, a single one never does. Pose, scale, place, body colour, light, background and distractors are drawn at random
and say nothing of the class. Coats come in six hues and backgrounds are calm, so that many birds share all but their
parts: where every picture has colours of its own, telling pictures apart (which is all that self-supervision asks)
takes no look at the parts. `python recipes/bench/demo_baselines.py` prints what colour and layout alone can do.
"""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from fgssl.data.decoding import Examined
from fgssl.data.demo.bird import CALM, Drawing, draw_nuisance, paint
from fgssl.data.demo.parts import BEAKS, CROWNS, WINGS, Traits
from fgssl.data.demo.scene import IMAGE_SIZE
from fgssl.data.demo.wild import WILD
from fgssl.data.images import About, ImageSet, Masks
from fgssl.errors import FgsslError

__all__ = ["CLASS_NAMES", "CLASS_TRAITS", "IMAGE_SIZE", "SIZES", "SPLITS", "DemoSet"]

SPLITS = ("train", "test")
SIZES = {"train": 1280, "test": 640}
_VERSION = 3  # of the drawings: raise it when a change of the code changes a picture, so that caches notice

# beak, crown and their bitwise difference: an orthogonal array of strength two
CLASS_TRAITS = tuple(
    Traits(beak, crown, WINGS[row ^ column]) for row, beak in enumerate(BEAKS) for column, crown in enumerate(CROWNS)
)
CLASS_NAMES = tuple(f"{beak}-beak {wing}-wing {crown}" for beak, crown, wing in CLASS_TRAITS)


class DemoSet(ImageSet):
    """One split of the demo set, drawn when asked for; an `ImageSet` with masks.

    Image i is a pure function of (seed, split, i): a smaller set is the beginning of a larger one. Each class has as
    many where the size (by default SIZES[split]) is a multiple of 16. A wild one has its birds small and anywhere.
    """

    def __init__(self, split: str, seed: int = 0, size: int | None = None, *, wild: bool = False) -> None:
        if split not in SPLITS:
            raise FgsslError(f"the demo set has no split {split!r}", f"its splits are {', '.join(SPLITS)}")
        if seed < 0:
            raise FgsslError(f"the seed of the demo set is {seed}", "use a whole number from 0 on")
        if size is not None and size < 1:
            raise FgsslError(f"the size of the demo set is {size}", "use at least 1")
        self.seed, self._size, self._ground = seed, size or SIZES[split], WILD if wild else CALM
        super().__init__(
            "demo:wild" if wild else "demo",
            split,
            About(np.arange(self._size, dtype=np.int64) % len(CLASS_NAMES), CLASS_NAMES),
        )

    def __len__(self) -> int:
        return self._size

    def load(self, index: int, min_side: int | None = None) -> Image.Image:
        return self._draw(index).picture

    def examine(self, index: int, min_side: int | None = None) -> Examined:
        picture = self.load(index)
        digest = hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
        return Examined(picture, picture.width, picture.height, picture.mode, "drawn", False, digest)

    def has_mask(self, index: int) -> bool:
        return True

    def masks(self, index: int) -> Masks:
        """Draw an image again for where its bird and its class-telling parts are; a pixel counts when any of it is."""
        return Masks(*self._draw(index)[1:])

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.source}/{_VERSION}/{self.seed}/{self.split}/{self._size}".encode()).hexdigest()

    def _draw(self, index: int) -> Drawing:
        if not 0 <= index < self._size:
            raise IndexError(f"{self.identifier(index)} is outside 0..{self._size - 1}")
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, SPLITS.index(self.split), index]))
        return paint(draw_nuisance(rng, self._ground), CLASS_TRAITS[index % len(CLASS_TRAITS)], self._ground)
