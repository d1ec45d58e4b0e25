"""What encoders are compared by where nothing is labelled: two random views of some pictures, the same for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fgssl.config.schema import DataConfig, ViewsConfig
from fgssl.data.cache.pixels import PixelStore, Shrunk
from fgssl.data.feed import ViewDataset, view_pairs
from fgssl.data.images import ImageSet, Subset
from fgssl.encoder import Encoder, Pool
from fgssl.errors import FgsslError
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.metrics import VIEW_IMAGES, view_features
from fgssl.evaluation.subject import Subject, open_split

WORDS = "two random views of each, signals without labels"


class TwoViews(NamedTuple):
    """Pictures spread evenly over a split, and how views of them are drawn; in a comparison's place of two splits."""

    images: ImageSet
    views: ViewsConfig
    protocol: str

    @property
    def train(self) -> ImageSet:
        return self.images

    @property
    def test(self) -> ImageSet:
        return self.images

    def embed(self, subject: Subject, pools: Sequence[Pool]) -> list[tuple[str | None, Embeddings, Embeddings]]:
        """Each pooling with the embeddings of the first and of the second views; what cannot be read is left out."""
        return [(pool, *self._sides(subject.encoder, pool, subject.batch_size)) for pool in pools]

    def _sides(self, encoder: Encoder, pool: Pool, batch_size: int) -> tuple[Embeddings, Embeddings]:
        size = encoder.view_size(pool)
        pixels = PixelStore(self.images, Shrunk(round(1.3 * size)))  # decoded as they are met: they are few
        pairs = view_pairs(ViewDataset(pixels, self.views, size=size, seed=0), len(self.images))
        if pairs.shape[1] < 2:
            raise FgsslError(f"fewer than two pictures of {self.images.source} can be read", "replace the others")
        first, second = (
            Embeddings(torch.nn.functional.normalize(side, dim=1), None, (), None, np.arange(len(side)), ())
            for side in view_features(encoder, pairs, pool=pool, batch_size=batch_size)
        )
        return first, second


def two_views(data: DataConfig, split: str | None, encoder: Encoder | None) -> TwoViews | None:
    """Of a split, as the first encoder's training (else MoCo v2) draws them; None where it has labels."""
    images = open_split(data, split, "test")
    if images.labels is not None:
        return None
    count = min(VIEW_IMAGES, len(images))
    chosen = Subset(images, np.unique(np.linspace(0, len(images) - 1, count).round().astype(np.int64)))
    drawn = ViewsConfig() if encoder is None or encoder.config is None else encoder.config.views
    return TwoViews(chosen, drawn, f"{len(chosen)} images of {images.split}, {WORDS} ({images.unlabelled or 'none'})")
