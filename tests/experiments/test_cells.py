"""A cell's verbs in order: what is known is not run again, what was cut short goes on, another cell is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from fgssl.errors import FgsslError
from fgssl.experiments.cells import Cell, VerbFailed, run_cell
from fgssl.experiments.run import Stopped, run_cells
from fgssl.runs.lock import hold_run


class Verbs:
    """Stands for the command line: remembers what it was asked, and leaves the files that a run leaves."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.failing: dict[str, int] = {}  # verb -> exit code

    def __call__(self, words: Sequence[str]) -> str:
        self.asked.append(tuple(words))
        if words[0] == "pretrain" and "--output" in words:
            run = Path(words[words.index("--output") + 1])
            run.mkdir()
            (run / "config.yaml").touch()
        if words[0] in self.failing:
            raise VerbFailed(words, self.failing[words[0]])
        if words[0] == "pretrain":
            run = Path(words[words.index("--resume" if "--resume" in words else "--output") + 1])
            (run / "summary.json").touch()
            (run / "encoder.safetensors").touch()
        return json.dumps({"rank1": 50, "rank5": 80, "mAP": 20, "results": [{"top1": 3.0}, {"top1": 2}, {"top1": 1}]})

    def verbs(self) -> list[str]:
        return [" ".join(words[: 2 if words[1] == "--resume" else 1]) for words in self.asked]


def cell(name: str = "a", *, seed: int = 0, rate: float = 0.1) -> Cell:
    measures = ("retrieve", "probe-sgd")
    return Cell(name, "row", seed, {"optimizer.lr": rate}, ("--recipe", "r.yaml"), (), measures, pool="rationale")


def test_a_cell_is_trained_measured_and_then_known(tmp_path: Path) -> None:
    fgssl = Verbs()
    result = run_cell(cell(), tmp_path, fgssl)
    assert fgssl.verbs() == ["pretrain", "retrieve", "probe"]
    assert result.finished and not (tmp_path / "locks").exists()
    shares = {"probe 100 %": 3, "probe 50 %": 2, "probe 20 %": 1}
    assert result.numbers == {"rank-1": 50, "rank-5": 80, "mAP": 20, **shares}
    run = str(tmp_path / "a")
    assert fgssl.asked[0] == ("pretrain", "--recipe", "r.yaml", "--output", run, "--json")
    assert fgssl.asked[1] == ("retrieve", run, "--pool", "rationale", "--json")
    assert fgssl.asked[2][:4] == ("probe", run, "--protocol", "paper")
    assert fgssl.asked[2][-4:] == ("rationale", "--output", f"{run}.probe-sgd", "--json")
    again = Verbs()
    assert run_cell(cell(), tmp_path, again) == result and again.asked == []


def test_what_was_cut_short_goes_on(tmp_path: Path) -> None:
    fgssl = Verbs()
    fgssl.failing = {"pretrain": 143}
    with pytest.raises(Stopped) as stop:
        run_cells([cell()], tmp_path, fgssl, lambda text: None)
    assert stop.value.signal_number == 15 and fgssl.verbs() == ["pretrain"]
    fgssl.failing = {"probe": 1}
    told: list[str] = []
    (result,) = run_cells([cell()], tmp_path, fgssl, told.append)
    assert fgssl.verbs()[1:] == ["pretrain --resume", "retrieve", "probe"]
    assert not result.finished and result.numbers["rank-1"] == 50
    assert told == ["1 of 1: a", "1 of 1: a: fgssl probe ended with code 1"]
    fgssl.failing = {}
    (result,) = run_cells([cell()], tmp_path, fgssl, told.append)
    assert fgssl.verbs()[4:] == ["probe"] and result.finished


def test_a_failed_cell_does_not_stop_the_next(tmp_path: Path) -> None:
    fgssl = Verbs()
    fgssl.failing = {"pretrain": 1}
    results = run_cells([cell("a"), cell("b")], tmp_path, fgssl, lambda text: None)
    assert [result.problem for result in results] == ["fgssl pretrain ended with code 1"] * 2


def test_weights_as_they_are_are_only_measured(tmp_path: Path) -> None:
    fgssl = Verbs()
    start = cell()._replace(train=(), subject=("timm:resnet18", "--data", "cub"), seed=None)
    assert run_cell(start, tmp_path, fgssl).finished
    assert fgssl.asked[0] == ("retrieve", "timm:resnet18", "--data", "cub", "--pool", "rationale", "--json")


def test_a_rehearsed_cell_is_stopped_and_resumed(tmp_path: Path) -> None:
    fgssl = Verbs()
    run_cell(
        cell()._replace(halves=(("--max-steps", "2"), ("--max-steps", "4")), shorter=("--epochs", "1")), tmp_path, fgssl
    )
    assert fgssl.verbs() == ["pretrain", "pretrain --resume", "retrieve", "probe"]
    assert "2" in fgssl.asked[0] and "4" in fgssl.asked[1] and fgssl.asked[3][-3:-1] == ("--epochs", "1")


def test_another_experiments_cell_is_named_before_anything_runs(tmp_path: Path) -> None:
    run_cell(cell(), tmp_path, Verbs())
    fgssl = Verbs()
    with pytest.raises(FgsslError, match=r"a.json' was measured with other settings: optimizer.lr was 0.1 and is 0.2"):
        run_cells([cell("b"), cell(rate=0.2)], tmp_path, fgssl, lambda text: None)
    assert fgssl.asked == []
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(FgsslError, match="holds no numbers of a cell"):
        run_cell(cell(), tmp_path, fgssl)


def test_a_cell_that_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    fgssl = Verbs()
    with hold_run(tmp_path / "locks" / "a"):
        result = run_cell(cell(), tmp_path, fgssl)
    assert result.problem == "another process is at it" and fgssl.asked == []
