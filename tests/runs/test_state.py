"""What must survive a crash: atomic files, resume states, the run folder; and what the machine offers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from fgssl.config.schema import PretrainConfig
from fgssl.drawing import PAGE_START, save_png
from fgssl.errors import FgsslError
from fgssl.runs.folder import (
    METRICS_FILE,
    SUMMARY_FILE,
    is_run,
    newest_run,
    prepare_output,
    truncate_metrics,
    versions,
    write_config,
)
from fgssl.runs.lock import hold_run
from fgssl.runs.resume_state import load_state, random_state, remove_states, restore_random_state, save_state
from fgssl.runtime.files import atomic_path, check_folder, not_writable, write_text
from fgssl.runtime.machine import automatic_workers, resolve_device, resolve_precision


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones included."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- atomic files


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "er" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.parent == path.parent and temporary.suffix == path.suffix
    assert content(tmp_path) == {"deep/er/file.txt": b"new"}


@pytest.mark.parametrize(
    "failure", [RuntimeError("mine"), KeyboardInterrupt(), ValueError(""), OSError(28, "No space")]
)
def test_a_failure_leaves_the_old_file_and_nothing_else(failure, tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(FgsslError if isinstance(failure, OSError) else type(failure)), atomic_path(path) as temporary:
        temporary.write_text("half of the ne")
        raise failure
    assert content(tmp_path) == {"file.txt": b"old"}


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_failing_disk_is_one_line_and_leaves_nothing(call, tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(FgsslError, match=r"cannot write '.*file.txt': Input/output error"):
        write_text(tmp_path / "file.txt", "new")
    monkeypatch.undo()
    assert content(tmp_path) == {}


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FgsslError, match=r"folder '.*file': File exists; choose another --output"):
        write_text(tmp_path / "file" / "below.txt", "x")
    with pytest.raises(FgsslError, match=r"folder '.*below': Not a directory; choose another --output"):
        check_folder(tmp_path / "file" / "below")


def test_the_remedy_fits_the_failure():
    assert not_writable(Path("x"), OSError(28, "No space left on device")).remedy == (
        "free the disk or choose another --output"
    )
    assert not_writable(Path("x"), OSError(13, "Permission denied")).remedy == "choose another --output"


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from fgssl.errors import FgsslError
from fgssl.runtime.files import atomic_path
from fgssl.runs.resume_state import save_state
run = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
large = {"x": torch.zeros(100_000)}
def by_safetensors():
    with atomic_path(run / "encoder.safetensors") as temporary:
        save_file(large, temporary)
for save in (lambda: save_state(run, 2, large), by_safetensors):
    try:
        save()
    except FgsslError as error:
        print(error)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="POSIX limits")
def test_a_full_disk_is_one_line_and_keeps_the_last_state(tmp_path):
    """torch.save and safetensors both hide the OSError; a limit on the size of files stands in for the full disk."""
    save_state(tmp_path, 1, {"x": torch.ones(3)})
    before = content(tmp_path)
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all(line.startswith("cannot write") and "disk is full" in line for line in lines)
    assert done.stderr == "" and content(tmp_path) == before


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("mask,mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_permissions_of_any_other(mask, mode, tmp_path):
    """Temporary files are private; a run folder shared with colleagues must not be."""
    previous = os.umask(mask)
    try:
        write_text(tmp_path / "file.txt", "x")
        assert os.umask(mask) == mask  # and the process's mask is as it was
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == mode


# ---- resume states


def some_state(step: int) -> dict:
    """The kinds of values a training state holds, a used optimiser included."""
    torch.manual_seed(step)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": {"step": step, "seconds": 1.5, "initial_rows": [{"pool": "gap", "map": 0.25}], "faults": {3: "x"}},
        "random": [random_state(), random_state()],
    }


def assert_same(first, second) -> None:
    """Equal values of equal types, all the way down."""
    assert type(first) is type(second) or isinstance(first, dict)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    else:
        assert first == second


def test_a_state_comes_back_as_it_was(tmp_path):
    assert load_state(tmp_path) is None
    state = some_state(7)
    save_state(tmp_path, 7, state)
    loaded = load_state(tmp_path)
    assert (loaded.step, loaded.warnings) == (7, ())
    assert_same(state, loaded.state)


def test_randomness_goes_on_where_it_was(tmp_path):
    """Torch, numpy (with its cached second normal) and Python: the same numbers after a trip through the file."""

    def numbers() -> list:
        return [
            torch.rand(3).tolist(),
            torch.randperm(50).tolist(),
            np.random.rand(3).tolist(),
            np.random.standard_normal(3).tolist(),
            [random.random() for _ in range(3)],
            [random.gauss(0, 1) for _ in range(3)],
        ]

    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    np.random.standard_normal()  # leaves its twin cached
    random.gauss(0, 1)
    save_state(tmp_path, 1, {"random": [random_state()]})
    expected = numbers()
    numbers()
    restore_random_state(load_state(tmp_path).state["random"][0])
    assert numbers() == expected


def test_the_last_two_states_are_kept(tmp_path):
    for step in (5, 10, 100, 1000):
        save_state(tmp_path, step, {"step": step})
        assert load_state(tmp_path).state == {"step": step}
    names = [f"resume/{step:09d}.{kind}" for step in (100, 1000) for kind in ("pt", "sha256")]
    assert sorted(content(tmp_path)) == sorted(names)


def newest(tmp_path: Path, suffix: str = ".pt") -> Path:
    return tmp_path / "resume" / f"000000020{suffix}"


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "one bit": lambda path: path.write_bytes(flipped(path.read_bytes(), 4 * len(path.read_bytes()))),
    "rubbish": lambda path: path.write_bytes(b"\xff" * 100),
    "unreadable": lambda path: (path.unlink(), path.mkdir()),
}


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize("suffix", [".pt", ".sha256"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_state_gives_the_one_before_and_a_warning(damage, suffix, tmp_path):
    save_state(tmp_path, 10, {"step": 10})
    save_state(tmp_path, 20, {"step": 20})
    DAMAGES[damage](newest(tmp_path, suffix))
    loaded = load_state(tmp_path)
    assert loaded.state == {"step": 10} and loaded.step == 10
    assert len(loaded.warnings) == 1 and "000000020.pt is damaged" in loaded.warnings[0]


@pytest.mark.parametrize("missing", [".pt", ".sha256"])
def test_a_run_killed_between_its_two_files_uses_the_state_before(missing, tmp_path):
    save_state(tmp_path, 10, {"step": 10})
    save_state(tmp_path, 20, {"step": 20})
    newest(tmp_path, missing).unlink()
    loaded = load_state(tmp_path)
    assert loaded.step == 10 and len(loaded.warnings) == (missing == ".sha256")


def test_every_flipped_byte_is_noticed(tmp_path):
    save_state(tmp_path, 20, {"step": torch.arange(3)})
    whole = newest(tmp_path).read_bytes()
    for place in range(0, len(whole), 7):
        newest(tmp_path).write_bytes(flipped(whole, 8 * place + place % 8))
        with pytest.raises(FgsslError, match=r"every saved state in .* is damaged"):
            load_state(tmp_path)


def test_the_good_state_outlives_damaged_newer_ones(tmp_path):
    """Resumed from 10 because 20 was damaged: the damaged one goes, and does not count as one of the two."""
    save_state(tmp_path, 10, {"step": 10})
    save_state(tmp_path, 20, {"step": 20})
    newest(tmp_path).write_bytes(b"")
    save_state(tmp_path, 15, {"step": 15})
    assert sorted(p.stem for p in (tmp_path / "resume").glob("*.pt")) == ["000000010", "000000015"]
    assert load_state(tmp_path).warnings == ()


def test_what_a_killed_process_was_writing_is_no_state(tmp_path):
    """Killed during the first save: nothing to resume, no complaint; the next save clears it away."""
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / ".000000010.pt.ab12cd.pt").write_bytes(b"half")
    assert load_state(tmp_path) is None
    save_state(tmp_path, 10, {"step": 10})
    assert load_state(tmp_path).step == 10
    assert sorted(content(tmp_path)) == ["resume/000000010.pt", "resume/000000010.sha256"]


def test_a_pickle_with_code_is_not_run(tmp_path):
    """A state from elsewhere, checksum and all, must not execute anything."""
    bait = tmp_path / "touched"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {bait}",)

    save_state(tmp_path, 10, {"step": 10})
    save_state(tmp_path, 20, {"evil": Evil()})
    assert load_state(tmp_path).step == 10 and not bait.exists()


# ---- the run folder


def test_a_new_output_folder_is_made(tmp_path):
    prepare_output(tmp_path / "a" / "b", overwrite=False)
    assert (tmp_path / "a" / "b").is_dir() and content(tmp_path) == {}
    prepare_output(tmp_path / "a" / "b", overwrite=False)  # an empty one is fine


FOREIGN = ("notes.txt", "timm/thesis.txt", "resume/cv.txt", "fault/why.md", "mine/x", "resume/.hidden", ".writable")


def some_run(run: Path) -> Path:
    """A folder with every file that a run writes, small."""
    write_config(run, PretrainConfig(), {})
    (run / METRICS_FILE).write_text('{"epoch": 1, "step": 1, "loss": 1.0}\n')
    write_text(run / SUMMARY_FILE, json.dumps({"steps": 1, "versions": {}}))
    save_file({"x": np.zeros(1)}, run / "encoder.safetensors", metadata={"fgssl": "{}"})
    for name in ("overview.png", "views.png", "curve.png"):
        save_png(Image.new("RGB", (4, 4)), run / name)
    write_text(run / "trackers" / "wandb.id", "1f\n")
    write_text(run / "tensorboard" / "events.out.tfevents.1.host", "")
    write_text(run / "report.html", PAGE_START)
    write_text(run / "timm" / "config.json", '{"architecture": "resnet18"}')
    save_file({"x": np.zeros(1)}, run / "timm" / "model.safetensors")
    save_state(run, 1, {"x": 1})
    write_text(run / "fault" / "step-000000003.json", '{"step": 3, "images": []}')
    save_file({"x": np.zeros(1)}, run / "fault" / "step-000000003.safetensors")
    (run / "resume" / ".fgssl-ab12.pt").write_bytes(b"half")
    return run


def test_content_is_refused_and_overwriting_removes_only_a_runs_own_files(tmp_path):
    run = some_run(tmp_path)
    for name in FOREIGN:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("x")
    before = content(run)
    with pytest.raises(FgsslError, match=r"is not empty; choose another --output, .*--resume.*--overwrite"):
        prepare_output(run, overwrite=False)
    assert content(run) == before
    prepare_output(run, overwrite=True)
    assert sorted(content(run)) == sorted(FOREIGN)
    prepare_output(some_run(tmp_path / "other"), overwrite=True)
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("names", [
    ("timm/thesis.txt", "resume/cv.txt", "summary.json"), ("config.yaml",), ("encoder.safetensors",),
    ("run.lock", "photo.jpg"), ("resume/000000001.pt",), (".hidden",),
])  # fmt: skip
def test_a_folder_that_is_no_run_is_refused_and_stays_as_it_is(names, overwrite, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("keep")
    before = content(tmp_path)
    with pytest.raises(FgsslError, match="is not empty, and no run"):
        prepare_output(tmp_path, overwrite=overwrite)
    assert content(tmp_path) == before and not is_run(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "overview.png", "timm/config.json", "encoder.safetensors"])
def test_a_users_file_at_a_place_of_the_run_is_named_and_stays(name, tmp_path):
    run = some_run(tmp_path)
    (run / name).write_text("[]")
    before = content(run)
    with pytest.raises(FgsslError, match=f"{name}' is no file that fgssl wrote.*move it away"):
        prepare_output(run, overwrite=True)
    assert content(run) == before


@pytest.mark.parametrize("name", ["timm", "resume", "fault", "overview.png", "timm/config.json"])
def test_links_in_a_run_folder_are_not_followed(name, tmp_path):
    run, elsewhere = some_run(tmp_path / "run"), tmp_path / "elsewhere"
    shutil.move(run / name, elsewhere)
    (run / name).symlink_to(elsewhere)
    before = content(tmp_path)
    with pytest.raises(FgsslError, match=r"is a link, and the run would write there"):
        prepare_output(run, overwrite=True)
    assert content(tmp_path) == before


def test_a_link_for_a_lock_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(FgsslError, match=r"run"), hold_run(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


def test_states_of_a_finished_run_go_and_what_lies_beside_them_stays(tmp_path):
    save_state(tmp_path, 1, {"x": 1})
    (tmp_path / "resume" / "cv.txt").write_text("keep")
    save_state(tmp_path, 2, {"x": 1})
    remove_states(tmp_path)
    assert sorted(content(tmp_path)) == ["resume/cv.txt"]


def test_a_damaged_run_may_be_overwritten(tmp_path):
    """Which is the remedy where every state is damaged."""
    run = some_run(tmp_path)
    (run / "resume" / "000000001.pt").write_bytes(b"")
    (run / METRICS_FILE).write_text('{"ep')
    prepare_output(run, overwrite=True)
    assert content(run) == {}


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_is_a_file_is_refused(overwrite, tmp_path):
    (tmp_path / "file").write_text("precious")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FgsslError, match="file"):
            prepare_output(output, overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "precious"


def test_metrics_are_cut_after_the_saved_step(tmp_path):
    """Lines after it, halves of lines and rubbish go; what is kept stays byte for byte."""
    good = [json.dumps({"step": step, "loss": 1 / step}) for step in (10, 20, 30, 40)]
    path = tmp_path / METRICS_FILE
    path.write_bytes(
        "\n".join([*good[:2], "[1]", "null", '{"loss": 1}', "", *good[2:], '{"step": 5']).encode() + b"\xff\xc3"
    )
    truncate_metrics(tmp_path, 30)
    assert path.read_text().splitlines() == good[:3]
    truncate_metrics(tmp_path, 0)
    assert path.read_text() == ""


def test_metrics_of_a_new_run_are_empty(tmp_path):
    truncate_metrics(tmp_path, 0)
    assert (tmp_path / METRICS_FILE).read_text() == ""


def test_the_newest_finished_run_is_found(tmp_path):
    with pytest.raises(FgsslError, match="no finished run"):
        newest_run(tmp_path / "runs")
    for number, name in enumerate(("b", "c", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "encoder.safetensors").touch()
        os.utime(tmp_path / name / "encoder.safetensors", (1000 * number, 1000 * number))
    (tmp_path / "unfinished").mkdir()
    assert newest_run(tmp_path) == tmp_path / "a"


def test_versions_name_what_decides_a_result():
    found = versions()
    assert found["torch"] == torch.__version__.split("+")[0] and found["python"] == sys.version.split()[0]
    assert {"timm", "numpy", "pillow"} <= set(found)


# ---- the machine


@pytest.mark.parametrize("cores,device,world,expected", [
    (2, None, 1, 1), (1, None, 1, 1), (16, None, 1, 8), (64, "cpu", 1, 8), (16, "cpu", 2, 4), (2, "cpu", 4, 1),
    (16, "cuda", 1, 15), (64, "cuda", 1, 16), (16, "cuda", 4, 3), (1, "cuda", 1, 1), (2, "cuda", 8, 1),
])  # fmt: skip
def test_workers_leave_cores_for_training(cores, device, world, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)), raising=False)
    assert automatic_workers(None if device is None else torch.device(device), world) == expected


def test_devices_are_found_or_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device(None) == resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(FgsslError, match=f"device '{name}' is not on this machine"):
            resolve_device(name)
    with pytest.raises(FgsslError, match="'meta' is not supported"):
        resolve_device("meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device(None) == resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(FgsslError, match=r"'cuda:2' is not on this machine \(2 CUDA devices\)"):
        resolve_device("cuda:2")


@given(st.text(max_size=8) | st.sampled_from(["", "0", "cuda:-1", "cpu:", "CPU", "cuda:99999999999", "\ud800"]))
def test_any_device_name_is_a_device_or_one_line(name):
    try:
        assert resolve_device(name).type in ("cpu", "cuda", "mps")
    except FgsslError as error:
        assert "\n" not in str(error)


def test_precision_follows_the_hardware(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_a, native=native, **_k: native)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)  # not enough alone
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda native=native: native, raising=False)
        assert resolve_precision("auto", cuda)[0] == resolve_precision("auto", cpu)[0] == ("bf16" if native else "no")
    assert resolve_precision("auto", torch.device("mps"))[0] == "no"
    for asked in ("no", "bf16"):
        assert resolve_precision(asked, cpu) == (asked, "asked for")
    assert resolve_precision("fp16", cuda) == ("fp16", "asked for")
    with pytest.raises(FgsslError, match="fp16 has no gradient scaler on cpu"):
        resolve_precision("fp16", cpu)
