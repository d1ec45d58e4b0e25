"""BatchNorm's running statistics: what processes hold apart, and what a forward computed again must not change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

NORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def norm_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Running statistics, on the CPU: what differs between processes that see different images."""
    return {name: value.cpu() for name, value in model.named_buffers() if name.endswith(NORM_BUFFERS)}


@contextlib.contextmanager
def kept_statistics(model: torch.nn.Module) -> Iterator[None]:
    """Running statistics as they were before the block: a forward computed again would count its images twice."""
    kept = [(value, value.clone()) for name, value in model.named_buffers() if name.endswith(NORM_BUFFERS)]
    yield
    for value, before in kept:
        value.copy_(before)
