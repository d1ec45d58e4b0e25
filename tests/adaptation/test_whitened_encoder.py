"""An encoder that whitens: how it is fitted, what it pools, and its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from pictures import ArrayImages
from torch.nn import functional

from fgssl.adaptation import fit_whitening, whiten
from fgssl.backbones import build_backbone, save_timm
from fgssl.config.schema import RationaleConfig
from fgssl.data.cache.pixels import PixelStore, Shrunk
from fgssl.encoder import Encoder
from fgssl.evaluation.embed import embed
from fgssl.rationale import RationaleHead, pool_places
from fgssl.runs.encoder_file import identity, load_encoder, save_encoder

SIZE = 64


def encoder_of(*, rationale: bool = False) -> Encoder:
    torch.manual_seed(0)
    backbone = build_backbone("test_resnet", image_size=SIZE)
    head = RationaleHead(backbone.channels, RationaleConfig()) if rationale else None
    return Encoder(backbone, head).eval()


def whitened(images: ArrayImages, **options: bool) -> Encoder:
    encoder = encoder_of(**options)
    assert whiten(encoder, PixelStore(images, Shrunk(80)), stages=1, seed=0, progress=lambda done, total: None)
    return encoder


def test_every_pooling_of_the_map_is_whitened_and_of_unit_length(memory_images: Callable[..., ArrayImages]) -> None:
    encoder = whitened(memory_images(12), rationale=True)
    assert encoder.whitening is not None
    feature_map = torch.rand(3, encoder.backbone.channels, 4, 4)
    gap = functional.normalize(encoder.whitening(pool_places(feature_map)), dim=1)
    weighted = functional.normalize(encoder.whitening(pool_places(feature_map, encoder.attention(feature_map))), dim=1)
    assert torch.allclose(encoder.pool([feature_map], "gap"), gap, atol=1e-6)
    assert torch.allclose(encoder.pool([feature_map], "rationale"), weighted, atol=1e-6)
    assert torch.allclose(encoder.pool([feature_map], "concat"), torch.cat([gap, weighted], 1) / 2**0.5, atol=1e-6)
    zoomed = encoder(torch.randint(0, 256, (2, 3, *[encoder.view_size("zoom")] * 2), dtype=torch.uint8), "zoom")
    assert torch.allclose(zoomed.norm(dim=1), torch.ones(2), atol=1e-5)
    lengths = torch.stack([part.norm(dim=1) for part in zoomed.chunk(3, 1)])  # whole, rationale, window
    assert torch.allclose(lengths / lengths[0], torch.tensor([[1.0], [0.5], [0.5]]).expand(3, 2), atol=1e-5)


def test_it_is_fitted_on_the_features_that_evaluation_sees(memory_images: Callable[..., ArrayImages]) -> None:
    """The mean of the evaluation views is taken out: pictures at the cache's size are not shrunk twice."""
    images = memory_images(12)
    encoder = whitened(images)
    assert encoder.whitening is not None
    layer, encoder.whitening = encoder.whitening, None
    raw = []
    handle = encoder.backbone.register_forward_hook(lambda _module, _inputs, output: raw.append(pool_places(output)))
    embed(encoder, images, pools=["gap"], workers=0, cache="off")
    handle.remove()
    assert float(layer(torch.cat(raw)).mean(0).norm()) < 1e-3 * float(layer(torch.cat(raw)).norm(dim=1).mean())


def test_the_same_seed_gives_the_same_layer_and_unreadable_pictures_are_left_out(
    memory_images: Callable[..., ArrayImages],
) -> None:
    first, again, fewer = whitened(memory_images(12)), whitened(memory_images(12)), whitened(memory_images(12, (3,)))
    assert first.whitening is not None and again.whitening is not None and fewer.whitening is not None
    assert torch.equal(first.whitening.weight, again.whitening.weight)
    assert torch.isfinite(fewer.whitening.weight).all() and not torch.equal(first.whitening.bias, fewer.whitening.bias)


def test_one_picture_is_nothing_to_whiten_by(memory_images: Callable[..., ArrayImages]) -> None:
    encoder = encoder_of()
    assert not whiten(
        encoder, PixelStore(memory_images(2, (0,)), Shrunk(80)), stages=1, seed=0, progress=lambda *_: None
    )
    assert encoder.whitening is None


def test_the_encoder_file_keeps_it_and_two_encoders_differ_by_it(
    memory_images: Callable[..., ArrayImages], tmp_path: Path
) -> None:
    encoder = whitened(memory_images(12))
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    loaded = load_encoder(str(tmp_path / "encoder.safetensors"))
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    assert torch.equal(loaded(images), encoder(images))
    assert identity(loaded) == identity(encoder) != identity(encoder_of())


@pytest.mark.parametrize("views", [2, 5])
def test_views_may_be_few(views: int) -> None:
    assert fit_whitening(torch.rand(views, 9, 4)).weight.shape == (4, 4)


@pytest.mark.parametrize(("name", "as_head"), [("test_resnet", True), ("test_vit", False)])
def test_plain_timm_gives_the_whitened_feature_where_its_head_follows_the_mean(
    name: str, as_head: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=SIZE)
    layer = torch.nn.Linear(backbone.channels, backbone.channels)
    images = torch.rand(3, 3, SIZE, SIZE)
    opened = timm.create_model(f"local-dir:{save_timm(backbone.eval(), tmp_path, head=layer)}", pretrained=True).eval()
    with torch.no_grad():
        pooled = pool_places(backbone(images))
        if as_head:
            assert torch.allclose(opened(images), layer(pooled), atol=1e-4)
        plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0).eval()
        assert torch.allclose(plain.forward_features(images), backbone.model.forward_features(images), atol=1e-5)
    assert (opened.num_classes == backbone.channels) == as_head
