"""What two runs must have in common to be the same run: their metrics but for the clock, their encoder bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

# the only measured values that may differ between equal runs
CLOCK = ("images_per_second", "wait_share", "seconds_left", "peak_memory_gb")


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what the clock measured."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def assert_equal_encoders(first: Path, second: Path) -> None:
    """Every tensor of both runs' encoders is equal to the last bit."""
    ours, theirs = load_file(first / "encoder.safetensors"), load_file(second / "encoder.safetensors")
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
