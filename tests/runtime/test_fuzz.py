"""Damaged and hostile files of every kind: a result or one clear error, never anything else, nothing written."""

from __future__ import annotations

import collections
import json
import os
import random
from pathlib import Path
from unittest import mock

import pytest
from fuzz_targets import TARGETS, encoder_bytes
from fuzzing import Target, join_safetensors, run_case, split_safetensors
from running import fgssl

from fgssl.errors import FgsslError
from fgssl.runs.encoder_file import load_encoder

QUICK, THOROUGH = {"encoder": 60}, 500  # cases a target


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_files_are_one_clear_error(target: Target, tmp_path: Path) -> None:
    cases = (run_case(target, seed, tmp_path) for seed in range(QUICK.get(target.name, 80)))
    assert [finding for finding in cases if finding] == []


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_thousands_of_damaged_files(target: Target, tmp_path: Path) -> None:
    cases = (run_case(target, seed, tmp_path) for seed in range(1000, 1000 + THOROUGH))
    assert [finding for finding in cases if finding] == []


def test_the_damages_reach_results_and_errors(tmp_path: Path) -> None:
    """A fuzzer whose every case fails at the first byte would find nothing."""
    for target in TARGETS:
        outcomes = collections.Counter[str]()
        for seed in range(40):
            path = tmp_path / f"{target.name}{target.suffix}"
            target.write(random.Random(f"{target.name} {seed}"), path)
            try:
                target.read(path)
                outcomes["result"] += 1
            except FgsslError as error:
                outcomes[error.problem.replace(str(tmp_path), "")[:60]] += 1
        least = {"metrics": 1, "cache": 1, "weights": 2, "state": 2}.get(target.name, 3)
        assert len(outcomes) >= least, (target.name, outcomes)


def test_the_harness_sees_what_goes_wrong(tmp_path: Path) -> None:
    def write(_rng: random.Random, path: Path) -> None:
        path.write_bytes(b"x")

    def spin(_path: Path) -> None:
        while True:
            pass

    readers = {
        "ValueError: no": lambda path: int("no"),
        "a program": lambda path: os.system("true"),
        "wrote": lambda path: path.with_name("new").touch(),
        "still busy": spin,
    }
    with mock.patch("fuzzing.SECONDS", 0.05):
        for words, read in readers.items():
            finding = run_case(Target("x", write, read, ".x"), 0, tmp_path)
            assert finding is not None and words.split(":")[0] in finding.problem
    assert run_case(Target("x", write, Path.read_bytes, ".x"), 0, tmp_path) is None


def hostile_encoder(path: Path, **changes: object) -> Path:
    """An encoder file whose description of the backbone was changed."""
    header, body = split_safetensors(encoder_bytes())
    metadata = json.loads(header["__metadata__"]["fgssl"])
    for key, value in changes.items():
        metadata["backbone"][key] = value
    header["__metadata__"]["fgssl"] = json.dumps(metadata)
    path.write_bytes(join_safetensors(header, body))
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "hf-hub:owner/model"},
        {"architecture": "local-dir:/tmp"},
        {"model_args": {"checkpoint_path": "/tmp/evil.pth"}},
        {"model_args": {"pretrained": True}},
        {"model_args": {"pretrained_cfg": {"url": "http://127.0.0.1/x.pth"}}},
        {"model_args": {"cache_dir": "elsewhere"}},
        {"model_args": {"num_classes": 2**40}},
        {"model_args": {"global_pool": "/etc/passwd"}},
        {"architecture": "resnet50", "model_args": {"num_classes": 60_000}},
        {"image_size": 10**6},
        {"image_size": True},
        {"data_config": {"mean": [0, 0, 0], "std": [1, 0, 1], "crop_pct": 1, "interpolation": "bicubic"}},
        {"name": ["x"]},
    ],
    ids=str,
)
def test_a_checkpoint_cannot_fetch_open_or_allocate(changes: dict[str, object], tmp_path: Path) -> None:
    path = hostile_encoder(tmp_path / "encoder.safetensors", **changes)
    with pytest.raises(FgsslError, match=r"cannot be|do not fit|does not|unknown"):
        load_encoder(str(path))
    assert list(tmp_path.iterdir()) == [path]


def test_names_in_a_checkpoint_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = hostile_encoder(tmp_path / "e.safetensors", name="\x1b[2J[bold]x[/bold]\r\x07", architecture="\x1b[31m")
    error = fgssl("retrieve", path, "--data", "demo").error()
    assert "\x1b" not in error and "\x07" not in error and "\\x1b" in error


def test_a_pickle_under_the_name_of_an_encoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    for start in (b"PK\x03\x04", b"\x80\x02cos\nsystem\n", b"\x80\x04\x95"):
        path.write_bytes(start + bytes(100))
        with pytest.raises(FgsslError, match="pickle"):
            load_encoder(str(path))
