"""Memory exhausted in a step: which batch would have fitted, found by trying."""

from __future__ import annotations

import errno
from collections.abc import Callable

import torch

REFINEMENTS = 2  # tries between the largest that fitted and the smallest that did not
_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "could not create a primitive",  # oneDNN's way of saying it
    "alloc_failed",  # cuBLAS's
    "size calculation overflowed",  # of a tensor larger than any memory
    "multiplication overflow",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted, on a CPU or a GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
    )


def largest_batch(attempt: Callable[[int], None], failed: int, *, least: int = 2) -> int | None:
    """The largest number of images found to fit: half as often as it takes, then a few tries above.

    Args:
        attempt: One step with so many images; raises where memory does not suffice.
        failed: What did not fit.
        least: The smallest batch there is.

    Returns:
        A number below `failed`, or None where not even `least` fits.
    """
    low, high = failed // 2, failed
    while low >= least and not _fits(attempt, low):
        low, high = low // 2, low
    if low < least:
        return None
    for _ in range(REFINEMENTS):
        middle = (low + high) // 2
        if middle in (low, high):
            break
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
