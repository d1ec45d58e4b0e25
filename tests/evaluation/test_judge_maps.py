"""visualize --score: a table of maps, of which some are known beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import fgssl, finished_run, photos, plain_run

from fgssl.data.demo.demo_set import DemoSet
from fgssl.encoder import Encoder
from fgssl.evaluation import judge_maps
from fgssl.evaluation.judge_maps import MEANINGS
from fgssl.evaluation.subject import EvaluationOptions, open_subject


def rows_of(table: judge_maps.MapTable) -> dict[str, dict[str, float]]:
    return {row["map"]: row for row in table.rows}


def test_maps_that_are_known_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask as a map has all energy inside and hits; flat and centred maps are steady under a flip."""
    images = DemoSet("test")
    subject = open_subject(str(plain_run()), EvaluationOptions(data="demo", pool="gap"))
    chosen = [0, 213, 426, 639]
    crop = subject.encoder.backbone.crop_pct
    view = subject.encoder.view()
    seen = torch.from_numpy(np.stack([judge_maps.seen_masks(images.masks(row), view)[0] for row in chosen])).float()

    def told(encoder: Encoder) -> dict[str, judge_maps.MapOf]:
        return {"mask": lambda feature_map, pictures: seen[: len(pictures)]}

    monkeypatch.setattr(judge_maps, "own_maps", told)
    table = judge_maps.judge_maps(subject, split=None, count=4)
    rows = rows_of(table)
    assert table.images == table.masks == 4 and 0 < crop <= 1
    areas = seen.mean((1, 2))
    assert rows["mask"]["object_hit"] == 1 and rows["mask"]["object_ratio"] == pytest.approx(1 / float(areas.mean()))
    assert rows["mask"]["shuffled"] == pytest.approx(1)  # it owes nothing to the weights
    assert rows["uniform"]["object_ratio"] == pytest.approx(1) and rows["uniform"]["entropy"] == pytest.approx(1)
    assert rows["uniform"]["object_hit"] == pytest.approx(float(areas.mean()))
    for name in ("uniform", "centre prior"):
        assert rows[name]["flip"] == pytest.approx(1) and rows[name]["shuffled"] == pytest.approx(1)
    assert rows["uniform"]["crop"] == 1
    assert rows["random branch"]["shuffled"] < 1
    assert all(list(row)[1:] == [name for name in MEANINGS if name in row] for row in table.rows)
    assert all(0 <= row["deletion"] <= 1 and 0 <= row["insertion"] <= 1 for row in table.rows)


def test_the_command_scores_every_map_of_a_run() -> None:
    found = fgssl("visualize", "--score", finished_run()[0], "--data", photos(), "--count", "5", "--json").json()
    assert (found["images"], found["masks"]) == (5, 0)
    names = [row["map"] for row in found["rows"]]
    assert names[:2] == ["rationale", "GradCAM"] and set(found["definitions"]) == set(MEANINGS)
    assert all("object_ratio" not in row and "deletion" in row for row in found["rows"])
    again = fgssl("visualize", "--score", finished_run()[0], "--data", photos(), "--count", "5", "--json").json()
    assert again == found
    spoken = fgssl("visualize", "--score", plain_run(), "--data", photos(), "--count", "3")
    assert spoken.code == 0 and "no masks" in spoken.out and "deletion:" in spoken.out


def test_masks_of_ones_own(tmp_path: Path) -> None:
    for path in sorted((photos() / "test").rglob("*.*g"))[:3]:
        size = Image.open(path).size
        mask = np.zeros(size[::-1], np.uint8)
        mask[: size[1] // 2] = 255
        target = tmp_path / path.parent.name / f"{path.stem}.png"
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(target)
    arguments = ("visualize", "--score", plain_run(), "--data", photos(), "--masks", tmp_path, "--json")
    found = fgssl(*arguments).json()
    rows = {row["map"]: row for row in found["rows"]}
    assert found["masks"] >= 3
    assert rows["uniform"]["object_hit"] == pytest.approx(0.5, abs=0.01) and rows["uniform"][
        "object_ratio"
    ] == pytest.approx(1)
    assert rows["centre prior"]["object_ratio"] == pytest.approx(1, abs=0.02)  # symmetric: half of it


def test_flags_that_do_not_go_together() -> None:
    run = finished_run()[0]
    for arguments, said in (
        ((), "--score"), (("--data", "demo"), "goes with --score"),
        (("--score", run, "--output", "a.png"), "goes with drawing"),
        (("--score", run, "picture.png"), "goes with drawing"), (("--score", run, "--count", "0"), "--count"),
    ):  # fmt: skip
        refused = fgssl("visualize", *arguments)
        assert refused.code == 2 and said in refused.err
