"""How much memory a forward pass keeps for the backward pass, counted without having it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class SavedBytes(TorchFunctionMode):
    """Counts what forward passes inside it keep for the backward pass, on any device, meta too.

    Weights are left out, and memory that several tensors share counts once. Attention counts as torch's fused kernels
    keep it, its inputs and its output: the meta device would compute it step by step.

    Args:
        model: Whose forward pass it will be.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._kept: dict[int, torch.UntypedStorage] = {}  # alive: a freed one's number would be given anew
        self._weights = {_memory(value) for value in (*model.parameters(), *model.buffers())}
        self._hooks = saved_tensors_hooks(self._note, _as_it_is)

    @property
    def total(self) -> int:
        """In bytes."""
        return sum(storage.nbytes() for storage in self._kept.values())

    def _note(self, tensor: Tensor) -> Tensor:
        if _memory(tensor) not in self._weights:
            self._kept[_memory(tensor)] = tensor.untyped_storage()
        return tensor

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Passes every call on, attention without its hooks."""
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with saved_tensors_hooks(_as_it_is, _as_it_is):
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


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
