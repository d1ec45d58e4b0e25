"""What `fgssl explore` takes beyond embedding: near copies, neighbours, layout, groups, selection and the page.

    python recipes/bench/explore_speed.py --images 10000

Hardware: 2 CPU cores; 3 GB. Time: a minute or two. Length-1 features of 512 in 80 clusters, and pictures of 160 px that
are noise of 5 x 5 values enlarged. `cpu_seconds` are of all threads of the process, for a machine that others use;
`peak_gigabytes` is the most memory that the process held so far.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import harness
import numpy as np
import torch
from PIL import Image

from fgssl.data.cache.pixels import PixelStore
from fgssl.data.images import ImageSet
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.retrieval.ranking import search
from fgssl.explore.copies import find_near_copies
from fgssl.explore.groups import find_groups, usual_size
from fgssl.explore.layout import NEIGHBOURS, lay_out
from fgssl.explore.page import explore_page
from fgssl.explore.selection import k_centre
from fgssl.explore.survey import Survey
from fgssl.views import EvaluationView

CLUSTERS, WIDTH, SIDE = 80, 512, 160
NOISE = 0.6  # of an image about its cluster's centre, whose entries vary by 1


class DrawnPixels(PixelStore):
    """Pictures drawn when they are asked for."""

    def __init__(self, count: int) -> None:
        super().__init__(ImageSet("drawn"), EvaluationView(SIDE, 1.0, "bicubic"))
        self.count = count

    def __getitem__(self, index: int) -> np.ndarray:
        noise = np.random.default_rng(index).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def embeddings(images: int) -> Embeddings:
    """Clusters of different sizes."""
    generator = torch.Generator().manual_seed(0)
    kinds = (CLUSTERS * torch.rand(images, generator=generator) ** 1.5).long()
    centres = torch.randn(CLUSTERS, WIDTH, generator=generator)
    features = centres[kinds] + NOISE * torch.randn(images, WIDTH, generator=generator)
    names = tuple(f"photos/{row:06d}.jpg" for row in range(images))
    return Embeddings(torch.nn.functional.normalize(features, dim=1), None, names, None, np.arange(images), ())


def main() -> None:
    """Run and print."""
    parser = harness.parser(__doc__, "--threads", "--output")
    parser.add_argument("--images", type=int, default=10_000, help="pictures in the folder")
    options = harness.begin(parser)
    found, pixels = embeddings(options.images), DrawnPixels(options.images)
    rows = []

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        row = {"stage": stage, "seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        rows.append({**row, "peak_gigabytes": peak})

    with timed("near copies"):
        copies = find_near_copies(pixels, found.positions, lambda done, total: None)
    with timed("neighbours"):
        near = search(found.features, top=NEIGHBOURS - 1, normalize=False)
    with timed("layout"):
        points, laid_out = lay_out(found.features, near)
    with timed("groups"):
        groups = find_groups(points, laid_out, size=usual_size(len(laid_out)))
    with timed("selection"):
        selection = k_centre(found.features, 100)
    distance = (1 - near.scores[:, :10]).mean(1).numpy()
    size = usual_size(len(laid_out))
    survey = Survey(found, pixels, points, laid_out, groups, size, near, distance, copies, selection)
    with timed("page"):
        explore_page(survey, {"data": "drawn", "pictures": options.images, "encoder": "none"})
    total = {key: sum(row[key] for row in rows) for key in ("seconds", "cpu_seconds")}
    rows.append({"stage": "all", **total, "peak_gigabytes": rows[-1]["peak_gigabytes"]})
    lines = [" ".join(f"{k} {v:.2f}" if isinstance(v, float) else str(v) for k, v in row.items()) for row in rows]
    document = {"images": options.images, "groups": int(groups.max()) + 1, "stages": rows}
    libraries = {name: version(name) for name in ("umap-learn", "scikit-learn")}
    harness.report(options, document, lines, libraries=libraries)


if __name__ == "__main__":
    main()
