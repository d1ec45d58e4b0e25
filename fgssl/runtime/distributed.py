"""Several processes, started by torchrun or accelerate, embed a split together: each its share, all get the whole."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch.distributed

Part = TypeVar("Part")


class Share(NamedTuple):
    """This process among those that work together."""

    rank: int  # from 0
    world: int

    def part(self, count: int) -> range:
        """This process's rows of `count`: the parts of all processes, one after another, are all rows in order."""
        return range(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def gather(self, part: Part) -> list[Part]:
        """The parts of all processes in their order, in every process."""
        parts: list[Part | None] = [None] * self.world
        torch.distributed.all_gather_object(parts, part)
        return parts  # type: ignore[return-value]

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process goes through the block before the others, who then find what it has made."""
        if self.rank > 0:
            torch.distributed.barrier()
        yield
        if self.rank == 0:
            torch.distributed.barrier()


@functools.cache
def launched_share() -> Share | None:
    """This process's share where a launcher started several, which are then connected; None alone or in training."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return None
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")  # features travel on the CPU
    return Share(torch.distributed.get_rank(), world)
