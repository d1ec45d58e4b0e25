"""Names from files steer nothing: a terminal shows them on their line, a spreadsheet runs none, JSON has them true."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from pictures import make_picture
from running import fgssl, plain_run
from safetensors.torch import save_file

FORGED = "x\n   1  0.9999  forged\x1b[31m\u202e.png"


def test_a_query_forges_no_hit(tmp_path: Path) -> None:
    for number in range(4):
        make_picture(number, 40, 40).save(tmp_path / (FORGED if number == 0 else f"{number}.png"))
    names = os.fsdecode(os.fsencode(tmp_path)), "--query", tmp_path / FORGED, tmp_path / "1.png", "--top", "2"
    ask = ("retrieve", plain_run(), "--gallery", *names)
    outcome = fgssl(*ask)
    lines = outcome.out.splitlines()
    assert outcome.code == 0 and len(lines) == 6 and [line[:4].strip() for line in lines[1:3]] == ["1", "2"]
    assert not any(c in outcome.out + outcome.err for c in "\x1b\u202e") and "\\n   1  0.9999" in lines[0]
    found = fgssl(*ask, "--json").json()["queries"]
    assert found[0]["query"] == str(tmp_path / FORGED)
    paths = [hit["path"] for query in found for hit in query["hits"]]
    assert all(Path(path).is_file() for path in paths) and str(tmp_path / FORGED) not in paths[:2]


@pytest.mark.parametrize("arguments", [
    ("retrieve", "run", "--pool", "\x1b[31mred\nError: forged"),
    ("pretrain", "--epochs", "\x1b]0;title\x07\nError: forged"),
    ("pretrain", "\x1b[2Jdance\nError: forged"),
    ("\x1b[2Jdance\nError: forged",),
])  # fmt: skip
def test_wrong_usage_repeats_no_control_character(arguments: tuple[str, ...]) -> None:
    outcome = fgssl(*arguments)
    assert outcome.code == 2 and "\x1b" not in outcome.err and "\x07" not in outcome.err
    assert [line for line in outcome.err.splitlines() if line.startswith("Error:")] == outcome.err.splitlines()[-1:]


def test_a_problem_stays_on_its_line() -> None:
    error = fgssl("retrieve", "no\x1b[31m\nerror: forged").error()
    assert "no\\x1b[31m\\nerror: forged" in error


def test_class_names_are_no_formulas_in_the_tables(tmp_path: Path) -> None:
    names = ["=HYPERLINK(1)", "a\nb\x1b[31m", "+1", "plain"]
    labels = torch.arange(40) % 4
    features = torch.nn.functional.one_hot(labels, 4).float() + 0.01 * torch.rand(40, 4)
    metadata = {"class_names": json.dumps(names)}
    save_file({"features": features, "labels": labels}, tmp_path / "f.safetensors", metadata=metadata)
    assert fgssl("probe", tmp_path / "f.safetensors", "-o", tmp_path / "probe").code == 0
    text = (tmp_path / "probe" / "per_class.csv").read_text()
    assert "\x1b" not in text and len(text.splitlines()) == 5
    found = [row[0] for row in csv.reader(text.splitlines())][1:]
    assert found == ["'=HYPERLINK(1)", "a\\nb\\x1b[31m", "'+1", "plain"]
    assert set(names) <= set(json.loads((tmp_path / "probe" / "probe.json").read_text())["results"][0]["per_class"])
    for path in (tmp_path / "probe").glob("labels-*.txt"):
        assert all(line.count("\t") == 1 for line in path.read_text().splitlines())
