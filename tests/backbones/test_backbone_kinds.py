"""Maps and class tokens of models that are not the smallest of their module, against plain timm read by hand.

Narrow builds (few blocks, few channels are not on offer for all) would hide what differs here: the order of class,
distillation and register tokens, hybrid stems, several scales, channels last, sides that are not the model's own.
"""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from running import EVALUATED, fgssl, photos
from torch import Tensor
from torch.nn.functional import normalize

from fgssl.backbones import Backbone, build_backbone, rebuild_backbone
from fgssl.backbones.plan import run_trial
from fgssl.encoder import Encoder
from fgssl.errors import FgsslError

# name, side, tokens before the patches: class, class + distillation, class + 4 registers, none, hybrid stem
TOKENS = [
    ("vit_tiny_patch16_384", 96, 1),
    ("deit_tiny_distilled_patch16_224", 80, 2),
    ("vit_small_patch14_reg4_dinov2", 70, 5),
    ("vit_tiny_patch16_dinov3_qkvb", 64, 5),
    ("eva02_tiny_patch14_224", 70, 1),
    ("vit_tiny_r_s16_p8_224", 128, 1),
    ("vit_base_patch16_siglip_gap_224", 64, 0),
]


def images(side: int, width: int | None = None) -> Tensor:
    return torch.rand(2, 3, side, width or side, generator=torch.Generator().manual_seed(3))


def small(name: str, side: int, **options: Any) -> Backbone:
    """A backbone with two blocks where the architecture lets us choose: the tokens are the same."""
    torch.manual_seed(0)
    if name in ("vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_gap_224"):
        model_args = {"num_classes": 0, "img_size": side, "depth": 2, **options}
        plan = run_trial(name, model_args, side, "meta")
        model = timm.create_model(name, **model_args)
        return Backbone(model, plan, name=name, architecture=name).eval()
    return build_backbone(name, image_size=side).eval()


@pytest.mark.parametrize(("name", "side", "prefix"), TOKENS, ids=[row[0] for row in TOKENS])
@torch.no_grad()
def test_patches_and_class_token_are_told_apart(name: str, side: int, prefix: int) -> None:
    backbone = small(name, side)
    tokens = backbone.model.forward_features(images(side))  # (N, prefix + places, C), after the last norm
    rows, columns = backbone.map_size
    assert tokens.shape[1] == prefix + rows * columns
    by_hand = torch.stack([tokens[:, prefix + r * columns : prefix + (r + 1) * columns] for r in range(rows)], 1)
    torch.testing.assert_close(backbone(images(side)), by_hand.permute(0, 3, 1, 2))
    assert backbone.has_class_token == (prefix > 0)
    if prefix:
        both = backbone.forward_with_token(images(side))
        torch.testing.assert_close(both.class_token, tokens[:, 0])
        torch.testing.assert_close(both.feature_map, backbone(images(side)))
        encoder = Encoder(backbone)
        pixels = (images(side) * 255).to(torch.uint8)
        token = backbone.model.forward_features(encoder.normalize(pixels))[:, 0]
        torch.testing.assert_close(encoder(pixels, "cls"), normalize(token, dim=1))
        together = encoder.embeddings(pixels, ("gap", "cls"))
        torch.testing.assert_close(together["gap"], encoder(pixels, "gap"))
        assert not torch.allclose(together["gap"], together["cls"], atol=1e-2)


@pytest.mark.parametrize(
    ("name", "side"), [("xcit_nano_12_p8_224", 64), ("pit_ti_distilled_224", 64), ("convit_tiny", 64)]
)
@torch.no_grad()
def test_class_token_that_timm_hands_out_apart_from_the_map(name: str, side: int) -> None:
    """The token is mixed in after the last map, or is all that forward_features returns."""
    backbone = build_backbone(name, image_size=side).eval()
    both = backbone.forward_with_token(images(side))
    torch.testing.assert_close(both.class_token, backbone.model.forward_features(images(side))[:, 0])
    torch.testing.assert_close(both.feature_map, backbone(images(side)))


@torch.no_grad()
def test_the_finer_scale_of_a_list_is_not_the_map() -> None:
    """coat returns the tokens of four scales; the map is the last, without its class token."""
    backbone = build_backbone("coat_lite_tiny", image_size=96).eval()
    last = backbone.model.forward_features(images(96))
    last = last[-1] if isinstance(last, list) else last
    by_hand = last[:, 1:].transpose(1, 2).unflatten(2, backbone.map_size)
    torch.testing.assert_close(backbone(images(96)), by_hand)


@pytest.mark.parametrize(
    ("name", "nhwc"), [("test_mambaout", True), ("convnextv2_atto", False), ("regnety_002", False)]
)
@torch.no_grad()
def test_wide_images_keep_rows_and_columns_apart(name: str, nhwc: bool) -> None:
    backbone = build_backbone(name, image_size=64).eval()
    features = backbone.model.forward_features(images(64, 128))
    features = features.permute(0, 3, 1, 2) if nhwc else features
    assert features.shape[2:] == (2, 4)
    torch.testing.assert_close(backbone(images(64, 128)), features)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("vit_tiny_patch16_224", 112),
        ("swin_tiny_patch4_window7_224", 160),
        ("maxvit_rmlp_pico_rw_256", 64),
        ("resnet26t", 100),
    ],
)
@torch.no_grad()
def test_a_size_off_the_default_is_used_and_survives_the_file(name: str, side: int) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=side).eval()
    feature_map = backbone(images(side))
    assert backbone.image_size == side and tuple(feature_map.shape[2:]) == backbone.map_size
    again = rebuild_backbone(backbone.description(), backbone.model.state_dict()).eval()
    assert again.image_size == side and torch.equal(again(images(side)), feature_map)


def test_pooling_that_is_not_there_is_one_line() -> None:
    encoder = Encoder(build_backbone("resnet18", image_size=64).eval())
    pixels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    with pytest.raises(FgsslError, match="resnet18 has no class token beside its map to pool with; use --pool gap"):
        encoder(pixels, "cls")
    with pytest.raises(FgsslError, match="no rationale branch"):
        encoder(pixels, "concat")


def test_a_run_reports_the_class_token_beside_the_other_poolings(tmp_path: Any) -> None:
    options = ("--backbone", "test_vit", "--image-size", "32", "--set", "backbone.drop_path=0", "--max-steps", "2")
    outcome = fgssl("pretrain", "--data", photos(), *EVALUATED, *options, "--output", tmp_path / "run", "--json")
    assert outcome.code == 0, outcome.err
    rows = [(row["encoder"], row["pool"]) for row in outcome.json()["retrieval"]]
    assert rows == [(name, pool) for name in ("init", "trained") for pool in ("gap", "rationale", "zoom", "cls")]
    found = fgssl("retrieve", tmp_path / "run", "--pool", "cls", "--json")
    assert found.code == 0 and found.json()["pool"] == "cls"
    trained = next(r for r in outcome.json()["retrieval"] if (r["encoder"], r["pool"]) == ("trained", "cls"))
    assert found.json()["mAP"] == pytest.approx(trained["mAP"])
