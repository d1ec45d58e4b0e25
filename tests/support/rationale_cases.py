"""Small feature maps, GradCAM maps, settings and branches that the tests of the rationale share."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.config.resolve import load_config
from fgssl.config.schema import RationaleConfig
from fgssl.rationale import RationaleHead, pool_places

N, C, H, W = 3, 5, 4, 6


def rationale(**changes) -> RationaleConfig:
    return dataclasses.replace(RationaleConfig(projections=7), **changes)


def preset(name: str) -> RationaleConfig:
    sets = [f"rationale.preset={name}", "rationale.projections=7"]
    return load_config(sets=sets).config.rationale


def attention_pool(feature_map: Tensor, attention: Tensor | None = None, *, pool: str = "mean") -> Tensor:
    return functional.normalize(pool_places(feature_map, attention, pool=pool), dim=1)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cams(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """(N, H, W) maps as GradCAM gives them: not negative, about half zero, the last one all zero."""
    maps = randn(N, H, W, seed=seed, dtype=dtype).relu()
    maps[-1] = 0
    return maps


def trained_head(config: RationaleConfig) -> RationaleHead:
    """A branch with statistics of its own, in eval mode."""
    torch.manual_seed(1)
    head = RationaleHead(C, config)
    for seed in range(5):
        head(randn(8, C, H, W, seed=seed) * 2 + 0.3)
    return head.eval()
