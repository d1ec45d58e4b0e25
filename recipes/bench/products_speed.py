"""Convolutions as matrix products against oneDNN's, on this CPU: where the limits of `fgssl/backbones/products.py` lie.

    python recipes/bench/products_speed.py                        # single convolutions; bf16 and float32: two minutes
    python recipes/bench/products_speed.py --models               # a step of whole backbones: five minutes
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python recipes/bench/products_speed.py --no-tiles      # as on a CPU without AMX

Times are those of the product over those of torch's convolution, so that below 1 the product is the quicker: forward,
gradient of the input, gradient of the weights; both take turns, medians. A step of a backbone is forward, backward and
a second forward without gradients; told is timm's model's time over that of the same model with fgssl's convolutions,
so that above 1 fgssl is the quicker. Run it on an idle machine. Table on stderr, JSON on stdout.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable

import harness
import torch
from torch import Tensor, nn

from fgssl.backbones import build_backbone, products
from fgssl.backbones.products import ANY, Geometry, Limits, Routes
from fgssl.runtime.machine import keep_freed_memory

# name, side of the picture, batch, output stride
MODELS = (
    *(("resnet18", side, 64, None) for side in (64, 96, 128)),
    ("resnet18", 96, 64, 16),
    ("resnet18", 224, 32, None),
    ("resnet50", 96, 32, None),
    ("resnet50", 224, 16, None),
    *((name, 96, 32, None) for name in ("convnext_atto", "efficientnet_b0", "regnety_004", "mobilenetv3_large_100")),
    *((name, 96, 16, None) for name in ("densenet121", "vgg11_bn")),
)
PRECISIONS = {"bf16": torch.bfloat16, "float32": torch.float32}


def single(batch: int, channels: tuple[int, int], side: int, kernel: int, dtype: torch.dtype) -> dict[str, float]:
    """Ratios of one convolution of stride 1."""
    geometry = Geometry((kernel, kernel), (1, 1), (kernel // 2, kernel // 2), (1, 1))
    x = torch.randn(batch, channels[0], side, side).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels[1], channels[0], kernel, kernel).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    found = {}
    for name in ("forward", "input", "weight"):
        given = (x.clone().requires_grad_(name == "input"), weight.clone().requires_grad_(name == "weight"))

        def call(product: bool, given: tuple[Tensor, Tensor] = given, name: str = name) -> Callable[[], object]:
            routes = Routes(*(product,) * 3)
            if name == "forward":
                return lambda: products._Product.apply(*given, geometry, routes)
            result = products._Product.apply(*given, geometry, routes)
            gradient = torch.ones_like(result)
            wanted = given[0] if name == "input" else given[1]
            return lambda: torch.autograd.grad(result, wanted, gradient, retain_graph=True)

        times = harness.in_turns({"product": call(True), "torch": call(False)}, 9, warm=2)
        found[name] = statistics.median(times["product"]) / statistics.median(times["torch"])
    return found


def model_step(name: str, side: int, batch: int, stride: int | None, dtype: torch.dtype) -> float:
    """timm's step over ours."""
    calls = {}
    for kind in ("timm", "fgssl"):
        backbone = build_backbone(name, image_size=side, output_stride=stride).train()
        backbone.to(memory_format=torch.channels_last)
        if kind == "timm":
            products.drop_products(backbone)
        images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)

        def step(backbone: nn.Module = backbone, images: Tensor = images) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                feature_map = backbone(images)
                with torch.no_grad():
                    backbone(images)
            feature_map.float().mean().backward()
            backbone.zero_grad(set_to_none=True)

        calls[kind] = step
    times = harness.in_turns(calls, 5, warm=2)
    return statistics.median(times["timm"]) / statistics.median(times["fgssl"])


def main() -> None:
    """Print the table and the JSON."""
    parser = harness.parser(__doc__, "--threads", "--output")
    parser.add_argument("--models", action="store_true", help="whole backbones instead of single convolutions")
    parser.add_argument("--no-tiles", action="store_true", help="the limits of a CPU without AMX, as oneDNN is told")
    arguments = harness.begin(parser)
    keep_freed_memory()
    if arguments.no_tiles:
        products.has_amx = lambda: False
    used: dict[str, Limits] = {name: products.limits(dtype) for name, dtype in PRECISIONS.items()}
    rows: list[dict[str, object]] = []
    for precision, dtype in PRECISIONS.items():
        print(f"{precision}, limits {tuple(n if n < ANY else 'any' for n in used[precision])}", file=sys.stderr)
        if arguments.models:
            for name, side, batch, stride in MODELS:
                ratio = model_step(name, side, batch, stride, dtype)
                rows.append({"precision": precision, "model": name, "side": side, "batch": batch, "ratio": ratio})
                told = f"{name}, {side} px, batch {batch}" + (f", stride {stride}" if stride else "")
                print(f"  {told:44} {ratio:.2f}", file=sys.stderr)
            continue
        shapes = itertools.product((16, 64), (((256, 256), 3), ((512, 512), 3), ((1024, 512), 1)))
        for batch, (channels, kernel) in shapes:
            for side in (2, 3, 4, 5, 7, 8, 10):
                ratios = single(batch, channels, side, kernel, dtype)
                rows.append({"precision": precision, "batch": batch, "channels": channels, "kernel": kernel,
                             "side": side, **ratios})  # fmt: skip
                shape = f"{channels[0]} to {channels[1]}, {kernel}x{kernel}, {batch} maps of {side}x{side}"
                print(f"  {shape:44} " + " ".join(f"{k} {v:.2f}" for k, v in ratios.items()), file=sys.stderr)
    harness.report(arguments, {"rows": rows})


if __name__ == "__main__":
    main()
