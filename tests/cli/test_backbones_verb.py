"""fgssl backbones: what it finds, what it measures, and the memory estimate against sums done by hand."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from running import fgssl
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from fgssl.backbones import batch_that_fits, build_backbone, list_backbones, survey_backbone, training_bytes
from fgssl.backbones.memory import SavedBytes


def names(*arguments: str) -> list[str]:
    return [row["name"] for row in fgssl("backbones", *arguments, "--json").json()["backbones"]]


def test_search_is_by_parts_of_names_wildcards_and_tags() -> None:
    assert names("resnet18", "--no-measure") == [
        "legacy_seresnet18", "resnet18", "resnet18d", "seresnet18", "skresnet18",
    ]  # fmt: skip
    assert names("resnet18*", "--no-measure") == ["resnet18", "resnet18d"]
    assert names("RESNET18*", "--no-measure") == ["resnet18", "resnet18d"]
    assert "convnext_tiny" in names("lvd1689m", "--no-measure")  # DINOv3 trained it, which only the tag says
    rows = {row.name: row.tags for row in list_backbones("resnet18.a1_in1k")}
    assert rows == {"resnet18": ("a1_in1k",)}
    assert all(tag.startswith("fb") for row in list_backbones("resnet*.fb*") for tag in row.tags)


def test_a_row_holds_parameters_map_sizes_tags_and_memory() -> None:
    with mock.patch("fgssl.runtime.machine.available_memory", return_value=2_000_000_000):
        outcome = fgssl("backbones", "resnet18", "--image-size", "96", "--batch-size", "4", "--json", "--device", "cpu")
    document = outcome.json()
    assert document["batch_size"] == 4 and document["free_memory_bytes"] == 2_000_000_000
    row = next(row for row in document["backbones"] if row["name"] == "resnet18")
    assert row["parameters"] == 11_176_512  # 11,689,512 of the paper's model less fc's 513,000
    assert (row["own_size"], row["image_size"], row["map"]) == (224, 96, [512, 3, 3])
    assert row["tags"][0] == "a1_in1k" and row["problem"] is None and not row["class_token"]
    plan = survey_backbone("resnet18", image_size=96)
    assert row["training_bytes"] == training_bytes(plan, 4)
    best = row["largest_batch"]
    assert training_bytes(plan, best) <= 2_000_000_000 < training_bytes(plan, 2 * best)
    assert "5 of 5 can be trained at batch 4 in the 2.0 GB" in fgssl_with_memory(2_000_000_000, "resnet18").err


def fgssl_with_memory(memory: int, pattern: str):
    with mock.patch("fgssl.runtime.machine.available_memory", return_value=memory):
        return fgssl("backbones", pattern, "--image-size", "96", "--batch-size", "4", "--device", "cpu")


def test_a_pipe_gets_a_line_a_model_and_every_tag() -> None:
    outcome = fgssl_with_memory(500_000_000, "resnet18*")
    head, *lines = outcome.out.splitlines()
    assert head.split()[0] == "backbone" and [line.split()[0] for line in lines] == ["resnet18", "resnet18d"]
    assert " none " in lines[0] and "fb_swsl_ig1b_ft_in1k" in lines[0]
    assert "0 of 2 can be trained" in outcome.err


def test_many_models_are_listed_without_measuring_and_it_is_said() -> None:
    outcome = fgssl("backbones", "--json")
    rows = outcome.json()["backbones"]
    assert len(rows) > 1000 and "parameters" not in rows[0] and f"{len(rows)} models" in outcome.err


def test_a_size_that_a_model_cannot_take_is_its_row_s_problem() -> None:
    table = fgssl("backbones", "crossvit_tiny_240", "--image-size", "8")  # which rescales any input
    assert table.code == 0 and table.out.splitlines()[1].split()[:3] == ["crossvit_tiny_240", "192x14x14", "240"]
    table = fgssl("backbones", "resnet18d", "--image-size", "20")
    assert table.code == 0 and table.out.splitlines()[1].split()[:3] == ["resnet18d", "-", "224"]
    assert "resnet18d makes a 1x1 map of 20 px images" in table.err


def test_no_match_is_one_line_with_near_names() -> None:
    assert "did you mean convnext_atto" in fgssl("backbones", "convnextt_atto").error()
    assert "lists all" in fgssl("backbones", "qqqqqqqq").error()


def test_kept_memory_is_counted_as_by_hand() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        images = torch.zeros(2, 8)
        with SavedBytes(model) as saved:
            model(images)
        # the first layer keeps its input, and ReLU and the last layer one and the same output; weights do not count
        assert saved.total == 4 * (2 * 8 + 2 * 16)
        tokens = torch.zeros(2, 3, 50, 8, requires_grad=True)
        with SavedBytes(nn.Identity()) as saved:
            query, key, value = tokens * 1, tokens * 2, tokens * 3
            scaled_dot_product_attention(query, key, value)
        assert saved.total == 4 * 4 * tokens.numel()  # query, key, value, output; never 50 x 50 weights


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_kept_memory_without_numbers_is_that_of_a_real_pass(name: str) -> None:
    """The oracle: the profiler of torch's own allocator on the CPU."""
    plan = survey_backbone(name, image_size=96)
    backbone, images = build_backbone(name, image_size=96), torch.rand(4, 3, 96, 96)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        feature_map = backbone(images)
    held = sum(event.self_cpu_memory_usage for event in profiler.events()) - feature_map.numel() * 4
    assert held / 4 == pytest.approx(plan.saved_bytes, rel=0.15)


def test_the_estimate_is_weights_five_times_and_images() -> None:
    plan = survey_backbone("resnet18", image_size=96)._replace(parameters=1_000, saved_bytes=10_000)
    image = 1.25 * 10_000 + 2 * 3 * 96 * 96 * 4
    assert training_bytes(plan, 7) == 600_000_000 + 5 * 4 * 1_000 + 7 * image
    assert batch_that_fits(plan, 600_000_000) == 0
    assert batch_that_fits(plan, round(600_020_000 + 64 * image)) == 64
    assert batch_that_fits(plan, 10**12) == 4096
