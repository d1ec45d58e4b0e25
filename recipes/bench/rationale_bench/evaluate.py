"""An encoder judged: retrieval and probe by every pooling, and every map against the demo's masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fgssl.config.schema import RationaleConfig
from fgssl.data.cache.build import open_pixels
from fgssl.data.images import ImageSet
from fgssl.encoder import Encoder
from fgssl.evaluation.embed import evaluation_view, image_batches
from fgssl.evaluation.metrics import energy_inside, entropy_relative_to_uniform, pointing_hit
from fgssl.rationale import RationaleHead
from fgssl.runtime.reporting import Reporter
from rationale_bench.controls import (
    GEM,
    BranchMap,
    LossGradCam,
    MapOf,
    centre_prior,
    feature_norm,
    pool_by,
    random_branch,
    uniform,
)
from rationale_bench.grid import pooling_config
from rationale_bench.judging import pooling_row
from rationale_bench.slices import Slice
from rationale_bench.zooms import zoom_rows

BATCH = 64


class Judged(NamedTuple):
    """How to evaluate.

    Attributes:
        probe: Fit a linear probe for "main" poolings (gap, centre prior, each branch as trained and its concat),
            "all", or "none".
        masks: Images that maps are compared with masks on.
    """

    probe: str = "main"
    masks: int = 200


class Pooled(NamedTuple):
    """One way to embed: a map (None: no weights), how its places are pooled, and whether gap stands beside it."""

    branch: str
    pooling: str
    weights: MapOf | None
    config: RationaleConfig | None
    concat: bool
    main: bool


def judge_encoder(
    encoder: Encoder,
    branches: dict[str, RationaleHead],
    slice_: Slice,
    *,
    poolings: dict[str, tuple[str, ...]],
    seed: int,
    judged: Judged,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """Flat rows, of kind "pooling" (percent) and "map".

    Args:
        encoder: In eval mode.
        branches: Further branches by name, beside the encoder's own.
        slice_: Gallery, queries, masks.
        poolings: Further ways to pool with each branch.
        seed: Of the random branch.
        judged: What to compute.
        reporter: Told of progress.
    """
    maps = _control_maps(encoder, slice_, seed)
    heads = branches if encoder.rationale is None else {"": encoder.rationale, **branches}
    ways = [
        Pooled("", "gap", None, None, False, True),
        Pooled("", "GeM", None, GEM, False, False),
        Pooled("", "concat GeM", None, GEM, True, True),
    ]
    for name, map_of in maps.items():
        if name != "uniform":
            ways.append(Pooled("", name, map_of, None, False, name == "centre prior"))
            ways.append(Pooled("", f"concat {name} GeM", map_of, GEM, True, name == "centre prior"))
    named = {("", name): map_of for name, map_of in maps.items()}
    for branch, head in heads.items():
        for pooling, sets in {"rationale": (), **poolings}.items():
            config = pooling_config(head.config, sets)
            map_of, main = BranchMap(head), pooling == "rationale"
            named[branch, pooling] = map_of
            ways.append(Pooled(branch, pooling, map_of, config, False, main))
            ways.append(Pooled(branch, f"concat {pooling}" if not main else "concat", map_of, config, True, main))
    rows = _pooling_rows(encoder, ways, slice_, judged, reporter)
    rows += zoom_rows(encoder, slice_, probe=judged.probe != "none", reporter=reporter)
    return rows + _map_rows(encoder, named, slice_, judged)


def _control_maps(encoder: Encoder, slice_: Slice, seed: int) -> dict[str, MapOf]:
    maps: dict[str, MapOf] = {"uniform": uniform, "centre prior": centre_prior, "feature norm": feature_norm}
    _, _, example = next(_feature_maps(encoder, slice_.gallery))
    maps["random branch"] = BranchMap(random_branch(encoder.backbone.channels, example, seed))
    if encoder.keys is not None and len(encoder.keys):
        maps |= {f"GradCAM {sign}": LossGradCam(encoder, sign) for sign in ("raise", "lower")}
    return maps


@torch.no_grad()
def _feature_maps(encoder: Encoder, images: ImageSet) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Places in the split, images (N, 3, S, S) and feature maps (N, C, H, W), batch by batch."""
    pixels = open_pixels(images, evaluation_view(encoder), cache="auto", workers=0)
    for batch in image_batches(pixels, BATCH):
        shown = batch.images.to(encoder.device)
        yield batch.index, shown, encoder.backbone(encoder.normalize(shown))


def _embedded(
    encoder: Encoder, ways: list[Pooled], images: ImageSet, progress: Callable[[int, int], None]
) -> tuple[list[Tensor], Tensor]:
    """Features of each way, and labels."""
    features: list[list[Tensor]] = [[] for _ in ways]
    kept: list[np.ndarray] = []
    for index, shown, feature_map in _feature_maps(encoder, images):
        weights: dict[int, Tensor] = {}  # of a map used twice, once
        gap = pool_by(feature_map, None)
        for place, way in enumerate(ways):
            if way.weights is not None and id(way.weights) not in weights:
                weights[id(way.weights)] = way.weights(feature_map, shown).detach()
            chosen = None if way.weights is None else weights[id(way.weights)]
            with torch.no_grad():
                pooled = pool_by(feature_map, chosen, way.config)
            features[place].append((torch.cat([gap, pooled], 1) / 2**0.5 if way.concat else pooled).cpu())
        kept.append(index)
        progress(sum(map(len, kept)), len(images))
    assert images.labels is not None
    return [torch.cat(parts) for parts in features], torch.from_numpy(images.labels[np.concatenate(kept)])


def _pooling_rows(
    encoder: Encoder, ways: list[Pooled], slice_: Slice, judged: Judged, reporter: Reporter
) -> list[dict[str, Any]]:
    gallery, gallery_labels = _embedded(
        encoder, ways, slice_.gallery, lambda done, total: reporter.progress("gallery", done, total)
    )
    queries, labels = _embedded(
        encoder, ways, slice_.queries, lambda done, total: reporter.progress("queries", done, total)
    )
    rows = []
    for number, (way, searched, asked) in enumerate(zip(ways, gallery, queries, strict=True)):
        probe = judged.probe == "all" or (judged.probe == "main" and way.main)
        rows.append(pooling_row(way.branch, way.pooling, searched, gallery_labels, asked, labels, probe=probe))
        reporter.progress("judging", number + 1, len(ways))
    return rows


def _map_rows(
    encoder: Encoder, named: dict[tuple[str, str], MapOf], slice_: Slice, judged: Judged
) -> list[dict[str, Any]]:
    """Share of each map's energy inside the masks relative to the uniform map's, pointing game, entropy."""
    if slice_.masks is None or judged.masks < 1:
        return []
    found: dict[tuple[str, str], list[Tensor]] = {key: [] for key in named}
    seen = 0
    for index, shown, feature_map in _feature_maps(encoder, slice_.queries):
        take = min(len(index), judged.masks - seen)
        if take < 1:
            break
        masks = _masks(encoder, slice_, index[:take])
        for key, map_of in named.items():
            maps = map_of(feature_map[:take], shown[:take]).detach().cpu()
            columns = [score(maps, mask) for mask in masks for score in (energy_inside, pointing_hit)]
            found[key].append(torch.stack([*columns, entropy_relative_to_uniform(maps)], 1))
        seen += take
    names = ("object_energy", "object_pointing", "parts_energy", "parts_pointing", "entropy")
    means = {key: dict(zip(names, torch.cat(rows).mean(0).tolist(), strict=True)) for key, rows in found.items()}
    flat = means["", "uniform"]  # its energy inside a mask is the mask's area
    rows = []
    for (branch, name), values in means.items():
        ratios = {f"{mask}_ratio": values[f"{mask}_energy"] / flat[f"{mask}_energy"] for mask in ("object", "parts")}
        rows.append({"kind": "map", "branch": branch, "map": name, **ratios, **values})
    return rows


def _masks(encoder: Encoder, slice_: Slice, index: np.ndarray) -> tuple[Tensor, Tensor]:
    """Object and parts of the queries as the encoder sees them: two of (N, S, S) boolean."""
    assert slice_.masks is not None
    view = evaluation_view(encoder)._replace(interpolation="nearest")

    def seen(mask: np.ndarray) -> np.ndarray:
        return np.asarray(view(Image.fromarray(mask.astype(np.uint8) * 255))) > 127

    pairs = [slice_.masks(int(place)) for place in index]
    both = (np.stack([seen(pair[kind]) for pair in pairs]) for kind in (0, 1))
    return tuple(torch.from_numpy(stacked) for stacked in both)  # type: ignore[return-value]
