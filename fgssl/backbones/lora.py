"""LoRA (Hu et al., ICLR 2022): weights keep their values; the product of two narrow matrices beside each learns.

The weights stay in timm's modules under timm's names; the sum is put in their place while a forward pass runs. So it
serves any linear layer and any convolution that is not grouped, and nothing of timm is replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class LoRA(nn.Module):
    """Adapters of some weights of a model: W (O, ...) is used as W + up (O, R) @ down (R, ...). At first that is W."""

    def __init__(self, model: nn.Module, rank: int, *, seed: int) -> None:
        super().__init__()
        self.names = sorted(_adaptable(model, rank))
        generator = torch.Generator().manual_seed(seed)  # every process draws the same
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for name in self.names:
            weight = model.get_parameter(name)
            drawn = torch.rand(rank, weight[0].numel(), generator=generator)  # as a linear layer's (Hu et al.)
            self.down.append(((2 * drawn - 1) / math.sqrt(weight[0].numel())).to(weight))
            self.up.append(torch.zeros(len(weight), rank).to(weight))

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The sums, by the names of the weights in the model."""
        found = zip(self.names, self.up, self.down, strict=True)
        return {name: (old := model.get_parameter(name)) + (up @ down).view_as(old) for name, up, down in found}

    def call(self, model: nn.Module, read: Callable[[nn.Module], Any]) -> Any:
        """What `read` makes of the model with the sums in their places."""
        wrapped = _Read(model, read)
        return functional_call(wrapped, {f"model.{name}": value for name, value in self.weights(model).items()}, ())


class _Read(nn.Module):
    def __init__(self, model: nn.Module, read: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.model, self._read = model, read
        self.training = model.training

    def forward(self) -> Any:
        return self._read(self.model)


def _adaptable(model: nn.Module, rank: int) -> Iterator[str]:
    """Weights that learn and are larger than their adapter, of linear layers and convolutions that mix all channels."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            weight = module.weight
            if weight.requires_grad and min(len(weight), weight[0].numel()) > rank:
                yield f"{name}.weight"
