"""Who is like whom in a teacher's features of the training pictures, for a student to learn or a start to keep.

SEED (Fang et al., ICLR 2021, section 3.2) with a fixed bank of pictures in place of a queue: the pictures that a view
is similar to are a distribution, and the student's is to be the teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.errors import FgsslError

BANK = 4096  # pictures that similarities are to
TEMPERATURE = 0.1  # of the teacher's and of the student's


class RelationLoss(NamedTuple):
    """Of one step."""

    loss: Tensor  # scalar, mean over views and pictures
    similarity: Tensor  # scalar, detached: mean cosine of a view and its picture's target


class Relations(nn.Module):
    """A teacher's targets, and how far a student's similarities to a bank of them are from the teacher's own.

    Args:
        targets: (M, D), of the pictures by their position in the split, l2-normalised; zeros where there is none, and
            such a picture gives no loss.
        teacher: Hex identity of what made them: a state saved with another teacher's is refused.
        seed: Of the bank, at most `BANK` of the targets.
        whitening: What the student's features go through first, a constant.
    """

    targets: Tensor
    bank: Tensor
    weight: Tensor | None  # of the whitening
    bias: Tensor | None

    def __init__(self, targets: Tensor, *, teacher: str, seed: int, whitening: nn.Linear | None = None) -> None:
        super().__init__()
        self.teacher = teacher
        known = targets.any(1).nonzero()[:, 0]
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
        # made again by every run: a saved state need not hold them
        self.register_buffer("targets", targets, persistent=False)
        self.register_buffer("bank", targets[known[order[:BANK]]].float(), persistent=False)
        for name in ("weight", "bias"):
            value = None if whitening is None else getattr(whitening, name).detach()
            self.register_buffer(name, value, persistent=False)

    def forward(self, views: Sequence[Tensor], index: Tensor) -> RelationLoss:
        """Features of several views, each (N, D) of any length, of the pictures at positions `index` (N,)."""
        with torch.autocast(index.device.type, enabled=False):  # similarities near 1 need their precision
            target = self.targets[index].float()  # (N, D)
            known, wanted = target.any(1), torch.softmax(target @ self.bank.T / TEMPERATURE, 1)  # (N,), (N, B)
            students = [functional.normalize(self._whitened(view.float()), dim=1) for view in views]
            found = (torch.log_softmax(student @ self.bank.T / TEMPERATURE, 1) for student in students)
            losses = torch.stack([-(wanted * log_share).sum(1) * known for log_share in found])  # (V, N)
            similarity = torch.stack([(student.detach() * target).sum(1) for student in students])
        return RelationLoss(losses.mean(), similarity.mean())

    def _whitened(self, features: Tensor) -> Tensor:
        return features if self.weight is None else functional.linear(features, self.weight, self.bias)

    def get_extra_state(self) -> Tensor:
        """The teacher's identity, in bytes."""
        return torch.tensor(list(bytes.fromhex(self.teacher)), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Raises FgsslError where a state was saved with another teacher."""
        if bytes(state.tolist()).hex() != self.teacher:
            problem = "the teacher, or the start that the run is anchored to, has other weights than when it began"
            raise FgsslError(problem, "put those back, or start a new run")
