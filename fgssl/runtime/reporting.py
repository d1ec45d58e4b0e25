"""What a long task tells whoever runs it. The library never prints: it calls a Reporter, which is silent by default.

What goes on deep below (a download, a listing) is told to the one that listens in this process, handed down by nobody.
Several processes of one run tell each other, in the store through which they met, how far they have come and that they
are alive: a collective cannot tell who is missing, and must not be impatient, as the first may decode for hours.
"""

from __future__ import annotations

import functools
import io
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

QUIET_SECONDS, BETWEEN_SECONDS = 1.0, 0.2  # nothing is told of what is over within the first
CONNECT_TIMEOUT = timedelta(seconds=600)
REMEDY = """look at its machine, mounts and memory, and go on with --resume, for the saved state is whole; \
--set training.stall_limit=1h waits longer"""


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


_listener: Reporter | None = None
_remarked: set[str] = set()


def listen(reporter: Reporter | None) -> None:
    """Have a reporter hear what is remarked deep below; None: nobody."""
    global _listener
    _listener = reporter
    _remarked.clear()


def remark(level: str, text: str) -> None:
    """A "warning" or "note" for the listener, unless it has heard it."""
    if _listener is not None and text not in _remarked:
        _remarked.add(text)
        (_listener.warn if level == "warning" else _listener.note)(text)


class Told:
    """One task, in words, of which the listener hears now and then, once it has taken a second."""

    def __init__(self, task: str, total: int | None = None) -> None:
        self.task, self.total, self.spoke = task, total, False
        self._next = time.monotonic() + QUIET_SECONDS

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now >= self._next and _listener is not None:
            self._next, self.spoke = now + BETWEEN_SECONDS, True
            _listener.progress(self.task, done, self.total)

    def end(self, done: int) -> None:
        """It is over; said only of what was spoken of, and once."""
        if self.spoke and _listener is not None:
            _listener.progress(self.task, done, done)
        self.spoke = False


@contextmanager
def told_bars() -> Iterator[None]:
    """Inside the block tqdm, by which timm, `datasets` and `huggingface_hub` draw, draws nothing; the listener hears.

    timm takes no bar of ours and `datasets` draws several at once: so their base class tells what it would have drawn.
    """
    from tqdm.std import tqdm

    former = tqdm.__init__, tqdm.display, tqdm.close
    files: list[Any] = []  # bars that count files: those of each file's bytes would only take turns with them

    def scaled(bar: Any, count: float) -> int:
        return round(count / (1_000_000 if bar.unit == "B" else 1))

    def begin(self: Any, *arguments: Any, **options: Any) -> None:
        former[0](self, *arguments, **{**options, "disable": False, "file": io.StringIO()})

    def show(self: Any, *_: Any, **__: Any) -> None:
        if not hasattr(self, "fgssl_told"):
            words = self.desc.strip().rstrip(":")
            if self.unit == "B":
                words = f"downloading {words.rsplit('/', 1)[-1]} (MB)"
            elif self.unit != "it":
                words = f"{words} ({self.unit.strip()})"
            self.fgssl_told = Told(words[:1].lower() + words[1:])
            files.extend([self] if self.unit == "files" else [])
        self.fgssl_told.total = scaled(self, self.total) if self.total else None  # some say 0 where they do not know
        if self.desc and (self.unit != "B" or all(bar.n >= bar.total for bar in files)):
            self.fgssl_told(scaled(self, self.n))

    def close(self: Any) -> None:
        former[2](self)
        if hasattr(self, "fgssl_told"):
            self.fgssl_told.end(scaled(self, self.n))

    tqdm.__init__, tqdm.display, tqdm.close = begin, show, close
    try:
        yield
    finally:
        tqdm.__init__, tqdm.display, tqdm.close = former


class Heartbeat(NamedTuple):
    """What a process tells of itself."""

    ticks: int = 0  # grows as long as the process is alive
    moves: int = 0  # places it has come to; all come to the same ones in the same order
    beats: int = 0  # progress within a place
    place: str = "starting"


class HangDetector(Reporter):
    """Where this process is, of `world`; told by whoever works, published and judged by threads.

    After `limit` seconds without any progress of any process the others end, and one of them names by `fatal` the one
    that is behind or silent. Whatever a reporter is told is handed on, and progress taken for a heartbeat.
    """

    def __init__(self, rank: int, world: int, limit: float, reporter: Reporter) -> None:
        self.rank, self.world, self.limit, self.reporter = rank, world, limit, reporter
        self.tick = min(10.0, max(0.1, limit / 20))
        self.own = Heartbeat()
        self.seen: dict[int, Heartbeat] = {}
        self._stop = threading.Event()
        for name in ("note", "warn", "progress", "step", "fatal", "planned"):
            setattr(self, name, functools.partial(self._hand_on, name))

    def _hand_on(self, name: str, *arguments: Any) -> None:
        if name not in ("fatal", "planned"):
            self.beat()
        getattr(self.reporter, name)(*arguments)

    def at(self, place: str) -> None:
        """This process has come to a place that all come to, as in "process 1 has been PLACE for 900 s"."""
        self.own = self.own._replace(moves=self.own.moves + 1, place=place)

    def beat(self) -> None:
        self.own = self.own._replace(beats=self.own.beats + 1)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Publish and judge while the block runs; alone there is nobody to wait for."""
        if self.world > 1 and self.limit > 0 and "MASTER_ADDR" in os.environ:
            for work in (self._publish, self._judge):
                threading.Thread(target=work, daemon=True).start()
        try:
            yield
        finally:
            self._stop.set()

    def _publish(self) -> None:
        from torch import distributed  # without stores in some builds of torch

        try:
            # of its own: the one that collectives use may be waiting in one
            known: Any = {"is_master": False, "timeout": CONNECT_TIMEOUT, "wait_for_workers": False}
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            own = distributed.TCPStore(address, port, **known)  # type: ignore[attr-defined]
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = distributed.PrefixStore(f"fgssl-heartbeat-{attempt}", own)  # type: ignore[attr-defined]
        except (RuntimeError, ValueError, KeyError, AttributeError):  # they meet in another way: nothing is judged
            return
        ticks = 0
        while not self._stop.wait(self.tick):
            ticks += 1
            try:
                store.set(str(self.rank), json.dumps(self.own._replace(ticks=ticks)))
                for rank in range(self.world):
                    if store.check([str(rank)]):
                        self.seen[rank] = Heartbeat(*json.loads(store.get(str(rank))))
            except RuntimeError as error:
                if "timed out" not in str(error).lower():  # the other end is gone, and with it the run
                    return

    def _judge(self) -> None:
        before, still, silent = dict[int, Heartbeat](), 0.0, dict[int, float]()
        mark = time.monotonic()
        while not self._stop.wait(self.tick):
            now = time.monotonic()
            awake, mark = min(now - mark, 2 * self.tick), now  # not the time this process was itself stopped for
            seen = {**self.seen, self.rank: self.own}
            moved = any(found[1:] != before.get(rank, Heartbeat())[1:] for rank, found in seen.items())
            still = 0.0 if moved or len(seen) < self.world else still + awake
            for rank, found in seen.items():
                same = rank in before and before[rank].ticks == found.ticks
                silent[rank] = silent.get(rank, 0.0) + awake if same and rank != self.rank else 0.0
            before = seen
            if still >= self.limit:
                ranks, problem = diagnose({r for r, age in silent.items() if age >= self.limit / 2}, seen, self.limit)
                if self.rank != min(set(seen) - set(ranks), default=0):
                    time.sleep(2 * self.tick + 1)  # another one says it; whoever ends first takes the others down
                else:
                    self.reporter.fatal(problem, REMEDY)
                os._exit(1)


def diagnose(silent: set[int], seen: Mapping[int, Heartbeat], limit: float) -> tuple[list[int], str]:
    """Which processes keep the others waiting, by those long not heard of and what each has told; and that in words."""
    ranks, behind = sorted(silent), min(found.moves for found in seen.values())
    if 0 in silent and len(ranks) == len(seen) - 1:
        ranks = [0]  # it mostly keeps the store, without which nobody is heard
    elif not ranks and any(found.moves > behind for found in seen.values()):
        ranks = sorted(rank for rank, found in seen.items() if found.moves == behind)
    if not ranks:
        return [], f"no process got on for {limit:g} s, each {seen[min(seen)].place}"
    named = f"process {ranks[0]}" if len(ranks) == 1 else f"processes {', '.join(map(str, ranks))}"
    what = "did not answer" if ranks[0] in silent else f"was {seen[ranks[0]].place}"
    return ranks, f"{named} of {len(seen)} {what} for {limit:g} s, and the others waited"
