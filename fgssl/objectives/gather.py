"""Tensors of all processes of a run, in the order that the images have in the global batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_distributed() -> bool:
    """Whether there are other processes to talk to."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather(tensor: Tensor) -> Tensor:
    """A (N, ...) tensor of every process, without gradient: (world * N, ...)."""
    if not is_distributed():
        return tensor
    shares = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(shares, tensor.detach().contiguous())
    return _interleaved(shares)


def process_mean(tensor: Tensor) -> Tensor:
    """The mean over the processes."""
    return gather(tensor[None]).mean(0) if is_distributed() else tensor


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """As `gather`, with the gradient of every process's loss, summed: averaged, it is that of their mean loss."""
    if not is_distributed():
        return tensor
    from torch.distributed.nn.functional import all_gather  # not in builds of torch without processes

    return _interleaved(all_gather(tensor.contiguous()))  # type: ignore[no-untyped-call]


def _interleaved(shares: Sequence[Tensor]) -> Tensor:
    """Processes take every world-th image (`StepSampler`)."""
    return torch.stack(list(shares), 1).flatten(0, 1)
