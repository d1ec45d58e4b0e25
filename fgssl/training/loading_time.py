"""Waiting for pictures: how much of the time it takes, over a window of steps, and what would change it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from fgssl.config.schema import TrainingConfig
from fgssl.data.cache.pixels import PixelStore, cache_bytes

SETTLED_STEPS = 50  # of a process: before them the queue of batches fills and the disk is read for the first time
WINDOW_STEPS = 50  # judged together: one slow file says nothing
LONG_WAIT, STARVED = 0.1, 0.3  # shares of the time that are worth a hint, and a message of their own
IN_PROCESS = 0.5  # up to here, a training process on few cores that makes the views itself works and does not wait


class Waiting:
    """Looks at each line of the log; says once what may help, and once more where it is starvation.

    Args:
        remedies: What may help, the best first; from `remedies`.
        least: Shares up to it are what this way of feeding costs.
        said: What an earlier process of the run has said.
    """

    def __init__(self, remedies: Sequence[str], *, least: float = LONG_WAIT, said: Iterable[str] = ()) -> None:
        self.remedies, self.least, self.said = remedies, least, set(said)
        self._recent: deque[tuple[int, float, float]] = deque()  # steps, seconds and share of lines of the log

    def look(self, done: int, *, steps: int, seconds: float, share: float) -> str:
        """What to warn of after a line of `steps` that took `seconds`, a `share` of them waiting; or nothing.

        `done` are the steps of this process so far.
        """
        if done - steps < SETTLED_STEPS:
            return ""
        self._recent.append((steps, seconds, share))
        while sum(line[0] for line in self._recent) - self._recent[0][0] >= WINDOW_STEPS:
            self._recent.popleft()
        window = sum(line[0] for line in self._recent)
        if window < WINDOW_STEPS:
            return ""
        share = sum(line[1] * line[2] for line in self._recent) / max(sum(line[1] for line in self._recent), 1e-9)
        level = "starved" if share > max(STARVED, self.least) else "long" if share > self.least else ""
        # said again by a resumed run that was given other settings to no avail
        known = {f"{name}: {self.remedies}" for name in (("starved",) if level == "starved" else ("starved", "long"))}
        if not level or known & self.said:
            return ""
        self.said.add(f"{level}: {self.remedies}")
        if level == "long":
            return f"{100 * share:.0f} % of the time is spent waiting for pictures: try {self.remedies[0]}"
        return (
            f"starved of pictures: waiting for them took {100 * share:.0f} % of the last {window} steps, without it "
            f"training would be {1 / (1 - share):.1f} times as fast; stop (Ctrl-C) and go on by --resume with "
            f"{', '.join(self.remedies[:-1])}, or start anew with {self.remedies[-1]}"
        )


def remedies(settings: TrainingConfig, pixels: PixelStore, *, workers: int, cores: int, image_size: int) -> list[str]:
    """What gives pictures faster in a run with these settings, the best first; the last makes it another run."""
    found = []
    gigabytes = cache_bytes(pixels.images, pixels.prepare, encoded=False) / 1e9
    if settings.cache == "off":
        found.append("--cache auto, so that pictures are decoded once only")
    elif pixels.decodes:
        found.append(
            f"--cache FOLDER on a disk with room (pixels take about {gigabytes:.1f} GB; "
            f"--set training.cache_budget={1.2 * gigabytes:.1f} allows it)"
        )
    if workers < cores:
        found.append(f"--workers {min(cores, max(2, 2 * workers))} (now {workers}, {cores} cores)")
    if not found:
        found.append(f"a machine with more cores (--workers {workers} takes all {cores})")
    return [*found, f"smaller pictures (--image-size below {image_size})"]
