"""The rationale against closed forms and slow loops: GradCAM, the branch, every option of the fit, test-time maps."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from rationale_cases import C, H, N, W, attention_pool, cams, preset, randn, rationale, trained_head
from torch import Tensor, nn

from fgssl.config.schema import RationaleConfig
from fgssl.rationale import (
    RationaleHead,
    attention_map,
    fit_rationale,
    gradcam,
    normalize_map,
    pool_places,
    pool_stages,
    rationale_loss,
    target_distribution,
)

# ---- GradCAM


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
@pytest.mark.parametrize("sign,factor", [("raise", 1.0), ("lower", -1.0)])
def test_gradcam_of_a_linear_loss_is_its_closed_form(sign, factor, scale):
    """L = scale * sum_n sum_c w_nc GAP(F)_nc + b has dL/dF = scale * w / (HW) at every place."""
    features, weights = randn(N, C, H, W), randn(N, C, seed=1)
    leaf = features.clone().requires_grad_()
    loss = scale * (weights * leaf.mean((2, 3))).sum() + 3.0
    expected = np.zeros((N, H, W))
    for n, y, x in itertools.product(range(N), range(H), range(W)):
        dot = sum(float(features[n, c, y, x]) * float(weights[n, c]) for c in range(C))
        expected[n, y, x] = max(0.0, factor * scale * dot / (H * W))
    cam = gradcam(loss, leaf, sign=sign)
    np.testing.assert_allclose(cam.detach().numpy(), expected, rtol=2e-5, atol=1e-7 * scale)
    assert (expected > 0).any() and (expected == 0).any()


def test_the_two_signs_are_complementary():
    """With a mean and a scale-invariant loss: no place in both maps, and their totals agree (sum of F * G is 0)."""
    leaf = randn(N, C, H, W).requires_grad_()
    loss = nn.functional.normalize(leaf.mean((2, 3)), dim=1)[:, 0].sum()
    raised, lowered = gradcam(loss, leaf, sign="raise"), gradcam(loss, leaf, sign="lower")
    assert (raised * lowered).abs().max() == 0
    assert torch.allclose(raised.sum((1, 2)), lowered.sum((1, 2)), atol=1e-6)
    assert raised.sum() > 1e-3


def test_gradcam_of_half_precision_features_keeps_its_digits():
    """dL/dF is about 1e-8 here, below what float16 can hold."""
    features, weights = randn(64, 8, 16, 16).half(), randn(64, 8, seed=1)
    leaf = features.clone().requires_grad_()
    cam = gradcam(1e-2 * (weights * leaf.float().mean((2, 3))).sum(1).mean(), leaf)
    exact = 1e-2 * (features.double() * weights[:, :, None, None]).sum(1).relu() / (64 * 16 * 16)
    assert torch.allclose(cam.double(), exact, rtol=3e-3, atol=float(exact.max()) * 1e-3)
    assert cam.max() < 1e-4


def test_gradcam_keeps_the_graph_and_is_first_order():
    """Gradient flows through F but not through dL/dF: d(sum cam)/dF is dL/dF wherever cam > 0."""
    leaf = randn(N, C, H, W).requires_grad_()
    loss = (leaf.mean((2, 3)) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    cam = gradcam(loss, leaf)
    (through,) = torch.autograd.grad(cam.sum(), leaf, retain_graph=True)
    assert torch.allclose(through, gradient * (cam > 0)[:, None], atol=1e-7)
    loss.backward()  # the graph of the loss is still there


# ---- the branch


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("training", [False, True])
def test_branch_is_the_explicit_loop(norm, training):
    config = rationale(branch_norm=norm)
    head = RationaleHead(C, config).train(training)
    features = randn(N, C, H, W)
    if norm == "batch":
        with torch.no_grad():
            head.norm.weight.copy_(randn(7, seed=1))
            head.norm.bias.copy_(randn(7, seed=2))
            head.norm.running_mean.copy_(randn(7, seed=3))
            head.norm.running_var.copy_(randn(7, seed=4).abs() + 0.1)
        mean, variance = head.norm.running_mean.clone(), head.norm.running_var.clone()
    f, weight = features.double().numpy(), head.project.weight.detach().double().numpy()[:, :, 0, 0]
    raw = np.zeros((N, 7, H, W))
    for n, k, y, x in itertools.product(range(N), range(7), range(H), range(W)):
        raw[n, k, y, x] = sum(weight[k, c] * f[n, c, y, x] for c in range(C))
    if norm == "batch":
        for k in range(7):
            m = raw[:, k].mean() if training else float(mean[k])
            v = raw[:, k].var() if training else float(variance[k])
            scaled = (raw[:, k] - m) / math.sqrt(v + head.norm.eps)
            raw[:, k] = scaled * head.norm.weight[k].item() + head.norm.bias[k].item()
    raw = np.maximum(raw, 0)
    assert head.project.bias is None
    np.testing.assert_allclose(head(features).detach().numpy(), raw.max(1), atol=1e-5)
    np.testing.assert_allclose(head.projections(features).detach().numpy(), raw, atol=1e-5)


def test_branch_computes_in_float32_under_autocast():
    head, features = RationaleHead(C, rationale()).eval(), randn(N, C, H, W)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = head(features)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, head(features))


# ---- the fit: every option against one slow loop


def slow_target(cam: np.ndarray, config: RationaleConfig) -> np.ndarray:
    """The target by loops: (N, H, W) -> (N, rows, places)."""
    out = []
    for image in cam:
        rows = [list(image.flat)] if config.axis == "all" else [list(row) for row in image]
        done = []
        for row in rows:
            if config.target == "probability":
                values = [v ** (1 / config.temperature) for v in row]
            else:
                values = [math.exp(v / config.temperature) for v in row]
            total = sum(values)
            done.append([v / total if total > 0 else 1 / len(row) for v in values])
        out.append(done)
    return np.array(out)


def slow_normalize(maps: np.ndarray, mode: str) -> np.ndarray:
    if mode == "none":
        return maps
    out = np.zeros_like(maps)
    for n in range(len(maps)):
        among = maps if mode == "batch" else maps[n]
        top = (among - among.min()).max()
        out[n] = (maps[n] - among.min()) / top if top > 0 else 0
    return out


def slow_fit(cam: np.ndarray, prediction: np.ndarray, config: RationaleConfig) -> float:
    target, total, count = slow_target(cam, config), 0.0, 0
    scaled = slow_normalize(prediction, config.normalization)
    for n in range(len(cam)):
        rows = [list(scaled[n].flat)] if config.axis == "all" else [list(row) for row in scaled[n]]
        for p, row in zip(target[n], rows, strict=True):
            exponents = [math.exp(v / config.prediction_temperature) for v in row]
            q = [e / sum(exponents) for e in exponents]
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
            count += 1
    return total if config.reduction == "sum" else total / count


OPTIONS = {
    "target": ["softmax", "probability"],
    "axis": ["all", "row"],
    "normalization": ["none", "batch"],
    "reduction": ["mean", "sum"],
    "temperature": [1.0, 0.4, 2.5],
    "prediction_temperature": [1.0, 0.4],
}


def test_every_combination_of_options_is_the_slow_loop():
    """All 96 of them; on maps with zeros and with an image that is all zero."""
    cam, prediction = cams(), randn(N, H, W, seed=5, dtype=torch.float64).relu() * 2
    for values in itertools.product(*OPTIONS.values()):
        config = rationale(**dict(zip(OPTIONS, values, strict=True)))
        expected = slow_fit(cam.numpy(), prediction.numpy(), config)
        assert float(rationale_loss(cam, prediction, config).loss) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        target = target_distribution(cam, config)
        np.testing.assert_allclose(target.numpy(), slow_target(cam.numpy(), config), atol=1e-9)
        assert torch.allclose(target.sum(-1), torch.ones((), dtype=torch.float64))


def test_official_is_row_softmax_batch_normalised_and_summed():
    """Worked by hand: rows (0, ln 3) and (0, 0) against (2, 4) and (2, 2), with a companion that sets the scale."""
    cam = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]).double()
    prediction = torch.tensor([[[2.0, 4.0], [2.0, 2.0]], [[6.0, 6.0], [6.0, 6.0]]]).double()
    # over the batch (a - 2) / 4: rows (0, 1/2), (0, 0) and 1s; targets (1/4, 3/4) and even ones
    first = 0.25 * math.log(0.25) + 0.75 * math.log(0.75) - 0.75 * 0.5 + math.log(1 + math.exp(0.5))
    assert float(rationale_loss(cam, prediction, preset("official")).loss) == pytest.approx(first, rel=1e-5)
    # alone, the first image is scaled by its own 2 instead: the companion matters in training, as the authors have it
    alone = 0.25 * math.log(0.25) + 0.75 * math.log(0.75) - 0.75 + math.log(1 + math.e)
    assert float(rationale_loss(cam[:1], prediction[:1], preset("official")).loss) == pytest.approx(alone, rel=1e-5)


def test_normalized_is_a_probability_over_all_places_and_a_mean_per_image():
    """Worked by hand: cam (0, 3, 0, 1) against equal predictions is ln 4 - H(3/4, 1/4); a zero cam costs nothing."""
    cam = torch.tensor([[[0.0, 3.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    loss = rationale_loss(cam, torch.full((2, 2, 2), 0.7), preset("normalized")).loss
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(loss) == pytest.approx((math.log(4) - entropy) / 2, rel=1e-5)


def test_presets_are_the_documented_ones():
    official, normalized = preset("official"), preset("normalized")
    assert (official.target, official.axis, official.normalization) == ("softmax", "row", "batch")
    assert (official.reduction, official.sign, official.weight) == ("sum", "raise", 0.01)
    assert (official.detach_target, official.stop_gradient, official.temperature) == (False, False, 1.0)
    assert (normalized.target, normalized.axis, normalized.reduction) == ("probability", "all", "mean")
    assert normalized.detach_target and normalized.stop_gradient and normalized.normalization == "none"


def test_only_the_probability_target_ignores_the_losss_scale():
    """The raw cam carries 1 / (N HW): its softmax is nearly uniform, and says so by its entropy."""
    cam = randn(2, 7, 7).relu()
    entropies = {}
    for target in ("softmax", "probability"):
        config = rationale(target=target)
        for factor in (1e-3, 1e3):
            same = torch.allclose(
                target_distribution(cam * factor, config), target_distribution(cam, config), atol=1e-5
            )
            assert same == (target != "softmax")
        entropies[target] = float(rationale_loss(cam * 1e-3, cam, config).target_entropy)
    assert entropies["softmax"] > 0.99999 and entropies["probability"] < 0.9


@pytest.mark.parametrize("axis", ["all", "row"])
@pytest.mark.parametrize("target", ["softmax", "probability"])
def test_a_zero_map_is_a_uniform_target(target, axis):
    config = rationale(target=target, axis=axis, temperature=0.4)
    places = H * W if axis == "all" else W
    out = target_distribution(torch.zeros(N, H, W), config)
    assert torch.allclose(out, torch.full_like(out, 1 / places))
    assert float(rationale_loss(torch.zeros(N, H, W), randn(N, H, W), config).target_entropy) == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1e-4, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_extreme_scales_and_temperatures_stay_finite(scale, temperature):
    cam = cams(dtype=torch.float32) * scale
    for target, axis in itertools.product(OPTIONS["target"], OPTIONS["axis"]):
        config = rationale(target=target, axis=axis, temperature=temperature)
        out = target_distribution(cam, config)
        assert torch.isfinite(out).all() and torch.allclose(out.sum(-1), torch.ones(()), atol=1e-5)
        fitted = rationale_loss(cam, randn(N, H, W).relu(), config)
        assert torch.isfinite(fitted.loss) and 0 <= fitted.target_entropy <= 1 + 1e-5


def test_kl_is_zero_at_the_target_and_positive_elsewhere():
    for values in itertools.product(OPTIONS["target"], OPTIONS["axis"], OPTIONS["reduction"]):
        config = rationale(**dict(zip(("target", "axis", "reduction"), values, strict=True)))
        cam = randn(N, H, W, dtype=torch.float64).abs() + 0.1
        perfect = target_distribution(cam, config).log().view(N, H, W) + 3.0  # softmax forgets a constant
        assert float(rationale_loss(cam, perfect, config).loss) == pytest.approx(0, abs=1e-9)
        assert float(rationale_loss(cam, perfect + randn(N, H, W, seed=9), config).loss) > 1e-3


def test_entropy_is_one_for_flat_and_zero_for_one_hot():
    config = preset("normalized")
    one_hot = torch.zeros(2, H, W)
    one_hot[0, 1, 2] = one_hot[1, 3, 0] = 5.0
    half = torch.zeros(1, 4, 4)
    half[0, :1] = 2.0  # 4 of 16 places: ln 4 / ln 16
    anything = torch.rand(2, H, W)
    assert float(rationale_loss(torch.ones(2, H, W), anything, config).target_entropy) == pytest.approx(1, abs=1e-5)
    assert float(rationale_loss(one_hot, anything, config).target_entropy) == pytest.approx(0, abs=1e-5)
    assert float(rationale_loss(half, half, config).target_entropy) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("axis,shape", [("all", (N, 1, 1)), ("row", (N, 5, 1)), ("row", (N, 1, 1))])
def test_maps_of_a_single_place_say_nothing(axis, shape):
    for target in OPTIONS["target"]:
        fitted = rationale_loss(torch.rand(shape), torch.rand(shape), rationale(axis=axis, target=target))
        assert float(fitted.loss) == 0 and float(fitted.target_entropy) == 1


def test_map_normalisation_modes():
    maps = torch.tensor([[[1.0, 3.0]], [[5.0, 9.0]], [[4.0, 4.0]]])
    assert torch.equal(normalize_map(maps, "none"), maps)
    assert normalize_map(maps, "image").flatten().tolist() == [0, 1, 0, 1, 0, 0]
    assert normalize_map(maps, "batch").flatten().tolist() == [0, 0.25, 0.5, 1.0, 0.375, 0.375]


# ---- gradients of the fit


def loss_of(features: Tensor) -> Tensor:
    """A stand-in for the objective, curved so that second-order terms would show."""
    return (nn.functional.normalize(features.mean((2, 3)), dim=1) ** 3).sum()


def all_options() -> list[RationaleConfig]:
    return [
        rationale(target=t, axis=a, temperature=temperature, normalization=n, detach_target=False, stop_gradient=False)
        for t, a, temperature, n in itertools.product(
            OPTIONS["target"], OPTIONS["axis"], (0.4, 1.0, 2.5), OPTIONS["normalization"]
        )
    ]


@pytest.mark.parametrize("zeros", ["none", "image", "all"])
def test_undetached_targets_have_finite_gradients(zeros):
    """Zeros in the map, an image of zeros, zeros alone: with an undetached log each has given NaN somewhere."""
    features = randn(N, C, H, W)
    if zeros == "image":
        features[0] = 0
    elif zeros == "all":
        features.zero_()
    for config in all_options():
        leaf = features.clone().requires_grad_()
        cam = gradcam((leaf.mean((2, 3)) * randn(N, C, seed=2)).sum(), leaf)
        fitted = rationale_loss(cam, leaf.relu().amax(1), config)
        (gradient,) = torch.autograd.grad(fitted.loss, leaf)
        assert torch.isfinite(gradient).all(), config


def test_undetached_gradients_are_right():
    """Finite differences through target and prediction (float64, maps without ties or zeros)."""
    cam = (randn(2, 2, 3, dtype=torch.float64).abs() + 0.2).requires_grad_()
    prediction = (randn(2, 2, 3, seed=3, dtype=torch.float64).abs() + 0.2).requires_grad_()
    for config in all_options():
        assert torch.autograd.gradcheck(lambda c, p, k=config: rationale_loss(c, p, k).loss, (cam, prediction))


@pytest.mark.parametrize("detach,stop", itertools.product([True, False], repeat=2))
def test_the_total_gradient_is_the_losss_plus_the_weighted_fits(detach, stop):
    """With dL/dF held constant; a version that differentiates GradCAM twice differs where the target is attached."""
    config = rationale(detach_target=detach, stop_gradient=stop, weight=0.3)
    head, features = RationaleHead(C, config), randn(N, C, H, W)

    def constant_fit(leaf: Tensor, gradient: Tensor) -> Tensor:
        cam = (leaf * gradient).sum(1).relu()
        prediction = head(leaf.detach() if stop else leaf)
        return rationale_loss(cam.detach() if detach else cam, prediction, config).loss

    leaf = features.clone().requires_grad_()
    loss = loss_of(leaf)
    (loss + config.weight * fit_rationale(head, loss, leaf).loss).backward()
    total, total_head = leaf.grad.clone(), head.project.weight.grad.clone()

    head.zero_grad()
    other = features.clone().requires_grad_()
    (plain,) = torch.autograd.grad(loss_of(other), other, create_graph=True)
    fit = constant_fit(other, plain.detach())
    fit.backward(retain_graph=True)
    from_fit = torch.zeros_like(plain) if other.grad is None else other.grad.clone()
    assert torch.allclose(total, plain + config.weight * from_fit, atol=1e-6)
    assert torch.allclose(total_head, config.weight * head.project.weight.grad, atol=1e-6)
    assert head.project.weight.grad.abs().sum() > 0
    if detach and stop:
        assert from_fit.abs().max() == 0
    else:
        assert from_fit.abs().max() > 1e-5
    if not detach:
        (twice,) = torch.autograd.grad(constant_fit(other, plain), other)
        assert not torch.allclose(twice, from_fit, atol=1e-5)


def test_stop_gradient_leaves_the_backbone_to_the_loss_alone():
    head, features = RationaleHead(C, rationale()), randn(N, C, H, W)
    gradients = []
    for fit_weight in (0.0, 1000.0):
        leaf = features.clone().requires_grad_()
        loss = loss_of(leaf)
        (loss + fit_weight * fit_rationale(head, loss, leaf).loss).backward()
        gradients.append(leaf.grad)
    assert torch.equal(gradients[0], gradients[1])


def test_the_sign_of_the_config_reaches_gradcam():
    head, leaf = RationaleHead(C, rationale()).eval(), randn(N, C, H, W).requires_grad_()
    loss = loss_of(leaf)
    for sign in ("raise", "lower"):
        config = head.config = rationale(sign=sign)
        expected = rationale_loss(gradcam(loss, leaf, sign=sign), head(leaf), config).loss
        assert torch.equal(fit_rationale(head, loss, leaf).loss, expected)


def test_a_branch_can_learn_a_common_rationale():
    """Maps that are a linear read-out shared by all images are fitted until the KL is gone."""
    torch.manual_seed(0)
    config = preset("normalized")
    features = randn(16, C, H, W)
    cam = (features * randn(C, seed=3)[:, None, None]).sum(1).exp()
    head = RationaleHead(C, config)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    losses = []
    for _ in range(150):
        loss = rationale_loss(cam, head(features), config).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# ---- test time


@pytest.mark.parametrize("name", ["normalized", "official"])
def test_an_images_map_does_not_depend_on_its_companions(name):
    config = preset(name)
    head, features = trained_head(config), randn(N, C, H, W)
    alone = torch.cat([attention_map(head, features[n : n + 1]) for n in range(N)])
    together = attention_map(head, features)
    loud = attention_map(head, torch.cat([features[:1], 1e5 * features, features * 0]))
    assert torch.allclose(alone, together, atol=1e-6) and torch.allclose(alone[0], loud[0], atol=1e-6)
    pooled = attention_pool(features, together)
    assert torch.allclose(attention_pool(features[:1], alone[:1]), pooled[:1], atol=1e-6)


def test_maps_are_distributions_whatever_the_options():
    for axis, normalization, combine, norm, temperature in itertools.product(
        ["all", "row"], ["none", "batch"], ["max", "linear"], ["batch", "none"], [1.0, 0.1]
    ):
        config = rationale(
            axis=axis,
            normalization=normalization,
            combine=combine,
            branch_norm=norm,
            prediction_temperature=temperature,
        )
        attention = attention_map(trained_head(config), randn(N, C, H, W))
        assert attention.shape == (N, H, W) and attention.min() >= 0
        assert torch.allclose(attention.sum((1, 2)), torch.ones(N), atol=1e-5)


@pytest.mark.parametrize("name", ["normalized", "official"])
def test_a_dead_branch_is_uniform(name):
    config = preset(name)
    head = trained_head(config)
    with torch.no_grad():
        head.norm.weight.zero_()
        for bias in (-1.0, 0.0, 2.0):  # below, at and above the ReLU: constant maps all the same
            head.norm.bias.fill_(bias)
            attention = attention_map(head, randn(N, C, H, W))
            assert torch.allclose(attention, torch.full_like(attention, 1 / (H * W)))
            features = randn(N, C, H, W)
            assert torch.allclose(attention_pool(features, attention), attention_pool(features), atol=1e-6)


def test_the_normalized_map_is_the_fitted_distribution():
    config = rationale(prediction_temperature=0.5)
    head, features = trained_head(config), randn(N, C, H, W)
    attention, a = attention_map(head, features), head(features)
    expected = (a.double() / 0.5).exp() / (a.double() / 0.5).exp().sum((1, 2), keepdim=True)
    assert torch.allclose(attention.double(), expected, atol=1e-6)
    # a target equal to the map costs nothing
    assert float(rationale_loss(attention, a, config).loss.detach()) == pytest.approx(0, abs=1e-5)


def test_the_official_map_is_the_branchs_own_scaled_per_image():
    config = preset("official")
    head, features = trained_head(config), randn(N, C, H, W)
    a = head(features).double()
    shifted = a - a.amin((1, 2), keepdim=True)
    expected = shifted / shifted.sum((1, 2), keepdim=True)
    assert torch.allclose(attention_map(head, features).double(), expected, atol=1e-6)


def test_pooling_is_the_explicit_loop():
    features, attention = randn(N, C, H, W), torch.rand(N, H, W)
    expected = np.zeros((N, C))
    for n, c in itertools.product(range(N), range(C)):
        expected[n, c] = sum(
            float(features[n, c, y, x]) * float(attention[n, y, x]) for y, x in itertools.product(range(H), range(W))
        )
    expected /= np.sqrt((expected**2).sum(1, keepdims=True))
    pooled = attention_pool(features, attention)
    np.testing.assert_allclose(pooled.numpy(), expected, atol=1e-5)
    assert torch.allclose(attention_pool(features, 7 * attention), pooled, atol=1e-6)  # the map's scale does not matter
    assert torch.allclose(pooled.norm(dim=1), torch.ones(N))


def test_pooling_without_attention_is_global_average_pooling():
    features = randn(N, C, H, W)
    expected = nn.functional.normalize(nn.functional.adaptive_avg_pool2d(features, 1).flatten(1), dim=1)
    assert torch.allclose(attention_pool(features), expected, atol=1e-6)
    uniform = torch.full((N, H, W), 1 / (H * W))
    assert torch.allclose(attention_pool(features, uniform), expected, atol=1e-6)
    assert attention_pool(features.half()).dtype == torch.float32


@pytest.mark.parametrize("weighted", [True, False])
def test_generalised_mean_is_the_explicit_formula_and_has_a_gradient_at_zero(weighted):
    features = randn(N, C, H, W).requires_grad_()
    weights = torch.rand(N, H, W)
    weights = weights / weights.sum((1, 2), keepdim=True) if weighted else torch.full((N, H, W), 1 / (H * W))
    cubes = features.detach().double().clamp(min=0) ** 3
    expected = (cubes * weights[:, None].double()).sum((2, 3)) ** (1 / 3)
    pooled = pool_places(features, weights if weighted else None, pool="gem")
    assert torch.allclose(pooled.double(), expected, rtol=1e-5)
    with torch.no_grad():
        features[:, 0] = -1.0  # a channel that is nowhere positive
    pool_places(features, weights if weighted else None, pool="gem").sum().backward()
    assert features.grad.isfinite().all() and (features.grad[:, 0] == 0).all() and features.grad.abs().sum() > 0


def test_pooling_zeros_gives_zeros_not_nan():
    assert torch.equal(attention_pool(torch.zeros(2, C, H, W)), torch.zeros(2, C))


@pytest.mark.parametrize("weighted", [False, True])
def test_stages_are_pooled_as_a_loop_pools_them(weighted: bool) -> None:
    """Mean of the last map; of each earlier one mean and deviation; places weighted as the coarse cell they lie in."""
    maps = [randn(2, 3, 2, 2), randn(2, 4, 2, 2), randn(2, 5, 1, 1)]
    attention = torch.softmax(randn(2, 4), 1).view(2, 2, 2) if weighted else None
    found = pool_stages(maps, attention)
    for picture in range(2):
        expected = []
        for place, features in enumerate(maps):
            cells = features[picture].flatten(1)
            weights = [1 / cells.shape[1]] * cells.shape[1]
            if attention is not None and cells.shape[1] == 4:
                weights = attention[picture].flatten().tolist()
            means = [sum(w * float(v) for w, v in zip(weights, row, strict=True)) for row in cells]
            expected += means
            if place:
                squares = [
                    sum(w * (float(v) - mean) ** 2 for w, v in zip(weights, row, strict=True))
                    for row, mean in zip(cells, means, strict=True)
                ]
                expected += [square**0.5 for square in squares]
        assert torch.allclose(found[picture], torch.tensor(expected), atol=1e-5)


def test_a_coarse_map_weighs_the_places_of_a_finer_one() -> None:
    """All weight in one corner: what is pooled of the finer map lies there, and weights sum to one (a map of ones)."""
    attention = torch.zeros(1, 2, 2)
    attention[0, 0, 0] = 1
    finer = torch.zeros(1, 2, 8, 8)
    finer[0, 0, :4, :4], finer[0, 1] = 1, 1
    pooled = pool_stages([randn(1, 3, 2, 2), finer], attention)[0, 3:5]
    assert pooled[0] > 0.7 and abs(float(pooled[1]) - 1) < 1e-6
