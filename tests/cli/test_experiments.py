"""fgssl sweep and fgssl reproduce as they are typed: plan, run, table, what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import BACKBONE, fgssl, photos, plain_run

from fgssl import registry
from fgssl.cli import experiments
from fgssl.experiments.cells import VerbFailed
from fgssl.runtime.processes import Ended

RECIPE = f"""
data: {{source: '{{photos}}'}}
backbone: {{name: {BACKBONE}, pretrained: false, image_size: 64}}
training: {{max_steps: 2, batch_size: 8, workers: 0, mixed_precision: 'no', device: cpu}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.replace("{photos}", str(photos())))
    return path


def test_a_sweep_runs_and_leaves_its_table(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "_apart", lambda quiet: experiments._within)
    words = ("sweep", recipe, "--grid", "optimizer.lr=1e-3,3e-3", "--seeds", "1", "--output", tmp_path / "out")
    planned = fgssl(*words, "--dry-run", "--json").json()
    assert [(row["row"], row["cells"], row["left"]) for row in planned["rows"]] == [
        ("optimizer.lr=1e-3", 1, 1), ("optimizer.lr=3e-3", 1, 1),
    ]  # fmt: skip
    assert not (tmp_path / "out").exists()
    said = fgssl(*words, "--measure", "search")
    assert said.code == 0, said.err
    assert "rank-1 in train" in said.out and "optimizer.lr=3e-3" in said.out and "2 of 2 runs are left" in said.err
    again = fgssl(*words, "--measure", "search", "--json")
    assert "of 2:" not in again.err  # nothing was run
    assert [row["finished"] for row in again.json()["rows"]] == [1, 1]
    assert {"table.md", "table.csv", "table.tex", "table.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    other = fgssl(*words, "--measure", "search", "--set", "training.max_steps=3").error()
    assert "training.max_steps was 2 and is 3" in other


def test_slips_are_wrong_usage(recipe: Path, tmp_path: Path) -> None:
    assert "--grid" in fgssl("sweep", recipe, "--grid", "lr=1").error(code=2)
    assert "optimizer.lrr" in fgssl("sweep", recipe, "--grid", "optimizer.lrr=1,2").error(code=2)
    assert "no measure 'x'" in fgssl("sweep", recipe, "--measure", "x").error(code=2)
    assert "has no tables.yaml" in fgssl("reproduce", tmp_path).error()
    assert "does not exist" in fgssl("sweep", tmp_path / "no.yaml").error()


def test_data_may_name_tables_that_are_not_asked_for(recipe: Path, tmp_path: Path) -> None:
    row = "{data: nowhere, seeds: 1, measures: [search], rows: {a: {recipe: mine.yaml}}}"
    (tmp_path / "tables.yaml").write_text(f"one: {row}\ntwo: {row}\n")
    words = ("reproduce", tmp_path, "--dry-run", "--json", "--table", "one", "--weights", plain_run())
    planned = fgssl(*words, "--data", f"one={photos()}", "--data", "two=elsewhere")
    assert planned.code == 0, planned.err
    assert planned.json()["rows"][0]["left"] == 1
    assert "elsewhere" in fgssl(*words, "--data", "elsewhere").error()


def test_a_verb_apart_has_the_plugins_and_tells_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str]) -> Ended:
        asked.append(command)
        return Ended(len(asked) - 1, json.dumps(1))

    monkeypatch.setattr(experiments, "run_command", run)
    monkeypatch.setattr(registry, "loaded_files", [Path("mine.py")])
    monkeypatch.setattr(experiments, "loaded_files", registry.loaded_files)
    apart = experiments._apart(quiet=True)
    assert apart(("probe", "x")) == "1" and asked[0][1:] == [
        "-m",
        "fgssl",
        "probe",
        "x",
        "--plugin",
        "mine.py",
        "--quiet",
    ]
    with pytest.raises(VerbFailed) as failure:
        apart(("probe", "x"))
    assert failure.value.code == 1
