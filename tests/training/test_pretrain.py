"""Whole runs on tiny photographs: what they leave, that they repeat, and that a stop costs nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from run_results import assert_equal_encoders, metrics
from running import BACKBONE, EVALUATED, SHORT, TINY, fgssl, finished_run, make_photos, photos, plain_run
from safetensors.torch import load_file
from stopping import after_step, start_run, stopped_run

from fgssl.config.resolve import load_config
from fgssl.config.schema import flatten
from fgssl.runs.encoder_file import load_encoder
from fgssl.runs.folder import write_config
from fgssl.training.log import LogWindow
from fgssl.training.model import StepOutput, learning_rate
from fgssl.training.plan import make_plan

FILES = {
    "config.yaml", "curve.png", "encoder.safetensors", "metrics.jsonl", "overview.png", "report.html", "summary.json",
    "views.png",
}  # fmt: skip


# ---- what a run leaves


def test_run_folder_is_complete_and_valid() -> None:
    run, outcome = finished_run()
    assert {path.name for path in run.iterdir()} == FILES | {"timm"}  # the states went last
    assert {path.name for path in (run / "timm").iterdir()} == {"config.json", "model.safetensors"}
    for name in ("overview.png", "views.png"):
        with Image.open(run / name) as picture:
            picture.load()
            assert picture.width > 300 and len(picture.getcolors(2**24) or ()) > 100
    for name in FILES:
        assert str(run / name) in outcome.out or name in ("config.yaml", "metrics.jsonl", "summary.json")


def test_metrics_have_a_line_every_two_steps_and_sane_values() -> None:
    rows = [json.loads(line) for line in (finished_run()[0] / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["epoch"]) for row in rows] == [(2, 1), (4, 2), (6, 2)]
    for row in rows:
        assert row["chance"] == pytest.approx(np.log(8))  # from scratch the candidates are the batch
        assert 0 <= row["target_entropy"] <= 1 and 0 <= row["wait_share"] <= 1
        assert -1 <= row["positive_similarity"] <= 1 and 1 <= row["effective_rank"] <= 8
        assert row["images_per_second"] > 0 and np.isfinite(row["loss"])


def test_summary_holds_sizes_versions_and_both_retrievals() -> None:
    summary = json.loads((finished_run()[0] / "summary.json").read_text())
    assert (summary["train_images"], summary["test_images"], summary["steps"], summary["seed"]) == (24, 12, 6, 0)
    assert [(r["encoder"], r["pool"]) for r in summary["retrieval"]] == [
        (name, pool) for name in ("init", "trained") for pool in ("gap", "rationale", "zoom")
    ]
    assert all(0 <= row[key] <= 100 for row in summary["retrieval"] for key in ("rank1", "rank5", "mAP"))
    assert summary["unreadable"] == [] and {"fgssl", "torch", "timm", "python"} <= set(summary["versions"])


def test_saved_config_is_a_recipe_that_repeats_the_run(tmp_path: Path) -> None:
    run, _ = finished_run()
    config = load_config(run / "config.yaml").config
    assert config.training.workers == 0  # asked for; a derived number is left to the machine that reads it
    assert flatten(config)["data.source"] == str(photos())  # absolute, readable
    assert "🐦" in (run / "config.yaml").read_text(encoding="utf-8")
    again = tmp_path / "again"
    assert fgssl("pretrain", "--recipe", run / "config.yaml", "--output", again, "--quiet").code == 0
    assert_equal_encoders(run, again)
    assert metrics(run) == metrics(again)
    saved = yaml.safe_load((again / "config.yaml").read_text(encoding="utf-8"))
    assert saved == yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))


def test_a_derived_number_of_workers_is_not_a_setting_of_the_run(tmp_path: Path) -> None:
    """A resumed run, perhaps on another machine, chooses again."""
    settings = ["backbone.name=test_resnet", "backbone.image_size=64", "training.device=cpu"]
    for asked, written in (([], None), (["training.workers=1"], 1)):
        plan = make_plan(load_config(sets=settings + asked))
        write_config(tmp_path, plan.config, plan.origins)
        saved = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
        assert saved["training"]["workers"] == written and plan.config.training.workers is not None


def test_flat_folder_without_labels_trains_and_draws_but_scores_nothing() -> None:
    run = plain_run()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["labels"] is False and summary["retrieval"] == [] and summary["test_images"] is None
    assert (run / "overview.png").is_file()
    assert not any(key.startswith("rationale") for key in load_file(run / "encoder.safetensors"))
    assert all(row["fit"] is None for row in metrics(run))


def test_training_moves_the_weights() -> None:
    trained = load_file(finished_run()[0] / "timm" / "model.safetensors")
    import timm

    torch.manual_seed(0)
    fresh = timm.create_model(BACKBONE, num_classes=0).state_dict()
    assert any(not torch.equal(trained[key], fresh[key]) for key in trained if key.endswith("weight"))


# ---- the same again


@pytest.mark.parametrize("workers", ["0", "1"])
def test_same_seed_gives_bit_equal_weights_with_any_workers(workers: str, tmp_path: Path) -> None:
    # not evaluated: that must not shift the random numbers of training either (drop_path draws some at each step)
    options = ("--workers", workers, "--output", tmp_path / "run")
    assert fgssl("pretrain", "--data", photos(), *TINY, *options).code == 0
    assert_equal_encoders(finished_run()[0], tmp_path / "run")
    assert metrics(finished_run()[0]) == metrics(tmp_path / "run")
    assert not (tmp_path / "run" / "overview.png").exists()


def test_a_cold_cache_gives_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "cache"))
    assert fgssl("pretrain", "--data", photos(), *EVALUATED, "--output", tmp_path / "run").code == 0
    assert_equal_encoders(finished_run()[0], tmp_path / "run")


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    for seed in ("0", "1"):
        assert fgssl("pretrain", "--data", photos(), *SHORT, "--seed", seed, "--output", tmp_path / seed).code == 0
    first, second = metrics(tmp_path / "0"), metrics(tmp_path / "1")
    assert first[0]["loss"] != second[0]["loss"]


def test_two_precisions_in_one_process(tmp_path: Path) -> None:
    options = ("--mixed-precision", "bf16", "--output", tmp_path / "run")
    assert fgssl("pretrain", "--data", photos(), *SHORT, *options).code == 0
    assert fgssl("pretrain", "--data", photos(), *SHORT, "--output", tmp_path / "other").code == 0


# ---- stops


@pytest.mark.parametrize(("step", "number"), [(3, signal.SIGTERM), (4, signal.SIGINT)])
def test_stopped_and_resumed_run_equals_an_uninterrupted_one(step: int, number: int, tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run", EVALUATED, step=step, number=number)
    assert not (run / "encoder.safetensors").exists()
    outcome = fgssl("pretrain", "--resume", run, "--workers", "1")
    assert outcome.code == 0 and f"resuming after step {step} of 6" in outcome.err
    whole, _ = finished_run()
    assert_equal_encoders(whole, run)
    assert metrics(whole) == metrics(run)
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (run, whole))
    assert ours["retrieval"] == theirs["retrieval"]


def test_resume_hint_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    run = tmp_path / "it's a run"
    with after_step(1, lambda: os.kill(os.getpid(), signal.SIGINT)):
        outcome = fgssl("pretrain", "--data", photos(), *SHORT, "--output", run)
    command = outcome.err.rpartition("go on with: ")[2].strip()
    words = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    assert words.stdout.splitlines() == ["fgssl", "pretrain", "--resume", str(run)]


def test_resumed_run_needs_neither_initial_weights_nor_their_file(tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    shutil.copy(finished_run()[0] / "encoder.safetensors", start)
    options = [word for word in SHORT if word != "--no-pretrained"]
    with after_step(1, lambda: os.kill(os.getpid(), signal.SIGINT)):
        init = ("--set", f"backbone.init={start.name}", "--output", "run")
        assert fgssl("pretrain", "--data", photos(), *options, *init, cwd=tmp_path).code == 130
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert saved["backbone"]["init"] == str(start)
    start.unlink()
    assert fgssl("pretrain", "--resume", tmp_path / "run").code == 0


def test_lines_logged_after_the_saved_state_are_logged_once(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run", step=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 99}\n{"step": 5, "lo')  # a run killed two steps after its last state
    assert fgssl("pretrain", "--resume", run).code == 0
    assert metrics(run) == metrics(finished_run()[0])


def test_a_run_stopped_while_writing_its_results_writes_them_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with mock.patch("fgssl.training.results.draw_overview", side_effect=KeyboardInterrupt):
        assert fgssl("pretrain", "--data", photos(), *EVALUATED, "--output", run).code == 130
    assert not (run / "summary.json").exists()
    outcome = fgssl("pretrain", "--resume", run)
    assert outcome.code == 0 and "already trained" in outcome.err
    assert_equal_encoders(finished_run()[0], run)
    assert metrics(run) == metrics(finished_run()[0])
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (run, finished_run()[0]))
    for summary in (ours, theirs):
        del summary["train_seconds"], summary["peak_memory_gb"], summary["last"]["wait_share"]
    assert ours == theirs
    assert (run / "overview.png").is_file()


def test_resuming_a_finished_run_says_so_and_shows_its_results(tmp_path: Path) -> None:
    """As a batch system does that starts the same script again: nothing is trained, nothing changes, exit code 0."""
    run = tmp_path / "run"
    shutil.copytree(finished_run()[0], run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = fgssl("pretrain", "--resume", run)
    assert outcome.code == 0 and "finished: nothing is left to do" in outcome.err
    assert outcome.out.replace(str(run), "") == finished_run()[1].out.replace(str(finished_run()[0]), "")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_states_of_a_finished_run_are_kept_where_asked(tmp_path: Path) -> None:
    options = ("--set", "training.keep_states=true", "--save-every", "1", "--output", tmp_path / "run")
    assert fgssl("pretrain", "--data", photos(), *SHORT, *options).code == 0
    assert sorted(path.stem for path in (tmp_path / "run" / "resume").glob("*.pt")) == ["000000001", "000000002"]


@pytest.mark.parametrize("keep", [False, True])
def test_a_finished_run_goes_on_for_more_steps(keep: bool, tmp_path: Path) -> None:
    """From its states where they are kept, else from its encoder: the lines stay, the rate is the longer run's."""
    run, more = tmp_path / "run", ("--max-steps", "4", "--allow-changes")
    options = ("--epochs", "9", "--set", f"training.keep_states={keep}".lower(), "--set", "training.log_every=1")
    assert fgssl("pretrain", "--data", photos(), *SHORT, *options, "--output", run).code == 0
    first, before = metrics(run), load_encoder(str(run)).backbone.state_dict()
    assert "training.max_steps 2 -> 4" in fgssl("pretrain", "--resume", run, *more[:2]).error()
    outcome = fgssl("pretrain", "--resume", run, *more)
    assert outcome.code == 0 and "after step 2 the schedule is that of a run of 4 steps, not 2" in outcome.err
    assert ("going on from its encoder" in outcome.err) is not keep
    lines, config = metrics(run), load_config(run / "config.yaml").config.optimizer
    assert lines[:2] == first and [line["step"] for line in lines] == [1, 2, 3, 4]
    rates = [learning_rate(step, config, steps_per_epoch=3, total_steps=4) for step in (2, 3)]
    assert [line["lr"] for line in lines[2:]] == pytest.approx(rates) and rates[0] == pytest.approx(config.lr / 2)
    after = load_encoder(str(run)).backbone.state_dict()
    moved = [float((value - after[key]).abs().max()) for key, value in before.items() if value.is_floating_point()]
    assert 0 < max(moved) < 1 and json.loads((run / "summary.json").read_text())["steps"] == 4


def test_a_finished_run_that_goes_on_may_be_stopped_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run()[0], run)
    more = ("--epochs", "9", "--max-steps", "9", "--set", "training.evaluate=false", "--allow-changes")
    with after_step(7, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        outcome = fgssl("pretrain", "--resume", run, *more)
    assert outcome.code == 128 + signal.SIGTERM and "stopped by SIGTERM after step 7" in outcome.err
    assert fgssl("pretrain", "--resume", run).code == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 9 and {row["encoder"] for row in summary["retrieval"]} == {"init"}
    assert "nothing is left to do" in fgssl("pretrain", "--resume", run).err


def test_resuming_never_throws_a_finished_encoder_away(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run()[0], run)
    (run / "summary.json").unlink()
    before = (run / "encoder.safetensors").read_bytes()
    assert "saved states are gone" in fgssl("pretrain", "--resume", run).error()
    assert (run / "encoder.safetensors").read_bytes() == before


def test_resuming_before_the_first_state_starts_from_the_beginning(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run")
    shutil.rmtree(run / "resume")
    outcome = fgssl("pretrain", "--resume", run)
    assert outcome.code == 0 and "starting from the beginning" in outcome.err
    assert_equal_encoders(finished_run()[0], run)
    assert metrics(run) == metrics(finished_run()[0])


def test_ctrl_c_after_the_last_step_names_the_way_on(tmp_path: Path) -> None:
    with mock.patch("fgssl.training.pretrain.finish_run", side_effect=KeyboardInterrupt):
        outcome = fgssl("pretrain", "--data", photos(), *SHORT, "--output", tmp_path / "run")
    assert outcome.code == 130 and "fgssl pretrain --resume" in outcome.err
    assert fgssl("pretrain", "--resume", tmp_path / "run").code == 0


def test_signals_to_the_whole_process_group_save_the_state(tmp_path: Path) -> None:
    """As Ctrl-C on a terminal, `timeout` and batch systems send them: to the loader processes as well."""
    runs = {name: (start_run(tmp_path / name), tmp_path / name) for name in ("SIGTERM", "SIGINT")}
    for name, (process, run) in runs.items():
        log = run / "metrics.jsonl"
        try:
            while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 2):
                time.sleep(0.05)
            os.killpg(process.pid, getattr(signal, name))
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 128 + getattr(signal, name), err
        assert out == "" and "Traceback" not in err
        assert f"stopped by {name} after step" in err and "fgssl pretrain --resume" in err
        (state,) = (run / "resume").glob("*.pt")
        assert f"after step {int(state.stem)};" in err
        assert metrics(run)[-1]["step"] == int(state.stem)


# ---- faults


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run", step=2)
    state = (run / "resume" / "000000002.pt").read_bytes()

    original = LogWindow.add

    def add(self: LogWindow, step: int, output: StepOutput, **times: float) -> None:
        bad = output.loss * torch.nan if step >= 5 else output.loss
        original(self, step, output._replace(loss=bad), **times)

    with mock.patch.object(LogWindow, "add", add):
        error = fgssl("pretrain", "--resume", run).error()
    assert "not finite since step 5" in error and "--lr" in error
    assert not (run / "encoder.safetensors").exists()
    assert (run / "resume" / "000000002.pt").read_bytes() == state and len(list((run / "resume").glob("*.pt"))) == 1
    assert [row["step"] for row in metrics(run)] == [2, 4]
    assert fgssl("pretrain", "--resume", run).code == 0
    assert_equal_encoders(finished_run()[0], run)


def test_enormous_learning_rate_is_a_fault_not_an_encoder(tmp_path: Path) -> None:
    outcome = fgssl("pretrain", "--data", photos(), *SHORT, "--lr", "1e30", "--output", tmp_path / "run")
    assert "not finite since step 2" in outcome.error()
    assert not (tmp_path / "run" / "encoder.safetensors").exists()
    assert not list((tmp_path / "run").glob("resume/*"))


def test_weights_spoilt_by_the_very_last_step_are_a_fault(tmp_path: Path) -> None:
    """The loss of a step is taken before its update: only the weights themselves can tell."""
    options = ("--max-steps", "1", "--set", "optimizer.name=sgd", "--lr", "1e38", "--output", tmp_path / "run")
    outcome = fgssl("pretrain", "--data", photos(), *SHORT, *options, "--set", "optimizer.weight_decay=1e38")
    assert "weights are not finite after step 1" in outcome.error()
    assert not (tmp_path / "run" / "encoder.safetensors").exists()
    assert not list((tmp_path / "run").glob("resume/*"))


@pytest.fixture
def broken_photos(tmp_path: Path) -> Path:
    """`photos()` with one unreadable picture in either split."""
    folder = tmp_path / "broken"
    shutil.copytree(photos(), folder)
    (folder / "train" / "class 0" / "00.jpg").write_bytes(b"not a picture")
    (folder / "test" / "class 1" / "01.png").write_bytes(b"\x89PNG cut off")
    return folder


@pytest.mark.parametrize("cached", [True, False])
def test_unreadable_pictures_are_named_and_the_run_completes(
    cached: bool, broken_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cached:  # nowhere to write it: pictures are decoded at each access
        (tmp_path / "file").touch()
        monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "file" / "cache"))
    outcome = fgssl("pretrain", "--data", broken_photos, *EVALUATED, "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    names = [str(broken_photos / "train" / "class 0" / "00.jpg"), str(broken_photos / "test" / "class 1" / "01.png")]
    reasons = json.loads((tmp_path / "run" / "summary.json").read_text())["unreadable"]
    assert [any(name in reason for reason in reasons) for name in names] == [True, True] and len(reasons) == 2
    assert "2 unreadable" in outcome.out and all(outcome.out.count(name) == 1 for name in names)
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning:")]
    assert [name in line for name, line in zip(names, warnings, strict=True)] == [True, True]


def test_faults_survive_a_stop(broken_photos: Path, tmp_path: Path) -> None:
    with after_step(3, lambda: os.kill(os.getpid(), signal.SIGINT)):
        fgssl("pretrain", "--data", broken_photos, *TINY, "--output", tmp_path / "run")
    outcome = fgssl("pretrain", "--resume", tmp_path / "run")
    assert outcome.code == 0 and "1 unreadable" in outcome.out
    assert outcome.err.count("00.jpg") == 0  # warned of before the stop


def test_more_than_a_tenth_unreadable_stops_with_the_list(broken_photos: Path, tmp_path: Path) -> None:
    for name in ("03.png", "06.jpg"):
        (broken_photos / "train" / "class 0" / name).write_bytes(b"")
    error = fgssl("pretrain", "--data", broken_photos, *TINY, "--output", tmp_path / "run").error()
    assert "3 of 24 images" in error and all(name in error for name in ("00.jpg", "03.png", "06.jpg"))
    assert list((tmp_path / "run").iterdir()) == []


# ---- the output folder


def test_folder_with_content_is_refused_and_overwrite_removes_the_runs_own_files_only(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run()[0], run)
    (run / "notes.txt").write_text("mine")
    (run / "timm" / "old").touch()
    before = (run / "encoder.safetensors").read_bytes()
    assert "is not empty" in fgssl("pretrain", "--data", photos(), *SHORT, "--output", run).error()
    assert (run / "encoder.safetensors").read_bytes() == before
    assert fgssl("pretrain", "--data", photos(), *SHORT, "--output", run, "--overwrite").code == 0
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "overview.png").exists()  # this run drew none
    assert (run / "timm" / "old").exists()  # not fgssl's
    assert len(metrics(run)) == 1 and not (run / "resume" / "000000006.pt").exists()


def test_without_output_the_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    make_photos(tmp_path / "my photos", 10)
    for number in ("", "-2"):
        outcome = fgssl("pretrain", "--data", "my photos", *SHORT, "--json", cwd=tmp_path)
        assert outcome.json()["run"] == f"runs/my-photos-{BACKBONE}{number}"
        assert (tmp_path / "runs" / f"my-photos-{BACKBONE}{number}" / "encoder.safetensors").is_file()


def test_nothing_is_left_where_the_output_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for output in ("file", "file/run"):
        error = fgssl("pretrain", "--data", photos(), *SHORT, "--output", output, cwd=tmp_path).error()
        assert "file" in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
