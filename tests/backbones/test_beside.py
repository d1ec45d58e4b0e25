"""Finer maps that the last one brings along: which they are, and how they are kept in a row."""

from __future__ import annotations

import copy

import pytest
import torch

from fgssl.backbones import GivenMap, build_backbone, finer_maps, packed
from fgssl.backbones.beside import bring_finer
from fgssl.errors import FgsslError


def test_they_are_the_nearest_stage_of_each_finer_size_and_the_last_map_stays_as_it_is() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("test_resnet", image_size=64, output_stride=16).eval()  # stages 3 and 4 of one size
    images, seen = torch.rand(2, 3, 64, 64), list[torch.Tensor]()
    with torch.no_grad():
        plain = backbone(images)
        assert finer_maps(plain) == ()
        backbone.bring_along(1)
        backbone.model.layer2.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        for found in (backbone(images), backbone.forward_stages(images, 3)[0], copy.deepcopy(backbone)(images)):
            assert torch.equal(found, plain)
            (finer,) = finer_maps(found)
            assert torch.equal(finer, seen[-1]) and finer.shape[2:] == (8, 8) and found.shape[2:] == (4, 4)
        assert [each.shape[2] for each in backbone.forward_stages(images, 3)] == [4, 4, 8]
    assert backbone.map_shapes == [(96, 4, 4), (48, 8, 8)] and backbone.kept_shape == (2, 96 * 16 + 48 * 64)


def test_equal_blocks_have_no_finer_map() -> None:
    backbone = build_backbone("test_vit", image_size=64)
    backbone.bring_along(0)
    with pytest.raises(FgsslError, match="has 0 earlier stages with finer maps"):
        backbone.bring_along(1)


def test_packed_maps_come_out_as_they_went_in() -> None:
    last, finer = torch.rand(3, 5, 2, 2), (torch.rand(3, 4, 4, 4), torch.rand(3, 2, 8, 8))
    assert packed(last) is last
    row = packed(bring_finer(last.clone(), finer))
    assert row.shape == (3, 5 * 4 + 4 * 16 + 2 * 64)
    given = GivenMap(5, [(5, 2, 2), (4, 4, 4), (2, 8, 8)])(row)
    assert torch.equal(given, last) and given.requires_grad
    assert all(torch.equal(one, other) for one, other in zip(finer_maps(given), finer, strict=True))
