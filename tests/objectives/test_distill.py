"""The loss of a teacher's relations against a slow loop and in closed form; the objective and the anchor on it."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch
from tiny_moco import BATCH, CHANNELS, TinyBackbone, unit, views
from torch import Tensor, nn

from fgssl.config.schema import ObjectiveConfig
from fgssl.errors import FgsslError
from fgssl.objectives.methods.distill import Distill
from fgssl.objectives.relations import BANK, TEMPERATURE, Relations

PICTURES, WIDTH = 9, 4


def relations(targets: Tensor, **options: object) -> Relations:
    return Relations(targets, **{"teacher": "c0ffee", "seed": 3, **options})


def targets(count: int = PICTURES, *, missing: Sequence[int] = ()) -> Tensor:
    found = unit(count, WIDTH, seed=5)
    found[list(missing)] = 0
    return found.half()


def shares(feature: Sequence[float], bank: Sequence[Sequence[float]]) -> list[float]:
    """The softmax of the cosines, in double precision."""
    length = math.sqrt(sum(x * x for x in feature))
    scores = [math.exp(sum(x * y for x, y in zip(feature, row, strict=True)) / length / TEMPERATURE) for row in bank]
    return [score / sum(scores) for score in scores]


def slow_loss(found: Relations, of_views: Sequence[Tensor], index: Sequence[int]) -> float:
    """The mean over views and pictures; a picture without a target counts as nothing."""
    bank, total = found.bank.double().tolist(), 0.0
    for view in of_views:
        for row, picture in enumerate(index):
            target = found.targets[picture].double()
            if not target.any():
                continue
            # the targets are not exactly of unit length in float16: cosines are products
            scores = [math.exp(sum(x * y for x, y in zip(target.tolist(), other, strict=True)) / TEMPERATURE)
                      for other in bank]  # fmt: skip
            mine = shares(view[row].double().tolist(), bank)
            total -= sum(score / sum(scores) * math.log(p) for score, p in zip(scores, mine, strict=True))
    return total / len(of_views) / len(index)


@pytest.mark.parametrize("missing", [(), (1, 4)])
def test_the_loss_is_the_loop(missing: tuple[int, ...]) -> None:
    found, index = relations(targets(missing=missing)), [1, 0, 8, 1, 4]
    student = [3 * torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    output = found(student, torch.tensor(index))
    assert len(found.bank) == PICTURES - len(missing) and found.bank.any(1).all()
    assert output.loss.item() == pytest.approx(slow_loss(found, student, index), rel=1e-5)
    cosines = [torch.cosine_similarity(view, found.targets[index].float()).mean().item() for view in student]
    assert output.similarity.item() == pytest.approx(sum(cosines) / 2, abs=1e-3)


def test_a_student_is_whitened_before_its_similarities_are_taken() -> None:
    layer = nn.Linear(3, WIDTH)
    found, student = relations(targets(), whitening=layer), torch.randn(4, 3)
    plain = relations(targets())
    expected = plain([layer(student)], torch.arange(4)).loss
    assert torch.allclose(found([student], torch.arange(4)).loss, expected, atol=1e-6)
    assert list(found.parameters()) == []


def test_a_student_that_has_the_targets_is_at_their_entropy_without_a_gradient() -> None:
    found = relations(torch.nn.functional.normalize(torch.eye(4)).half())
    student = torch.eye(4).requires_grad_()
    loss = found([student, student], torch.arange(4)).loss
    own = math.exp(1 / TEMPERATURE)
    p, q = own / (own + 3), 1 / (own + 3)
    assert loss.item() == pytest.approx(-p * math.log(p) - 3 * q * math.log(q), rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.abs().max() < 1e-6


def test_pictures_without_a_target_give_no_loss_and_no_gradient() -> None:
    found, student = relations(targets(missing=[2])), torch.randn(2, WIDTH).requires_grad_()
    (gradient,) = torch.autograd.grad(found([student], torch.tensor([2, 3])).loss, student)
    assert gradient[0].abs().sum() == 0 and gradient[1].abs().sum() > 0
    nothing = relations(torch.zeros(2, WIDTH).half().index_fill(0, torch.tensor([1]), 0.5))
    assert nothing([student], torch.tensor([0, 0])).loss.item() == 0


def test_the_bank_is_bounded_and_decided_by_the_seed() -> None:
    many = unit(BANK + 50, 2).half()
    banks = [relations(many, seed=seed).bank for seed in (0, 0, 1)]
    assert len(banks[0]) == BANK and torch.equal(banks[0], banks[1]) and not torch.equal(banks[0], banks[2])
    rows = {tuple(row) for row in many.float().tolist()}
    assert {tuple(row) for row in banks[0].tolist()} <= rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_precision_does_not_reach_the_similarities(dtype: torch.dtype) -> None:
    found, student = relations(targets()), torch.randn(3, WIDTH).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = found([student], torch.arange(3)).loss
    assert mixed.dtype == torch.float32 and torch.equal(mixed, found([student], torch.arange(3)).loss)


def test_a_state_of_another_teacher_is_refused_and_holds_no_targets() -> None:
    state = relations(targets()).state_dict()
    assert sum(value.numel() for value in state.values()) == 3
    relations(targets(7)).load_state_dict(state)
    with pytest.raises(FgsslError, match="has other weights than when it began; put those back, or start a new run"):
        relations(targets(), teacher="bad0").load_state_dict(state)


# ---- the objective


def build(**changes: object) -> Distill:
    torch.manual_seed(0)
    settings = {"name": "distill", "projector_dim": WIDTH, "teacher": "runs/big", **changes}
    objective = Distill(TinyBackbone(), dataclasses.replace(ObjectiveConfig(), **settings)).train()
    objective.teacher = relations(targets())
    return objective


def test_a_step_is_the_loss_of_both_views_projected_by_one_linear_layer() -> None:
    model = build()
    assert [type(layer) for layer in model.projector] == [nn.Linear]
    twin, index = copy.deepcopy(model), torch.arange(BATCH)
    output = model(views(1), index)
    with torch.no_grad():
        projected = [twin.projector(twin.backbone(view).mean((2, 3))) for view in views(1)]
    assert model.teacher is not None
    assert output.loss.item() == pytest.approx(slow_loss(model.teacher, projected, index.tolist()), rel=1e-4)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert [feature_map.shape for feature_map in output.feature_maps] == [(BATCH, CHANNELS, 4, 4)] * 2


def test_a_student_to_whom_all_pictures_are_alike_is_at_chance() -> None:
    model = build()
    nn.init.zeros_(model.projector[0].weight)
    nn.init.zeros_(model.projector[0].bias)
    assert model(views(0), torch.arange(BATCH)).loss.item() == pytest.approx(math.log(PICTURES), rel=1e-6)
    assert model.chance_level() == pytest.approx(math.log(PICTURES))


def test_a_single_picture_is_explained_by_its_mirror_image() -> None:
    anchor, positive = unit(3, WIDTH), unit(3, WIDTH, seed=1)
    loss = Distill.picture_loss(anchor, positive, None, ObjectiveConfig())
    assert loss.item() == pytest.approx(-float(torch.cosine_similarity(anchor, positive).sum()), rel=1e-5)


def test_a_student_learns_the_neighbours_of_its_teacher() -> None:
    """Twelve images of noise whose teacher pairs them: afterwards each is nearest to its partner."""
    images = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = Distill(TinyBackbone(), ObjectiveConfig(name="distill", projector_dim=6)).train()
    model.teacher = relations(torch.eye(6).repeat(2, 1).half())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        model((images, images), torch.arange(12)).loss.backward()
        optimizer.step()
    with torch.no_grad():
        features = nn.functional.normalize(model.projector(model.backbone(images).mean((2, 3))), dim=1)
    nearest = (features @ features.T).fill_diagonal_(-2).argmax(1)
    assert torch.equal(nearest, (torch.arange(12) + 6) % 12)
