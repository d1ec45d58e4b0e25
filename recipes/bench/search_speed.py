"""Search among a million embeddings, once loaded: exactly in 16-bit numbers mapped from a file, and in a FAISS index.

    python recipes/bench/search_speed.py --rows 1000000 --width 384

Hardware: any CPU; a million of width 384 take 4 GB of memory, 2 GB of disk and minutes, most of them for the index.
Vectors are synthetic: random directions around `--groups` random centres, as classes lie; queries are new ones. Told
are the seconds to open each, the median (also of the CPU time, for a busy machine) and worst milliseconds of a search
for ten hits by the class that `fgssl retrieve --query` uses, without the encoder, and how many of the exact hits the
index found.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.export import Export, save_export
from fgssl.evaluation.feature_file import read_features
from fgssl.evaluation.retrieval.galleries import EmbeddedGallery, Gallery, IndexGallery
from fgssl.evaluation.vector_index import add_to_index, open_index

TOP = 10
MADE = {"source": "synthetic", "split": "all", "pool": "gap", "checkpoint": "none", "encoder": "none"}


def synthetic(rows: int, width: int, groups: int, generator: torch.Generator, centres: Tensor) -> Tensor:
    """(rows, width) float16 of length 1."""
    found = torch.empty(rows, width, dtype=torch.float16)
    for first in range(0, rows, 50_000):
        count = min(50_000, rows - first)
        own = centres[torch.randint(groups, (count,), generator=generator)]
        noise = torch.randn(count, width, generator=generator) / width**0.5
        found[first : first + count] = functional.normalize(own + noise, dim=1).half()
    return found


def measured(gallery: Gallery, queries: Tensor) -> tuple[list[float], list[float], list[set[str]]]:
    """Milliseconds, those of them that the CPU worked for it, and hits of each query."""
    gallery.nearest(queries[:1], TOP)
    times, busy, hits = [], [], []
    for query in queries:
        start, used = time.perf_counter(), time.process_time()
        near = gallery.nearest(query[None], TOP)[0]
        times.append(1000 * (time.perf_counter() - start))
        busy.append(1000 * (time.process_time() - used))
        hits.append({each.path for each in near})
    return times, busy, hits


def opened(name: str, open_it: Callable[[], Gallery], queries: Tensor) -> list[set[str]]:
    """Measure one gallery and say it."""
    start = time.perf_counter()
    gallery = open_it()
    seconds = time.perf_counter() - start
    times, busy, hits = measured(gallery, queries)
    middle, worked = statistics.median(times), statistics.median(busy)
    print(
        f"{name:22} opened in {seconds:6.1f} s  median {middle:7.1f} ms (CPU {worked:.1f})  worst {max(times):7.1f} ms"
    )
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = {"--rows": 1_000_000, "--width": 384, "--groups": 2_000, "--queries": 20, "--seed": 0}
    for name, value in options.items():
        parser.add_argument(name, type=int, default=value)
    asked = parser.parse_args()
    generator = torch.Generator().manual_seed(asked.seed)
    centres = functional.normalize(torch.randn(asked.groups, asked.width, generator=generator), dim=1)
    vectors = synthetic(asked.rows, asked.width, asked.groups, generator, centres)
    queries = synthetic(asked.queries, asked.width, asked.groups, generator, centres).float()
    names = tuple(f"photos/{row:07d}.jpg" for row in range(asked.rows))
    found = Embeddings(vectors, None, names, None, np.arange(asked.rows), ())
    export = Export(found, ("all",) * asked.rows, MADE)
    print(f"{asked.rows} x {asked.width}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        file, index = Path(folder) / "g.safetensors", Path(folder) / "g.faiss"
        save_export(file, export)

        def mapped() -> Gallery:
            known = read_features(str(file), half=True)
            return EmbeddedGallery(known.path, known.embeddings, None, 2**30)

        exact = opened("exact, 16 bits, mapped", mapped, queries)
        start = time.perf_counter()
        add_to_index(index, export)
        print(f"FAISS index built in {time.perf_counter() - start:.0f} s")
        near = opened("FAISS index", lambda: IndexGallery(open_index(str(index))), queries)
    recall = sum(len(one & other) for one, other in zip(exact, near, strict=True)) / (TOP * asked.queries)
    print(f"of the exact ten hits the index finds {100 * recall:.1f} %")


if __name__ == "__main__":
    main()
