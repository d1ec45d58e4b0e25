"""MoCo v2 against torch's cross-entropy, slow loops, a deque and closed forms, on a backbone of a few weights."""

from __future__ import annotations

import collections
import copy
import math

import numpy as np
import pytest
import torch
from tiny_moco import BATCH, CHANNELS, DIM, QUEUE, TinyBackbone, build, step, unit, views
from torch import Tensor, nn
from torch.nn import functional

from fgssl.config.schema import ObjectiveConfig
from fgssl.objectives import OBJECTIVES
from fgssl.objectives.base import gather, project
from fgssl.objectives.methods.mocov2 import MoCo
from fgssl.objectives.momentum import update_momentum
from fgssl.objectives.queue import info_nce

# ---- InfoNCE


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_info_nce_is_cross_entropy_with_the_positive_first(temperature):
    query, key, negatives = unit(6, 8), unit(6, 8, seed=1), unit(9, 8, seed=2)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ negatives.T], 1) / temperature
    expected = functional.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    loss, positive = info_nce(query, key, negatives, temperature=temperature)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(positive) == pytest.approx(float((query * key).sum(1).mean()), rel=1e-5)


def test_info_nce_leaves_out_own_negatives():
    """The explicit loop; a query with all negatives masked costs nothing."""
    query, key, negatives = unit(4, 8), unit(4, 8, seed=1), unit(7, 8, seed=2)
    own = torch.rand(4, 7, generator=torch.Generator().manual_seed(3)) < 0.4
    own[2] = True
    total = 0.0
    for n in range(4):
        positive = math.exp(float(query[n] @ key[n]) / 0.2)
        rest = sum(math.exp(float(query[n] @ negatives[k]) / 0.2) for k in range(7) if not own[n, k])
        total += -math.log(positive / (positive + rest))
    loss, _ = info_nce(query, key, negatives, own, temperature=0.2)
    assert float(loss) == pytest.approx(total / 4, rel=1e-5)
    alone, _ = info_nce(query[2:3], key[2:3], negatives, own[2:3], temperature=0.2)
    assert float(alone) == pytest.approx(0, abs=1e-6)


def test_info_nce_gradient_is_finite_and_right_with_masks():
    query = unit(3, 4).double().requires_grad_()
    key, negatives = unit(3, 4, seed=1).double(), unit(5, 4, seed=2).double()
    own = torch.tensor([[True] * 5, [True, False, False, False, True], [False] * 5])
    assert torch.autograd.gradcheck(lambda q: info_nce(q, key, negatives, own, temperature=0.2)[0], (query,))


def test_info_nce_of_extremes():
    """Perfect match against opposite negatives is log(1 + K exp(-2 / T)); the reverse is finite."""
    query = torch.tensor([[1.0, 0.0]])
    for sign, temperature in ((1, 0.2), (1, 1e-3), (-1, 1e-3)):
        loss, positive = info_nce(query, sign * query, -sign * query.expand(3, 2), temperature=temperature)
        expected = np.logaddexp(0, math.log(3) - sign * 2 / temperature)
        assert float(loss) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
        assert float(positive) == sign


# ---- the queue


def test_the_queue_is_a_deque():
    """Twenty steps of 6 into a ring of 10: the newest 10 keys, and whose they are, against collections.deque."""
    model = build()
    oracle: collections.deque = collections.deque(maxlen=QUEUE)
    for number in range(20):
        keys = unit(BATCH, DIM, seed=number)
        index = torch.arange(BATCH) + 10 * number
        model._enqueue(keys, index)
        oracle.extend(zip(index.tolist(), map(tuple, keys.tolist()), strict=True))
        held = zip(model.queue_index.tolist(), map(tuple, model.queue.tolist()), strict=True)
        assert {row for row in held if row[0] >= 0} == set(oracle)
        newest_first = [row for _, row in reversed(oracle)]
        for count in (1, 4, QUEUE, 99):
            assert list(map(tuple, model.sample_keys(count).tolist())) == newest_first[:count]


def test_a_fresh_queue_is_random_unit_keys_of_no_image():
    model = build()
    assert torch.allclose(model.queue.norm(dim=1), torch.ones(QUEUE), atol=1e-6)
    assert (model.queue_index == -1).all() and len(model.sample_keys(5)) == 0
    assert len(torch.unique(model.queue, dim=0)) == QUEUE


def test_sampled_keys_are_a_copy():
    model = build()
    step(model, 0)
    sample = model.sample_keys(3)
    model.queue.zero_()
    assert sample.abs().sum() > 0 and not sample.requires_grad


def test_forward_enqueues_the_momentum_keys_of_the_second_view():
    model = build()
    index = torch.tensor([4, 8, 15, 16, 23, 42])
    step(model, 0, index)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        expected = project(copied.key_backbone(views(0)[1]), copied.key_projector)
    assert torch.allclose(model.queue[:BATCH], expected, atol=1e-6)
    assert model.queue_index.tolist() == [*index.tolist(), -1, -1, -1, -1]


def test_the_loss_is_info_nce_against_the_queue_without_own_keys():
    """The second step sees images 0, 1, 2 again; negatives are the other images' keys, old and of this batch; loops."""
    model = build(key_norm="batch", batch_negatives=True)
    step(model, 0, torch.arange(BATCH))
    queue, owners = model.queue.clone().double(), model.queue_index.clone()
    probe = copy.deepcopy(model)
    first, second = views(1)
    index = torch.tensor([0, 1, 2, 50, 51, 52])
    loss = float(model((first, second), index).loss.detach())
    query = project(probe.backbone(first), probe.projector).detach().double()
    update_momentum(probe.projector, probe.key_projector, 0.9)
    update_momentum(copy.deepcopy(model).backbone, probe.key_backbone, 0.9)
    with torch.no_grad():
        key = project(probe.key_backbone(second), probe.key_projector).double()
    for n in range(BATCH):  # the first step wrote places 0 to 5
        queue[(BATCH + n) % QUEUE], owners[(BATCH + n) % QUEUE] = key[n], index[n]
    total = 0.0
    for n in range(BATCH):
        positive = math.exp(float(query[n] @ key[n]) / 0.2)
        kept = [k for k in range(QUEUE) if owners[k] != index[n]]
        assert len(kept) == (QUEUE - 2 if n == 2 else QUEUE - 1)  # the old keys of 0 and 1 were overwritten
        total -= math.log(positive / (positive + sum(math.exp(float(query[n] @ queue[k]) / 0.2) for k in kept)))
    assert loss == pytest.approx(total / BATCH, rel=1e-5)


def test_an_images_own_keys_change_nothing():
    """Whatever stands in the masked places of the queue, the loss stays."""
    losses = []
    for noise in (1, 2):
        model = build()
        step(model, 0, torch.arange(BATCH))
        model.queue[:BATCH] = unit(BATCH, DIM, seed=noise)
        model.queue_index[:BATCH] = 3
        losses.append(model(views(5), torch.full((BATCH,), 3)).loss.item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("batch_negatives", "candidates"), [(True, QUEUE), (False, QUEUE + 1)])
def test_a_constant_encoder_is_at_chance(batch_negatives, candidates):
    """Every key equal: log of their number, which is what the progress line compares the loss with."""
    model = build(batch_negatives=batch_negatives)
    nn.init.zeros_(model.backbone.last.weight)
    nn.init.zeros_(model.key_backbone.last.weight)
    for number in range(3):
        loss = step(model, number).loss
    assert float(loss.detach()) == pytest.approx(math.log(candidates), rel=1e-6)
    assert model.chance_level() == pytest.approx(math.log(candidates))


def test_a_random_encoder_is_near_chance():
    """Keys that tell nothing of the query: the expected loss is log(K + 1) up to the spread of the similarities."""
    query, key, negatives = unit(400, 128), unit(400, 128, seed=1), unit(1000, 128, seed=2)
    loss, _ = info_nce(query, key, negatives, temperature=1.0)
    assert float(loss) == pytest.approx(math.log(1001), abs=0.02)


# ---- the key encoder


def test_momentum_update_is_its_closed_form():
    """With a fixed source: target_t = m^t target_0 + (1 - m^t) source, BatchNorm's averages included."""
    source, target = TinyBackbone(), TinyBackbone()
    for number, module in enumerate((source, target)):
        torch.manual_seed(number)
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        module.norm.running_mean.normal_()
        module.norm.running_var.uniform_(0.5, 2)
    start, fixed = copy.deepcopy(target).state_dict(), copy.deepcopy(source.state_dict())
    for _ in range(7):
        update_momentum(source, target, 0.8, buffers=True)
    weight = 0.8**7
    for name, value in target.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, weight * start[name] + (1 - weight) * fixed[name], atol=1e-5), name
        else:
            assert torch.equal(value, start[name])  # counters are left alone
        assert torch.equal(source.state_dict()[name], fixed[name])


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_at_its_ends(momentum):
    source, target = nn.Linear(3, 3), nn.Linear(3, 3)
    before = target.weight.clone()
    update_momentum(source, target, momentum)
    assert torch.allclose(target.weight, before if momentum else source.weight)


def test_without_buffers_only_parameters_move():
    source, target = TinyBackbone(), TinyBackbone()
    source.norm.running_mean.fill_(5)
    update_momentum(source, target, 0.5)
    assert (target.norm.running_mean == 0).all()


def test_a_step_moves_the_key_encoder_towards_the_query_encoder():
    """Exactly once per step, before the keys are computed, with the buffers the query's pass has just updated."""
    model = build()
    with torch.no_grad():
        for parameter in (*model.backbone.parameters(), *model.projector.parameters()):
            parameter.add_(0.1)
    before = copy.deepcopy(model)
    step(model, 0)
    for trained, key, old in (
        (model.backbone, model.key_backbone, before.key_backbone),
        (model.projector, model.key_projector, before.key_projector),
    ):
        new, source, previous = key.state_dict(), trained.state_dict(), old.state_dict()
        for name, value in new.items():
            if value.is_floating_point():
                assert torch.allclose(value, 0.9 * previous[name] + 0.1 * source[name], atol=1e-6), name
    assert not torch.equal(model.key_backbone.norm.running_mean, before.key_backbone.norm.running_mean)


@pytest.mark.parametrize("key_norm", ["running", "batch"])
def test_gradient_reaches_the_query_encoder_alone(key_norm):
    model = build(key_norm=key_norm)
    step(model, 0).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("key_"):
            assert not parameter.requires_grad and parameter.grad is None
        else:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert model.backbone.stem.weight.grad.abs().sum() > 0
    assert not model.queue.requires_grad


def test_without_batch_negatives_the_loss_is_mocos():
    """The queue is overwritten in the forward pass; loss and backward pass must see the old one."""
    model = build(batch_negatives=False)
    with torch.no_grad():
        twin = copy.deepcopy(model)
    step(model, 0).loss.backward()
    first, second = views(0)
    query = project(twin.backbone(first), twin.projector)
    with torch.no_grad():
        twin.follow()
        key = project(twin.key_backbone(second), twin.key_projector)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ twin.queue.T], 1) / 0.2
    functional.cross_entropy(logits, torch.zeros(BATCH, dtype=torch.long)).backward()
    assert torch.allclose(model.backbone.stem.weight.grad, twin.backbone.stem.weight.grad, atol=1e-6)


def keys_of(model: MoCo, companions: Tensor) -> Tensor:
    """The key of image 0 in a batch with companions."""
    image = views(3)[1][:1]
    with torch.no_grad():
        return project(model.key_backbone(torch.cat([image, companions])), model.key_projector)[0]


def test_running_norms_leak_nothing_between_images():
    """The key of an image is the same beside any companions; with batch statistics it is not."""
    quiet, loud = views(4)[0], 50 * views(5)[0] + 9
    for key_norm, expected in (("running", True), ("batch", False)):
        model = build(key_norm=key_norm)
        step(model, 0)
        equal = torch.allclose(keys_of(model, quiet), keys_of(model, loud), atol=1e-6)
        assert equal == expected, key_norm


def test_a_new_objective_leaks_nothing_before_anyone_calls_train():
    settings = ObjectiveConfig(projector_dim=DIM, momentum=0.9, temperature=0.2, queue_size=QUEUE, key_norm="running")
    model = MoCo(TinyBackbone(), settings)
    assert model.training and not model.key_backbone.norm.training


@pytest.mark.parametrize("key_norm", ["running", "batch"])
def test_modes_of_the_key_encoder(key_norm):
    """Dropout never; norms by the option; eval switches all of it off, train brings it back."""
    model = build(key_norm=key_norm, dropout=0.5)
    for _ in range(2):
        assert model.backbone.norm.training and model.backbone.dropout.training
        assert model.key_backbone.norm.training == (key_norm == "batch")
        assert not model.key_backbone.dropout.training
        model.eval()
        assert not any(module.training for module in model.modules())
        model.train()


def test_eval_changes_nothing():
    model = build()
    step(model, 0)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = [step(model, 1).loss.item() for _ in range(2)]
    assert losses[0] == losses[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_state_holds_all_that_a_resumed_run_needs():
    """Weights, key encoder, queue, owners and pointer: the next loss is the same, bit for bit."""
    model = build()
    for number in range(3):
        step(model, number)
    resumed = build(momentum=0.9)
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    assert step(model, 9).loss.item() == step(resumed, 9).loss.item()
    assert torch.equal(model.queue, resumed.queue) and torch.equal(model.queue_pointer, resumed.queue_pointer)


# ---- the seam


def test_the_embedding_is_pooled_from_the_returned_map():
    """GradCAM needs dL/dF of exactly that map: the gradient exists, and is the same vector at every place."""
    model = build()
    output = step(model, 0)
    (feature_map,) = output.feature_maps
    assert feature_map.shape == (BATCH, CHANNELS, 4, 4)
    (gradient,) = torch.autograd.grad(output.loss, feature_map)
    assert gradient.abs().sum() > 0
    assert torch.allclose(gradient, gradient[:, :, :1, :1].expand_as(gradient), atol=1e-8)
    assert not output.metrics["positive_similarity"].requires_grad


def test_projection_is_pool_mlp_normalise():
    settings = ObjectiveConfig(projector_dim=DIM)
    projector, features = MoCo.build_projector(CHANNELS, settings), torch.randn(3, CHANNELS, 4, 6)
    assert [type(m).__name__ for m in projector] == ["Linear", "ReLU", "Linear"]
    assert projector[0].weight.shape == (CHANNELS, CHANNELS) and projector[2].weight.shape == (DIM, CHANNELS)
    pooled = torch.stack([features[:, :, y, x] for y in range(4) for x in range(6)]).mean(0)
    hidden = (pooled @ projector[0].weight.T + projector[0].bias).clamp(min=0)
    out = hidden @ projector[2].weight.T + projector[2].bias
    expected = out / out.pow(2).sum(1, keepdim=True).sqrt()
    assert torch.allclose(project(features, projector), expected, atol=1e-6)


def test_gather_on_one_process_is_the_tensor():
    keys = unit(4, 3)
    assert gather(keys) is keys


def test_training_brings_the_loss_below_chance():
    """Twelve distinct images, mild noise as views: a hundred steps and the positives are found."""
    model = build(queue_size=24, momentum=0.9, temperature=0.2)
    images = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 5e-3)
    losses = []
    for number in range(100):
        index = torch.arange(6) + 6 * (number % 2)
        pair = tuple(images[index] + 0.1 * torch.randn(6, 3, 8, 8, generator=noise) for _ in range(2))
        loss = model(pair, index).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.6 * model.chance_level()


def test_mocov2_is_registered():
    assert OBJECTIVES["mocov2"] is MoCo
