"""An embedding in parts that are kept on the disk: what was done before a process was stopped is not done again.

Which rows of a split are a part does not depend on the number of processes: whoever goes on finds what is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fgssl.data.cache.folder import cache_folder, cache_label
from fgssl.data.cache.pixels import Fault
from fgssl.data.images import ImageSet
from fgssl.encoder import Pool
from fgssl.errors import FgsslError
from fgssl.runtime.files import atomic_path

FORMAT = "fgssl-part-1"
LARGEST = 4096  # images of a part
PARTS = 64  # of a split, or more: so that many processes share it evenly
LEAST_KEPT = 2000  # images; a smaller split is embedded anew in less time than it takes to care


class Part:
    """What is embedded of a split."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self.features: dict[Pool, list[Tensor]] = {pool: [] for pool in pools}
        self.rows: list[int] = []
        self.faults: list[Fault] = []

    def __len__(self) -> int:
        return len(self.rows) + len(self.faults)


def part_rows(total: int, batch_size: int) -> list[range]:
    """The rows of each part: whole batches, so that these, too, are the same for any number of processes."""
    batches = max(1, min(LARGEST // batch_size, -(-total // (PARTS * batch_size))))
    return [range(first, min(first + batches * batch_size, total)) for first in range(0, total, batches * batch_size)]


class PartFiles:
    """The parts of one embedding in the cache; where it cannot be written, nothing is kept and nothing is said.

    They are told from others by images, pools, the encoder's identity, which is asked for where it is needed, and how
    the encoder is used, in any words.
    """

    def __init__(
        self, images: ImageSet, cache: str, encoder: Callable[[], str], how: str, pools: Sequence[Pool]
    ) -> None:
        self.pools, self.used = pools, list[Path]()
        self.on = cache != "off" and len(images) >= LEAST_KEPT
        if not self.on:
            return
        folder = cache_folder() if cache == "auto" else Path(cache).expanduser()
        content = repr((FORMAT, images.fingerprint(), encoder(), how, tuple(pools), torch.__version__))
        digest = hashlib.blake2b(content.encode(), digest_size=12).hexdigest()
        self.stem = folder / "features" / f"{cache_label(images.source, images.split)}-{digest}-part"

    def read(self, rows: range) -> Part | None:
        """A part that was kept, if it is there and whole."""
        if not self.on:
            return None
        try:
            part = Part(self.pools)
            with safe_open(self._path(rows), framework="pt") as file:
                part.rows = file.get_tensor("rows").tolist()
                part.faults = [Fault(**fault) for fault in json.loads(file.metadata()["faults"])]
                for pool in self.pools:
                    part.features[pool] = [file.get_tensor(pool)] if part.rows else []
            whole = sorted([*part.rows, *(fault.index for fault in part.faults)]) == list(rows)
            fits = all(sum(map(len, found)) == len(part.rows) for found in part.features.values())
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):  # not there, or damaged by somebody
            return None
        if whole and fits:
            self.used.append(self._path(rows))
        return part if whole and fits else None

    def write(self, rows: range, part: Part) -> None:
        """Keep a part."""
        if not self.on:
            return
        tensors = {"rows": torch.tensor(part.rows, dtype=torch.int64)}
        tensors |= {str(pool): torch.cat(found) for pool, found in part.features.items() if found}
        faults = json.dumps([asdict(fault) for fault in part.faults])
        with contextlib.suppress(FgsslError, OSError):
            with atomic_path(self._path(rows)) as temporary:
                save_file(tensors, temporary, metadata={"format": FORMAT, "faults": faults})
            self.used.append(self._path(rows))

    def remove(self) -> None:
        """What this process has read or written: the whole is there."""
        for path in self.used:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _path(self, rows: range) -> Path:
        return self.stem.with_name(f"{self.stem.name}-{rows.start:09d}.safetensors")
