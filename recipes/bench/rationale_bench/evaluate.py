"""An encoder judged: retrieval and probe by every pooling, and every map against the demo's masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fgssl.config.schema import RationaleConfig
from fgssl.data.cache.pixels import open_pixels
from fgssl.data.images import ImageSet
from fgssl.encoder import Encoder, Pool
from fgssl.evaluation.controls import seen_masks
from fgssl.evaluation.embed import image_batches
from fgssl.evaluation.map_scores import energy_inside, entropy_relative_to_uniform, pointing_hit
from fgssl.evaluation.maps import MapOf, control_maps
from fgssl.evaluation.probing.classifiers import Sets, linear_probe
from fgssl.evaluation.retrieval.metrics import evaluate_retrieval
from fgssl.rationale import window_share
from fgssl.runtime.reporting import Reporter
from rationale_bench.controls import GEM, looks, loss_gradcams, pool_by
from rationale_bench.grid import Slice, pooling_config

BATCH = 64


class Judged(NamedTuple):
    """How to evaluate."""

    probe: str = "main"  # a linear probe for "main" poolings (those of `Pooled.main`), "all", or "none"
    masks: int = 200  # images that maps are compared with masks on


class Pooled(NamedTuple):
    """One way to embed: a map (None: no weights), how its places are pooled, and whether gap stands beside it."""

    pooling: str
    weights: MapOf | None
    config: RationaleConfig | None
    concat: bool
    main: bool


Describe = Callable[[Tensor], dict[str, Tensor]]  # images (N, 3, S, S) uint8 -> features by name, (N, D) each


def judge_encoder(
    encoder: Encoder,
    slice_: Slice,
    *,
    poolings: dict[str, tuple[str, ...]],
    seed: int,
    judged: Judged,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """Flat rows, of kind "pooling" (percent) and "map", of an encoder in eval mode; the seed is the random branch's."""
    maps = _control_maps(encoder, slice_, seed)
    ways = [
        Pooled("gap", None, None, False, True),
        Pooled("GeM", None, GEM, False, False),
        Pooled("concat GeM", None, GEM, True, True),
    ]
    for name, map_of in maps.items():
        if name != "uniform":
            ways.append(Pooled(name, map_of, None, False, name == "centre prior"))
            ways.append(Pooled(f"concat {name} GeM", map_of, GEM, True, name == "centre prior"))
    if encoder.rationale is not None:
        maps["rationale"] = lambda feature_map, images: encoder.attention(feature_map)
        for pooling, sets in {"rationale": (), **poolings}.items():
            config, main = pooling_config(encoder.rationale.config, sets), pooling == "rationale"
            ways.append(Pooled(pooling, maps["rationale"], config, False, main))
            ways.append(Pooled("concat" if main else f"concat {pooling}", maps["rationale"], config, True, main))
    probed = {way.pooling for way in ways if judged.probe == "all" or (judged.probe == "main" and way.main)}
    rows = _pooling_rows(encoder, lambda images: _pooled(encoder, ways, images), slice_, "gap", probed, reporter)
    if encoder.config is None or window_share(encoder.config.views) < 1:  # else a window is the whole picture
        probed = set() if judged.probe == "none" else {"zoom", "gap + middle window"}
        rows += _pooling_rows(encoder, lambda images: looks(encoder, images), slice_, "zoom", probed, reporter)
    return rows + _map_rows(encoder, maps, slice_, judged)


def _control_maps(encoder: Encoder, slice_: Slice, seed: int) -> dict[str, MapOf]:
    pixels = open_pixels(slice_.gallery, encoder.view(), cache="auto", workers=0)
    first = next(iter(image_batches(pixels, BATCH))).images.to(encoder.device)
    return control_maps(encoder, first, seed=seed) | loss_gradcams(encoder)


def _pooled(encoder: Encoder, ways: list[Pooled], images: Tensor) -> dict[str, Tensor]:
    """Features of each way."""
    feature_map = encoder.backbone(encoder.normalize(images))
    gap, weights, found = pool_by(feature_map, None), dict[int, Tensor](), dict[str, Tensor]()
    for way in ways:
        if way.weights is not None and id(way.weights) not in weights:  # a map used twice is computed once
            weights[id(way.weights)] = way.weights(feature_map, images).detach()
        chosen = None if way.weights is None else weights[id(way.weights)]
        pooled = pool_by(feature_map, chosen, way.config)
        found[way.pooling] = torch.cat([gap, pooled], 1) / 2**0.5 if way.concat else pooled
    return found


@torch.no_grad()
def _embedded(
    encoder: Encoder, describe: Describe, images: ImageSet, pool: Pool, progress: Callable[[int, int], None]
) -> tuple[dict[str, Tensor], Tensor]:
    """Features by name, and labels."""
    parts: dict[str, list[Tensor]] = {}
    kept: list[np.ndarray] = []
    for batch in image_batches(open_pixels(images, encoder.view(pool), cache="auto", workers=0), BATCH):
        for name, features in describe(batch.images.to(encoder.device)).items():
            parts.setdefault(name, []).append(features.float().cpu())
        kept.append(batch.index)
        progress(sum(map(len, kept)), len(images))
    assert images.labels is not None
    labels = torch.from_numpy(images.labels[np.concatenate(kept)])
    return {name: torch.cat(features) for name, features in parts.items()}, labels


def _pooling_rows(
    encoder: Encoder, describe: Describe, slice_: Slice, pool: Pool, probed: set[str], reporter: Reporter
) -> list[dict[str, Any]]:
    """Retrieval across and within, and where asked a linear probe, in percent."""
    (gallery, gallery_labels), (queries, labels) = (
        _embedded(encoder, describe, images, pool, partial(reporter.progress, f"{name}, {pool}"))
        for name, images in (("gallery", slice_.gallery), ("queries", slice_.queries))
    )
    rows = []
    for name, asked in queries.items():
        across = evaluate_retrieval(asked, labels, gallery=gallery[name], gallery_labels=gallery_labels).to_dict()
        alone = evaluate_retrieval(asked, labels).to_dict()
        row: dict[str, Any] = {"kind": "pooling", "pooling": name, "rank1": across["rank1"], "mAP": across["mAP"]}
        row |= {"loo_rank1": alone["rank1"], "loo_mAP": alone["mAP"]}
        if name in probed:
            row["probe"] = linear_probe(Sets(gallery[name], gallery_labels, asked, labels)).top1
        rows.append(row)
    return rows


@torch.no_grad()
def _map_rows(encoder: Encoder, maps: dict[str, MapOf], slice_: Slice, judged: Judged) -> list[dict[str, Any]]:
    """Share of each map's energy inside the masks relative to the uniform map's, pointing game, entropy."""
    if slice_.masks is None or judged.masks < 1:
        return []
    found: dict[str, list[Tensor]] = {name: [] for name in maps}
    view = encoder.view()
    pixels = open_pixels(slice_.queries, view, cache="auto", workers=0)
    for batch in image_batches(pixels, BATCH, rows=[range(min(judged.masks, len(slice_.queries)))]):
        images = batch.images.to(encoder.device)
        feature_map = encoder.backbone(encoder.normalize(images))
        known = {row: mask for row, place in enumerate(batch.index) if (mask := slice_.masks(int(place))) is not None}
        if not known:
            continue
        rows = list(known)
        masks = [
            torch.from_numpy(np.stack(each))
            for each in zip(*(seen_masks(mask, view, view.size) for mask in known.values()), strict=True)
        ]
        for name, map_of in maps.items():
            drawn = map_of(feature_map, images).detach().cpu()[rows]
            columns = [score(drawn, mask) for mask in masks for score in (energy_inside, pointing_hit)]
            found[name].append(torch.stack([*columns, entropy_relative_to_uniform(drawn)], 1))
    layers = ("object", "parts")[: len(masks)]
    names = (*(f"{layer}_{score}" for layer in layers for score in ("energy", "pointing")), "entropy")
    means = {name: dict(zip(names, torch.cat(rows).mean(0).tolist(), strict=True)) for name, rows in found.items()}
    flat = means["uniform"]  # its energy inside a mask is the mask's area
    rows = []
    for name, values in means.items():
        ratios = {f"{mask}_ratio": values[f"{mask}_energy"] / flat[f"{mask}_energy"] for mask in layers}
        rows.append({"kind": "map", "map": name, **ratios, **values})
    return rows
