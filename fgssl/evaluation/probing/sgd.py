"""The linear probe as the field trains it: SGD over features of new random crops in every epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.errors import FgsslError

Batch = tuple[Tensor, Tensor]  # (n, D) features of length 1, (n,) int64 classes


@dataclass(frozen=True)
class SgdRecipe:
    """How the classifier is trained; the defaults are the paper's (section 4.1) and, where it is silent, MoCo's.

    Attributes:
        lr: Learning rate; large, because features of length 1 are small.
        epochs: Passes over the labelled images.
        batch_size: Images a step, the last step of an epoch having fewer.
        momentum: Of SGD.
        drops: Shares of the epochs after which the learning rate falls to a tenth: 60 and 80 of 100.
    """

    lr: float = 30.0
    epochs: int = 100
    batch_size: int = 256
    momentum: float = 0.9
    drops: tuple[float, ...] = (0.6, 0.8)

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, from 0."""
        return self.lr * 0.1 ** sum(epoch >= round(drop * self.epochs) for drop in self.drops)

    def words(self) -> str:
        """The recipe in one line."""
        drops = Counter(round(drop * self.epochs) for drop in self.drops)
        if len(drops) == len(self.drops):
            falls = f"x0.1 after {' and '.join(map(str, drops))}"
        else:  # with few epochs two fall together
            falls = ", ".join(f"x{0.1**times:g} after {epoch}" for epoch, times in drops.items())
        return (
            f"SGD lr {self.lr:g}, momentum {self.momentum:g}, batch {self.batch_size}, {self.epochs} epochs, "
            f"{falls}, no weight decay, last epoch"
        )


class LinearClassifier(NamedTuple):
    """Scores = features @ weight + bias."""

    weight: Tensor  # (D, C)
    bias: Tensor  # (C,)

    def scores(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)."""
        return features @ self.weight + self.bias


def fit_sgd(
    epochs: Callable[[int], Iterable[Batch]],
    *,
    width: int,
    classes: int,
    recipe: SgdRecipe | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    done: Callable[[int], None] | None = None,
) -> LinearClassifier:
    """Minimise the cross-entropy of a linear layer by SGD with momentum, without weight decay.

    Args:
        epochs: From the number of an epoch, from 0, to its batches.
        width: D of the features.
        classes: C.
        recipe: By default the paper's.
        seed: Of the weights at the start, normal with deviation 0.01 (MoCo's); the bias starts at 0.
        device: Where the batches are.
        done: Called with the number of images of each step taken.

    Returns:
        The classifier after the last epoch, on the CPU. The same batches and seed give the same one.

    Raises:
        FgsslError: The loss is no longer finite.
    """
    recipe = recipe or SgdRecipe()
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter((0.01 * torch.randn(width, classes, generator=generator)).to(device))
    bias = nn.Parameter(torch.zeros(classes, device=device))
    optimizer = torch.optim.SGD([weight, bias], lr=recipe.lr, momentum=recipe.momentum)
    for epoch in range(recipe.epochs):
        optimizer.param_groups[0]["lr"] = recipe.rate(epoch)
        for features, labels in epochs(epoch):
            loss = functional.cross_entropy(features @ weight + bias, labels)
            weight.grad, bias.grad = torch.autograd.grad(loss, [weight, bias])
            optimizer.step()
            if done is not None:
                done(len(labels))
        if not bool(torch.isfinite(weight).all()):
            raise FgsslError(f"the sgd probe's weights are not finite after epoch {epoch + 1}", "use --protocol cached")
    return LinearClassifier(weight.detach().cpu(), bias.detach().cpu())
