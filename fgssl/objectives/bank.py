"""The newest features of every training picture, and batches made of neighbours that are found among them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.backbones import Backbone, GivenMap
from fgssl.config.defaults import Draft, RunFacts
from fgssl.config.schema import ObjectiveConfig, Range, filled, knob
from fgssl.objectives.base import Objective, is_distributed

CHUNK = 256  # queries whose similarities to all pictures are held at once


@dataclass(frozen=True)
class BankConfig(ObjectiveConfig):
    """Settings of objectives with a bank."""

    group_size: int = knob(5, "a picture and its nearest, which come together; 1: random batches", Range(1, 1000))
    bank_size: int | None = knob(None, "training pictures, whose features are kept (filled in)", Range(1, 10**9))


class NeighbourBank(Objective):
    """An objective whose epochs come in groups of neighbours; the first in random order, as nothing is known yet.

    Each picture still comes once an epoch. In the code of Kim et al. (2022) queries are drawn for each batch, and a
    picture that many have for a neighbour comes often; once means that no picture goes unseen, and that the views of an
    epoch and the maps of a frozen backbone are those of any objective.
    """

    arranges = True
    bank: Tensor
    arranged: Tensor
    arranged_epoch: Tensor

    @classmethod
    def derive(cls, draft: Draft, run: RunFacts) -> None:
        """A place in the bank for each picture."""
        draft.decide("objective.bank_size", run.images, "the training split")
        super().derive(draft, run)

    def __init__(self, backbone: Backbone | GivenMap, config: ObjectiveConfig) -> None:
        super().__init__(backbone, config)
        assert isinstance(config, BankConfig)
        size, self.group_size = filled(config.bank_size), config.group_size
        # zeros: not seen yet; half precision tells neighbours apart and halves the saved state
        self.register_buffer("bank", torch.zeros(size, filled(config.projector_dim), dtype=torch.float16))
        self.register_buffer("arranged", torch.full((size,), -1))  # the epoch's order, for a run that is resumed in it
        self.register_buffer("arranged_epoch", torch.tensor(-1))

    @torch.no_grad()
    def arrange(self, pictures: Tensor, epoch: int) -> Tensor:
        """In groups of neighbours, by the bank as it is when the epoch begins."""
        order, given = self.arranged[: len(pictures)], pictures.to(self.bank.device)
        if int(self.arranged_epoch) != epoch or not torch.equal(order.sort().values, given.sort().values):
            found = neighbour_order(self.bank, given, size=self.group_size, seed=epoch)
            if is_distributed():  # processes on different machines may round differently
                torch.distributed.broadcast(found, 0)
            order.copy_(found)
            self.arranged_epoch.fill_(epoch)
        return order

    @torch.no_grad()
    def remember(self, features: Tensor, index: Tensor) -> None:
        """Keep l2-normalised features (N, D) of the pictures `index` (N,), equal on all processes."""
        # a picture may stand in for an unreadable one: of its places one counts, and always the same
        places = torch.where(index[:, None] == index, torch.arange(len(index), device=index.device), -1).amax(1)
        self.bank.index_copy_(0, index, features[places].to(self.bank.dtype))

    def sample_keys(self, count: int) -> Tensor:
        """Of pictures that lie evenly over those that were seen."""
        seen = self.bank.any(1).nonzero()[:, 0]
        rows = torch.linspace(0, max(0, len(seen) - 1), min(count, len(seen)), device=seen.device).round().long()
        return functional.normalize(self.bank[seen[rows]].float(), dim=1)


def neighbour_order(bank: Tensor, pictures: Tensor, *, size: int, seed: int) -> Tensor:
    """Positions (M,) in groups of `size` neighbours, by their rows of a bank (P, D), l2-normalised or zero if unseen.

    In the order given each picture that is still free takes its `size` - 1 nearest that are free, too; the groups are
    shuffled, as late ones hold what others left. An unseen picture is a group of its own.
    """
    features = bank[pictures].float()  # (M, D)
    free = features.any(1).cpu()
    if size == 1 or not free.any():
        return pictures
    groups = [[place] for place in (~free).nonzero()[:, 0].tolist()]
    waiting = free.nonzero()[:, 0]
    while len(waiting):
        queries = waiting[:CHUNK]
        for query, similarity in zip(queries.tolist(), (features[queries] @ features.T).cpu(), strict=True):
            if free[query]:
                free[query] = False
                others = min(size - 1, int(free.sum()))
                nearest = similarity.masked_fill(~free, -torch.inf).topk(others).indices
                free[nearest] = False
                groups.append([query, *nearest.tolist()])
        waiting = waiting[free[waiting]]
    shuffled = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    return pictures[[place for number in shuffled for place in groups[number]]]
