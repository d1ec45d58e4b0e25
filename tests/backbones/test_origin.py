"""What weights of other tools belong to, and that they open with all their numbers or say what is wrong with them."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from running import fgssl, photos
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor

from fgssl.backbones import build_backbone, load_initial_weights, open_weights, origin_of, save_timm
from fgssl.errors import FgsslError


def zeros(name: str, **options: object) -> dict[str, Tensor]:
    """timm's own keys and shapes of a model, its classifier included; small integers for numbers."""
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    return {key: torch.zeros(value.shape, dtype=torch.float16) for key, value in model.state_dict().items()}


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in weights.items()}


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50", "resnext50_32x4d", "convnext_tiny", "vit_small_patch16_224", "efficientnet_b0",
     "swin_tiny_patch4_window7_224", "mobilenetv3_large_100", "deit_small_distilled_patch16_224"],
)  # fmt: skip
def test_common_models_are_told_by_keys_and_shapes(name: str, tmp_path: Path) -> None:
    save_file(prefixed(zeros(name), "module.encoder_q."), tmp_path / "w.safetensors")
    assert origin_of(tmp_path / "w.safetensors") == (name, None)


def test_files_of_other_tools(tmp_path: Path) -> None:
    """torchvision's names, DINOv2's mask token, MoCo's note of the architecture, DINO's teacher."""
    with torch.device("meta"):
        densenet = torchvision.models.densenet121()
    torch.save({key: torch.zeros(value.shape) for key, value in densenet.state_dict().items()}, tmp_path / "tv.pth")
    assert origin_of(tmp_path / "tv.pth") == ("densenet121", None)
    dino = zeros("vit_small_patch14_dinov2") | {"mask_token": torch.zeros(1, 384)}
    torch.save(dino, tmp_path / "dinov2_vits14_pretrain.pth")
    assert origin_of(tmp_path / "dinov2_vits14_pretrain.pth") == ("vit_small_patch14_dinov2", None)
    moco = prefixed(zeros("resnet50"), "module.encoder_q.") | {"module.queue": torch.zeros(128, 64)}
    torch.save({"epoch": 200, "arch": "resnet50", "state_dict": moco}, tmp_path / "moco.pth.tar")
    assert origin_of(tmp_path / "moco.pth.tar") == ("resnet50", None)
    teacher = prefixed(zeros("vit_small_patch16_224", num_classes=0), "backbone.") | {
        "head.mlp.0.weight": torch.zeros(2)
    }
    torch.save({"student": {}, "teacher": teacher, "epoch": 3}, tmp_path / "dino.pth")
    assert origin_of(tmp_path / "dino.pth") == ("vit_small_patch16_224", None)
    save_file(zeros("test_resnet"), tmp_path / "noted.safetensors", metadata={"architecture": "test_resnet"})
    assert origin_of(tmp_path / "noted.safetensors") == ("test_resnet", None)


def test_a_model_that_only_looks_alike_is_not_taken_for_another(tmp_path: Path) -> None:
    """Squeeze and excitation beside resnet50's own tensors; one stage less."""
    save_file(zeros("seresnet50"), tmp_path / "se.safetensors")
    short = {key: value for key, value in zeros("resnet18").items() if not key.startswith("layer4")}
    save_file(short, tmp_path / "short.safetensors")
    assert origin_of(tmp_path / "se.safetensors") is None and origin_of(tmp_path / "short.safetensors") is None
    begun = time.monotonic()
    error = fgssl("pretrain", "--data", photos(), "--init", tmp_path / "se.safetensors", "--dry-run").error()
    assert "se.safetensors does not tell its architecture; name it with --backbone" in error
    assert "resnet50" not in error and time.monotonic() - begun < 60
    assert "no such file" in fgssl("pretrain", "--data", photos(), "--init", tmp_path / "no.pth", "--dry-run").error()


def test_a_run_starts_from_a_file_whose_model_nobody_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    donor = timm.create_model("resnet18", num_classes=5)
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    options = ("--init", tmp_path / "w.safetensors", "--image-size", "64", "--dry-run", "--json")
    outcome = fgssl("pretrain", "--data", photos(), *options)
    assert outcome.code == 0, outcome.err
    assert outcome.json()["settings"]["backbone.name"] == {"value": "resnet18", "origin": "derived: from --init"}
    assert outcome.json()["facts"]["initial_weights"]["missing"] == []


# ---- opened as a backbone


def test_a_timm_folder_with_a_classifier_opens_with_its_numbers_and_its_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    donor = timm.create_model("efficientnet_lite0", num_classes=7).eval()
    save_timm(build_backbone("efficientnet_lite0", image_size=64), tmp_path / "folder")
    save_file(donor.state_dict(), tmp_path / "folder" / "model.safetensors")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "num_classes": 7}
    config["num_classes"] = 7
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    images = torch.rand(2, 3, 64, 64)
    for source in ("folder", "folder/model.safetensors"):
        backbone = open_weights(tmp_path / source).eval()
        assert backbone.mean == (0.1, 0.2, 0.3) and backbone.image_size == 64
        with torch.no_grad():
            torch.testing.assert_close(backbone(images), donor.forward_features(images))


def test_a_plain_file_opens_as_a_named_or_a_recognised_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    donor, images = timm.create_model("resnet18", num_classes=3).eval(), torch.rand(2, 3, 64, 64)
    torch.save({"state_dict": prefixed(donor.state_dict(), "module.")}, tmp_path / "w.pth")
    for name in (None, "resnet18"):
        backbone = open_weights(tmp_path / "w.pth", name=name, image_size=64).eval()
        with torch.no_grad():
            torch.testing.assert_close(backbone(images), donor.forward_features(images))
    with pytest.raises(FgsslError, match=r"do not fit resnet34|lacks .* weights of resnet34"):
        open_weights(tmp_path / "w.pth", name="resnet34", image_size=64)


def test_a_lacking_weight_is_no_backbone(tmp_path: Path) -> None:
    weights = timm.create_model("test_resnet", num_classes=0).state_dict()
    del weights["layer4.0.conv1.weight"]
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(FgsslError, match=r"lacks 1 weights of test_resnet: layer4\.0\.conv1\.weight"):
        open_weights(tmp_path / "w.safetensors", name="test_resnet")


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module"])
def test_names_of_wrapped_parts_are_those_of_the_parts(wrapper: str, tmp_path: Path) -> None:
    """safetensors #524: torch.compile of a part, or of the whole, changes names only."""
    donor = timm.create_model("resnet18", num_classes=2).eval()
    parts = {key.replace("layer1.", f"layer1.{wrapper}."): value for key, value in donor.state_dict().items()}
    save_file(parts, tmp_path / "part.safetensors")
    save_file(prefixed(donor.state_dict(), f"{wrapper}."), tmp_path / "whole.safetensors")
    images = torch.rand(1, 3, 64, 64)
    for name in ("part", "whole"):
        backbone = open_weights(tmp_path / f"{name}.safetensors", image_size=64).eval()
        with torch.no_grad():
            torch.testing.assert_close(backbone(images), donor.forward_features(images))


def test_tensors_that_share_memory_are_not_missed(tmp_path: Path) -> None:
    """safetensors #265, accelerate #2875: its save_model leaves them out; coat has 220."""
    donor = timm.create_model("coat_tiny", num_classes=0)
    save_model(donor, str(tmp_path / "w.safetensors"))
    assert len(load_file(tmp_path / "w.safetensors")) == len(donor.state_dict()) - 220
    backbone = open_weights(tmp_path / "w.safetensors", name="coat_tiny", image_size=64)
    assert all(torch.equal(value, donor.state_dict()[key]) for key, value in backbone.model.state_dict().items())


# ---- weights that are not numbers


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_not_taken_for_numbers(kind: torch.dtype, tmp_path: Path) -> None:
    """Without their scales they are other numbers."""
    weights = timm.create_model("test_resnet", num_classes=0).state_dict()
    save_file({k: v.to(kind) if v.is_floating_point() else v for k, v in weights.items()}, tmp_path / "w.safetensors")
    with pytest.raises(FgsslError, match=r"in .*w\.safetensors is quantised"):
        open_weights(tmp_path / "w.safetensors", name="test_resnet")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_file_and_tensor(bad: float, tmp_path: Path) -> None:
    backbone = build_backbone("test_resnet", image_size=64)
    save_timm(backbone, tmp_path / "folder")
    weights = load_file(tmp_path / "folder" / "model.safetensors")
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    weights["layer1.0.conv1.weight"].view(-1)[3] = bad
    save_file(weights, tmp_path / "folder" / "model.safetensors")
    with pytest.raises(FgsslError, match=r"folder/model\.safetensors are not finite: layer1\.0\.conv1\.weight"):
        load_initial_weights(backbone, tmp_path / "folder")
    assert all(torch.equal(value, before[key]) for key, value in backbone.model.state_dict().items())
    error = fgssl("pretrain", "--data", photos(), "--init", tmp_path / "folder", "--dry-run").error()
    assert "not finite: layer1.0.conv1.weight" in error and "rate" not in error


def test_a_classifier_that_is_not_finite_does_not_matter(tmp_path: Path) -> None:
    weights = timm.create_model("test_resnet", num_classes=4).state_dict()
    weights["fc.weight"].fill_(math.nan)
    save_file(weights, tmp_path / "w.safetensors")
    assert open_weights(tmp_path / "w.safetensors", name="test_resnet").channels == 96
