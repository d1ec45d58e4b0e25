"""What a forward pass keeps for the backward pass, counted without memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class SavedBytes(TorchFunctionMode):
    """Counts, shared memory once, what forward passes inside it keep for the backward pass beside a model's weights.

    Attention counts as torch's fused kernels keep it, its inputs and its output: the meta device takes it step by step.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._kept: dict[int, torch.UntypedStorage] = {}  # alive: a freed one's number would be given anew
        self._weights = {_memory(value) for value in (*model.parameters(), *model.buffers())}
        self._hooks = saved_tensors_hooks(self._note, lambda kept: kept)

    @property
    def total(self) -> int:
        """In bytes."""
        return sum(storage.nbytes() for storage in self._kept.values())

    def _note(self, tensor: Tensor) -> Tensor:
        if _memory(tensor) not in self._weights:
            self._kept[_memory(tensor)] = tensor.untyped_storage()
        return tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Passes every call on, attention without its hooks."""
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with saved_tensors_hooks(lambda tensor: tensor, lambda kept: kept):
            output = func(*args, **(kwargs or {}))
        for tensor in (*args[:3], output):  # query, key, value
            self._note(tensor)
        return output

    def __enter__(self) -> SavedBytes:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._hooks.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._hooks.__exit__(*problem)
        super().__exit__(*problem)  # type: ignore[no-untyped-call]


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
