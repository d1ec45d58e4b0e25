"""Convolutions of small maps as matrix products, on a CPU: as the last stage of a network at a small image size.

oneDNN's convolutions work along the rows of a map: 512 to 512 channels, 3x3, on 64 maps of 3x3 takes 21 ms backwards
and 5 ms forwards in bf16 on two cores with AMX, the same as products 3.8 and 2.7 ms. Sums are in float32 as oneDNN's.
Which computations become products is a function of the shapes, the precision and the processor's instructions, never of
a measurement while running: a resumed run computes as the first one did. Limits: recipes/bench/products_speed.py.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fgssl.runtime.machine import has_amx

ANY = 2**62
LEAST_WEIGHTS = 2**18  # of smaller convolutions neither gains much, and the way through Python costs more


class Limits(NamedTuple):
    """The largest maps, in places (height x width of the output), for which a product is the quicker."""

    all_three: int  # of kernels beyond 1x1
    weights: int  # likewise, gradient of the weights alone
    pointwise: int  # all three, of 1x1 kernels


AMX = Limits(all_three=16, weights=49, pointwise=ANY)
BF16 = Limits(all_three=0, weights=9, pointwise=64)  # AVX-512 without tiles
FLOAT32 = Limits(all_three=9, weights=9, pointwise=64)
NONE = Limits(0, 0, 0)


class Routes(NamedTuple):
    """Which of a convolution's output and gradients are products."""

    forward: bool
    input: bool
    weight: bool


class Geometry(NamedTuple):
    """Of a convolution, (height, width) each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Size of the map it makes of one of (height, width)."""
        sides = zip((height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        rows, columns = ((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in sides)
        return rows, columns


@functools.cache
def limits(dtype: torch.dtype) -> Limits:
    """Of this processor in a precision; none where nothing was measured."""
    known = {torch.float32: FLOAT32, torch.bfloat16: AMX if has_amx() else BF16}
    return known.get(dtype, NONE) if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else NONE


def choose_routes(geometry: Geometry, places: int, found: Limits) -> Routes:
    """For a convolution whose output has so many places."""
    pointwise = geometry.kernel == (1, 1)
    small = places <= (found.pointwise if pointwise else found.all_three)
    return Routes(small, small, small if pointwise else places <= found.weights)


class ProductConv2d(nn.Conv2d):
    """An ``nn.Conv2d`` that computes by products where that is the quicker; made by ``use_products``."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W'), the convolution."""
        if input.device.type != "cpu" or input.ndim != 4 or torch.compiler.is_compiling():
            return super().forward(input)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        assert not isinstance(self.padding, str)  # `use_products`
        sides = (self.kernel_size, self.stride, self.padding, self.dilation)
        geometry = Geometry(*((side[0], side[1]) for side in sides))
        rows, columns = geometry.output(*input.shape[2:])
        routes = choose_routes(geometry, rows * columns, limits(dtype))
        if not any(routes) or min(rows, columns) < 1:  # what is too small for a kernel torch says in its own words
            return super().forward(input)
        found: Tensor = _Product.apply(input.to(dtype), self.weight.to(dtype), geometry, routes)
        return found if self.bias is None else found + self.bias.to(dtype).view(-1, 1, 1)


def use_products(model: nn.Module) -> None:
    """Let the large plain convolutions of a model be ``ProductConv2d``, in place: same weights, same names."""
    for module in model.modules():
        if type(module) is not nn.Conv2d or isinstance(module.padding, str) or module.padding_mode != "zeros":
            continue
        if module.groups == 1 and module.weight.numel() >= LEAST_WEIGHTS:
            module.__class__ = ProductConv2d


def drop_products(model: nn.Module) -> None:
    """The model as it was, for those who compare."""
    for module in model.modules():
        if type(module) is ProductConv2d:
            module.__class__ = nn.Conv2d  # type: ignore[assignment]


class _Product(torch.autograd.Function):
    """The convolution of (N, C, H, W) with (O, C, h, w), without a bias; what is no product is left to torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: Geometry, routes: Routes) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.routes = geometry, routes
        if not routes.forward:
            return functional.conv2d(x, weight, None, *geometry[1:])
        rows, columns = geometry.output(*x.shape[2:])
        product = neighbourhoods(x, geometry) @ _flat(weight).t()
        return product.view(len(x), rows, columns, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        geometry, routes = ctx.geometry, ctx.routes
        for_x, for_weight = ctx.needs_input_grad[:2]
        mask = [for_x and not routes.input, for_weight and not routes.weight, False]
        found: list[Tensor | None] = [None, None]
        if any(mask):
            given = (gradient, x, weight, None, *geometry[1:], False, [0, 0], 1, mask)
            found[:] = torch.ops.aten.convolution_backward(*given)[:2]
        flat = gradient.permute(0, 2, 3, 1).reshape(-1, len(weight))
        if for_x and routes.input:
            found[0] = scattered(flat @ _flat(weight), x.shape, geometry)
        if for_weight and routes.weight:
            product = flat.t() @ neighbourhoods(x, geometry)
            found[1] = product.view(len(weight), *geometry.kernel, -1).permute(0, 3, 1, 2)
        return (*found, None, None)


def _flat(weight: Tensor) -> Tensor:
    """(O, C, h, w) -> (O, h w C), in channels_last without a copy."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def neighbourhoods(x: Tensor, geometry: Geometry) -> Tensor:
    """What each place of the output looks at: (N, C, H, W) -> (N H' W', h w C)."""
    kernel, stride, padding, dilation = geometry
    rows, columns = geometry.output(*x.shape[2:])
    padded = x.permute(0, 2, 3, 1)
    if any(padding):
        padded = functional.pad(padded, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    image, row, column, channel = padded.stride()
    shape = (len(x), rows, columns, *kernel, x.shape[1])
    steps = (image, row * stride[0], column * stride[1], row * dilation[0], column * dilation[1], channel)
    return padded.as_strided(shape, steps, padded.storage_offset()).reshape(-1, kernel[0] * kernel[1] * x.shape[1])


def scattered(columns: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """The transpose of ``neighbourhoods``: (N H' W', h w C) -> (N, C, H, W), what falls on one place summed."""
    images, channels, height, width = shape
    kernel, stride, padding, dilation = geometry
    out_rows, out_columns = geometry.output(height, width)
    taps = columns.view(images, out_rows, out_columns, *kernel, channels)
    if kernel == (1, 1) and stride == (1, 1) and padding == (0, 0):
        return taps.view(images, height, width, channels).permute(0, 3, 1, 2)
    size = (images, height + 2 * padding[0], width + 2 * padding[1], channels)
    total = columns.new_zeros(size, dtype=torch.promote_types(columns.dtype, torch.float32))
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            top, left = row * dilation[0], column * dilation[1]
            bottom, right = top + stride[0] * (out_rows - 1) + 1, left + stride[1] * (out_columns - 1) + 1
            total[:, top : bottom : stride[0], left : right : stride[1]] += taps[:, :, :, row, column]
    inner = total[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    return inner.to(columns.dtype).permute(0, 3, 1, 2)
