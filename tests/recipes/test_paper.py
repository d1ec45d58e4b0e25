"""The paper's recipes are what their generator says, two forms differ in what they are about, and rows do run."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from running import fgssl, photos

from fgssl.config.resolve import load_config
from fgssl.config.schema import flatten
from fgssl.experiments.reproduce import Chosen, table_cells
from fgssl.experiments.tablefile import read_tables

ROOT = Path(__file__).parents[2]
PAPER, SMALL = ROOT / "recipes" / "paper", ROOT / "recipes" / "small"


def test_the_files_are_what_the_generator_says() -> None:
    made = runpy.run_path(str(PAPER / "generate.py"))["outputs"]()
    assert set(made) == set(PAPER.glob("*.yaml")), "run python recipes/paper/generate.py"
    assert [path.name for path, text in made.items() if path.read_text(encoding="utf-8") != text] == []


def test_a_table_has_every_objective_in_every_form() -> None:
    for name, table in read_tables(PAPER).items():
        recipes = {row.recipe.stem for row in table.rows if row.recipe is not None}
        forms = [f"{name}-{o}-{f}" for o in ("mocov2", "byol", "simsiam", "simclr", "dino")
                 for f in ("plain", "official", "default")]  # fmt: skip
        assert recipes == {*forms, f"{name}-frozen-default"} and table.rows[0].recipe is None
        cells = table_cells(table, Chosen())
        assert len({cell.name for cell in cells}) == len(cells) == 1 + 3 * 16
        assert [cell.seed for cell in cells[:17]] == [None, *[0] * 16]


@pytest.mark.parametrize("objective", ["mocov2", "byol", "simsiam", "simclr", "dino"])
def test_plain_and_official_differ_in_the_rationale_alone(objective: str) -> None:
    plain, official = (flatten(load_config(PAPER / f"cub-{objective}-{f}.yaml").config) for f in ("plain", "official"))
    other = {key for key in plain if plain[key] != official[key]}
    assert "rationale.enabled" in other and {key.partition(".")[0] for key in other} == {"rationale"}


def test_the_published_numbers_are_the_verified_ones_and_no_other() -> None:
    found = {
        (name, row.name): dict(row.published or {}) for name, table in read_tables(PAPER).items() for row in table.rows
    }
    assert {key: value for key, value in found.items() if value} == {
        ("cub", "ImageNet weights, frozen"): {"probe 100 %": 68.17},
        ("cub", "MoCo v2"): {"probe 100 %": 68.30},
        ("cub", "MoCo v2 + rationale"): {"probe 100 %": 71.31},
    }


def test_the_small_tables_have_every_objective_with_and_without() -> None:
    from fgssl.objectives import OBJECTIVES

    for table in read_tables(SMALL).values():
        cells = table_cells(table, Chosen(str(photos()), "weights.safetensors"))
        named = {
            (c.settings.get("objective.name"), c.settings.get("rationale.enabled", True)) for c in cells if c.train
        }
        own = {name for name in OBJECTIVES if OBJECTIVES.origin(name) is None} - {"distill"}
        assert {name for name, on in named if not on} == own and {name for name, on in named if on} == {*own, None}


def test_rows_start_train_resume_and_are_measured(tmp_path: Path) -> None:
    rows = ("--only", "aircraft-simclr-official", "--only", "ImageNet*")
    said = fgssl("reproduce", PAPER, "--table", "aircraft", "--rehearse", *rows, "--output", tmp_path, "--json")
    assert said.code == 0, said.err
    assert [(row["row"], row["numbers"]) for row in said.json()] == [
        ("ImageNet weights, frozen", "measured"), ("SimCLR + rationale", "measured"),
    ]  # fmt: skip
    run = tmp_path / "aircraft" / "aircraft-simclr-official-seed0"
    assert json.loads((run / "summary.json").read_text())["steps"] == 4 and not (run / "resume").exists()
    numbers = json.loads(run.with_suffix(".json").read_text())["measured"]
    assert set(numbers["probe-sgd"]) == {"probe 100 %", "probe 50 %", "probe 20 %"}


def test_a_row_of_the_small_table_does() -> None:
    row = ("--only", "STML + rationale", "--json", "--quiet")
    said = fgssl("reproduce", SMALL, "--table", "cars", "--rehearse", *row)
    assert said.code == 0 and said.json()[0]["numbers"] == "measured", said.err
    refused = fgssl("reproduce", SMALL, "--rehearse", "--weights", "x")
    assert refused.code == 2 and "a rehearsal draws its own data and weights" in refused.err
