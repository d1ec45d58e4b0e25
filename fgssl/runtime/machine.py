"""What this machine offers: device, precision, loader processes, memory, and what to do where memory runs out."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from fgssl.errors import FgsslError, SettingError

FEW_CORES = 4
LOOK_SECONDS, HALF_BUSY = 0.25, 0.5
REFINEMENTS = 2  # tries between the largest batch that fitted and the smallest that did not
_OUT_OF_MEMORY = (
    "out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory",
    "could not create a primitive", "alloc_failed",  # as oneDNN and cuBLAS say it
    "size calculation overflowed", "multiplication overflow",  # of a tensor larger than any memory
)  # fmt: skip


def keep_freed_memory() -> None:
    """Let glibc keep large blocks that were freed, for as long as the process lives: a step asks for the same again.

    By default every activation above 32 MB goes back to the system and is fetched anew, zeroed: a tenth of a step.
    """
    largest_kept, trim_above = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(largest_kept, 1 << 30):
            mallopt(largest_kept, 1 << 25)  # the most that older versions take
        mallopt(trim_above, (1 << 31) - 1)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; CUDA is not waited for. MPS is: it may read memory that is another's by then (83015)."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def peak_memory(device: torch.device) -> float:
    """The most memory this process has used so far, in gigabytes: of the GPU, or of the machine (loaders excluded)."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    with contextlib.suppress(OSError, IndexError):  # Linux; there `resource` counts what started this process, too
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return round(int(status.split("VmHWM:")[1].split()[0]) / 2**20, 3)
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)
    return 0.0


def available_cores() -> int:
    """Cores this process may use, which on a shared machine are fewer than it has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def feeds_itself(device: torch.device) -> bool:
    """Whether training had better read from a cache itself: on few cores loaders take turns with its threads."""
    return device.type == "cpu" and available_cores() <= FEW_CORES


def automatic_workers(device: torch.device | None = None, world: int = 1) -> int:
    """Loader processes per training process: all cores beside a GPU (at most 16), one beside a CPU that also trains."""
    cores = available_cores()
    if device is not None and device.type != "cpu":
        return max(1, min(16, cores // world - 1))
    return max(1, min(8, cores // (2 * world)))


def idle_cores() -> float:
    """How many of the cores that this process may use nobody is busy on, looked at for a moment in which it rests."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    before = psutil.cpu_times(percpu=True)
    time.sleep(LOOK_SECONDS)
    idle = 0.0
    for core, (first, last) in enumerate(zip(before, psutil.cpu_times(percpu=True), strict=True)):
        passed, free = sum(last) - sum(first), last.idle - first.idle
        idle += min(1.0, free / passed) if core in allowed and passed > 0 else 0.0
    return idle


def sensible_threads() -> tuple[int, str]:
    """Threads to compute with on a CPU, and why.

    Threads meet after every operation: one whose core is shared with somebody makes all others wait, spinning, and two
    on such a machine can be several times slower than one.
    """
    most = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:
        return most, "OMP_NUM_THREADS"
    free = idle_cores()
    if free > most - HALF_BUSY:
        return most, "all cores, nobody else is busy on them"
    return max(1, min(most, int(free + HALF_BUSY))), f"of {most} cores {free:.1f} are free: more threads would wait"


def available_memory() -> int:
    """Bytes this process may still take: the machine's, or what a container leaves, which psutil does not know."""
    found = [int(psutil.virtual_memory().available)]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            groups = Path("/sys/fs/cgroup")
            found.append(int((groups / limit).read_text()) - int((groups / used).read_text()))
    return max(0, min(found))


def free_memory(device: torch.device) -> int:
    """Bytes that a run on the device may take: of the GPU, or of the machine."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else available_memory()


def scratch_memory() -> int:
    """Bytes for scratch such as chunks of scores: a quarter of what is available, between 64 MiB and 1 GiB."""
    return max(64 * 2**20, min(2**30, available_memory() // 4))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted, on a CPU or a GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)
    )


def largest_batch(attempt: Callable[[int], None], failed: int, *, least: int = 2) -> int | None:
    """The most images below `failed` found to fit: half as often as it takes, then a few tries above; None for none.

    `attempt` is one step with so many images, which raises where memory does not suffice.
    """
    low, high = failed // 2, failed
    while low >= least and not _fits(attempt, low):
        low, high = low // 2, low
    if low < least:
        return None
    for _ in range(REFINEMENTS):
        middle = (low + high) // 2
        if middle > low:
            low, high = (middle, high) if _fits(attempt, middle) else (low, middle)
    return low


def _fits(attempt: Callable[[int], None], images: int) -> bool:
    try:
        attempt(images)
        return True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()


def resolve_device(name: str | None) -> torch.device:
    """The asked device, or the best at hand. Raises FgsslError when it is not here."""
    own_gpu = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if name is None or name == "auto":
        name = str(own_gpu) if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError(f"unknown device '{name}'", "use cpu, cuda, cuda:1 or mps") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise SettingError(f"device '{name}' is not supported", "use cpu, cuda, cuda:1 or mps")
    if device.type == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:  # each process its own GPU
        device = own_gpu
    if device.type == "cuda" and (device.index or 0) >= gpus:
        few = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > max(1, gpus)
        remedy = f"start {gpus} processes, one a GPU" if few and gpus else "use --device cpu"
        raise FgsslError(f"device '{device}' is not on this machine ({gpus} CUDA devices)", remedy)
    if device.type == "mps" and not mps:
        raise FgsslError(f"device '{name}' is not on this machine", "use --device cpu")
    return device


def resolve_precision(asked: str, device: torch.device) -> tuple[str, str]:
    """The autocast precision ("no", "bf16" or "fp16") and why: bf16 where the hardware is faster in it.

    A CPU is so with AMX. AVX-512's bf16 instructions alone are no faster than float32's: on a Xeon of 2023 a product of
    1,024 x 1,024 has 75 GFLOP/s against 131, and a step of five CNNs 0.6 to 1.04 times the speed.
    """
    if asked == "fp16" and device.type != "cuda":
        raise FgsslError(f"--mixed-precision fp16 has no gradient scaler on {device.type}", "use bf16, auto or no")
    if asked != "auto":
        return asked, "asked for"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "native on this GPU") if native else ("no", "this GPU has no native bf16")
    if device.type == "cpu" and has_amx():
        return "bf16", "this CPU has AMX"
    return "no", "this CPU has no AMX" if device.type == "cpu" else f"no native bf16 on this {device.type}"


def has_amx() -> bool:
    """Whether this CPU multiplies bf16 in tiles (AMX)."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
