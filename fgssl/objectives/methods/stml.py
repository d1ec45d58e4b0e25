"""STML: a moving average of oneself says how similar two pictures are (Kim et al. 2022, "Self-taught metric learning").

Nothing in it discriminates pictures: neighbours are drawn together, and pictures that share none pushed apart. Batches
are made of groups of neighbours (`fgssl.objectives.bank`). The teacher's similarity of a pair is half that of its
features, half that of its context, the neighbours both share; the student's distances, relative to their mean, follow
by the relaxed contrastive loss. It has two heads: a wide one, which the teacher has, too, and a narrow one, which
learns the wide one's relations as well. One departure: the width of the Gaussian is relative to the mean squared
distance, which for l2-normalised features depends on the backbone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.backbones import Backbone, GivenMap
from fgssl.config.defaults import Draft, Recommended, RunFacts, derive_views
from fgssl.config.schema import POSITIVE, WIDTH, ObjectiveConfig, filled, knob
from fgssl.errors import FgsslError
from fgssl.objectives.bank import BankConfig, NeighbourBank
from fgssl.objectives.base import ObjectiveOutput, build_mlp, gather, gather_with_gradient, pool_map
from fgssl.objectives.momentum import MomentumObjective
from fgssl.registry import OBJECTIVES

CROP_MIN = 0.16  # section 4.1
EXACT = "donot_use_mm_for_euclid_dist"  # distances of near neighbours, which a difference of products would lose
EPSILON = 1e-12


@dataclass(frozen=True)
class STMLConfig(BankConfig):
    """Settings of this objective alone."""

    narrow_dim: int = knob(512, "width of the head that learns from the wide one as well", WIDTH)
    # the paper's 3 for unit vectors, whose mean square is 1.3 on groceries (tf_efficientnet_lite0, ImageNet weights)
    width: float = knob(2.0, "of the Gaussian of the teacher's distances, in units of their mean square", POSITIVE)
    margin: float = knob(1.0, "distance, relative to the mean, up to which a pair is pushed apart", POSITIVE)


@OBJECTIVES.register("stml")
class STML(MomentumObjective, NeighbourBank):
    """Self-taught metric learning with linear heads on the pooled map (section 4.1)."""

    settings = STMLConfig
    config: STMLConfig
    uses = ("momentum", "momentum_end")
    paper = Recommended("adamw", 1e-4, 120, 1e-2, 0.0)  # the paper's AdamP, without its projection
    step_forwards = 8
    needs_keys = True
    projector_layers = 1
    averaged_norms = True  # the teacher is in evaluation mode

    @classmethod
    def derive(cls, draft: Draft, run: RunFacts) -> None:
        """The paper's heads and views: a crop and a flip."""
        if draft["objective.projector_hidden"] is not None:
            raise FgsslError("objective.projector_hidden is given, but stml's heads are linear", "leave it out")
        draft.derive("objective.projector_dim", 1024, "paper")
        derive_views(draft, "geometric", CROP_MIN, "paper")
        super().derive(draft, run)
        draft.decide("objective.projector_hidden", None, "the heads are linear")

    def __init__(self, backbone: Backbone | GivenMap, config: STMLConfig) -> None:
        super().__init__(backbone, config)
        self.narrow = _orthogonal(build_mlp([backbone.channels, config.narrow_dim], norm=False))

    @classmethod
    def build_projector(cls, channels: int, config: ObjectiveConfig) -> nn.Sequential:
        """The wide head."""
        return _orthogonal(super().build_projector(channels, config))

    def restart(self) -> None:
        """The narrow head, which no encoder file holds, is a part of the wide one."""
        super().restart()
        for narrow, wide in zip(self.narrow.parameters(), self.projector.parameters(), strict=True):
            rows = min(len(narrow), len(wide))
            narrow.data[:rows] = wide.data[:rows]

    def forward(self, views: tuple[Tensor, ...], index: Tensor) -> ObjectiveOutput:
        """Relations of both views of the pictures of all processes."""
        maps = tuple(self.backbone(view) for view in views[:2])  # 2 of (N, C, H, W)
        pooled = [pool_map(feature_map, self.pool) for feature_map in maps]
        heads = [torch.cat([self.projector(own), self.narrow(own)], 1).float() for own in pooled]
        student = torch.cat([gather_with_gradient(own) for own in heads])  # (2 * world * N, wide + narrow)
        self.follow()
        first, second = (gather(self.keys(view)) for view in views[:2])  # (world * N, wide)
        pictures, teacher = gather(index), torch.cat([first, second])
        if self.training:
            self.remember(functional.normalize(first + second, dim=1), pictures)
        wide = filled(self.config.projector_dim)
        with torch.autocast(student.device.type, enabled=False):
            similarity = self._similarity(teacher, pictures.repeat(2))
            loss = stml_loss(student[:, :wide], student[:, wide:], similarity, margin=self.config.margin)
        positive = functional.cosine_similarity(heads[0][:, :wide], heads[1][:, :wide]).mean()
        return ObjectiveOutput(loss, maps, {"positive_similarity": positive.detach()})

    def _similarity(self, teacher: Tensor, pictures: Tensor) -> Tensor:
        distance = torch.cdist(teacher, teacher, compute_mode=EXACT)
        context = contextual_similarity(distance, pictures, neighbours=2 * self.group_size)  # of two views
        return (gaussian_similarity(distance, width=self.config.width) + context) / 2

    @staticmethod
    def picture_loss(anchor: Tensor, positive: Tensor, keys: Tensor | None, config: ObjectiveConfig) -> Tensor:
        """Relaxed contrastive loss of a picture's distances to its mirror image and the keys; the mirror is teacher."""
        assert keys is not None and isinstance(config, STMLConfig)
        told = functional.pad(torch.cdist(positive, keys), (1, 0))  # (N, 1 + M), 0 to itself
        similarity = gaussian_similarity(told, width=config.width, rows=True)
        own = (anchor - positive).norm(dim=1, keepdim=True)
        distance = torch.cat([own, torch.cdist(anchor, keys)], 1)
        distance = distance / distance.mean(1, keepdim=True).clamp(min=EPSILON)
        return _pulled_and_pushed(distance, similarity, config.margin).mean(1).sum()


def gaussian_similarity(distance: Tensor, *, width: float, rows: bool = False) -> Tensor:
    """exp(-d^2 / (width * mean d^2)) of distances (N, M), zeros left out of the mean: of all, or of each row."""
    squared = distance.square()
    axes = (1,) if rows else (0, 1)
    others = (squared > 0).sum(axes, keepdim=True).clamp(min=1)
    mean = squared.sum(axes, keepdim=True) / others
    return torch.exp(-squared / (width * mean).clamp(min=EPSILON))


def contextual_similarity(distance: Tensor, pictures: Tensor, *, neighbours: int) -> Tensor:
    """How many neighbours two views share, by distances (M, M) of views of the pictures (M,): (M, M), 0 to 1.

    R(i) are the views that are among i's nearest, and i among theirs; all views of a picture are. For j in R(i) the
    share of R(i) that is in R(j), averaged over the nearer half of i's nearest, made symmetric.
    """
    neighbours = min(neighbours, len(distance))
    ranked = distance.masked_fill(pictures[:, None] == pictures, -1.0)
    nearest = ranked.topk(neighbours, largest=False).indices  # (M, k), nearest first
    near = torch.zeros_like(distance).scatter_(1, nearest, 1.0)
    mutual = near * near.T
    shared = mutual * (mutual @ mutual) / mutual.sum(1, keepdim=True).clamp(min=1)
    half = max(1, neighbours // 2)
    averaged = torch.zeros_like(distance).scatter_(1, nearest[:, :half], 1 / half) @ shared
    return (averaged + averaged.T) / 2


def stml_loss(wide: Tensor, narrow: Tensor, similarity: Tensor, *, margin: float) -> Tensor:
    """Both heads (M, D) follow the similarity (M, M), and the narrow one the wide one's relations."""
    distances = [relative_distances(head) for head in (wide, narrow)]
    follow = sum(relaxed_contrastive(distance, similarity, margin=margin) for distance in distances) / 2
    log_narrow, log_wide = (torch.log_softmax(-distance, 1) for distance in reversed(distances))
    taught = functional.kl_div(log_narrow, log_wide.detach(), reduction="batchmean", log_target=True)
    return follow + taught


def relative_distances(features: Tensor) -> Tensor:
    """Distances of (M, D), relative to the mean of their row, the zero to itself included: (M, M)."""
    distance = torch.cdist(features, features, compute_mode=EXACT)
    return distance / distance.mean(1, keepdim=True).clamp(min=EPSILON)


def relaxed_contrastive(distance: Tensor, similarity: Tensor, *, margin: float) -> Tensor:
    """Of relative distances (M, M) and a teacher's similarity (M, M) of each pair: mean over pairs of two views."""
    pairs = _pulled_and_pushed(distance, similarity, margin)
    return (pairs.sum() - pairs.trace()) / max(1, len(pairs) * (len(pairs) - 1))


def _pulled_and_pushed(distance: Tensor, similarity: Tensor, margin: float) -> Tensor:
    return similarity * distance.square() + (1 - similarity) * torch.relu(margin - distance).square()


def _orthogonal(head: nn.Sequential) -> nn.Sequential:
    """Keeps angles: the teacher knows at once who the backbone's neighbours are."""
    weight, bias = head.parameters()
    nn.init.orthogonal_(weight)
    nn.init.zeros_(bias)
    return head
