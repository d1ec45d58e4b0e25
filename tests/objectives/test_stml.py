"""Self-taught metric learning and neighbours as positives, against slow loops over sets of neighbours and closed forms.

An epoch's order is held to a greedy search by hand; a run that has one, resumed in the middle of it and in other forms,
to the plain run.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_results import assert_equal_encoders, metrics
from running import TINY, fgssl, photos, shared
from safetensors.torch import load_file
from stopping import stopped_run
from tiny_moco import BATCH, TinyBackbone, unit, views
from tiny_trainer import tiny_trainer
from torch import Tensor
from torch.nn import functional
from two_processes import OPTIONS, launched

from fgssl.config.resolve import load_config
from fgssl.data.feed import StepSampler
from fgssl.data.order import epoch_order
from fgssl.errors import FgsslError
from fgssl.objectives.bank import neighbour_order
from fgssl.objectives.methods.nnclr import NNCLR, nearest_key
from fgssl.objectives.methods.stml import (
    STML,
    STMLConfig,
    contextual_similarity,
    gaussian_similarity,
    relative_distances,
    relaxed_contrastive,
    stml_loss,
)
from fgssl.training.plan import make_plan

PICTURES = 40  # pictures in the bank of a tiny model


def build(**changes: Any) -> STML:
    settings = {"projector_dim": 8, "narrow_dim": 4, "momentum": 0.9, "group_size": 2, "bank_size": PICTURES, **changes}
    torch.manual_seed(0)
    return STML(TinyBackbone(), STMLConfig(**settings)).train()


def distances(features: Tensor) -> list[list[float]]:
    """By hand, in double precision."""
    rows = features.double().tolist()
    return [[math.dist(one, other) for other in rows] for one in rows]


# ---- the teacher's similarity


def test_gaussian_similarity_is_relative_to_the_mean_square_of_others() -> None:
    far = distances(unit(7, 4))
    mean = sum(d * d for row in far for d in row) / (7 * 6)
    found = gaussian_similarity(torch.tensor(far), width=1.5)
    assert found.tolist() == [pytest.approx([math.exp(-d * d / (1.5 * mean)) for d in row], rel=1e-5) for row in far]
    rows = gaussian_similarity(3.0 * torch.tensor(far), width=1.5, rows=True)  # no unit of length
    for d_row, row in zip(far, rows.tolist(), strict=True):
        own = sum(d * d for d in d_row) / 6
        assert row == pytest.approx([math.exp(-d * d / (1.5 * own)) for d in d_row], rel=1e-5)


@pytest.mark.parametrize(("count", "neighbours"), [(6, 4), (10, 4), (12, 10), (3, 10)])
def test_contextual_similarity_is_the_loop_over_sets(count: int, neighbours: int) -> None:
    """Two views of each picture, whose distance need not be the least."""
    pictures, far = list(range(count)) * 2, distances(unit(2 * count, 3, seed=count))
    size, k = 2 * count, min(neighbours, 2 * count)

    def ranking(i: int) -> list[int]:
        return sorted(range(size), key=lambda j: (pictures[i] != pictures[j], far[i][j]))[:k]

    near = [ranking(i) for i in range(size)]
    mutual = [{j for j in near[i] if i in near[j]} for i in range(size)]
    shared_with = [
        [len(mutual[i] & mutual[j]) / len(mutual[i]) if j in mutual[i] else 0.0 for j in range(size)]
        for i in range(size)
    ]
    # of both own views the order is a matter of distance alone: both are within the nearer half
    half = [[sum(shared_with[h][j] for h in near[i][: k // 2]) / (k // 2) for j in range(size)] for i in range(size)]
    expected = [[(half[i][j] + half[j][i]) / 2 for j in range(size)] for i in range(size)]
    found = contextual_similarity(torch.tensor(far), torch.tensor(pictures), neighbours=neighbours)
    assert found.tolist() == [pytest.approx(row, abs=1e-6) for row in expected]


def test_two_far_clusters_share_all_within_and_nothing_between() -> None:
    """Five pictures each in two views, ten neighbours: a cluster is its own neighbourhood."""
    corner = torch.eye(2).repeat_interleave(5, 0).repeat(2, 1) + 0.01 * torch.randn(20, 2)
    found = contextual_similarity(torch.cdist(corner, corner), torch.arange(10).repeat(2), neighbours=10)
    same = (torch.arange(10).repeat(2)[:, None] < 5) == (torch.arange(10).repeat(2) < 5)
    torch.testing.assert_close(found, same.float())


# ---- the loss


def test_relaxed_contrastive_loss_is_the_loop_over_pairs() -> None:
    features = 3 * torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(9, 9, generator=torch.Generator().manual_seed(1))
    far, total = distances(features), 0.0
    for i in range(9):
        mean = sum(far[i]) / 9
        for j in range(9):
            if i != j:
                d, w = far[i][j] / mean, float(weight[i, j])
                total += w * d**2 + (1 - w) * max(0.0, 0.9 - d) ** 2
    found = relaxed_contrastive(relative_distances(features), weight, margin=0.9)
    assert float(found) == pytest.approx(total / (9 * 8), rel=1e-5)


def test_the_narrow_head_learns_the_wide_ones_relations_and_not_the_other_way() -> None:
    wide, narrow = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wide, narrow, weight = wide.requires_grad_(), narrow[:, :3].clone().requires_grad_(), torch.full((7, 7), 0.5)
    p, q = (np.exp(-relative_distances(head).detach().numpy()) for head in (wide, narrow))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    divergence = (p * np.log(p / q)).sum() / 7
    plain = [relaxed_contrastive(relative_distances(head), weight, margin=1.0) for head in (wide, narrow)]
    loss = stml_loss(wide, narrow, weight.double(), margin=1.0)
    assert float(loss.detach()) == pytest.approx(float((plain[0] + plain[1]).detach()) / 2 + divergence, rel=1e-9)
    (slope,) = torch.autograd.grad(loss, wide)
    (own,) = torch.autograd.grad(plain[0] / 2, wide)
    torch.testing.assert_close(slope, own)


def test_a_collapsed_encoder_has_a_finite_loss_and_gradient() -> None:
    features = torch.ones(6, 4, requires_grad=True)
    similarity = gaussian_similarity(torch.zeros(6, 6), width=2.0)
    loss = stml_loss(features, features, similarity, margin=1.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(features.grad).all()


def test_a_step_asks_the_moved_teacher_in_evaluation_mode_and_keeps_what_it_says() -> None:
    model = build()
    model(views(0), torch.arange(BATCH))
    with torch.no_grad():
        model.backbone.last.weight.add_(0.1)  # a step of the optimiser
    twin, index = copy.deepcopy(model), torch.tensor([3, 1, 4, 15, 9, 2])
    loss = model(views(1), index).loss.detach()
    with torch.no_grad():
        pooled = torch.cat([twin.backbone(view).mean((2, 3)) for view in views(1)])
        twin.follow()
        teacher = copy.deepcopy(twin.key_backbone).eval()
        told = [functional.normalize(twin.key_projector(teacher(view).mean((2, 3)))) for view in views(1)]
    far = torch.tensor(distances(torch.cat(told)))
    context = contextual_similarity(far, index.repeat(2), neighbours=4)
    similarity = (gaussian_similarity(far, width=2.0) + context) / 2
    expected = stml_loss(twin.projector(pooled), twin.narrow(pooled), similarity, margin=1.0)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-4)
    torch.testing.assert_close(model.bank[index].float(), functional.normalize(told[0] + told[1]), atol=2e-3, rtol=0)
    assert int(model.bank.any(1).sum()) == len({*range(BATCH), *index.tolist()})


def test_gradcams_loss_of_a_picture_is_the_loop_over_the_keys() -> None:
    anchor, positive, keys, config = unit(3, 6), unit(3, 6, seed=1), unit(8, 6, seed=2), STMLConfig(width=1.5)
    total = 0.0
    for a, p in zip(anchor.double().tolist(), positive.double().tolist(), strict=True):
        own, told = ([math.dist(end, key) for key in keys.double().tolist()] for end in (a, p))
        mean = (math.dist(a, p) + sum(own)) / 9
        square = sum(d * d for d in told) / 8
        pairs = [(math.dist(a, p), 1.0)]
        pairs += [(d, math.exp(-t * t / (1.5 * square))) for d, t in zip(own, told, strict=True)]
        total += sum(w * (d / mean) ** 2 + (1 - w) * max(0.0, 1 - d / mean) ** 2 for d, w in pairs) / 9
    assert float(STML.picture_loss(anchor, positive, keys, config)) == pytest.approx(total, rel=1e-5)


# ---- the bank and the order of an epoch


def test_the_bank_keeps_the_newest_and_of_a_picture_there_twice_the_last() -> None:
    model = build()
    first, second = unit(3, 8), unit(4, 8, seed=1)
    model.remember(first, torch.tensor([5, 6, 7]))
    model.remember(second, torch.tensor([6, 0, 6, 39]))
    for place, row in {5: first[0], 6: second[2], 7: first[2], 0: second[1], 39: second[3]}.items():
        torch.testing.assert_close(model.bank[place].float(), row, atol=1e-3, rtol=0)
    assert int(model.bank.any(1).sum()) == 5
    keys = model.sample_keys(3)
    torch.testing.assert_close(keys, torch.stack([second[1], second[2], second[3]]), atol=1e-3, rtol=0)
    assert len(model.sample_keys(100)) == 5 and len(build().sample_keys(4)) == 0


def greedy(bank: Tensor, pictures: list[int], size: int) -> list[list[int]]:
    """Groups by hand: each free picture, in the order given, takes its nearest free ones."""
    rows, free, groups = bank.double(), [p for p in pictures if bank[p].any()], []
    groups = [[p] for p in pictures if not bank[p].any()]
    while free:
        query = free.pop(0)
        nearest = sorted(free, key=lambda p: -float(rows[query] @ rows[p]))[: size - 1]
        free = [p for p in free if p not in nearest]
        groups.append([query, *nearest])
    return groups


@pytest.mark.parametrize("chunk", [1, 3, 256])
@given(
    count=st.integers(1, 30), size=st.integers(2, 7), unseen=st.integers(0, 30), left_out=st.integers(0, 5),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_an_epoch_comes_in_the_groups_of_a_greedy_search(
    chunk: int, count: int, size: int, unseen: int, left_out: int, seed: int
) -> None:
    bank = unit(count, 6, seed=seed).half()
    bank[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:unseen]] = 0
    pictures = torch.randperm(count, generator=torch.Generator().manual_seed(seed + 1))[left_out:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fgssl.objectives.bank.CHUNK", chunk)
        order = neighbour_order(bank, pictures, size=size, seed=3).tolist()
    assert sorted(order) == sorted(pictures.tolist())
    left = {tuple(group) for group in greedy(bank, pictures.tolist(), size)}
    if unseen >= count:
        assert order == pictures.tolist()
        return
    while order:  # each group whole, whichever comes first
        group = next(group for group in left if group == tuple(order[: len(group)]))
        left.remove(group)
        order = order[len(group) :]
    assert not left


def test_groups_are_shuffled_by_the_epoch_and_one_picture_is_no_group() -> None:
    bank, pictures = unit(30, 6).half(), torch.randperm(30)
    orders = {tuple(neighbour_order(bank, pictures, size=3, seed=epoch).tolist()) for epoch in range(4)}
    assert len(orders) == 4
    assert torch.equal(neighbour_order(bank, pictures, size=1, seed=0), pictures)


def test_the_order_of_an_epoch_is_settled_when_it_begins() -> None:
    model = build()
    model.remember(unit(PICTURES, 8), torch.arange(PICTURES))
    pictures = torch.randperm(PICTURES)[:36]
    order = model.arrange(pictures, 4).clone()
    model.remember(unit(PICTURES, 8, seed=5), torch.arange(PICTURES))  # it goes on
    resumed = build()
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    for same in (model, resumed):
        assert torch.equal(same.arrange(pictures, 4), order)
    assert not torch.equal(resumed.arrange(pictures, 5), order)
    assert sorted(resumed.arrange(pictures[:32], 5).tolist()) == sorted(pictures[:32].tolist())  # another batch size


def test_a_sampler_takes_the_order_it_is_told_of_the_pictures_that_an_epoch_has() -> None:
    asked = []

    def arrange(epoch: int, pictures: np.ndarray) -> np.ndarray:
        asked.append(epoch)
        assert pictures.tolist() == epoch_order(11, 5, epoch)[:8].tolist()
        return np.sort(pictures)

    for rank in range(2):
        sampler = StepSampler(11, 4, seed=5, start=1, stop=6, rank=rank, world=2, arrange=arrange)
        for step, keys in enumerate(sampler, start=1):
            whole = np.sort(epoch_order(11, 5, step // 2)[:8])
            assert [key.index for key in keys] == whole[4 * (step % 2) :][rank:4:2].tolist()
    assert asked == [0, 1, 2] * 2


# ---- defaults


def plan_of(**settings: object) -> Any:
    flags = {"data.source": str(photos()), "training.batch_size": 8, "training.device": "cpu", "training.workers": 0}
    flags |= {"objective.name": "stml", "backbone.name": "resnet10t", "backbone.pretrained": False}
    return make_plan(load_config(flags={**flags, **settings}), load_weights=False)


def test_its_views_are_a_crop_and_a_flip_unless_others_are_asked_for() -> None:
    plan = plan_of()
    found = plan.config.views
    assert (found.preset, found.crop_min, found.jitter, found.grayscale, found.blur) == ("geometric", 0.16, 0, 0, 0)
    assert plan.origins["views.jitter"] == "derived: paper"
    one = plan_of(**{"views.crop_min": 0.5, "views.blur": 0.1}).config.views
    assert (one.preset, one.crop_min, one.jitter, one.blur) == ("geometric", 0.5, 0, 0.1)
    asked = plan_of(**{"views.preset": "colour"}).config.views
    assert (asked.preset, asked.crop_min, asked.jitter) == ("colour", 0.2, 0.8)


def test_the_bank_holds_the_split_and_linear_heads_have_no_hidden_layer() -> None:
    plan = plan_of(**{"backbone.pretrained": True})
    objective, optimizer = plan.config.objective, plan.config.optimizer
    assert (objective.bank_size, objective.projector_hidden, objective.projector_dim) == (24, None, 1024)
    assert (optimizer.name, optimizer.lr) == ("adamw", 1e-4)
    with pytest.raises(FgsslError, match=r"projector_hidden is given, but stml's heads are linear; leave it out"):
        plan_of(**{"objective.projector_hidden": 16})


# ---- whole runs

HEADS = ("--objective", "stml", "--set", "objective.projector_dim=16", "--set", "objective.group_size=3")
LONGER = (*TINY, *HEADS, "--max-steps", "9", "--set", "training.log_every=1")


def plain_run() -> Path:
    """Three epochs of three steps."""

    def make(run: Path) -> None:
        outcome = fgssl("pretrain", "--data", photos(), *LONGER, "--output", run)
        assert outcome.code == 0, outcome.err

    return shared("stml", make)


@pytest.mark.parametrize("step", [4, 6, 7])  # in the middle of the second epoch, at its end, in the third
def test_a_run_resumed_anywhere_in_an_epoch_equals_the_plain_one(step: int, tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run", LONGER, step=step)
    assert fgssl("pretrain", "--resume", run, "--workers", "1").code == 0  # that fetches ahead
    assert_equal_encoders(plain_run(), run)
    assert metrics(plain_run()) == metrics(run)


def test_a_run_with_loader_processes_equals_the_plain_one(tmp_path: Path) -> None:
    assert fgssl("pretrain", "--data", photos(), *LONGER, "--workers", "2", "--output", tmp_path / "run").code == 0
    plain, ahead = (load_file(run / "encoder.safetensors") for run in (plain_run(), tmp_path / "run"))
    assert [key for key in plain if not torch.equal(plain[key], ahead[key])] == []


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Any]:
    yield tiny_trainer(
        tmp_path,
        **{"objective.name": "stml", "training.batch_size": 4, "objective.projector_dim": 8, "training.log_every": 2},
    )


def test_the_first_epoch_is_in_random_order_and_later_ones_in_groups(trainer: Any) -> None:
    objective, taken, orders = trainer.model.objective, [], []
    for step, batch in zip(range(9), trainer.batches(0), strict=False):
        if step % 3 == 0:
            pictures = torch.from_numpy(epoch_order(12, 0, step // 3))
            orders += neighbour_order(objective.bank, pictures, size=5, seed=step // 3).tolist()
        trainer.step(step, batch)
        taken += batch.index.tolist()
        assert [key.index for key in trainer.feed.keys(step)] == batch.index.tolist()
    assert taken == orders and taken[:12] == epoch_order(12, 0, 0).tolist()
    assert taken[12:24] != epoch_order(12, 0, 1).tolist()
    assert set(trainer.feed.orders) <= {1, 2}


@pytest.mark.parametrize(
    "more", [("--freeze", "backbone", "--set", "backbone.cached_views=2"), ("--freeze", "3"), ("--accumulate", "2")]
)
def test_it_runs_frozen_and_in_parts_and_is_resumed_so(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "cache"))
    assert fgssl("pretrain", "--data", photos(), *LONGER, *more, "--output", tmp_path / "plain").code == 0
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "other"))
    run = stopped_run(tmp_path / "run", (*LONGER, *more), step=5)
    assert fgssl("pretrain", "--resume", run).code == 0
    assert_equal_encoders(tmp_path / "plain", run)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
@pytest.mark.parametrize("name", ["stml", "nnclr"])
def test_two_processes_learn_what_one_does(name: str, tmp_path: Path) -> None:
    short = ("--objective", name, "--max-steps", "8", "--set", "optimizer.name=sgd", "--lr", "0.01")
    assert fgssl("pretrain", "--data", photos(), *OPTIONS, *short, "--output", tmp_path / "alone").code == 0
    process = launched("pass", tmp_path / "run", *short)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    one, two = (metrics(tmp_path / run) for run in ("alone", "run"))
    if name == "stml":  # NNCLR's BatchNorm has the statistics of a process's share
        for key in ("loss", "fit", "positive_similarity"):
            assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=1e-3, abs=1e-3), key
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    local = ("running_mean", "running_var")
    assert [key for key in first if not torch.equal(first[key], second[key]) and not key.endswith(local)] == []


# ---- NNCLR


def test_the_nearest_key_is_anothers_and_a_pictures_own_where_there_is_none() -> None:
    queue, key = unit(9, 6), unit(4, 6, seed=1)
    owners, index = torch.tensor([-1, 0, 1, 2, 3, 0, 1, -1, 7]), torch.tensor([0, 1, 7, 5])
    found, owner = nearest_key(key, index, queue, owners)
    for n, picture in enumerate(index.tolist()):
        others = [k for k in range(9) if owners[k] >= 0 and owners[k] != picture]
        best = max(others, key=lambda k: float(key[n].double() @ queue[k].double()))
        assert torch.equal(found[n], queue[best]) and owner[n] == owners[best]
    alone, of_none = nearest_key(key[:1], index[:1], queue[:2], owners[:2])
    assert torch.equal(alone, key[:1]) and of_none.tolist() == [0]


def test_nnclrs_step_is_the_loop_over_both_directions() -> None:
    settings = {"projector_hidden": 7, "projector_dim": 8, "predictor_hidden": 9, "queue_size": 12, "temperature": 0.2}
    torch.manual_seed(0)
    model = NNCLR(TinyBackbone(), NNCLR.settings(**settings)).train()
    assert model.chance_level() is None
    model(views(0), torch.arange(BATCH))
    twin, index = copy.deepcopy(model), torch.tensor([0, 1, 2, 20, 21, 22])  # of three, older keys are in the queue
    output = model(views(1), index)
    assert model.chance_level() == pytest.approx(math.log(BATCH))
    with torch.no_grad():
        projected = [twin.projector(twin.backbone(view).mean((2, 3))) for view in views(1)]
        keys = [functional.normalize(own) for own in projected]
        predicted = [functional.normalize(twin.predictor(own)) for own in projected]
    total = 0.0
    for key, prediction in ((keys[0], predicted[1]), (keys[1], predicted[0])):
        for n in range(BATCH):
            owned = list(enumerate(twin.queue_index.tolist()))
            others = [k for k, owner in owned if owner >= 0 and owner != index[n]]
            best = max(others, key=lambda k: float(key[n] @ twin.queue[k]))
            scores = [math.exp(float(twin.queue[best] @ other) / 0.2) for other in prediction]
            spared = {n, *[k for k in range(BATCH) if index[k] == twin.queue_index[best]]}
            rest = sum(score for k, score in enumerate(scores) if k not in spared)
            total -= math.log(scores[n] / (scores[n] + rest))
    assert output.loss.item() == pytest.approx(total / 2 / BATCH, rel=1e-4)
    torch.testing.assert_close(model.queue[6:], keys[0])
    assert model.queue_index.tolist() == [*range(BATCH), *index.tolist()]


def test_nnclrs_loss_of_a_picture_is_cross_entropy_with_the_key_nearest_to_its_mirror_image() -> None:
    anchor, positive, keys = unit(3, 6), unit(3, 6, seed=1), unit(8, 6, seed=2)
    config = NNCLR.settings(temperature=0.3)
    expected = functional.cross_entropy(anchor @ keys.T / 0.3, (positive @ keys.T).argmax(1), reduction="sum")
    assert float(NNCLR.picture_loss(anchor, positive, keys, config)) == pytest.approx(float(expected), rel=1e-5)
