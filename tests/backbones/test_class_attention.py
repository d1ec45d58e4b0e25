"""What a class token attends to, against timm's own extraction, and maps and windows of transformers."""

from __future__ import annotations

import pytest
import torch
from pictures import make_picture
from timm.utils import AttentionExtract

from fgssl.backbones import build_backbone
from fgssl.encoder import Encoder
from fgssl.evaluation.looks import looks_at
from fgssl.evaluation.maps import control_maps

SIZE = 64


def small(name: str) -> Encoder:
    torch.manual_seed(0)
    return Encoder(build_backbone(name, image_size=SIZE)).eval()


def test_it_equals_the_attention_that_timm_computes() -> None:
    encoder = small("test_vit")
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    assert encoder.backbone.has_class_attention
    found = encoder.class_attention(images)
    model = encoder.backbone.model
    for block in model.blocks:
        block.attn.fused_attn = False
    name = f"blocks.{len(model.blocks) - 1}.attn.attn_drop"
    (weights,) = AttentionExtract(model, names=[name], method="hook")(encoder.normalize(images)).values()
    patches = weights.mean(1)[:, 0, -found[0].numel() :]
    torch.testing.assert_close(found.flatten(1), patches / patches.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert "class token" in control_maps(encoder, images)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_windows_of_any_backbone(name: str) -> None:
    encoder = small(name)
    pictures = [make_picture(seed, 50, 40) for seed in range(2)]
    for pool in ("zoom", "zoom:middle"):
        assert all(len(look.windows) == 1 for look in looks_at(encoder, pictures, pool))  # type: ignore[arg-type]
    assert encoder.backbone.has_class_attention is (name == "test_vit")
