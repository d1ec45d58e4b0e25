"""The trained module, its optimiser and its schedule: what the loop in `fgssl.training.loop` steps through."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import timm.optim
import torch
from torch import Tensor, nn

from fgssl.backbones import Backbone, GivenMap, finer_maps, packed
from fgssl.config.schema import OptimizerConfig, PretrainConfig, filled
from fgssl.encoder import Encoder
from fgssl.errors import TrainingFault
from fgssl.objectives import OBJECTIVES, Objective
from fgssl.objectives.relations import Relations
from fgssl.rationale import RationaleHead, fit_rationale
from fgssl.training.plan import Plan

FAULT_REMEDY = "states saved before it are kept; lower --lr or use --mixed-precision no, and start again"
Groups = list[dict[str, Any]]
KEYS_KEPT = 512  # of the training images, in the encoder file, as GradCAM's negatives


class StepOutput(NamedTuple):
    """Scalars of one step; everything but `total` is detached."""

    total: Tensor
    loss: Tensor
    fit: Tensor
    target_entropy: Tensor
    positive_similarity: Tensor
    features: Tensor  # (N, C) pooled, for their rank and spread


class PretrainModel(nn.Module):
    """Objective and rationale, which the encoder owns, in ONE forward: outside it, gradients would not be averaged."""

    def __init__(self, objective: Objective, encoder: Encoder, config: PretrainConfig) -> None:
        super().__init__()
        self.objective, self.encoder, self.config = objective, encoder, config
        self.anchor: Relations | None = None  # of the start's features, given before the first step

    @torch.no_grad()
    def feature_maps(self, views: Tensor) -> Tensor:
        """(2, N, 3, S, S) uint8 views to the maps (2, N, C, H, W) float32 of a frozen backbone, `packed`."""
        return torch.stack([packed(self.encoder.backbone(self.encoder.normalize(view))) for view in views])

    def forward(self, views: Tensor, index: Tensor, fit_weight: float, local: Tensor | None = None) -> StepOutput:
        """One step: views (2, N, 3, S, S) uint8, of a frozen backbone their `feature_maps`; (N,) image positions.

        Local views (L, N, 3, s, s) follow the two.
        """
        pixels, frozen = [*views, *(() if local is None else local)], self.encoder.backbone.frozen
        inputs = tuple(views) if frozen else tuple(self.encoder.normalize(view) for view in pixels)
        output = self.objective(inputs, index)
        total, zero = output.loss, output.loss.detach() * 0
        fit, entropy = zero, zero
        if self.encoder.rationale is not None:
            seen = output.feature_maps[0]
            fitted = fit_rationale(self.encoder.rationale, output.loss, seen, finer_maps(seen))
            total = total + fit_weight * fitted.loss
            fit, entropy = fitted.loss.detach(), fitted.target_entropy
        if self.anchor is not None:  # not what GradCAM explains, which is what the objective asks for
            pooled = [feature_map.float().mean((2, 3)) for feature_map in output.feature_maps]
            total = total + self.config.objective.anchor * self.anchor(pooled, index).loss
        similarity = output.metrics.get("positive_similarity", zero)
        features = output.feature_maps[0].detach().float().mean((2, 3))
        return StepOutput(total, output.loss.detach(), fit, entropy, similarity, features)


def build_model(plan: Plan) -> PretrainModel:
    """Objective, rationale branch and encoder of a plan, on the CPU."""
    config = plan.config
    given = plan.backbone.channels, plan.backbone.map_shapes
    backbone = GivenMap(*given) if plan.backbone.frozen else plan.backbone
    objective = OBJECTIVES[config.objective.name](backbone, config.objective)
    head = RationaleHead(plan.backbone.seen_channels, config.rationale) if config.rationale.enabled else None
    encoder = Encoder(plan.backbone, head, projector=objective.projector, predictor=objective.predictor, config=config)
    if head is not None and config.rationale.train_pool == "rationale":
        objective.pool = encoder.objective_pool
    model = PretrainModel(objective, encoder, config)
    if plan.backbone.channels_last_on(plan.device):
        model.to(memory_format=torch.channels_last)
    return model


Build = Callable[[Plan], PretrainModel]


def fit_weight(step: int, config: PretrainConfig, *, steps_per_epoch: int) -> float:
    """Weight of the rationale's fit, rising linearly over its warm-up."""
    warmup = config.rationale.warmup_epochs * steps_per_epoch
    return config.rationale.weight * (min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0)


def require_finite(model: nn.Module, step: int) -> None:
    """Raises TrainingFault if `step` left weights that are not finite: its loss, taken before them, does not tell."""
    sums = torch.stack([parameter.detach().float().sum() for parameter in model.parameters()])
    if not torch.isfinite(sums).all():
        raise TrainingFault(f"the weights are not finite after step {step}", FAULT_REMEDY)


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, device: torch.device, *, backbone: Backbone | None = None
) -> torch.optim.Optimizer:
    """SGD on everything, AdamW and LARS without decay on norms, biases and position embeddings; fused where torch can.

    LARS is You et al. 2017's; norms and biases learn at the plain rate, as in BYOL (Grill et al. 2020, section 3.3).
    `backbone` is the part of `model` whose layers learn at their own rates.
    """
    rate, fused = filled(config.lr), device.type in ("cpu", "cuda")
    groups, decay = parameter_groups(model, config, backbone), filled(config.weight_decay)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, weight_decay=decay, fused=fused)
    if config.name == "lars":
        lars: torch.optim.Optimizer = timm.optim.Lars(_adapted(groups), lr=rate, momentum=config.momentum)
        return lars
    return DenseAdamW(groups, lr=rate, fused=fused)


class DenseAdamW(torch.optim.AdamW):
    """AdamW whose kernel takes channels_last weights as what they are in memory; the state keeps its shapes.

    On a CPU the fused kernel copies every tensor that is not contiguous: 24 ms a step of resnet18 instead of 14.
    """

    def _init_group(self, group: Any, *lists: list[torch.Tensor]) -> Any:
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
    BEiT, section 3.1; timm's grouping): early layers of a trained backbone are good already.
    """
    decay, layer_decay = filled(config.weight_decay), 1.0 if config.layer_decay is None else config.layer_decay
    sparing = config.name != "sgd"  # with weight decay
    trained = [p for p in model.parameters() if p.requires_grad]
    # names, in timm's model, of what timm exempts from weight decay: position embeddings, class tokens
    exempt = set() if backbone is None or not sparing else set(getattr(backbone.model, "no_weight_decay", set)())
    if backbone is None or layer_decay == 1.0:
        own = {id(value) for name, value in (backbone.model.named_parameters() if backbone else ()) if name in exempt}
        kept = {name for name, value in model.named_parameters() if id(value) in own}
        plain = [{"params": trained}]
        return timm.optim.param_groups_weight_decay(model, decay, no_weight_decay_list=kept) if sparing else plain
    options = {"no_weight_decay_list": exempt, "weight_decay_exclude_1d": sparing, "layer_decay": layer_decay}
    groups: Groups = timm.optim.param_groups_layer_decay(backbone.model, decay, **options)
    inside = {id(parameter) for parameter in backbone.model.parameters()}
    rest = [p for p in trained if id(p) not in inside]
    for spared in (False, True):
        parameters = [p for p in rest if (sparing and p.ndim <= 1) == spared]
        groups += [{"params": parameters, "weight_decay": 0.0 if spared else decay}] if parameters else []
    return groups


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def learning_rate(step: int, config: OptimizerConfig, *, steps_per_epoch: int, total_steps: int) -> float:
    """Linear warm-up to the peak, then half a cosine to zero at `total_steps`.

    A formula of the step and no scheduler of torch's, whose state would have to be saved and whose rates, computed one
    from the other, differ in the last bits after a resume.
    """
    peak, warmup = filled(config.lr), min(round((config.warmup_epochs or 0.0) * steps_per_epoch), total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
