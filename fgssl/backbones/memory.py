"""Whether a backbone can be trained in the memory at hand: an estimate from its trial run, before anything is built.

Training in float32 keeps five times the weights (two encoders, the gradients, AdamW's two averages) and, of every
image, what the backward pass reads again, as the trial counted it. The key encoder, whose pass keeps nothing, and what
a layer needs while it works are taken as a quarter of that. Python and torch themselves take about 0.6 GB. Gradient
checkpointing, accumulation, mixed precision and frozen layers need less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from fgssl.backbones.plan import BackbonePlan

WEIGHT_COPIES = 5
PASSING_SHARE = 0.25
PROCESS_BYTES = 600_000_000
FLOAT_BYTES = 4


def training_bytes(plan: BackbonePlan, batch_size: int) -> int:
    """Memory in bytes of training on one process with so many images a step, at the plan's image size."""
    views = 2 * 3 * plan.image_size**2 * FLOAT_BYTES
    image = (1 + PASSING_SHARE) * plan.saved_bytes + views
    return round(PROCESS_BYTES + WEIGHT_COPIES * FLOAT_BYTES * plan.parameters + batch_size * image)


def batch_that_fits(plan: BackbonePlan, memory: int) -> int:
    """The largest power of two, at most 4096, that is a batch size fitting in `memory` bytes; 0 where not even 2 is."""
    batches = (2**power for power in range(12, 0, -1))
    return next((batch for batch in batches if training_bytes(plan, batch) <= memory), 0)


class SavedBytes(TorchFunctionMode):
    """Counts what a model's forward passes inside it keep for the backward pass, on any device, meta too.

    Weights are left out, and memory that several tensors share counts once. Attention counts as torch's fused kernels
    keep it, its inputs and its output: the meta device would compute it step by step.
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

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
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
