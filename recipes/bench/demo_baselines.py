"""What colour and layout alone find on the demo set: nearest neighbours by colour histogram and by small pictures.

    python recipes/bench/demo_baselines.py [--seed 0]

Prints rank-1 (percent) in the test split (leave-one-out) and from test to train, chance, and the size of the masks.
"""

from __future__ import annotations

from collections.abc import Callable

import harness
import numpy as np
import numpy.typing as npt
from PIL import Image

from fgssl.data.demo.demo_set import CLASS_NAMES, DemoSet

Rows = npt.NDArray[np.float64]


def colour_histogram(image: Image.Image) -> Rows:
    """Share of the pixels in each of 8 x 8 x 8 bins of RGB -> (512,)."""
    bins = np.asarray(image).reshape(-1, 3) // 32 @ np.array([64, 8, 1])
    return np.bincount(bins, minlength=512) / bins.size


def thumbnail(image: Image.Image) -> Rows:
    """The picture at 16 x 16 pixels -> (768,)."""
    return np.asarray(image.reduce(image.width // 16), np.float64).ravel() / 255


def rank_1(queries: Rows, gallery: Rows, labels: Rows, gallery_labels: Rows, *, leave_one_out: bool) -> float:
    """Share of queries (percent) whose nearest gallery row (L2) has their label."""
    squared = (queries**2).sum(1)[:, None] - 2 * queries @ gallery.T + (gallery**2).sum(1)
    if leave_one_out:
        np.fill_diagonal(squared, np.inf)
    return 100 * float((gallery_labels[squared.argmin(1)] == labels).mean())


def main() -> None:
    arguments = harness.parser(__doc__)
    arguments.add_argument("--seed", type=int, default=0)
    seed = arguments.parse_args().seed
    sets = {split: DemoSet(split, seed=seed) for split in ("train", "test")}
    pictures = {split: [images.load(index) for index in range(len(images))] for split, images in sets.items()}
    train_labels, labels = sets["train"].labels, sets["test"].labels
    print(f"demo set, seed {seed}; chance {100 / len(CLASS_NAMES):.2f} %")
    describers: dict[str, Callable[[Image.Image], Rows]] = {
        "colour histogram": colour_histogram,
        "16-pixel picture": thumbnail,
    }
    for name, describe in describers.items():
        train, test = (np.stack([describe(image) for image in pictures[split]]) for split in ("train", "test"))
        alone = rank_1(test, test, labels, labels, leave_one_out=True)
        across = rank_1(test, train, labels, train_labels, leave_one_out=False)
        print(f"{name}: leave-one-out {alone:.2f} %, test to train {across:.2f} %")
    masks = [sets["test"].masks(index) for index in range(len(labels))]
    for name, stack in (("bird", [mask.object for mask in masks]), ("parts", [mask.parts for mask in masks])):
        share = 100 * np.mean(stack, axis=(1, 2))
        low, middle, high = np.quantile(share, [0, 0.5, 1])
        busiest = 100 * np.mean(stack, axis=0).max()
        print(
            f"{name}: {low:.0f}-{high:.0f} % of a picture, median {middle:.0f}; no pixel in more than {busiest:.0f} %"
        )


if __name__ == "__main__":
    main()
