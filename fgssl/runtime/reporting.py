"""What a long task tells whoever runs it. The library never prints: it calls a Reporter, which is silent by default."""

from __future__ import annotations

from typing import Any, NamedTuple


class StepReport(NamedTuple):
    """State of a training run, every few steps."""

    epoch: int  # from 1
    epochs: int
    step: int  # done so far, from 1
    total_steps: int
    loss: float
    chance: float | None  # the loss of an encoder that knows nothing; None where the loss does not tell
    fit: float | None  # None without rationale
    target_entropy: float | None  # of the GradCAM target, relative to uniform
    effective_rank: float
    feature_std: float  # of length-1 features: 0 is collapse, 1 evenly spread
    images_per_second: float
    wait_share: float  # of the time, waiting for data
    seconds_left: float


class Reporter:
    """Receives progress; override what is of interest."""

    def note(self, text: str) -> None:
        """One line worth reading."""

    def warn(self, text: str) -> None:
        """One line that should be read."""

    def fatal(self, problem: str, remedy: str) -> None:
        """The last line of a process that hangs in a call and is about to end itself."""

    def progress(self, task: str, done: int, total: int | None) -> None:
        """A side task (building the cache, embedding) got to `done` of `total`; None where nobody knows it."""

    def step(self, report: StepReport) -> None:
        """Training got on."""

    def planned(self, description: dict[str, Any], facts: dict[str, Any]) -> None:
        """The run is about to start, with these settings (value and origin) and sizes."""
