"""Grids and tables of a folder as cells: every combination, every seed, slips named before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import photos

from fgssl.config.resolve import load_config
from fgssl.errors import FgsslError, SettingError
from fgssl.experiments import plan
from fgssl.experiments.reproduce import Chosen, table_cells
from fgssl.experiments.tablefile import read_tables

RECIPE = "backbone: {name: test_resnet, pretrained: false}\ntraining: {seed: 5, epochs: 2}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def test_a_grid_is_every_combination_over_seeds(recipe: Path) -> None:
    rows = plan.grid_rows(recipe, ["optimizer.lr=1e-3, 3e-3", "objective.temperature=0.1,0.2"])
    assert [row.name for row in rows][:2] == [
        "optimizer.lr=1e-3, objective.temperature=0.1", "optimizer.lr=1e-3, objective.temperature=0.2",
    ]  # fmt: skip
    cells = [cell for row in rows for cell in plan.training_cells(row, 3, ("probe",))]
    assert len({cell.name for cell in cells}) == 12 and {cell.seed for cell in cells} == {5, 6, 7}
    assert cells[0].settings["optimizer.lr"] == 1e-3 and cells[-1].settings["training.seed"] == 7
    sets = [word for word in cells[-1].train if "=" in word]
    config = load_config(recipe, sets=sets).config
    assert (config.optimizer.lr, config.objective.temperature, config.training.seed) == (3e-3, 0.2, 7)
    assert [row.name for row in plan.grid_rows(recipe, [])] == ["mine"]


@pytest.mark.parametrize(
    "grid", [["lr=1"], ["optimizer.lr"], ["optimizer.lr=1e-3,"], ["optimizer.lr=1e-3,1e-3"], ["optimizer.lr=x"],
             ["training.seed=1,2"], ["optimizer.lr=1e-3", "optimizer.lr=1e-4"]],
)  # fmt: skip
def test_a_wrong_grid_is_wrong_usage(recipe: Path, grid: list[str]) -> None:
    with pytest.raises(SettingError):
        plan.grid_rows(recipe, grid)


def test_names_of_cells_stay_apart_and_short() -> None:
    assert plan.cell_name("a-lr=1e-3") == "a-lr=1e-3"
    assert plan.cell_name("a/b") != plan.cell_name("a b") and len(plan.cell_name("x" * 500)) < 120


def test_measures_suit_the_data(recipe: Path, tmp_path: Path) -> None:
    labelled = load_config(recipe, sets=[f"data.source={photos()}"])
    assert plan.usual_measures(labelled) == ("retrieve", "search", "probe")
    assert plan.count_images(labelled) == (24, 12)
    with pytest.raises(SettingError, match="no measure 'prob'"):
        plan.check_measures(["prob"])


def test_forward_passes_are_counted_by_hand(recipe: Path) -> None:
    trains, measured = plan.forward_passes(load_config(recipe), (100, 40), ("retrieve", "probe-sgd"))
    assert trains == 2 * 100 * 4  # MoCo: forward, backward as two, and the keys
    assert measured == 40 + (100 * 100 + 100 * 50 + 100 * 20) + 40
    frozen = load_config(recipe, sets=["backbone.freeze=backbone"])
    assert plan.forward_passes(frozen, (100, 40), ())[0] == 2 * 100


def write_tables(folder: Path, text: str) -> None:
    (folder / "tables.yaml").write_text(text)


def test_a_table_takes_the_users_data_and_weights(recipe: Path, tmp_path: Path) -> None:
    rows = "{start: {pool: gap}, mine: {recipe: mine.yaml, set: {rationale.enabled: false}, published: {mAP: 3}}}"
    write_tables(tmp_path, f"t: {{measures: [retrieve], seeds: 2, rows: {rows}}}")
    table = read_tables(tmp_path)["t"]
    assert table.published == {"start": {}, "mine": {"mAP": 3.0}}
    with pytest.raises(SettingError, match="no data of its own"):
        table_cells(table, Chosen())
    with pytest.raises(SettingError, match="no weights of its own"):
        table_cells(table, Chosen("cub"))
    start, *trained = table_cells(table, Chosen("cub", "w.safetensors"))
    assert start.subject == ("w.safetensors", "--backbone", "test_resnet", "--data", "cub") and start.seed is None
    assert [cell.seed for cell in trained] == [5, 6]
    assert trained[0].settings["backbone.init"] == "w.safetensors" and not trained[0].settings["rationale.enabled"]
    assert len(table_cells(table, Chosen("cub", "w", 1, only=("m*",)))) == 1
    with pytest.raises(FgsslError, match="its rows: start, mine"):
        table_cells(table, Chosen("cub", "w", only=("nothing",)))


@pytest.mark.parametrize(("text", "told"), [
    ("[1]", "holds no tables"), ("t: 3", "holds no settings"),
    ("t: {rows: {}, measure: [x]}", "did you mean 'measures'"),
    ("t: {measures: [retrieve], rows: {a: {recipe: no.yaml}}}", "no recipe no.yaml"),
    ("t: {measures: [retrieve], rows: {a: {recipe: ../x.yaml}}}", "no recipe x.yaml"),
    ("t: {measures: [nothing], rows: {}}", "no measure 'nothing'"), ("t: {rows: {}}", "is no table"),
    ("a: [", "cannot be read"),
])  # fmt: skip
def test_a_wrong_table_is_told_in_a_line(tmp_path: Path, text: str, told: str) -> None:
    write_tables(tmp_path, text)
    with pytest.raises(FgsslError, match=told):
        read_tables(tmp_path)
