"""Any timm model to a feature map. The oracle for features is plain timm; recipes/bench sweeps all its modules."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fgssl.backbones import (
    Backbone,
    build_backbone,
    list_backbones,
    load_initial_weights,
    rebuild_backbone,
    save_timm,
    suggest_backbones,
    survey_backbone,
)
from fgssl.backbones.module import safe_in_channels_last
from fgssl.backbones.names import resolve_source
from fgssl.backbones.plan import run_trial
from fgssl.errors import FgsslError
from fgssl.runtime.offline import is_offline

SWEEP = Path(__file__).parents[2] / "recipes" / "bench" / "backbone_sweep.py"

# name, image size, route, map (C, H, W): one of each route and of each family issue 2 promises
FAMILIES = [
    ("resnet18", 64, "nchw", (512, 2, 2)),
    ("convnext_atto", 64, "nchw", (320, 2, 2)),
    ("efficientnet_lite0", 64, "nchw", (1280, 2, 2)),
    ("mobilenetv3_small_050", 64, "nchw", (288, 2, 2)),
    ("vit_tiny_patch16_224", 64, "intermediates", (192, 4, 4)),
    ("swin_tiny_patch4_window7_224", 64, "nhwc", (768, 2, 2)),
    ("pit_ti_224", 64, "intermediates", (256, 2, 2)),  # forward_features is the class token alone
    ("coat_tiny", 64, "intermediates", (152, 2, 2)),  # forward_features is a list; 220 tensors share memory
]
NAMES = [family[0] for family in FAMILIES]


@pytest.fixture(scope="module")
def backbones() -> dict[str, Backbone]:
    torch.manual_seed(0)
    return {name: build_backbone(name, image_size=size).eval() for name, size, _, _ in FAMILIES}


def images(size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def as_map(features: Tensor, kind: str) -> Tensor:
    """Plain timm's features as a map, by hand."""
    if kind == "nhwc":
        return features.permute(0, 3, 1, 2)
    if kind == "vit":  # the class token, then the patches row by row
        side = int((features.shape[1] - 1) ** 0.5)
        return features[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    return features


@pytest.mark.parametrize(("name", "size", "route", "shape"), FAMILIES, ids=NAMES)
def test_map_has_the_promised_shape_and_a_gradient(
    backbones: dict[str, Backbone], name: str, size: int, route: str, shape: tuple[int, int, int]
) -> None:
    backbone = copy.deepcopy(backbones[name]).train()
    feature_map = backbone(images(size))
    assert tuple(feature_map.shape[1:]) == shape
    assert (backbone.route, backbone.channels, backbone.map_size) == (route, shape[0], shape[1:])
    # the step of training: GradCAM's gradient with respect to the map, then every trained parameter's
    embedding = torch.nn.functional.normalize(feature_map.mean((2, 3)), dim=1)
    loss = torch.nn.functional.cross_entropy(embedding @ embedding.T / 0.2, torch.tensor([1, 0]))
    (gradient,) = torch.autograd.grad(loss, feature_map, retain_graph=True)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    loss.backward()
    trained = {key for key, value in backbone.model.named_parameters() if value.grad is not None}
    expected = {key for key, value in backbone.model.named_parameters() if value.requires_grad}
    assert trained == expected
    assert set(backbone.unused_parameters).isdisjoint(trained)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet18", "nchw"),
        ("convnext_atto", "nchw"),
        ("swin_tiny_patch4_window7_224", "nhwc"),
        ("vit_tiny_patch16_224", "vit"),
    ],
)
def test_map_equals_plain_timm_read_by_hand(backbones: dict[str, Backbone], name: str, kind: str) -> None:
    backbone = backbones[name]
    plain = (
        timm.create_model(name, img_size=64, num_classes=0)
        if kind in ("nhwc", "vit")
        else timm.create_model(name, num_classes=0)
    )
    plain.load_state_dict(backbone.model.state_dict())
    with torch.no_grad():
        features = plain.eval().forward_features(images(64))
        feature_map = backbone(images(64))
    torch.testing.assert_close(feature_map, as_map(features, kind))
    if kind == "vit":
        with torch.no_grad():
            both = backbone.forward_with_token(images(64))
        torch.testing.assert_close(both.class_token, features[:, 0])
        torch.testing.assert_close(both.feature_map, feature_map)


@pytest.mark.parametrize("name", NAMES)
def test_saved_folder_opens_in_plain_timm(backbones: dict[str, Backbone], name: str, tmp_path: Path) -> None:
    backbone = backbones[name]
    folder = save_timm(backbone, tmp_path / "deep" / "timm")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(plain.forward_features(images(64)), backbone.model.forward_features(images(64)))
        again = build_backbone(f"local-dir:{folder}", pretrained=True).eval()
        torch.testing.assert_close(again(images(64)), backbone(images(64)))
    assert again.image_size == 64
    finetune = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=200).eval()
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(finetune.state_dict()[key], value), key
    assert finetune(images(64)).shape == (2, 200)
    assert timm.data.resolve_model_data_config(plain)["input_size"] == (3, 64, 64)
    assert timm.data.resolve_model_data_config(plain)["mean"] == list(backbone.mean)


def test_model_that_rescales_its_input_is_saved_with_the_size_it_was_built_for(tmp_path: Path) -> None:
    backbone = build_backbone("crossvit_9_240", image_size=96).eval()
    assert backbone.image_size == 96 and backbone.map_size == (14, 14)
    plain = timm.create_model(f"local-dir:{save_timm(backbone, tmp_path / 'timm')}", pretrained=True).eval()
    with torch.no_grad():
        for mine, theirs in zip(
            backbone.model.forward_features(images(96)), plain.forward_features(images(96)), strict=True
        ):
            torch.testing.assert_close(mine, theirs)
    assert timm.data.resolve_model_data_config(plain)["input_size"] == (3, 240, 240)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "coat_tiny", "resnet18"])
def test_rebuilt_from_description_and_weights_is_equal(backbones: dict[str, Backbone], name: str) -> None:
    backbone = backbones[name]
    description = json.loads(json.dumps(backbone.description()))
    again = rebuild_backbone(description, backbone.model.state_dict()).eval()
    with torch.no_grad():
        assert torch.equal(again(images(64)), backbone(images(64)))
    assert again.unused_parameters == backbone.unused_parameters
    assert again.description() == backbone.description()


def test_rebuild_lists_what_does_not_fit(backbones: dict[str, Backbone]) -> None:
    backbone = backbones["resnet18"]
    weights = dict(backbone.model.state_dict())
    weights["foreign.weight"] = weights.pop("conv1.weight")
    weights["bn1.weight"] = torch.ones(3)
    with pytest.raises(FgsslError, match=r"bn1\.weight is \(3,\).*missing conv1\.weight.*unexpected foreign\.weight"):
        rebuild_backbone(backbone.description(), weights)


def test_unused_parameters_of_known_families(backbones: dict[str, Backbone]) -> None:
    assert backbones["resnet18"].unused_parameters == ()
    assert backbones["mobilenetv3_small_050"].unused_parameters == ("conv_head.weight", "conv_head.bias")
    assert backbones["convnext_atto"].unused_parameters == ("head.norm.weight", "head.norm.bias")
    small = backbones["mobilenetv3_small_050"]
    frozen = small.model.conv_head.weight.numel() + small.model.conv_head.bias.numel()
    assert small.parameters_total - small.parameters_trained == frozen


@pytest.mark.parametrize("name", NAMES)
def test_trial_without_memory_agrees_with_a_real_one(backbones: dict[str, Backbone], name: str) -> None:
    backbone = backbones[name]
    real = run_trial(backbone.architecture, backbone.model_args, backbone.image_size, "cpu")
    assert real.saved_bytes == pytest.approx(backbone.plan.saved_bytes, rel=0.1)  # attention's kernels differ a little
    assert real._replace(saved_bytes=0) == backbone.plan._replace(saved_bytes=0)


def test_building_leaves_the_random_state_to_the_weights() -> None:
    torch.manual_seed(5)
    plain = timm.create_model("resnet18", num_classes=0)
    after = torch.rand(3)
    torch.manual_seed(5)
    backbone = build_backbone("resnet18", image_size=64)
    assert torch.equal(torch.rand(3), after)
    for key, value in plain.state_dict().items():  # BatchNorm's statistics included
        assert torch.equal(backbone.model.state_dict()[key], value), key


def test_channels_last_images_and_other_sides(backbones: dict[str, Backbone]) -> None:
    backbone = backbones["resnet18"]
    wide = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert backbone(wide).shape == (2, 512, 2, 3)
        torch.testing.assert_close(backbone(wide.contiguous(memory_format=torch.channels_last)), backbone(wide))


def test_own_size_and_data_config_come_from_the_model() -> None:
    backbone = build_backbone("test_vit")
    assert backbone.image_size == 160 and backbone.map_size == (10, 10)
    assert backbone.mean == (0.5, 0.5, 0.5) and backbone.interpolation == "bicubic" and backbone.crop_pct == 0.95


def test_output_stride_and_drop_path_reach_the_model() -> None:
    assert build_backbone("resnet18", image_size=64, output_stride=8).map_size == (8, 8)
    backbone = build_backbone("test_vit", drop_path=0.3)
    assert backbone.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)


def test_attention_biases_are_not_kept_between_evaluations() -> None:
    backbone = build_backbone("levit_128s", image_size=96).eval()
    backbone(images(96)).mean().backward()
    backbone(images(96)).mean().backward()  # a cached bias would belong to the first graph
    before = copy.deepcopy(backbone)(images(96))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(1.5)
        assert not torch.allclose(backbone(images(96)), before)
        fresh = rebuild_backbone(backbone.description(), backbone.model.state_dict()).eval()
        torch.testing.assert_close(backbone(images(96)), fresh(images(96)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "resnt18"}, "unknown backbone 'resnt18'; did you mean resnet18"),
        ({"name": "vit_tiny"}, "did you mean vit_tiny_patch16_224"),
        ({"name": "resnet18.a1_in"}, "no weights tagged 'a1_in'; its tags: resnet18.a1_in1k"),
        ({"name": "local-dir:/no/such/folder"}, "local-dir:/no/such/folder"),
        ({"name": "resnet18", "image_size": 32}, "1x1 map of 32 px.*the smallest image size that works is 33 px"),
        ({"name": "dla34", "image_size": 100}, "cannot take 100 px.*own size is 224 px; near 100 it takes 96 and 128"),
        ({"name": "resnet18", "image_size": 0}, "image size 0"),
        ({"name": "test_vit", "output_stride": 8}, "output stride 8"),
        ({"name": "vgg11", "drop_path": 0.1}, "vgg11 does not take drop path rate 0.1"),
        ({"name": "test_mambaout", "pretrained": True}, "test_mambaout has no published weights.*--no-pretrained"),
    ],
)
def test_bad_input_is_one_line_with_a_remedy(options: dict[str, object], expected: str) -> None:
    with pytest.raises(FgsslError, match=expected) as caught:
        build_backbone(**options)  # type: ignore[arg-type]
    assert caught.value.remedy and "\n" not in str(caught.value)


def test_offline_names_the_remedies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    missing = (
        r"^the pretrained weights of resnet18 are not on this machine and .*\(offline\); .*mirror.*--no-pretrained$"
    )
    with pytest.raises(FgsslError, match=missing):
        build_backbone("resnet18", pretrained=True, image_size=64)
    with pytest.raises(FgsslError, match=r"^backbone 'hf-hub:a/b' is not on this machine .*\(offline\); .*mirror"):
        build_backbone("hf-hub:a/b")


def test_only_silence_counts_as_offline() -> None:
    answer = HTTPError("https://example.org", 404, "not found", Message(), None)
    silent = (URLError("no route"), ConnectionResetError(), TimeoutError(), LocalEntryNotFoundError("not cached"))
    assert all(map(is_offline, silent)) and not any(map(is_offline, (answer, ValueError(), FileNotFoundError())))


class TestInitialWeights:
    def test_classifier_prefix_and_half_precision(self, backbones: dict[str, Backbone], tmp_path: Path) -> None:
        donor = timm.create_model("resnet18", num_classes=7)
        weights = {f"module.{key}": value.half() for key, value in donor.state_dict().items() if value.ndim}
        save_file(weights, tmp_path / "donor.safetensors")
        target = copy.deepcopy(backbones["resnet18"])
        result = load_initial_weights(target, tmp_path / "donor.safetensors")
        assert result.ignored_head == ("fc.weight", "fc.bias") or set(result.ignored_head) == {"fc.weight", "fc.bias"}
        assert result.missing == () and result.unexpected == ()
        assert target.model.conv1.weight.dtype == torch.float32
        assert torch.equal(target.model.conv1.weight, donor.conv1.weight.half().float())

    def test_position_embedding_of_another_size(self, backbones: dict[str, Backbone], tmp_path: Path) -> None:
        donor = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=0)
        nn.init.ones_(donor.pos_embed)  # a constant grid stays constant under any resampling
        torch.save({"state_dict": donor.state_dict()}, tmp_path / "donor.pth")
        target = copy.deepcopy(backbones["vit_tiny_patch16_224"])
        result = load_initial_weights(target, tmp_path / "donor.pth")
        assert result.missing == () and result.loaded == len(target.model.state_dict())
        torch.testing.assert_close(target.model.pos_embed, torch.ones(1, 17, 192))

    def test_missing_and_unexpected_are_listed(self, backbones: dict[str, Backbone], tmp_path: Path) -> None:
        weights = dict(backbones["resnet18"].model.state_dict())
        del weights["layer4.1.conv2.weight"]
        weights["layer9.weight"] = torch.ones(2)
        save_file(weights, tmp_path / "model.safetensors")
        target = build_backbone("resnet18", image_size=64)
        kept = target.model.layer4[1].conv2.weight.clone()
        result = load_initial_weights(target, tmp_path)  # a folder
        assert result.missing == ("layer4.1.conv2.weight",) and result.unexpected == ("layer9.weight",)
        assert torch.equal(target.model.layer4[1].conv2.weight, kept)
        assert torch.equal(target.model.conv1.weight, weights["conv1.weight"])

    def test_what_cannot_be_loaded_says_why(self, backbones: dict[str, Backbone], tmp_path: Path) -> None:
        target = copy.deepcopy(backbones["resnet18"])
        before = {key: value.clone() for key, value in target.model.state_dict().items()}
        save_file({"blocks.0.attn.weight": torch.ones(2)}, tmp_path / "other.safetensors")
        save_file({"conv1.weight": torch.ones(64, 3, 3, 3)}, tmp_path / "shape.safetensors")
        (tmp_path / "cut.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:40])
        torch.save(target, tmp_path / "code.pth")
        (tmp_path / "cut.pth").write_bytes((tmp_path / "code.pth").read_bytes()[:1000])
        torch.save({"epoch": 3}, tmp_path / "empty.pth")
        (tmp_path / "void").mkdir()
        for name, expected in [
            ("other.safetensors", "keys look like blocks.0.attn.weight; keys like bn1.bias"),
            ("shape.safetensors", r"conv1.weight is \(64, 3, 3, 3\) instead of \(64, 3, 7, 7\)"),
            ("cut.safetensors", "cannot be read"),
            ("code.pth", "not a plain state dict"),
            ("cut.pth", "cannot be read"),
            ("empty.pth", "holds no weights"),
            ("void", "has no weights"),
            ("none.safetensors", "no such file"),
        ]:
            with pytest.raises(FgsslError, match=expected):
                load_initial_weights(target, tmp_path / name)
        with pytest.raises(FgsslError, match="its tags: resnet18"):
            load_initial_weights(target, "a1_in9k")
        for key, value in target.model.state_dict().items():  # nothing half loaded
            assert torch.equal(value, before[key])

    def test_run_of_ours_starts_another(self, backbones: dict[str, Backbone], tmp_path: Path) -> None:
        save_timm(backbones["coat_tiny"], tmp_path / "run" / "timm")
        target = build_backbone("coat_tiny", image_size=64)
        result = load_initial_weights(target, tmp_path / "run")
        assert result.missing == () and result.unexpected == ()
        saved = load_file(tmp_path / "run" / "timm" / "model.safetensors")
        assert all(torch.equal(value, saved[key]) for key, value in target.model.state_dict().items())


def test_names_are_searched_and_suggested() -> None:
    rows = {row.name: row for row in list_backbones("resnet18*")}
    assert survey_backbone("resnet18").parameters == 11_176_512  # 11,689,512 of the paper's model less fc's 513,000
    assert rows["resnet18"].image_size == 224 and rows["resnet18"].tags[0] == "a1_in1k"
    assert any(row.name == "swin_tiny_patch4_window7_224" for row in list_backbones("swin_tiny"))
    assert list_backbones("nothing_like_it") == ()
    assert suggest_backbones("convnextt_atto")[0] == "convnext_atto"


def test_fastvit_never_runs_in_channels_last_on_a_cpu() -> None:
    """Its backward pass in that format corrupts the heap."""
    backbone = build_backbone("fastvit_t8", image_size=64)
    assert not backbone.channels_last
    seen: list[bool] = []
    backbone.model.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    backbone.eval()(images(64).contiguous(memory_format=torch.channels_last))
    assert seen == [True]


def test_the_convolution_that_corrupts_memory_rules_channels_last_out() -> None:
    backbone = build_backbone("resnet18", image_size=64)
    assert safe_in_channels_last(backbone.model)
    backbone.model.conv1 = nn.Conv2d(3, 64, 1, stride=2)
    assert not safe_in_channels_last(backbone.model)


def test_channels_last_is_for_known_families(backbones: dict[str, Backbone]) -> None:
    on = {name for name, backbone in backbones.items() if backbone.channels_last}
    assert on == {"resnet18", "convnext_atto", "efficientnet_lite0", "mobilenetv3_small_050"}


def test_hub_name_is_rebuilt_without_the_hub(backbones: dict[str, Backbone], tmp_path: Path) -> None:
    folder = save_timm(backbones["vit_tiny_patch16_224"], tmp_path / "timm")
    source = resolve_source(f"local-dir:{folder}")
    assert source.architecture == "vit_tiny_patch16_224" and source.own_size == 64
    description = build_backbone(f"local-dir:{folder}").description()
    assert str(tmp_path) not in json.dumps({**description, "name": ""})


@pytest.mark.slow
def test_sweep_of_every_timm_module(tmp_path: Path) -> None:
    command = [sys.executable, str(SWEEP), "--output", str(tmp_path / "table.md")]
    assert subprocess.run(command, timeout=7200, check=False).returncode == 0
