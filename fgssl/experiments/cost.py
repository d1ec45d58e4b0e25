"""How long an experiment takes on this machine, told before it begins: its forward passes at a rate measured here."""

from __future__ import annotations

import time

import torch

from fgssl import backbones
from fgssl.runtime.machine import resolve_device, resolve_precision

SECONDS = 2.0  # of measuring, or as long as one step takes
BATCHES = {"cpu": 4}  # elsewhere 64


def forward_rate(name: str, *, image_size: int | None = None, device: str | None = None) -> float:
    """Pictures a second through a timm model of random weights, a third of the time of forward and backward.

    Views, heads and evaluation come on top: what a run takes is more rather than less. Raises FgsslError as
    `build_backbone` and `resolve_device`.
    """
    where = resolve_device(device)
    backbone = backbones.build_backbone(name, image_size=image_size)
    backbone = backbone.to(where)
    batch = BATCHES.get(where.type, 64)
    pictures = torch.rand(batch, 3, backbone.image_size, backbone.image_size, device=where)
    precision, _ = resolve_precision("auto", where)
    precision = precision if backbone.good_in_bf16 else "no"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def step() -> None:
        with torch.autocast(where.type, dtype=dtype, enabled=dtype is not None):
            loss = backbone(pictures).float().mean()
        loss.backward()
        if where.type == "cuda":
            torch.cuda.synchronize(where)

    start = time.perf_counter()
    step()
    first, start, count = time.perf_counter() - start, time.perf_counter(), 0
    if first > SECONDS and where.type == "cpu":  # a first step elsewhere pays for what is set up once
        return 3 * batch / first
    while count == 0 or time.perf_counter() - start < SECONDS:
        step()
        count += 1
    return 3 * batch * count / (time.perf_counter() - start)
