"""The command line: what goes where, exit codes, promised keys, and one clear line for each mistake."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image
from rich.console import Console
from running import BACKBONE, SHORT, TINY, Outcome, fgssl, finished_run, flat_photos, make_photos, photos, plain_run

from fgssl import __version__
from fgssl.cli import console, main
from fgssl.config.schema import PretrainConfig, flatten
from fgssl.runtime.reporting import StepReport

TEST_PICTURE = Path("test") / "class 0" / "00.jpg"
VERBS = ("pretrain", "probe", "retrieve", "embed", "visualize")


# ---- results and messages


def test_pretrain_prints_results_on_stdout_and_progress_on_stderr() -> None:
    run, outcome = finished_run()
    words = ("rank1", "mAP", "init", "trained", "gap", "rationale", "zoom")
    assert [word in outcome.out for word in words] == [True] * 7
    assert str(run / "overview.png") in outcome.out and "loss" not in outcome.out
    assert f"run folder: {run}" in outcome.err and "loss" in outcome.err and "chance" in outcome.err
    assert "rank1" not in outcome.err


def test_pretrain_json_is_the_summary_and_quiet_is_silent(tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = fgssl("pretrain", "--data", photos(), *SHORT, "--output", run, "--json", "--quiet")
    assert outcome.err == ""
    assert outcome.json() == {"run": str(run), **json.loads((run / "summary.json").read_text())}


def test_retrieve_json_has_the_promised_keys() -> None:
    outcome = fgssl("retrieve", finished_run()[0], "--json")
    result = outcome.json()
    assert {"rank1", "rank5", "mAP", "queries", "gallery", "pool"} <= result.keys() and outcome.code == 0
    assert (result["queries"], result["gallery"], result["pool"]) == (12, 12, "zoom")
    summary = json.loads((finished_run()[0] / "summary.json").read_text())
    row = next(r for r in summary["retrieval"] if (r["encoder"], r["pool"]) == ("trained", "zoom"))
    assert {key: result[key] for key in ("rank1", "rank5", "mAP")} == {
        key: pytest.approx(row[key], abs=1e-6) for key in ("rank1", "rank5", "mAP")
    }


def test_retrieve_from_another_gallery() -> None:
    options = ("--split", "test", "--gallery-split", "train", "--json")
    result = fgssl("retrieve", finished_run()[0], *options).json()
    assert (result["queries"], result["gallery"], result["protocol"]) == (12, 24, "test -> train")
    swapped = fgssl("retrieve", finished_run()[0], "--split", "train", "--gallery-split", "test", "--json").json()
    assert (swapped["queries"], swapped["gallery"]) == (24, 12)


def test_probe_json_has_the_promised_keys() -> None:
    result = fgssl("probe", finished_run()[0], "--json", "--pool", "concat").json()
    assert {"top1", "top5", "protocol", "labels", "pool"} <= result.keys()
    assert (result["labels"], result["pool"], result["top5"]) == (24, "concat", 100.0)  # 3 classes
    assert "train" in result["protocol"] and "test" in result["protocol"]


def test_probe_divides_a_data_set_with_a_single_split(tmp_path: Path) -> None:
    result = fgssl("probe", finished_run()[0], "--data", make_photos(tmp_path / "all", 30), "--json").json()
    assert result["labels"] == 24 and "80 to 20" in result["protocol"]


def test_probe_is_never_scored_on_images_it_was_fitted_on(tmp_path: Path) -> None:
    both = ("--set", "data.train_split=train+test", "--output", tmp_path / "run")
    assert fgssl("pretrain", "--data", photos(), *SHORT, *both).code == 0
    result = fgssl("probe", tmp_path / "run", "--json").json()
    assert result["labels"] == 24 and "fitted on train, scored on test" in result["protocol"]
    for run in (tmp_path / "run", finished_run()[0]):
        divided = fgssl("probe", run, "--split", "train+test", "--json").json()
        assert 24 < divided["labels"] < 36 and "train+test divided 80 to 20" in divided["protocol"]


@pytest.mark.parametrize("verb", ["retrieve", "probe"])
def test_tables_agree_with_json(verb: str) -> None:
    table = fgssl(verb, plain_run(), "--data", photos())
    numbers = fgssl(verb, plain_run(), "--data", photos(), "--json").json()
    keys = ("rank1", "rank5", "mAP") if verb == "retrieve" else ("top1", "top5")
    assert all(f"{numbers[key]:.2f}" in table.out for key in keys)
    assert numbers["pool"] == "gap" and " gap " in table.out and table.err == ""


def test_version_and_help() -> None:
    assert fgssl("--version").out == f"fgssl {__version__}\n"
    overall = fgssl("--help")
    assert overall.code == 0 and all(verb in overall.out for verb in VERBS)
    assert "check" in fgssl("data", "--help").out
    for verb in (*VERBS, "data check"):
        outcome = fgssl(*verb.split(), "--help")
        assert outcome.code == 0 and outcome.out.startswith("Usage:") and outcome.err == ""
    assert fgssl().code == 2


# ---- dry run


def test_dry_run_prints_every_setting_with_its_origin_and_writes_nothing(tmp_path: Path) -> None:
    outcome = fgssl("pretrain", "--data", photos(), *SHORT, "--dry-run", "--json", cwd=tmp_path)
    found = outcome.json()
    assert found["settings"].keys() == flatten(PretrainConfig()).keys()
    origins = {key: item["origin"] for key, item in found["settings"].items()}
    assert origins["training.seed"] == "default" and origins["training.batch_size"] == "flag"
    assert origins["training.log_every"] == "--set" and origins["objective.queue_size"].startswith("derived:")
    assert origins["views.hue"] == "default" and all(origins.values())
    assert found["facts"]["map_size"] == [2, 2] and found["facts"]["train_images"] == 24
    assert (found["facts"]["steps_per_epoch"], found["facts"]["total_steps"]) == (3, 2)
    table = fgssl("pretrain", "--data", photos(), *SHORT, "--dry-run", cwd=tmp_path)
    assert table.code == 0 and all(key in table.out for key in flatten(PretrainConfig()))
    assert "2 x 2" in table.out and "derived:" in table.out
    assert list(tmp_path.iterdir()) == []


def test_dry_run_names_recipe_preset_and_demo_as_origins(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("rationale:\n  preset: official\n  weight: 0.5\n")
    outcome = fgssl("pretrain", "--recipe", recipe, "--dry-run", "--json", "--set", "training.epochs=2")
    origins = {key: item["origin"] for key, item in outcome.json()["settings"].items()}
    assert origins["rationale.weight"] == "recipe mine.yaml" and origins["rationale.axis"] == "preset official"
    assert origins["backbone.name"] == "demo default" and origins["training.epochs"] == "--set"


# ---- usage


@pytest.mark.parametrize(
    "arguments",
    [
        ("--nope",),
        ("pretrain", "--nope"),
        ("pretrain", "--epochs", "many"),
        ("visualize",),
        ("retrieve",),
        ("dance",),
        ("pretrain", "--resume", "run", "--output", "other"),
        ("pretrain", "--resume", "run", "--overwrite"),
        ("pretrain", "--allow-changes"),
    ],
)
def test_wrong_usage_is_exit_2(arguments: tuple[str, ...]) -> None:
    outcome = fgssl(*arguments)
    assert outcome.code == 2 and outcome.out == ""
    assert "Usage:" in outcome.err and "Error:" in outcome.err and "Traceback" not in outcome.err


# ---- mistakes: one line with culprit and remedy; exit 2 for a setting that cannot be so, else 1


@pytest.mark.parametrize(
    ("code", "options", "expected"),
    [
        (1, ("--backbone", "mobilenetv3_smal_050"), ("mobilenetv3_smal_050", BACKBONE)),
        (1, ("--data", "cubs"), ("cubs", "cub", "demo")),
        (1, ("--data", "./nowhere"), ("nowhere",)),
        (2, ("--objective", "byoll"), ("byoll", "mocov2")),
        (2, ("--set", "views.preset=rainbow"), ("rainbow", "colour")),
        (2, ("--set", "rationale.preset=best"), ("best", "official")),
        (2, ("--set", "rationale.preset=oficial"), ("'oficial'; did you mean 'official'?", "choose one of")),
        (2, ("--set", "rationale.projection=3"), ("rationale.projection", "rationale.projections")),
        (2, ("--set", "rationale"), ("section.key=value",)),
        (1, ("--set", "data.train_split=trian"), ("trian", "train", "test")),
        (1, ("--set", "data.test_split=tset"), ("tset", "train", "test")),
        (1, ("--batch-size", "25"), ("25", "24 images")),
        (2, ("--batch-size", "1"), ("1", "at least 2")),
        (2, ("--set", "objective.queue_size=7"), ("queue_size 7", "--batch-size 8")),
        (1, ("--image-size", "16"), (BACKBONE, "16 px", "smallest")),
        (2, ("--device", "tpu9"), ("tpu9", "cpu")),
        (2, ("--mixed-precision", "fp8"), ("fp8", "bf16")),
        (1, ("--mixed-precision", "fp16"), ("fp16", "bf16")),
        (2, ("--lr", "0"), ("optimizer.lr", "above 0")),
        (2, ("--seed", "-1"), ("training.seed", "at least 0")),
        (1, ("--pretrained",), (BACKBONE, "--no-pretrained")),  # offline
        (1, ("--recipe", "nowhere.yaml"), ("recipe 'nowhere.yaml' does not exist; give",)),
        (1, ("--recipe", "."), ("cannot read recipe '.': Is a directory; give",)),
    ],
)
def test_mistakes_of_pretrain_are_one_line(
    code: int, options: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path
) -> None:
    outcome = fgssl("pretrain", "--data", photos(), *SHORT, *options, cwd=tmp_path)
    error = outcome.error(code)
    assert all(word in error for word in expected), error
    assert outcome.err.count("\n") == 1 and outcome.out == ""
    assert list(tmp_path.iterdir()) == []


def test_dry_run_without_the_weights_plans_all_the_same(tmp_path: Path) -> None:
    options = ("pretrain", "--data", photos(), *SHORT, "--pretrained", "--dry-run", "--json")
    outcome = fgssl(*options, cwd=tmp_path)  # offline
    found = outcome.json()
    assert outcome.code == 0 and list(tmp_path.iterdir()) == []
    assert found["settings"]["backbone.pretrained"]["value"] is True
    assert found["settings"]["optimizer.name"]["value"] == "sgd"  # of a trained CNN, not of a start from scratch
    assert outcome.err.startswith(f"warning: the pretrained weights of {BACKBONE} are not on this machine")
    assert "the run would not start; " in outcome.err and outcome.err.count("\n") == 1


def test_folders_without_enough_images(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "list.csv").write_text("a,b")
    make_photos(tmp_path / "one", 1, classes=0)
    for name, expected in (("none", "empty"), ("text", "no image"), ("one", "one image")):
        error = fgssl("pretrain", "--data", name, *SHORT, cwd=tmp_path).error()
        assert expected in error and name in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", ["retrieve", "probe", "embed"])
@pytest.mark.parametrize(
    ("code", "options", "expected"),
    [
        (1, ("--split", "tset"), ("tset", "train", "test")),
        (2, ("--device", "tpu9"), ("tpu9",)),
        (2, ("--batch-size", "0"), ("0", "at least 1")),
        (1, ("--data", "cubs"), ("cubs", "cub")),
    ],
)
def test_mistakes_of_the_evaluation_are_one_line(
    verb: str, code: int, options: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path
) -> None:
    outcome = fgssl(verb, finished_run()[0], *options, cwd=tmp_path)
    error = outcome.error(code)
    assert all(word in error for word in expected), error
    assert outcome.err.count("\n") == 1 and outcome.out == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["retrieve", "probe", "embed", "compare"])
def test_an_unknown_pooling_is_a_usage_error(verb: str, tmp_path: Path) -> None:
    for pool in ("max", "gap,max") if verb == "compare" else ("max", "", "gap,zoom"):
        outcome = fgssl(verb, "no-such-run", "--pool", pool, cwd=tmp_path)
        assert (outcome.code, outcome.out, list(tmp_path.iterdir())) == (2, "", [])
        assert "--pool" in outcome.err and "Traceback" not in outcome.err
        assert "compare takes several" in outcome.err if pool == "gap,zoom" else "concat, zoom" in outcome.err


@pytest.mark.parametrize("verb", ["retrieve", "probe"])
def test_scores_need_labels(verb: str) -> None:
    assert "has no labels" in fgssl(verb, plain_run()).error()
    assert "has no labels" in fgssl(verb, finished_run()[0], "--data", flat_photos()).error()


def test_gallery_that_holds_the_queries() -> None:
    for gallery, queries in (("test", "test"), ("train+test", "test"), ("train", "train+test")):
        error = fgssl("retrieve", finished_run()[0], "--split", queries, "--gallery-split", gallery).error()
        assert "holds the queries themselves" in error and gallery in error


def test_a_bug_is_one_line_as_well_and_shown_whole_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with mock.patch("fgssl.evaluation.subject.load_encoder", side_effect=ZeroDivisionError("by zero\nand more")):
        error = fgssl("retrieve", "timm:x").error()
        assert "ZeroDivisionError: by zero" in error and "FGSSL_DEBUG" in error
        monkeypatch.setenv("FGSSL_DEBUG", "1")
        with pytest.raises(ZeroDivisionError):
            fgssl("retrieve", "timm:x")


@pytest.mark.parametrize(
    ("raised", "code", "expected"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (EOFError(), 1, "loader process died"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 1, "loader process died"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 1, "--batch-size"),
        (MemoryError(), 1, "--batch-size"),
        (OSError(28, "No space left on device"), 1, "free the disk"),
    ],
)
def test_known_misfortunes(raised: BaseException, code: int, expected: str) -> None:
    with mock.patch("fgssl.evaluation.subject.load_encoder", side_effect=raised):
        assert expected in fgssl("retrieve", "timm:x").error(code)


def test_names_with_markup_emoji_codes_and_spaces_are_shown_as_they_are(tmp_path: Path) -> None:
    name = "[bold]x[/bold] :bird: 🐦 a  b"
    assert f"'{name}'" in fgssl("retrieve", name).error()
    outcome = fgssl("pretrain", "--data", photos(), *SHORT, "--output", tmp_path / name)
    assert outcome.code == 0 and str(tmp_path / name / "encoder.safetensors") in outcome.out
    assert f"run folder: {tmp_path / name}" in outcome.err


# ---- terminals and pipes


@contextmanager
def process(*arguments: str | Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    root = Path(__file__).parents[2]
    running = subprocess.Popen(
        [sys.executable, "-m", "fgssl", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def test_reader_that_goes_away_leaves_no_traceback() -> None:
    with process("pretrain", "--help") as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        assert running.wait(60) in (0, 1)
        assert running.stderr.read() == b""


def test_ascii_terminal_gets_ascii_and_no_crash() -> None:
    plain = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    with process("pretrain", "--resume", "nöwhere 🐦", **plain) as running:
        out, err = running.communicate(timeout=120)
    assert running.returncode == 1 and out == b""
    assert err.isascii() and err.count(b"\n") == 1 and b"is not a run folder" in err


def test_no_colour_codes_outside_terminals(tmp_path: Path) -> None:
    outcomes: list[Outcome] = [finished_run()[1], fgssl("retrieve", "nowhere"), fgssl("retrieve", plain_run())]
    assert not any("\x1b" in outcome.out + outcome.err for outcome in outcomes)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_number_is_seen_on_any_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=screen, force_terminal=True, width=width, color_system=None))
    reporter = console.LiveReporter()
    numbers = {name: 100 + place for place, name in enumerate(StepReport._fields)}
    reporter.step(StepReport(**{**numbers, "total_steps": 1000, "chance": 4.56, "target_entropy": 0.789}))
    reporter._bar.refresh()
    reporter.close()
    shown = " ".join(re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", " ", screen.getvalue()).split())
    for text in ("epoch 100/101", "step 102/1000", "loss 104.000 (chance 4.56)", "fit 106.0000", "entropy 0.789"):
        assert text in shown
    for text in ("rank 108.0 std 109.00", "110 images/s", "waiting 11100 %", "1:52 left", "training"):
        assert text in shown


def test_console_script_is_main() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["fgssl"].partition(":")
    assert getattr(__import__(module, fromlist=[name]), name) is main


# ---- the verbs in a row, as a user types them


def test_a_whole_session_by_relative_paths(tmp_path: Path) -> None:
    shutil.copytree(photos(), tmp_path / "photos")
    assert fgssl("pretrain", "--data", "photos", *TINY, cwd=tmp_path).code == 0
    run = f"runs/photos-{BACKBONE}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # the data set is remembered by its absolute path
    assert fgssl("retrieve", f"../{run}", "--json", cwd=elsewhere).json()["queries"] == 12
    picture = Path("photos") / TEST_PICTURE
    outcome = fgssl("visualize", picture, cwd=tmp_path)
    assert outcome.code == 0 and outcome.out.strip() == "00-rationale.png"
    with Image.open(tmp_path / "00-rationale.png") as sheet:
        assert sheet.format == "PNG"


def test_progress_in_a_log_ends_with_all_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    said: list[str] = []
    reporter = console.PlainReporter()
    monkeypatch.setattr(reporter, "note", said.append)
    reporter.progress("decoding", 1, 3)
    reporter.progress("decoding", 3, 3)
    monkeypatch.setattr(console, "PLAIN_SECONDS", 1e9)
    for done in (1, 2, 3):
        reporter.progress("embedding", done, 3)  # quick: not a word
    assert said == ["decoding: 1/3", "decoding: 3/3"]


def test_a_title_longer_than_its_table_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(("a",), [["b"]], title="a title far wider than the one column below it")
    assert capsys.readouterr().out.splitlines()[0] == "a title far wider than the one column below it"


SLIPS: dict[str, tuple[tuple[str, ...], str]] = {
    "data": (("pretrain", "--data", "./fotos"), "no such folder or file: ./fotos"),
    "output": (("pretrain", "--output", "full"), "output folder 'full' is not empty"),
    "picture": (("visualize", "nope.jpg", "--checkpoint", "timm:resnet18"), "no such file: nope.jpg"),
    "checkpoint": (("retrieve", "runs/none"), "no checkpoint 'runs/none'"),
    "query": (("retrieve", "timm:resnet18", "--data", "demo", "--query", "nope.jpg"), "no such file: nope.jpg"),
    "cache": (("embed", "timm:resnet18", "--cache", "file/c"), "cannot create the folder 'file/c': Not a directory; "
              "choose another --cache"),
    "checked data": (("data", "check", "./fotos"), "no such folder or file: ./fotos"),
}  # fmt: skip


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_in_a_path_is_answered_before_the_heavy_imports(slip: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").touch()
    (tmp_path / "file").touch()
    arguments, expected = SLIPS[slip]
    script = "import sys\nfrom fgssl.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 1 and expected in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize("verb", [*VERBS, "compare", "backbones", "data check", "data cache"])
def test_every_verb_takes_json_and_every_long_one_quiet(verb: str) -> None:
    text = fgssl(*verb.split(), "--help").out
    assert "--json" in text and ("--quiet" in text or verb == "data cache")
    assert max(map(len, text.splitlines())) <= 80


def test_a_dry_run_makes_no_cache_folder(tmp_path: Path) -> None:
    options = ("--data", photos(), *SHORT, "--cache", tmp_path / "new" / "cache", "--dry-run", "--json")
    assert fgssl("pretrain", *options).code == 0 and list(tmp_path.iterdir()) == []


def test_a_long_file_name_is_cut_for_its_sheet(tmp_path: Path) -> None:
    name = f"{'x' * 251}.png"
    shutil.copy(next(photos().rglob("*.png")), tmp_path / name)
    outcome = fgssl("visualize", name, "--checkpoint", finished_run()[0], cwd=tmp_path)
    assert outcome.code == 0 and len(outcome.out.strip()) == 255 and (tmp_path / outcome.out.strip()).is_file()


def test_forced_colours_move_no_bar_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(console, "err", Console(file=io.StringIO()))
    with console.reporting() as reporter:
        assert console.err.is_terminal and type(reporter) is console.PlainReporter
