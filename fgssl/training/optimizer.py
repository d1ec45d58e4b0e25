"""The optimiser: which parameters decay, how fast each layer learns, and the schedule.

The schedule is a formula of the step and no scheduler of torch's, whose state would have to be saved and whose rates,
computed one from the other, differ in the last bits after a resume.
"""

from __future__ import annotations

import math
from typing import Any

import timm.optim
import torch
from torch import nn

from fgssl.backbones import Backbone
from fgssl.config.schema import OptimizerConfig, filled

Groups = list[dict[str, Any]]


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, device: torch.device, *, backbone: Backbone | None = None
) -> torch.optim.Optimizer:
    """SGD on everything, AdamW and LARS without decay on norms, biases and position embeddings; fused where torch can.

    LARS (You et al. 2017) is timm's, with momentum. Norms and biases learn at the plain rate, as in BYOL (Grill et al.
    2020, section 3.3). `backbone` is the part of `model` whose layers learn at their own rates.
    """
    rate, fused = filled(config.lr), device.type in ("cpu", "cuda")
    groups = parameter_groups(model, config, backbone)
    if config.name == "sgd":
        decay = filled(config.weight_decay)
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, weight_decay=decay, fused=fused)
    if config.name == "lars":
        lars: torch.optim.Optimizer = timm.optim.Lars(_adapted(groups), lr=rate, momentum=config.momentum)
        return lars
    return DenseAdamW(groups, lr=rate, fused=fused)


class DenseAdamW(torch.optim.AdamW):
    """AdamW that hands its kernel channels_last weights as what they are in memory.

    On a CPU the fused kernel copies every tensor that is not contiguous: 24 ms a step of resnet18 instead of 14. The
    state keeps its shapes.
    """

    def _init_group(self, group: Any, *lists: list[torch.Tensor]) -> Any:
        """Fills the lists of weights, gradients and moments, one entry a weight."""
        has_complex = super()._init_group(group, *lists)  # type: ignore[no-untyped-call]
        weights, gradients, means, squares = lists[:4]
        for place, together in enumerate(zip(weights, gradients, means, squares, strict=True)):
            if all(tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) for tensor in together):
                for tensors in lists[:4]:
                    tensors[place] = tensors[place].permute(0, 2, 3, 1)
        return has_complex


def _adapted(groups: Groups) -> Groups:
    """For LARS: each group's weights apart, whose rates are adapted even where nothing decays, and the others."""
    split: Groups = []
    for group in groups:
        for adapt in (True, False):
            parameters = [p for p in group["params"] if (p.ndim > 1) == adapt]
            split += [{**group, "params": parameters, "always_adapt": adapt}] if parameters else []
    return split


def parameter_groups(model: nn.Module, config: OptimizerConfig, backbone: Backbone | None = None) -> Groups:
    """Trained parameters by weight decay and learning rate; `lr_scale` is a group's share of the learning rate.

    With `layer_decay` d below 1 the l-th of L layers of the backbone learns at d^(L - l) of the rate (Bao et al. 2021,
    BEiT, section 3.1; timm's grouping): early layers of a trained backbone are good already. The rest learns at the
    full rate.
    """
    decay, layer_decay = filled(config.weight_decay), 1.0 if config.layer_decay is None else config.layer_decay
    sparing = config.name != "sgd"  # with weight decay
    trained = [p for p in model.parameters() if p.requires_grad]
    if not sparing and (backbone is None or layer_decay == 1.0):
        return [{"params": trained}]
    if backbone is None or layer_decay == 1.0:
        kept = _names(model, backbone)
        plain: Groups = timm.optim.param_groups_weight_decay(model, decay, no_weight_decay_list=kept)
        return plain
    groups: Groups = timm.optim.param_groups_layer_decay(
        backbone.model,
        decay,
        no_weight_decay_list=_exempt(backbone) if sparing else (),
        weight_decay_exclude_1d=sparing,
        layer_decay=layer_decay,
    )
    inside = {id(parameter) for parameter in backbone.parameters()}
    rest = [p for p in trained if id(p) not in inside]
    for spared in (False, True):
        parameters = [p for p in rest if (sparing and p.ndim <= 1) == spared]
        groups += [{"params": parameters, "weight_decay": 0.0 if spared else decay}] if parameters else []
    return groups


def _exempt(backbone: Backbone) -> set[str]:
    """Names, in timm's model, of what timm exempts from weight decay: position embeddings, class tokens."""
    return set(getattr(backbone.model, "no_weight_decay", set)())


def _names(model: nn.Module, backbone: Backbone | None) -> set[str]:
    """The same parameters by their names in `model`."""
    kept = set() if backbone is None else _exempt(backbone)
    own = {id(value) for name, value in (backbone.model.named_parameters() if backbone else ()) if name in kept}
    return {name for name, value in model.named_parameters() if id(value) in own}


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def learning_rate(step: int, config: OptimizerConfig, *, steps_per_epoch: int, total_steps: int) -> float:
    """Linear warm-up to the peak, then half a cosine to zero at `total_steps`."""
    peak, warmup = filled(config.lr), min(round((config.warmup_epochs or 0.0) * steps_per_epoch), total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
