"""The encoder that is saved and evaluated: a backbone, and with it the rationale and what GradCAM needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional

from fgssl.backbones import Backbone, bring_finer, finer_maps
from fgssl.config.schema import PretrainConfig, ViewsConfig
from fgssl.errors import FgsslError
from fgssl.objectives import OBJECTIVES
from fgssl.objectives.base import project
from fgssl.rationale import (
    LEAST_SHARE,
    Colocalizer,
    Peaks,
    RationaleHead,
    attention_map,
    cut_windows,
    find_peaks,
    fullest_windows,
    gradcam,
    look_again,
    part_features,
    pool_places,
    pool_stages,
    window_centres,
    window_share,
)
from fgssl.views import EvaluationView

Pool = Literal[
    "gap", "rationale", "concat", "zoom", "cls", "parts", "zoom:again", "zoom:middle", "zoom:random", "zoom:mask"
]
MAP_POOLS: tuple[Pool, ...] = ("gap", "rationale", "concat")  # of one feature map
# what a window has to beat, and what it can reach: zoom in the middle, anywhere, and told where the object is
CONTROLS: tuple[Pool, ...] = ("zoom:middle", "zoom:random", "zoom:mask")
# which take larger pictures, and look at them again
LOOKS: tuple[Pool, ...] = ("zoom", "parts", "zoom:again", *CONTROLS)
SIZED: tuple[Pool, ...] = ("parts", "zoom:again", "zoom:mask")  # whose windows have sizes of their own
POOLS: tuple[Pool, ...] = (*MAP_POOLS, "zoom", "cls", "parts", "zoom:again", *CONTROLS)
WINDOW_WEIGHT = 0.5  # in zoom, of whitened features, unless fitted: they know of the whole what plain ones do not
RATIONALE_WEIGHT = 0.5  # of its part in zoom: keeps what it adds on drawn birds, not what it costs on photographs


class Encoder(nn.Module):
    """Images to embeddings and maps; nothing of the training loop.

    The objective's projector, its predictor and `keys`, (M, D) l2-normalised projections of training images, are for
    GradCAM alone. Without a config it was not trained by fgssl.
    """

    keys: Tensor | None
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        rationale: RationaleHead | None = None,
        *,
        projector: nn.Module | None = None,
        predictor: nn.Module | None = None,
        keys: Tensor | None = None,
        config: PretrainConfig | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.rationale, self.config = backbone, rationale, config
        self.projector, self.predictor = projector, predictor
        self.whitening: nn.Linear | None = None  # of every feature pooled from the maps, before it is normalised
        self.stages = 1  # of how many of the backbone's last stages the maps are pooled
        # of the window in zoom: where it is, its own whitening and its weight beside the whole picture's 1
        self.colocalizer: Colocalizer | None = None
        self.window_whitening: nn.Linear | None = None
        self.window_weight: float | None = None
        self.register_buffer("keys", keys)
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) levels 0 to 255, uint8 or float32, to the floats the backbone expects, in its memory format."""
        floats = torch.sub(images, 255 * self.mean).div_(255 * self.std)  # bytes become floats on the way
        last = self.backbone.channels_last_on(floats.device)
        return floats.contiguous(memory_format=torch.channels_last) if last else floats

    @property
    def device(self) -> torch.device:
        """Where the encoder computes."""
        return self.mean.device

    def default_pool(self) -> Pool:
        """What probe, retrieve and embed use unless told otherwise."""
        return "gap" if self.rationale is None else "zoom"

    def view_size(self, pool: Pool) -> int:
        """Side in pixels of the pictures that a pooling takes: of zoom larger, so that a window has the usual size."""
        if pool not in LOOKS:
            return self.backbone.image_size
        usual = window_share(ViewsConfig() if self.config is None else self.config.views)
        return round(self.backbone.image_size / (LEAST_SHARE if pool in SIZED else usual))

    def zoom_width(self) -> int:
        """Numbers of an embedding by `zoom`: of the whole, of the rationale where it is a part, of the window."""
        return (3 if self.zoom_has_rationale else 2) * self.backbone.pooled_width(self.stages)

    @property
    def zoom_has_rationale(self) -> bool:
        """Where the branch places the window; beside a window fitted to trained weights it adds nothing."""
        return self.rationale is not None and self.colocalizer is None

    @property
    def finder(self) -> Colocalizer | None:
        """What finds the windows on trained weights; None where the branch does, or they stay in the middle."""
        return self.colocalizer if self.colocalizer is not None and self.colocalizer.finds else None

    def attention(self, feature_map: Tensor, branch: RationaleHead | None = None) -> Tensor:
        """The rationale's map: (N, C, H, W) -> (N, H, W), summing to 1; FgsslError where there is none.

        Of the finest map's size where the backbone has finer ones come along (`rationale.stages`). `branch` is another
        than the encoder's own.
        """
        branch = branch or self._branch()
        return attention_map(branch, feature_map, finer_maps(feature_map)[: branch.config.stages - 1])

    def _branch(self) -> RationaleHead:
        if self.rationale is None:
            problem = f"the encoder {self.backbone.name} has no rationale branch to pool with"
            raise FgsslError(problem, "use --pool gap or zoom, or pretrain with --rationale")
        return self.rationale

    def require(self, pool: Pool) -> None:
        """Raises FgsslError, before anything is computed, where the encoder cannot pool this way."""
        if pool in ("rationale", "concat") or (pool in ("parts", "zoom:again") and self.colocalizer is None):
            self._branch()
        if pool == "cls" and not self.backbone.has_class_token:
            problem = f"the encoder {self.backbone.name} has no class token beside its map to pool with"
            raise FgsslError(problem, "use --pool gap")

    def whiten_by(self, layer: nn.Linear, *, stages: int) -> None:
        """Take over a whitening of the features pooled from the last so many stages."""
        self.whitening, self.stages = layer.requires_grad_(False).to(self.device), stages

    def look_by(self, colocalizer: Colocalizer, layer: nn.Linear, *, weight: float) -> None:
        """Take over where zoom looks again, the whitening of what it sees there, and its weight."""
        self.colocalizer = colocalizer.to(self.device)
        self.window_whitening, self.window_weight = layer.requires_grad_(False).to(self.device), weight

    def maps(self, images: Tensor) -> list[Tensor]:
        """(N, 3, S, S) uint8 -> the last map (N, C, H, W), and those of earlier stages that are pooled beside it."""
        images = self.normalize(images)
        return self.backbone.forward_stages(images, self.stages) if self.stages > 1 else [self.backbone(images)]

    def pool(self, maps: Sequence[Tensor], pool: Pool) -> Tensor:
        """`maps` -> (N, D) l2-normalised as `pool_stages` has them; concat: (N, 2D), gap beside rationale, alike."""
        if pool not in MAP_POOLS:
            raise ValueError(f"{pool} takes more than the map: use forward or embeddings")
        parts = [] if pool == "rationale" else [self._finished(pool_stages(maps))]
        if pool != "gap":
            parts.append(self._weighted(maps))
        return torch.cat(parts, 1).div(len(parts) ** 0.5)

    def _weighted(self, maps: Sequence[Tensor]) -> Tensor:
        return self._finished(pool_stages(maps, self.attention(maps[0]), pool=self._branch().config.pool))

    def _finished(self, pooled: Tensor, *, window: bool = False) -> Tensor:
        """(N, D) of any length -> (N, D) whitened, where the encoder is, a window's by its own, and l2-normalised."""
        layer = self.window_whitening if window and self.window_whitening is not None else self.whitening
        return functional.normalize(pooled if layer is None else layer(pooled), dim=1)

    def objective_pool(self, feature_map: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C), for `rationale.train_pool: rationale`: as at test, of any length, map constant."""
        if self.rationale is None:
            return feature_map.mean((2, 3))
        with torch.no_grad(), evaluated(self.rationale):
            attention = self.attention(feature_map)
        return pool_places(feature_map, attention, pool=self.rationale.config.pool).to(feature_map.dtype)

    def projected(self, feature_map: Tensor, predictor: nn.Module | None = None) -> Tensor:
        """(N, C, H, W) -> (N, D) l2-normalised, as the objective projects, and predicts where it does."""
        assert self.projector is not None and self.config is not None
        pooled = self.config.rationale.train_pool == "rationale"
        return project(feature_map, self.projector, self.objective_pool if pooled else None, predictor)

    def view(self, pool: Pool = "gap") -> EvaluationView:
        """The one deterministic view of the encoder's own crop and interpolation, at the size that a pooling takes."""
        return EvaluationView(self.view_size(pool), self.backbone.crop_pct, self.backbone.interpolation)

    def seen(self, pictures: Sequence[Image], pool: Pool = "gap") -> Tensor:
        """The views (N, 3, S, S) uint8 of upright pictures of any size, on the encoder's device."""
        view = self.view(pool)
        views = torch.from_numpy(np.stack([np.asarray(view(picture.convert("RGB"))) for picture in pictures]))
        return views.permute(0, 3, 1, 2).to(self.device)

    def forward(self, images: Tensor | Sequence[Image], pool: Pool = "gap") -> Tensor:
        """Upright pictures, or their views -> (N, D) l2-normalised; concat 2D, zoom 2D or 3D.

        Views are (N, 3, S, S) uint8, S being `view_size(pool)`.
        """
        return self.embeddings(images if isinstance(images, Tensor) else self.seen(images, pool), (pool,))[pool]

    def embeddings(self, images: Tensor, pools: Sequence[Pool], windows: Tensor | None = None) -> dict[Pool, Tensor]:
        """Several poolings of one forward pass; what looks again takes larger pictures and comes alone.

        `windows` (N, 3) tell zoom:random and zoom:mask where: row and column of the middle, and side, in (0, 1).
        """
        if unknown := [pool for pool in pools if pool not in POOLS]:
            raise ValueError(f"pool cannot be {unknown[0]!r}: choose from {', '.join(POOLS)}")
        look = next((pool for pool in pools if pool in LOOKS), None)
        if look is not None:
            if len(set(pools)) > 1:
                raise ValueError(f"{look} takes pictures of another size than {', '.join(pools)}")
            return {look: self._zoomed(images, look, windows)}
        if "cls" not in pools:
            maps = self.maps(images)
            return {pool: self.pool(maps, pool) for pool in pools}
        self.require("cls")
        feature_map, token = self.backbone.forward_with_token(self.normalize(images))
        maps = [feature_map] if self.stages == 1 else self.maps(images)
        whole: dict[Pool, Tensor] = {pool: self.pool(maps, pool) for pool in pools if pool != "cls"}
        return {**whole, "cls": functional.normalize(token.float(), dim=1)}

    def shrunk(self, images: Tensor) -> Tensor:
        """The larger pictures of a look (N, 3, Z, Z), as the whole is seen: (N, 3, S, S) float32 levels."""
        size = self.backbone.image_size
        return functional.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)

    def _zoomed(self, images: Tensor, look: Pool, windows: Tensor | None) -> Tensor:
        if images.shape[-1] != self.view_size(look):
            raise ValueError(f"{look} takes pictures of {self.view_size(look)} pixels, not {images.shape[-1]}")
        if windows is None:
            _refuse_told(look)
        return self.zoomed(images, self.maps(self.shrunk(images)), look, windows)

    def zoomed(
        self, images: Tensor, maps: Sequence[Tensor], look: Pool = "zoom", windows: Tensor | None = None
    ) -> Tensor:
        """(N, 3, Z, Z) uint8 -> gap of the whole, whose maps are given, and of its window: (N, 2D or 3D) l2-normalised.

        With its rationale at half weight where `zoom_has_rationale`; `windows` as in `embeddings`.
        """
        parts = [self._finished(pool_stages(maps))]
        if self.zoom_has_rationale:
            parts.append(RATIONALE_WEIGHT * self._weighted(maps))
        parts.append(self.look_weight * self._look(images, maps[0], look, windows))
        return functional.normalize(torch.cat(parts, 1), dim=1)

    @property
    def look_weight(self) -> float:
        """What the window weighs in zoom, beside the whole picture's 1."""
        usual = 1.0 if self.whitening is None else WINDOW_WEIGHT
        return usual if self.window_weight is None else self.window_weight

    def _look(self, images: Tensor, feature_map: Tensor, look: Pool, windows: Tensor | None) -> Tensor:
        """gap of what a look sees in (N, 3, Z, Z), whose whole has this feature map: (N, D) l2-normalised."""
        if windows is not None:
            return self._seen_in(images, windows)
        if look not in SIZED:  # plainly, as a graph is made of it
            return self._seen_at(images, self._look_centres(feature_map, look))
        features = self.look_features(images, self.look_windows(images, feature_map, look), look)
        return functional.normalize(features.sum(1), dim=1) if look == "parts" else features[:, 0]

    def look_windows(self, images: Tensor, feature_map: Tensor, look: Pool) -> Peaks:
        """Where a look sees (N, 3, Z, Z), whose whole has this feature map, again; FgsslError as `require`."""
        _refuse_told(look)
        if look == "parts":
            return find_peaks(self._looked_through(feature_map), self._usual(self.window_centres(feature_map)))
        windows = self._usual(self._look_centres(feature_map, look))
        if look == "zoom:again":
            attend = lambda images, windows: self._looked_through(self._maps_in(images, windows)[0])  # noqa: E731
            windows = look_again(attend, images, windows)
        return Peaks(windows[:, None], torch.ones_like(windows[:, :1], dtype=torch.bool))

    def look_features(self, images: Tensor, peaks: Peaks, look: Pool) -> Tensor:
        """gap of each window of (N, 3, Z, Z) uint8: (N, K, D) l2-normalised, zero where a picture has no such one."""
        if look in SIZED:
            return part_features(self._seen_in, images, peaks)
        return self._seen_at(images, peaks.windows[:, 0, :2])[:, None]

    def _usual(self, centres: Tensor) -> Tensor:
        """The windows (N, 3) of zoom's size around centres (N, 2)."""
        return torch.cat([centres, torch.full_like(centres[:, :1], self._window_side)], 1)

    def _look_centres(self, feature_map: Tensor, look: Pool) -> Tensor:
        centres = self.window_centres(feature_map)
        return torch.full_like(centres, 0.5) if look == "zoom:middle" else centres

    def _seen_at(self, images: Tensor, centres: Tensor) -> Tensor:
        """gap of the window of the usual size around the centres (N, 2), pixel by pixel: (N, D) l2-normalised."""
        cut = cut_windows(images, centres, self.backbone.image_size)
        return self._finished(pool_stages(self.maps(cut)), window=True)

    def _seen_in(self, images: Tensor, windows: Tensor) -> Tensor:
        """gap of a window (N, 3) of each image, resized: (N, D) l2-normalised."""
        return self._finished(pool_stages(self._maps_in(images, windows)), window=True)

    def _maps_in(self, images: Tensor, windows: Tensor) -> list[Tensor]:
        return self.maps(cut_windows(images, windows[:, :2], self.backbone.image_size, sides=windows[:, 2]))

    def window_centres(self, feature_map: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 2) row and column of the middle of the window that `--pool zoom` takes, in (0, 1)."""
        if self.colocalizer is not None:
            return fullest_windows(self.colocalizer(feature_map), self._window_side)
        return window_centres(self._looked_through(feature_map), self._window_side)

    @property
    def _window_side(self) -> float:
        """Of the window of zoom, relative to the view's."""
        return self.backbone.image_size / self.view_size("zoom")

    def _looked_through(self, feature_map: Tensor) -> Tensor:
        """The map by which windows are placed: (N, H, W), not negative, summing to 1; even where nothing is found."""
        if self.colocalizer is not None:
            found = self.colocalizer(feature_map)
            total, even = found.sum((1, 2), keepdim=True), torch.full_like(found, 1 / found[0].numel())
            return torch.where(total > 1e-12, found / total.clamp(min=1e-12), even)
        if self.rationale is None:
            return torch.ones_like(feature_map[:, 0], dtype=torch.float32)
        return self.attention(feature_map)

    def class_attention(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) levels -> (N, H, W), summing to 1: where the class token looks, where the backbone has that."""
        with evaluated(self.backbone):
            return self.backbone.class_attention(self.normalize(images))

    @property
    def has_loss_gradcam(self) -> bool:
        """Whether the encoder holds what GradCAM of its training loss needs."""
        if self.projector is None or self.config is None:
            return False
        return not OBJECTIVES[self.config.objective.name].needs_keys or (self.keys is not None and len(self.keys) > 0)

    def loss_gradcam(self, images: Tensor) -> Tensor:
        """GradCAM of the self-supervised loss for any pictures: (N, 3, S, S) uint8 -> (N, H, W), not negative.

        Of each picture against its mirror image, and the file's keys where the objective contrasts; on its own.
        """
        if not self.has_loss_gradcam:
            problem = f"the encoder {self.backbone.name} holds no projection head and keys"
            raise FgsslError(problem, "GradCAM of the loss needs an encoder trained by fgssl pretrain")
        assert self.config is not None
        objective = self.config.objective
        with torch.no_grad():
            positive = self.projected(self.backbone(self.normalize(images.flip(-1))))
            feature_map = self.backbone(self.normalize(images))
        with torch.enable_grad():
            # only the heads are differentiated
            feature_map = bring_finer(feature_map.detach().requires_grad_(), finer_maps(feature_map))
            anchor = self.projected(feature_map, self.predictor)
            loss = OBJECTIVES[objective.name].picture_loss(anchor, positive, self.keys, objective)
            cam = gradcam(loss, feature_map, sign=self.config.rationale.sign)
        return cam.detach()


def _refuse_told(look: Pool) -> None:
    """Raises FgsslError for a look whose windows are told by a data set."""
    if look in ("zoom:random", "zoom:mask"):
        problem = f"--pool {look} is a control for the images of a data set, and these are other pictures"
        raise FgsslError(problem, "use zoom or zoom:middle")


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Eval mode for the block; afterwards every part has the mode it had, also where they differed."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
