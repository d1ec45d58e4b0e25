"""Streams that are closed, full, without a reader or of few characters do not stop a verb."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import make_picture

from fgssl.cli import LastingStream

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cyrillic(tmp_path: Path) -> Path:
    for place, name in enumerate(("Зяблик", "Снегирь", "=cmd|'x'!A1")):
        (tmp_path / "птицы" / name).mkdir(parents=True)
        for number in range(3):
            make_picture(10 * place + number, 40, 40).save(tmp_path / "птицы" / name / f"{number}.png")
    return tmp_path / "птицы"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command line of bash, where FGSSL is the program; its exit code is the program's, not the last in a pipe."""
    program = f'set -o pipefail; FGSSL() {{ {shlex.quote(sys.executable)} -m fgssl "$@"; }}; {line}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(["bash", "-c", program], capture_output=True, timeout=120, env=environment)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_what_the_stream_cannot_encode_is_escaped(cyrillic: Path, encoding: str) -> None:
    done = shell(f"FGSSL data check {cyrillic} --workers 0", PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    text = done.stdout.decode(encoding)
    assert "Зяблик".encode("unicode_escape").decode() in text and "verdict: " in text


@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        ("| head -1", 0),  # the reader had what it wanted
        (">&-", 0),
        ("2>&-", 0),
        ("2>/dev/full", 0),
        (">/dev/full", 1),  # results are lost, and that is said
    ],
)
def test_no_stream_stops_a_verb(cyrillic: Path, redirection: str, code: int) -> None:
    done = shell(f"FGSSL data check {cyrillic} --workers 0 {redirection}")
    assert done.returncode == code, done
    if code:
        assert done.stderr.startswith(b"error: the results could not be written: No space left on device; ")
    assert done.stderr.count(b"\n") == code


def test_a_long_output_into_a_closed_pipe_ends_quietly() -> None:
    done = shell("FGSSL backbones --json | head -1")  # far more than a pipe holds
    assert (done.returncode, done.stdout) == (0, b"{\n"), done.stderr
    assert b"error" not in done.stderr and b"Traceback" not in done.stderr


def test_a_verb_without_any_stream_writes_its_files(cyrillic: Path, tmp_path: Path) -> None:
    tiny = (
        "--backbone test_resnet --no-pretrained --image-size 64 --batch-size 4 --workers 0 --device cpu --max-steps 1"
    )
    assert shell(f"FGSSL pretrain --data {cyrillic} {tiny} -o {tmp_path}/run >&- 2>&- <&-").returncode == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (tmp_path / "run" / "encoder.safetensors").stat().st_size > 1000


class Failing:
    """A stream whose writes fail as told."""

    def __init__(self, failure: Exception) -> None:
        self.failure, self.written = failure, 0

    def write(self, _text: str) -> None:
        self.written += 1
        raise self.failure

    flush = close = lambda self: None

    def fileno(self) -> int:
        raise OSError("none")


@pytest.mark.parametrize(
    ("failure", "lost"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (BrokenPipeError(errno.EPIPE, "gone"), False),
        (ValueError("I/O operation on closed file"), False),
    ],
)
def test_a_stream_fails_once_and_says_why(failure: Exception, lost: bool) -> None:
    inner = Failing(failure)
    stream = LastingStream(inner)
    assert [stream.write("abc"), stream.write("de")] == [3, 2] and inner.written == 1
    stream.flush()
    assert stream.failure is (failure if lost else None)
