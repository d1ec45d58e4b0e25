"""Convolutions as matrix products: torch's own convolution is the oracle, in double precision and in bf16."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.backbones import build_backbone, products
from fgssl.backbones.products import ANY, Geometry, Limits, ProductConv2d, Routes, choose_routes, use_products

ALWAYS = Limits(ANY, ANY, ANY)
GEOMETRIES = (
    Geometry((3, 3), (1, 1), (1, 1), (1, 1)),
    Geometry((3, 3), (2, 2), (1, 1), (1, 1)),
    Geometry((3, 3), (1, 1), (2, 2), (2, 2)),
    Geometry((3, 2), (2, 1), (1, 0), (1, 2)),
    Geometry((1, 1), (1, 1), (0, 0), (1, 1)),
    Geometry((1, 1), (2, 2), (0, 0), (1, 1)),
    Geometry((1, 1), (1, 1), (1, 1), (1, 1)),
    Geometry((2, 2), (2, 2), (0, 0), (1, 1)),
    Geometry((1, 4), (3, 2), (1, 3), (1, 1)),
)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every convolution that may be a product is one."""
    monkeypatch.setattr(products, "limits", lambda dtype: ALWAYS)
    monkeypatch.setattr(products, "LEAST_WEIGHTS", 1)


def native(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    _, stride, padding, dilation = geometry
    return functional.conv2d(x, weight, stride=stride, padding=padding, dilation=dilation)


def pair(geometry: Geometry, *, height: int = 7, width: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, height, width, dtype=torch.float64, generator=generator)
    return x, torch.randn(4, 5, *geometry.kernel, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_result_and_gradients_are_those_of_torch_by_every_mix_of_routes(
    geometry: Geometry, memory: torch.memory_format
) -> None:
    tensors = [tensor.contiguous(memory_format=memory).requires_grad_() for tensor in pair(geometry)]
    wanted = native(*tensors, geometry)
    gradient = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted_gradients = torch.autograd.grad(wanted, tensors, gradient)
    for routes in itertools.starmap(Routes, itertools.product((True, False), repeat=3)):
        found = products._Product.apply(*tensors, geometry, routes)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(torch.autograd.grad(found, tensors, gradient), wanted_gradients)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_scattered_is_the_transpose_of_neighbourhoods(geometry: Geometry) -> None:
    x, _ = pair(geometry)
    columns = products.neighbourhoods(x, geometry)
    other = torch.randn(columns.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    back = products.scattered(other, x.shape, geometry)
    torch.testing.assert_close((columns * other).sum(), (x * back).sum())


def test_a_part_of_a_larger_tensor_is_read_where_it_lies() -> None:
    geometry = GEOMETRIES[0]
    whole, weight = pair(geometry, height=9, width=9)
    for part in (whole[1:, :, 2:7, 1:8], whole[:, :, ::2, ::3], whole[:1].expand(3, -1, -1, -1)):
        found = products._Product.apply(part, weight, geometry, Routes(True, True, True))
        torch.testing.assert_close(found, native(part, weight, geometry))


@pytest.mark.parametrize("shape", [(512, 512, 3, 1), (256, 512, 6, 2)])
def test_in_bf16_it_is_as_near_the_truth_as_torch(shape: tuple[int, int, int, int]) -> None:
    inputs, outputs, side, stride = shape
    geometry = Geometry((3, 3), (stride, stride), (1, 1), (1, 1))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, inputs, side, side, generator=generator).bfloat16()
    weight = (torch.randn(outputs, inputs, 3, 3, generator=generator) / 50).bfloat16()
    exact = native(x.double(), weight.double(), geometry)
    gradient = torch.randn(exact.shape, generator=generator).bfloat16()

    def of(compute: Any, dtype: torch.dtype) -> list[Tensor]:
        tensors = [tensor.to(dtype).requires_grad_() for tensor in (x, weight)]
        result = compute(*tensors)
        return [result.detach(), *torch.autograd.grad(result, tensors, gradient.to(dtype))]

    truth = of(lambda *t: native(*t, geometry), torch.float64)
    ours = of(lambda *t: products._Product.apply(*t, geometry, Routes(True, True, True)), torch.bfloat16)
    theirs = of(lambda *t: native(*t, geometry), torch.bfloat16)
    for true, own, other in zip(truth, ours, theirs, strict=True):
        errors = [float((found.double() - true).norm() / true.norm()) for found in (own, other)]
        # a gradient of the input is rounded once a tap before it is summed: half a unit in the last place of bf16
        assert errors[0] < max(1.1 * errors[1], 2**-7), errors


def test_modules_keep_weights_names_and_bias_and_only_large_plain_ones_change(always: None) -> None:
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Conv2d(8, 6, 1, bias=False),
    ).double()
    model = copy.deepcopy(plain)
    use_products(model)
    assert [type(module) is ProductConv2d for module in model] == [True, False, False, False, True]
    assert list(model.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for module in (model, copy.deepcopy(model)):
        torch.testing.assert_close(module(x), plain(x))
        module(x).sum().backward()
    plain(x).sum().backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_small_convolutions_stay_torchs() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(512, 512, 3))
    use_products(model)
    assert [type(module) for module in model] == [nn.Conv2d, ProductConv2d]
    products.drop_products(model)
    assert [type(module) for module in model] == [nn.Conv2d, nn.Conv2d]


def test_frozen_weights_and_inputs_get_no_gradient(always: None) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    use_products(conv)
    x = torch.randn(1, 4, 3, 3, requires_grad=True)
    conv.requires_grad_(False)
    conv(x).sum().backward()
    assert x.grad is not None and conv.weight.grad is None
    conv.requires_grad_(True)
    conv(x.detach()).sum().backward()
    assert conv.weight.grad is not None
    with torch.no_grad():
        assert not conv(x).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(conv(x), functional.conv2d(x, conv.weight, conv.bias, padding=1))


def test_under_autocast_results_are_bf16_and_gradients_float32(always: None) -> None:
    conv = nn.Conv2d(16, 8, 3, padding=1).to(memory_format=torch.channels_last)
    use_products(conv)
    x = torch.randn(2, 16, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(x)
    assert found.dtype == torch.bfloat16 and found.is_contiguous(memory_format=torch.channels_last)
    found.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert conv.weight.grad is not None and conv.weight.grad.dtype == torch.float32
    assert conv.weight.grad.is_contiguous(memory_format=torch.channels_last)  # as the optimiser wants it


def test_a_map_too_small_for_the_kernel_is_refused_in_torchs_words(always: None) -> None:
    conv = nn.Conv2d(4, 4, 3)
    use_products(conv)
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
        conv(torch.zeros(1, 4, 2, 2))


def test_routes_depend_on_shape_precision_and_processor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    three, one = GEOMETRIES[0], GEOMETRIES[4]
    assert choose_routes(three, 9, Limits(9, 49, 64)) == (True, True, True)
    assert choose_routes(three, 10, Limits(9, 49, 64)) == (False, False, True)
    assert choose_routes(three, 50, Limits(9, 49, 64)) == (False, False, False)
    assert choose_routes(one, 64, Limits(9, 49, 64)) == (True, True, True)
    assert choose_routes(one, 65, Limits(9, 49, 64)) == (False, False, False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for tiles, wanted in ((True, products.AMX), (False, products.BF16)):
        monkeypatch.setattr(products, "has_amx", lambda tiles=tiles: tiles)
        assert products.limits.__wrapped__(torch.bfloat16) == wanted
        assert products.limits.__wrapped__(torch.float32) == products.FLOAT32
        assert products.limits.__wrapped__(torch.float64) == products.NONE
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert products.limits.__wrapped__(torch.float32) == products.NONE  # nothing was measured there


def test_a_resnet_computes_and_learns_as_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "limits", lambda dtype: products.FLOAT32)
    backbone = build_backbone("resnet18", image_size=96).train()
    reference = timm.create_model("resnet18", num_classes=0).train()
    reference.load_state_dict(backbone.model.state_dict())
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    used: list[Routes] = []
    apply = products._Product.apply
    monkeypatch.setattr(products._Product, "apply", lambda *given: (used.append(given[3]), apply(*given))[1])
    found, wanted = backbone(images), reference.forward_features(images)
    assert used.count(Routes(True, True, True)) >= 4  # the last stage, of 3x3 places
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    found.square().mean().backward()
    wanted.square().mean().backward()
    for (name, one), other in zip(backbone.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-2, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")
