"""Which of timm's modules are known good in the faster ways to compute: channels_last, bf16 autocast, torch.compile.

Lists of what was measured, not rules: a module that is on none of them is trained in plain float32, contiguous.
"""

from __future__ import annotations

from torch import nn

# whose training step was measured on a CPU as no slower, mostly 1.1 to 2 times faster, in channels_last
CHANNELS_LAST_MODULES = frozenset(
    (
        *("convnext", "densenet", "dla", "efficientnet", "ghostnet", "inception_next", "maxxvit", "mobilenetv3"),
        *("regnet", "repvit", "res2net", "resnet", "rexnet", "vgg"),
    )
)
# whose maps and GradCAM in bf16 point where those of float32 do, cosine 0.95 or more (recipes/bench/backbone_fast.py)
BF16_MODULES = frozenset(
    (
        *("beit", "byobnet", "cait", "coat", "convnext", "densenet", "edgenext", "efficientnet", "eva", "fastvit"),
        *("ghostnet", "hgnet", "levit", "mambaout", "maxxvit", "metaformer", "mobilenetv3", "nfnet", "pit"),
        *("regnet", "repvit", "resnet", "resnetv2", "sequencer", "starnet", "swin_transformer"),
        *("swin_transformer_v2", "tiny_vit", "vision_transformer", "vovnet", "xcit"),
    )
)
# that torch.compile traces to the same map and gradients (the same recipe)
COMPILE_MODULES = BF16_MODULES


def module_of(model: nn.Module) -> str:
    """The timm module, such as ``vision_transformer``, that a model's class is defined in."""
    return type(model).__module__.rpartition(".")[2]


def safe_in_channels_last(model: nn.Module) -> bool:
    """Whether a timm model is known to be safe, and no slower, in the channels_last memory format on a CPU.

    On CPUs with AVX-512, the backward pass of a strided 1x1 convolution over fewer than 16 channels writes beyond its
    memory in that format (torch 2.14; found with a checking malloc). fastvit, mobileone and repvgg begin with one.
    """
    overflows = any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.in_channels < 16
        for module in model.modules()
    )
    return module_of(model) in CHANNELS_LAST_MODULES and not overflows
