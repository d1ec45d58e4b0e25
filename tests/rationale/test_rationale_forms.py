"""The further forms of the rationale against closed forms: targets, fits, combinations, views, pooling of the map."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from test_moco import BATCH, CHANNELS
from test_moco import build as build_moco
from test_moco import step as moco_step
from test_rationale import C, H, N, W, cams, randn, rationale, trained_head
from torch import Tensor, nn

from fgssl.config.resolve import load_config
from fgssl.config.schema import RationaleConfig
from fgssl.encoder import Encoder
from fgssl.errors import FgsslError
from fgssl.objectives.base import project
from fgssl.rationale.map_shape import shape_attention
from fgssl.rationale.rationale import (
    RationaleHead,
    attention_map,
    attention_pool,
    fit_rationale,
    gradcam,
    rationale_loss,
    target_distribution,
)

# ---- GradCAM and targets


def test_either_sign_is_the_sum_of_both():
    leaf = randn(N, C, H, W).requires_grad_()
    loss = (leaf.mean((2, 3)) ** 3).sum()
    raised, lowered = gradcam(loss, leaf, sign="raise"), gradcam(loss, leaf, sign="lower")
    assert torch.allclose(gradcam(loss, leaf, sign="either"), raised + lowered, atol=1e-9)
    assert raised.sum() > 0 and lowered.sum() > 0


@pytest.mark.parametrize("axis", ["all", "row"])
@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.6, 1.0])
def test_the_top_target_is_equal_shares_of_the_largest_places(axis, fraction):
    cam = cams()
    got = target_distribution(cam, rationale(target="top", top_fraction=fraction, axis=axis)).numpy()
    rows = cam.numpy().reshape(N, 1, -1) if axis == "all" else cam.numpy()
    for n, p in itertools.product(range(rows.shape[0]), range(rows.shape[1])):
        row = rows[n, p]
        count = max(1, round(fraction * len(row)))
        chosen = [q for q in sorted(range(len(row)), key=lambda q: -row[q])[:count] if row[q] > 0]
        expected = np.zeros(len(row)) if chosen else np.full(len(row), 1 / len(row))
        expected[chosen] = 1 / max(1, len(chosen))
        np.testing.assert_allclose(got[n, p], expected, atol=1e-12)


def test_equal_places_are_in_the_top_together():
    cam = torch.tensor([[[2.0, 2.0], [2.0, 1.0]]])
    top = target_distribution(cam, rationale(target="top", top_fraction=0.25))
    assert torch.allclose(top.flatten(), torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0]))


# ---- fits


def test_cosine_and_regression_fits_by_hand():
    """Target (3/4, 1/4, 0, 0) of the cam (3, 1, 0, 0); the map (1, 1, 0, 2)."""
    cam, prediction = torch.tensor([[[3.0, 1.0], [0.0, 0.0]]]), torch.tensor([[[1.0, 1.0], [0.0, 2.0]]])
    cosine = 1 - 1.0 / (math.sqrt(10) / 4 * math.sqrt(6))
    assert float(rationale_loss(cam, prediction, rationale(fit="cosine")).loss) == pytest.approx(cosine, rel=1e-5)
    squared = ((1 - 3) ** 2 + (1 - 1) ** 2 + 0 + 2**2) / 4  # the target times the 4 places is the cam itself here
    assert float(rationale_loss(cam, prediction, rationale(fit="regression")).loss) == pytest.approx(squared, rel=1e-5)
    both = rationale_loss(cam.repeat(2, 1, 1), prediction.repeat(2, 1, 1), rationale(fit="regression", reduction="sum"))
    assert float(both.loss) == pytest.approx(2 * squared, rel=1e-5)


@pytest.mark.parametrize("fit,scale", [("cosine", 0.3), ("cosine", 7.0), ("regression", H * W)])
def test_fits_vanish_at_the_target(fit, scale):
    cam = cams()[:2]
    target = target_distribution(cam, rationale()).view(2, H, W)
    assert float(rationale_loss(cam, scale * target, rationale(fit=fit)).loss) == pytest.approx(0, abs=1e-9)
    assert float(rationale_loss(cam, scale * target + 0.1, rationale(fit=fit)).loss) > 1e-4


@pytest.mark.parametrize("fit", ["cosine", "regression"])
def test_the_map_of_a_direct_fit_is_the_branchs_own_share(fit):
    """No softmax and no shift: what was fitted to the target, scaled to sum 1."""
    config = rationale(fit=fit)
    head, features = trained_head(config), randn(N, C, H, W)
    a = head(features).double()
    assert torch.allclose(attention_map(head, features, config).double(), a / a.sum((1, 2), keepdim=True), atol=1e-6)


# ---- the branch


def test_softmax_and_linear_combinations_by_loops():
    features = randn(N, C, H, W)
    for combine in ("softmax", "linear"):
        head = RationaleHead(C, rationale(combine=combine)).eval()
        maps = head.projections(features).detach().double().numpy()
        if combine == "linear":
            assert torch.allclose(head(features), torch.from_numpy(maps.mean(1)).float(), atol=1e-5)  # how it begins
            with torch.no_grad():
                head.readout.copy_(randn(7, seed=8) * 2)
            weights = np.log1p(np.exp(head.readout.detach().double().numpy()))
            expected = np.einsum("nkhw,k->nhw", maps, weights)
        else:
            shares = np.exp(maps) / np.exp(maps).sum(1, keepdims=True)
            expected = (shares * maps).sum(1)
        np.testing.assert_allclose(head(features).detach().numpy(), expected, atol=1e-5)


def test_a_linear_read_out_is_never_negative_and_learns():
    head = RationaleHead(C, rationale(combine="linear"))
    head.readout.data.fill_(-50)
    assert head(randn(N, C, H, W)).min() >= 0
    head = RationaleHead(C, rationale(combine="linear"))
    head(randn(N, C, H, W)).sum().backward()
    assert head.readout.grad.abs().min() > 0


def test_without_relu_maps_can_be_negative_and_still_weigh():
    config = rationale(activation="none", fit="regression")
    head, features = trained_head(config), randn(N, C, H, W)
    assert head.projections(features).min() < 0
    attention = attention_map(head, features, config)
    assert attention.min() >= 0 and torch.allclose(attention.sum((1, 2)), torch.ones(N), atol=1e-5)
    with_relu = RationaleHead(C, rationale()).eval()
    with_relu.load_state_dict(head.state_dict())
    assert torch.equal(with_relu.projections(features), head.projections(features).relu())


# ---- both views


def test_the_fit_of_both_maps_is_the_mean_of_the_two():
    """Without BatchNorm in the branch, each map's fit is independent of the other's."""
    config = rationale(branch_norm="none")
    head, first, second = RationaleHead(C, config), *(randn(N, C, H, W, seed=s).requires_grad_() for s in (1, 2))
    loss = (first.mean((2, 3)) * second.mean((2, 3))).sum()
    both = fit_rationale(head, loss, (first, second), config)
    apart = [fit_rationale(head, loss, one, config) for one in (first, second)]
    assert float(both.loss) == pytest.approx(sum(float(fit.loss) for fit in apart) / 2, rel=1e-5)


def test_moco_hands_out_the_keys_map_where_asked_and_learns_the_same():
    """Loss and gradients are bit-equal; the loss has a gradient for the key's map, the key encoder has none."""
    plain, asked = build_moco(), build_moco()
    asked.both_maps = True
    one, two = moco_step(plain, 0), moco_step(asked, 0)
    assert len(one.feature_maps) == 1 and len(two.feature_maps) == 2
    assert two.feature_maps[1].shape == (BATCH, CHANNELS, 4, 4)
    (gradient,) = torch.autograd.grad(two.loss, two.feature_maps[1], retain_graph=True)
    assert gradient.abs().sum() > 0
    one.loss.backward()
    two.loss.backward()
    assert one.loss.item() == two.loss.item() and torch.equal(plain.queue, asked.queue)
    for name, parameter in plain.named_parameters():
        other = asked.get_parameter(name).grad
        assert (parameter.grad is None and other is None) or torch.equal(parameter.grad, other), name
    assert not asked.queue.requires_grad


# ---- pooling


def shaped(**changes) -> RationaleConfig:
    return rationale(**changes)


def test_shaping_a_map_by_hand():
    weights = torch.tensor([[0.1, 0.2, 0.7]])
    assert shape_attention(weights, shaped()) is weights
    power = shape_attention(weights, shaped(pool_power=2.0))
    assert torch.allclose(power, torch.tensor([[0.01, 0.04, 0.49]]) / 0.54)
    floor = shape_attention(weights, shaped(pool_floor=0.3))
    assert torch.allclose(floor, torch.tensor([[0.17, 0.24, 0.59]]))
    invert = shape_attention(weights, shaped(pool_invert=True))
    assert torch.allclose(invert, torch.tensor([[0.6, 0.5, 0.0]]) / 1.1)
    all_three = shape_attention(weights, shaped(pool_invert=True, pool_power=2.0, pool_floor=0.5))
    assert torch.allclose(all_three, torch.tensor([[0.36 / 0.61, 0.25 / 0.61, 0.0]]) / 2 + 1 / 6)


def test_the_opposite_of_a_flat_map_is_flat():
    flat = torch.full((2, 49), 1 / 49)
    assert torch.equal(shape_attention(flat, shaped(pool_invert=True)), flat)


def test_a_power_is_a_temperature_of_the_softmax():
    features = randn(N, C, H, W)
    head = trained_head(rationale())
    sharp = attention_map(head, features, rationale(pool_power=2.0))
    assert torch.allclose(sharp, attention_map(head, features, rationale(prediction_temperature=0.5)), atol=1e-6)


def test_extreme_powers_stay_distributions():
    for power in (1e-3, 1e3):
        attention = shape_attention(torch.softmax(30 * randn(4, 36), 1), shaped(pool_power=power))
        assert torch.isfinite(attention).all() and torch.allclose(attention.sum(1), torch.ones(4), atol=1e-5)


def test_max_and_gem_pooling_by_loops():
    features, attention = randn(N, C, H, W), torch.softmax(randn(N, H * W, seed=4), 1).view(N, H, W)
    for weights in (attention, None):
        f = features.double().numpy()
        w = np.full((N, H, W), 1 / (H * W)) if weights is None else weights.double().numpy()
        largest = (f * w[:, None]).max((2, 3))
        gem = (np.maximum(f, 0) ** 2.5 * w[:, None]).sum((2, 3)) ** (1 / 2.5)
        for pool, expected in (("max", largest), ("gem", gem)):
            expected = expected / np.sqrt((expected**2).sum(1, keepdims=True))
            got = attention_pool(features, weights, pool=pool, exponent=2.5)
            np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_gem_goes_from_mean_to_max():
    features = randn(N, C, H, W).relu()
    assert torch.allclose(attention_pool(features, pool="gem", exponent=1.0), attention_pool(features), atol=1e-5)
    near = attention_pool(features, pool="gem", exponent=80.0)
    # the mean over places costs at most (HW)^(1/80), the same for every channel
    assert torch.allclose(near, attention_pool(features, pool="max"), atol=0.06)
    assert torch.equal(attention_pool(torch.zeros(2, C, H, W), pool="gem"), torch.zeros(2, C))


class _Map(nn.Module):
    """A backbone that is its input."""

    mean, std, name, channels_last, has_class_token = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "map", False, False


def test_the_encoder_pools_as_its_config_says():
    features = randn(N, C, H, W)
    for changes in ({"pool": "max"}, {"pool": "gem", "pool_floor": 0.5}, {"pool_invert": True}, {}):
        config = rationale(**changes)
        head = trained_head(config)
        encoder = Encoder(_Map(), head)  # type: ignore[arg-type]
        expected = attention_pool(features, attention_map(head, features, config), pool=config.pool, exponent=3.0)
        assert torch.equal(encoder.pool(features, "rationale"), expected)
        concat = encoder.pool(features, "concat")
        assert torch.allclose(concat, torch.cat([attention_pool(features), expected], 1) / 2**0.5)


# ---- pooling in training


def test_the_objective_pools_by_the_map_as_a_constant():
    """Weighted mean through the features alone: the branch gets no gradient and its statistics stay."""
    head, features = trained_head(rationale()).train(), randn(N, C, H, W).requires_grad_()
    encoder = Encoder(_Map(), head)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in head.state_dict().items()}
    pooled = encoder.objective_pool(features)
    pooled.sum().backward()
    attention = attention_map(head.eval(), features.detach(), head.config)
    assert torch.allclose(pooled, (features * attention[:, None]).sum((2, 3)), atol=1e-6)
    assert torch.allclose(features.grad, attention[:, None].expand_as(features), atol=1e-6)
    assert all(parameter.grad is None for parameter in head.parameters())
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


@pytest.mark.parametrize("pool", ["gem", "max"])
def test_the_objective_pools_as_at_test(pool):
    head, features = trained_head(rationale(pool=pool)), randn(N, C, H, W)
    encoder = Encoder(_Map(), head)  # type: ignore[arg-type]
    pooled = nn.functional.normalize(encoder.objective_pool(features), dim=1)
    attention = attention_map(head.eval(), features, head.config)
    assert torch.allclose(pooled, attention_pool(features, attention, pool=pool), atol=1e-6)


def test_moco_projects_what_it_is_told_to_pool():
    model, seen = build_moco(), []

    def corner(feature_map: Tensor) -> Tensor:
        seen.append(feature_map)
        return feature_map[:, :, 0, 0]

    model.pool = corner
    output = moco_step(model, 0)
    assert len(seen) == 2 and seen[0] is output.feature_maps[0]  # query and key
    (gradient,) = torch.autograd.grad(output.loss, output.feature_maps[0])
    assert gradient[:, :, 0, 0].abs().sum() > 0 and gradient[:, :, 1:].abs().sum() == 0
    features = output.feature_maps[0].detach()
    direct = nn.functional.normalize(model.projector(features[:, :, 0, 0]), dim=1)
    assert torch.equal(project(features, model.projector, corner), direct)


# ---- settings


@pytest.mark.parametrize(
    "pair", ["pool_floor=1.5", "pool_power=0", "pool_exponent=-1", "top_fraction=0", "top_fraction=2", "fit=l1"]
)
def test_impossible_values_are_refused(pair):
    with pytest.raises(FgsslError, match=f"rationale.{pair.partition('=')[0]}"):
        load_config(sets=[f"rationale.{pair}"])


def test_official_pins_every_form():
    """Whatever the defaults become, the authors' computation stays as it is."""
    moved = [
        "target=top", "fit=cosine", "combine=linear", "activation=none", "views=both", "pool=gem", "pool_floor=0.5",
        "pool_power=2", "pool_invert=true", "train_pool=rationale", "sign=either",
    ]  # fmt: skip
    config = load_config(sets=["rationale.preset=official"]).config.rationale
    for pair in moved:
        name = pair.partition("=")[0]
        changed = load_config(sets=[f"rationale.{pair}"]).config.rationale
        assert getattr(changed, name) != getattr(config, name)
        from fgssl.config.schema import RATIONALE_PRESETS

        assert RATIONALE_PRESETS["official"][name] == getattr(config, name)
