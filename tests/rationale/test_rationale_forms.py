"""The further forms of the rationale against closed forms: targets, fits, combinations, views, pooling of the map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rationale_cases import C, H, N, W, attention_pool, cams, randn, rationale, trained_head
from tiny_moco import build as build_moco
from tiny_moco import step as moco_step
from torch import Tensor, nn

from fgssl.config.defaults import RATIONALE_PRESETS
from fgssl.config.resolve import RETIRED, config_from_flat, load_config
from fgssl.config.schema import flatten
from fgssl.encoder import Encoder
from fgssl.errors import FgsslError
from fgssl.objectives.base import project
from fgssl.rationale import RationaleHead, attention_map, rationale_loss, target_distribution

# ---- fits


def test_the_regression_fit_by_hand():
    """Target (3/4, 1/4, 0, 0) of the cam (3, 1, 0, 0); the map (1, 1, 0, 2)."""
    cam, prediction = torch.tensor([[[3.0, 1.0], [0.0, 0.0]]]), torch.tensor([[[1.0, 1.0], [0.0, 2.0]]])
    squared = ((1 - 3) ** 2 + (1 - 1) ** 2 + 0 + 2**2) / 4  # the target times the 4 places is the cam itself here
    assert float(rationale_loss(cam, prediction, rationale(fit="regression")).loss) == pytest.approx(squared, rel=1e-5)
    both = rationale_loss(cam.repeat(2, 1, 1), prediction.repeat(2, 1, 1), rationale(fit="regression", reduction="sum"))
    assert float(both.loss) == pytest.approx(2 * squared, rel=1e-5)


def test_the_regression_vanishes_at_the_target():
    fit, scale, cam = "regression", H * W, cams()[:2]
    target = target_distribution(cam, rationale()).view(2, H, W)
    assert float(rationale_loss(cam, scale * target, rationale(fit=fit)).loss) == pytest.approx(0, abs=1e-9)
    assert float(rationale_loss(cam, scale * target + 0.1, rationale(fit=fit)).loss) > 1e-4


def test_the_map_of_a_direct_fit_is_the_branchs_own_share():
    """No softmax and no shift: what was fitted to the target, scaled to sum 1."""
    config = rationale(fit="regression")
    head, features = trained_head(config), randn(N, C, H, W)
    a = head(features).double()
    assert torch.allclose(attention_map(head, features).double(), a / a.sum((1, 2), keepdim=True), atol=1e-6)


# ---- the branch


def test_the_linear_combination_by_loops():
    features = randn(N, C, H, W)
    head = RationaleHead(C, rationale(combine="linear")).eval()
    maps = head.projections(features).detach().double().numpy()
    assert torch.allclose(head(features), torch.from_numpy(maps.mean(1)).float(), atol=1e-5)  # how it begins
    with torch.no_grad():
        head.readout.copy_(randn(7, seed=8) * 2)
    weights = np.log1p(np.exp(head.readout.detach().double().numpy()))
    expected = np.einsum("nkhw,k->nhw", maps, weights)
    np.testing.assert_allclose(head(features).detach().numpy(), expected, atol=1e-5)


def test_a_linear_read_out_is_never_negative_and_learns():
    head = RationaleHead(C, rationale(combine="linear"))
    head.readout.data.fill_(-50)
    assert head(randn(N, C, H, W)).min() >= 0
    head = RationaleHead(C, rationale(combine="linear"))
    head(randn(N, C, H, W)).sum().backward()
    assert head.readout.grad.abs().min() > 0


# ---- pooling


def test_gem_pooling_by_loops():
    features, attention = randn(N, C, H, W), torch.softmax(randn(N, H * W, seed=4), 1).view(N, H, W)
    for weights in (attention, None):
        f = features.double().numpy()
        w = np.full((N, H, W), 1 / (H * W)) if weights is None else weights.double().numpy()
        gem = (np.maximum(f, 0) ** 3 * w[:, None]).sum((2, 3)) ** (1 / 3)
        expected = gem / np.sqrt((gem**2).sum(1, keepdims=True))
        got = attention_pool(features, weights, pool="gem")
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
    assert torch.equal(attention_pool(torch.zeros(2, C, H, W), pool="gem"), torch.zeros(2, C))


class _Map(nn.Module):
    """A backbone that is its input."""

    mean, std, name, channels_last, has_class_token = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "map", False, False


def test_the_encoder_pools_as_its_config_says():
    features = randn(N, C, H, W)
    for changes in ({"pool": "gem"}, {"fit": "regression"}, {}):
        config = rationale(**changes)
        head = trained_head(config)
        encoder = Encoder(_Map(), head)  # type: ignore[arg-type]
        expected = attention_pool(features, attention_map(head, features), pool=config.pool)
        assert torch.equal(encoder.pool([features], "rationale"), expected)
        concat = encoder.pool([features], "concat")
        assert torch.allclose(concat, torch.cat([attention_pool(features), expected], 1) / 2**0.5)


# ---- pooling in training


def test_the_objective_pools_by_the_map_as_a_constant():
    """Weighted mean through the features alone: the branch gets no gradient and its statistics stay."""
    head, features = trained_head(rationale()).train(), randn(N, C, H, W).requires_grad_()
    encoder = Encoder(_Map(), head)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in head.state_dict().items()}
    pooled = encoder.objective_pool(features)
    pooled.sum().backward()
    attention = attention_map(head.eval(), features.detach())
    assert torch.allclose(pooled, (features * attention[:, None]).sum((2, 3)), atol=1e-6)
    assert torch.allclose(features.grad, attention[:, None].expand_as(features), atol=1e-6)
    assert all(parameter.grad is None for parameter in head.parameters())
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


@pytest.mark.parametrize("pool", ["gem", "mean"])
def test_the_objective_pools_as_at_test(pool):
    head, features = trained_head(rationale(pool=pool)), randn(N, C, H, W)
    encoder = Encoder(_Map(), head)  # type: ignore[arg-type]
    pooled = nn.functional.normalize(encoder.objective_pool(features), dim=1)
    attention = attention_map(head.eval(), features)
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


@pytest.mark.parametrize("pair", ["fit=l1", "pool=max", "sign=either", "target=top", "combine=mean"])
def test_impossible_values_are_refused(pair):
    with pytest.raises(FgsslError, match=f"rationale.{pair.partition('=')[0]}"):
        load_config(sets=[f"rationale.{pair}"])


@pytest.mark.parametrize("name", ["pooled", "normalized", "official"])
def test_files_of_earlier_versions_open_where_their_form_is_kept(name):
    """They name settings that lost and are gone: at the value still computed they are read, at another refused."""
    resolved = load_config(sets=[f"rationale.preset={name}"])
    assert not RETIRED.keys() & flatten(resolved.config).keys()
    assert config_from_flat({**flatten(resolved.config), **RETIRED}).config == resolved.config
    for key, other in {"rationale.pool_power": 2.0, "rationale.views": "both", "rationale.pool_invert": True}.items():
        with pytest.raises(FgsslError, match=f"{key} .*no longer computed; leave it out"):
            config_from_flat({**flatten(resolved.config), **RETIRED, key: other})


def test_official_pins_every_form():
    """Whatever the defaults become, the authors' computation stays as it is."""
    moved = ["fit=regression", "combine=linear", "pool=gem", "train_pool=rationale"]
    config = load_config(sets=["rationale.preset=official"]).config.rationale
    for pair in moved:
        name = pair.partition("=")[0]
        changed = load_config(sets=[f"rationale.{pair}"]).config.rationale
        assert getattr(changed, name) != getattr(config, name)
        assert RATIONALE_PRESETS["official"][name] == getattr(config, name)
