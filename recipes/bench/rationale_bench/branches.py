"""Several branches fitted beside one training: none of them trains the backbone, so all see what one alone would."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fgssl.config.schema import RationaleConfig
from fgssl.rationale import RationaleHead, gradcam, rationale_loss
from fgssl.runtime.files import atomic_path
from fgssl.training.model import PretrainModel, StepOutput, build_model
from fgssl.training.plan import Plan

BRANCHES_FILE = "branches.safetensors"
AVERAGED = 0.05  # share of a step in the running mean of the target's entropy


class BranchesModel(PretrainModel):
    """The trained module with further branches on the first view's map.

    Args:
        model: Of the run.
        branches: Name to settings of each; their `stop_gradient` and `detach_target` must hold.
    """

    entropies: Tensor

    def __init__(self, model: PretrainModel, branches: dict[str, RationaleConfig]) -> None:
        super().__init__(model.objective, model.encoder, model.config)
        channels = model.encoder.backbone.channels
        self.heads = nn.ModuleList(RationaleHead(channels, config) for config in branches.values())
        self.configs = list(branches.values())
        self.register_buffer("entropies", torch.full((len(branches),), torch.nan))
        self._fits: Tensor | None = None
        self._hook = model.objective.register_forward_hook(self._fit)

    def _fit(self, objective: nn.Module, inputs: object, output: object) -> None:
        """After the objective's forward: the fits of all further branches, each with its own weight."""
        if not self.training:
            return
        loss, feature_map = output.loss, output.feature_maps[0]  # type: ignore[attr-defined]
        cams = {sign: gradcam(loss, feature_map, sign=sign).detach() for sign in {c.sign for c in self.configs}}
        given = feature_map.detach()
        fits = [
            rationale_loss(cams[config.sign], head(given), config)
            for head, config in zip(self.heads, self.configs, strict=True)
        ]
        self._fits = torch.stack([f.loss * c.weight for f, c in zip(fits, self.configs, strict=True)]).sum()
        now = torch.stack([fit.target_entropy for fit in fits])
        self.entropies.copy_(torch.where(self.entropies.isnan(), now, self.entropies.lerp(now, AVERAGED)))

    def forward(self, views: Tensor, index: Tensor, fit_weight: float) -> StepOutput:
        """The step of the run, with the further fits added to the total."""
        output = super().forward(views, index, fit_weight)
        return output if self._fits is None else output._replace(total=output.total + self._fits)


def build_with_branches(plan: Plan, branches: dict[str, RationaleConfig]) -> PretrainModel:
    """The run's module, with the further branches where there are any."""
    model = build_model(plan)
    return BranchesModel(model, branches) if branches else model


def save_branches(folder: Path, model: PretrainModel, names: list[str]) -> None:
    """Write the further branches with their settings beside the encoder."""
    if not isinstance(model, BranchesModel):
        return
    tensors, described = {}, {}
    for name, head, entropy in zip(names, model.heads, model.entropies.tolist(), strict=True):
        assert isinstance(head, RationaleHead)
        tensors |= {f"{name}/{key}": value.detach().cpu().clone() for key, value in head.state_dict().items()}
        described[name] = {"config": dataclasses.asdict(head.config), "entropy": entropy}
    with atomic_path(folder / BRANCHES_FILE) as temporary:
        save_file(tensors, temporary, metadata={"branches": json.dumps(described)})


def load_branches(folder: Path, channels: int) -> tuple[dict[str, RationaleHead], dict[str, float]]:
    """The further branches of a cell in eval mode, and the entropy of each one's target; none where it has none."""
    path = folder / BRANCHES_FILE
    if not path.exists():
        return {}, {}
    heads, entropies = {}, {}
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        for name, described in json.loads(file.metadata()["branches"]).items():
            head = RationaleHead(channels, RationaleConfig(**described["config"]))
            start = f"{name}/"
            head.load_state_dict({k.removeprefix(start): file.get_tensor(k) for k in keys if k.startswith(start)})
            heads[name], entropies[name] = head.eval(), described["entropy"]
    return heads, entropies
