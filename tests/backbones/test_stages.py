"""The maps of earlier stages: which there are, and that they are those the model computes on its way to the last."""

from __future__ import annotations

import pytest
import timm
import torch

from fgssl.backbones import build_backbone
from fgssl.backbones.stages import WIDEST, Stages


def backbone_of(name: str, image_size: int | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_backbone(name, image_size=image_size).eval()


@pytest.mark.parametrize(
    ("name", "size", "modules"),
    [
        ("test_resnet", 64, ["layer3", "layer2", "layer1"]),
        ("test_efficientnet", 64, ["blocks.4", "blocks.3", "blocks.2"]),  # the last map is made after the last stage
        ("test_convnext", 64, ["stages.2", "stages.1", "stages.0"]),
        ("resnet18", 64, ["layer3", "layer2", "layer1"]),
    ],
)
def test_they_are_the_outputs_of_the_stages_before_the_last(name: str, size: int, modules: list[str]) -> None:
    backbone = backbone_of(name, size)
    images, seen = torch.rand(2, 3, size, size), dict[str, torch.Tensor]()
    for module in modules:
        backbone.model.get_submodule(module).register_forward_hook(
            lambda _module, _inputs, output, module=module: seen.update({module: output})
        )
    with torch.no_grad():
        last, *earlier = backbone.forward_stages(images, 4)
        assert torch.equal(last, backbone(images))
    assert [torch.equal(found, seen[module]) for found, module in zip(earlier, modules, strict=True)] == [True] * 3
    assert backbone.earlier.channels == tuple(found.shape[1] for found in earlier)


def test_of_a_transformer_every_quarter_of_the_depth_is_one_with_the_last_norm() -> None:
    backbone = backbone_of("vit_tiny_patch16_224")
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        found = backbone.forward_stages(images, 4)
        wanted = backbone.model.forward_intermediates(images, indices=[2, 5, 8, 11], norm=True, intermediates_only=True)
        assert torch.equal(found[0], backbone(images))
    assert all(torch.equal(one, other) for one, other in zip(found, reversed(wanted), strict=True))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_may_be_asked_for(count: int) -> None:
    backbone = backbone_of("test_resnet", 64)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found, whole = backbone.forward_stages(images, count), backbone.forward_stages(images, 4)
    assert len(found) == count and all(torch.equal(one, other) for one, other in zip(found, whole, strict=False))


def test_wide_models_give_fewer_so_that_an_embedding_stays_small() -> None:
    backbone = backbone_of("resnet50", 64)
    assert backbone.earlier.channels == (1024,) and backbone.channels + 2 * 1024 <= WIDEST


@pytest.mark.parametrize("name", ["test_nothing_between", "a_model_that_lies"])
def test_a_model_without_such_a_way_has_none(name: str) -> None:
    backbone = backbone_of("test_resnet", 64)
    if name == "test_nothing_between":
        backbone.model.forward_intermediates = None
    else:
        honest = backbone.model.forward_intermediates

        def lying(images: torch.Tensor, **options: object) -> object:
            found = honest(images, **options)
            return found if isinstance(found, list) else (found[0] + 1, found[1])

        backbone.model.forward_intermediates = lying
    assert backbone.earlier == Stages()
    assert len(backbone.forward_stages(torch.rand(1, 3, 64, 64), 4)) == 1


def test_looking_for_them_changes_nothing() -> None:
    """No statistic, no mode, no random number: a run that asks is the same run."""
    torch.manual_seed(0)
    backbone = build_backbone("test_resnet", image_size=64)
    before, state = {k: v.clone() for k, v in backbone.state_dict().items()}, torch.get_rng_state()
    assert backbone.earlier.places and backbone.training and all(part.training for part in backbone.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert timm.create_model("test_resnet", num_classes=0).state_dict().keys() == backbone.model.state_dict().keys()
