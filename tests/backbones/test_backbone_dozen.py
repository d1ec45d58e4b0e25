"""A representative dozen of the sweep over all of timm: one of each way to hand out features, and of each oddity.

Through the training module that a run steps, the encoder file and timm's folder. `recipes/bench` sweeps every module.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import timm
import torch
from running import photos
from torch import Tensor

from fgssl.backbones import save_timm
from fgssl.config.resolve import load_config
from fgssl.rationale import gradcam
from fgssl.runs.encoder_file import load_encoder, save_encoder
from fgssl.training.model import build_model
from fgssl.training.plan import make_plan

# architecture, side, route, what is odd about it
DOZEN = [
    ("test_resnet", 64, "nchw", "nothing"),
    ("test_convnext", 64, "nchw", "a head's norm without a gradient"),
    ("test_nfnet", 64, "nchw", "standardised weights, no BatchNorm"),
    ("test_byobnet", 64, "nchw", "strided 1x1 convolutions over few channels"),
    ("lcnet_035", 64, "nchw", "a convolution after the pooling"),
    ("test_coatnet", 64, "nchw", "convolutions, then attention"),
    ("test_mambaout", 64, "nhwc", "channels at the end"),
    ("test_vit", 32, "intermediates", "tokens, with a class token"),
    ("vit_tiny_patch16_dinov3_qkvb", 32, "intermediates", "register tokens, rotary positions"),
    ("levit_128s", 80, "intermediates", "biases cached in eval mode"),
    ("xcit_nano_12_p8_224", 32, "intermediates", "a class token mixed in after the map"),
    ("coat_tiny", 64, "intermediates", "a list of scales, tensors that share memory"),
    ("crossvit_9_240", 64, "intermediates", "two lists, images rescaled to its own size"),
]


@pytest.mark.parametrize(("name", "side", "route", "oddity"), DOZEN, ids=[row[0] for row in DOZEN])
def test_trains_with_rationale_saves_and_opens(name: str, side: int, route: str, oddity: str, tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "data.source": os.fspath(photos()), "backbone.name": name, "backbone.pretrained": False,
        "backbone.image_size": side, "training.batch_size": 4, "training.device": "cpu",
    }  # fmt: skip
    model = build_model(make_plan(load_config(flags=flags)))
    backbone = model.encoder.backbone
    assert backbone.route == route
    train_step(model, side)

    encoder = model.encoder.eval()
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    again = load_encoder(str(tmp_path / "encoder.safetensors")).eval()
    pixels = noise(side)[0]
    floats = encoder.normalize(pixels)
    with torch.no_grad():
        for pool in ("gap", "rationale", *(("cls",) if backbone.has_class_token else ())):
            # to the last bit but where the trained one is in channels_last and has other kernels
            torch.testing.assert_close(again(pixels, pool), encoder(pixels, pool), atol=1e-5, rtol=1e-4)
        plain = timm.create_model(f"local-dir:{save_timm(backbone, tmp_path / 'timm')}", pretrained=True).eval()
        torch.testing.assert_close(plain.forward_features(floats), backbone.model.forward_features(floats))


def train_step(model: Any, side: int) -> None:
    """One step of SGD through loss and rationale, watched: GradCAM, gradients, what moved."""
    cams: list[Tensor] = []

    def watched(*arguments: Any, **options: Any) -> Tensor:
        cams.append(gradcam(*arguments, **options))
        return cams[-1]

    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    before = {key: value.detach().clone() for key, value in trained.items()}
    model.train()
    with mock.patch("fgssl.rationale.fit.gradcam", watched):
        output = model(noise(side), torch.arange(4), 1.0)
    output.total.backward()
    places = model.encoder.backbone.map_size
    assert [tuple(cam.shape) for cam in cams] == [(4, *places)]
    assert cams[0].isfinite().all() and cams[0].abs().max() > 0
    assert [key for key, value in trained.items() if value.grad is None or not value.grad.isfinite().all()] == []
    torch.optim.SGD(trained.values(), lr=0.1).step()
    for part in ("backbone", "rationale", "projector"):
        keys = [key for key in trained if part in key]
        assert any(not torch.equal(trained[key], before[key]) for key in keys), part


def noise(side: int) -> Tensor:
    """Two views (2, 4, 3, S, S) uint8."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (2, 4, 3, side, side), generator=generator, dtype=torch.uint8)
