"""Damages files and settings at random, and tells whether what reads them answers with a result or one clear error."""

from __future__ import annotations

import contextlib
import io
import json
import random
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from fgssl.errors import FgsslError

SECONDS = 20.0  # after which a case counts as a hang
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "\0", "../../../etc/passwd", "/etc/passwd", "a" * 5000, "\x1b[31mred", "[bold]x[/bold]", "<b>1</b>",
    "!!python/object/apply:os.system [id]", "💥", "\ud800", [], {}, [[[[]]]], {"a": {"b": {"c": None}}}, [0] * 3000,
    ["a", 1, None], {"": ""}, {"__class__": "x"}, "resnet18", "timm:resnet18", "hf-hub:a/b", "1e999", "-", "~", "nan",
)  # fmt: skip
"""Values that settings and metadata never hold."""


class Finding(NamedTuple):
    """A case that went wrong."""

    target: str
    seed: int
    problem: str


class Target(NamedTuple):
    """One kind of file: how a damaged one is made, and what reads it.

    Attributes:
        name: For reports.
        write: (random, path): writes one damaged file.
        read: What a user does with it.
        suffix: Of the file.
    """

    name: str
    write: Callable[[random.Random, Path], None]
    read: Callable[[Path], object]
    suffix: str


def run_case(target: Target, seed: int, folder: Path) -> Finding | None:
    """Damage one file, read it, and look around: only FgsslError, in time, nothing written anywhere."""
    path = folder / f"case{target.suffix}"
    target.write(random.Random(f"{target.name} {seed}"), path)
    before = set(folder.rglob("*"))
    try:
        with time_limit(SECONDS), silence(), forbidden():
            target.read(path)
    except FgsslError as error:
        if "\n" in str(error) or not str(error):
            return Finding(target.name, seed, f"not one line: {error!r}"[:300])
    except BaseException as error:
        return Finding(target.name, seed, f"{type(error).__name__}: {error}"[:300])
    new = set(folder.rglob("*")) - before
    return Finding(target.name, seed, f"wrote {sorted(map(str, new))}"[:300]) if new else None


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the main thread."""

    def ring(_number: int, _frame: object) -> None:
        raise TimeoutError(f"still busy after {seconds:g} s")

    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """What libraries say on the way is not of interest."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def forbidden() -> Iterator[None]:
    """Nothing may start a program or unpickle."""

    def refuse(*_arguments: object, **_options: object) -> Any:
        raise AssertionError("a program was about to be started")

    with contextlib.ExitStack() as stack:
        for name in ("os.system", "subprocess.Popen", "pickle.load", "pickle.loads"):
            stack.enter_context(mock.patch(name, refuse))
        yield


# ---- damages


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """Cut, flipped, overwritten, doubled or filled up at random places."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(found) + 1) if rng.random() < 0.5 else rng.randrange(min(len(found), 400) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            del found[place:]
        elif kind == 1 and place < len(found):
            found[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            found[place : place + 8] = rng.randbytes(8)
        elif kind == 3:
            found[place:place] = found[: rng.randrange(200)]
        elif kind == 4:
            found[place:place] = rng.randbytes(rng.randrange(1, 50))
        else:
            found[place : place + rng.randrange(1, 50)] = b""
    return bytes(found)


def damaged_value(rng: random.Random, value: Any, *, depth: int = 0) -> Any:
    """A tree of dicts and lists with one to three of its nodes replaced, removed or moved."""
    for _ in range(rng.randint(1, 3) if depth == 0 else 1):
        if isinstance(value, dict) and value and rng.random() < 0.9:
            value = dict(value)
            key = rng.choice(list(value))
            kind = rng.randrange(5 if depth == 0 else 4)
            if kind == 0:
                del value[key]
            elif kind == 1:
                value[rng.choice(("x", "", "../x", "[red]", key + "_", key.upper()))] = value.pop(key)
            elif kind == 2:
                value[key] = rng.choice(HOSTILE)
            else:
                value[key] = damaged_value(rng, value[key], depth=depth + 1)
        elif isinstance(value, list) and value and rng.random() < 0.7:
            value = list(value)
            value[rng.randrange(len(value))] = rng.choice(HOSTILE)
        else:
            value = rng.choice(HOSTILE)
    return value


def split_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_safetensors(header: Any, body: bytes, length: int | None = None) -> bytes:
    """A safetensors file, whatever its header says."""
    text = json.dumps(header).encode("utf-8", "replace")
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def damaged_safetensors(rng: random.Random, data: bytes, metadata_keys: tuple[str, ...]) -> bytes:
    """Bytes, header, or the JSON inside the metadata damaged."""
    header, body = split_safetensors(data)
    kind = rng.randrange(10)
    if kind < 2:
        return damaged_bytes(rng, data)
    if kind == 2:
        return join_safetensors(header, body, rng.choice((0, 1, 2**20, 2**32, 2**62, 2**63, 2**64 - 1)))
    if kind < 6:
        key = rng.choice(metadata_keys)
        text = header["__metadata__"][key]
        with contextlib.suppress(ValueError):
            text = json.dumps(damaged_value(rng, json.loads(text)))
        if rng.random() < 0.1:
            text = damaged_bytes(rng, text.encode()).decode("utf-8", "replace")
        header["__metadata__"] = {**header["__metadata__"], key: text}
        return join_safetensors(header, body)
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    if kind == 6:
        header["__metadata__"] = damaged_value(rng, header["__metadata__"])
    elif kind == 7:
        header[name] = damaged_value(rng, header[name])
    elif kind == 8:
        header[rng.choice(("../../x", "keys", "backbone.", "a" * 300))] = header.pop(name)
    else:
        other = rng.choice(names)
        header[name], header[other] = header[other], header[name]
    return join_safetensors(header, body)
