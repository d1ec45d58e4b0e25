"""A folder of pictures whose objects are small and anywhere, made of photographs that have them in the middle.

    python recipes/off_centre.py ./photos --output off-centre
    python recipes/off_centre.py ./photos --masks ./masks --shift object --output off-centre --seed 1
    fgssl compare runs/photos --data off-centre/images --masks off-centre/masks --pool gap,zoom:middle,zoom,zoom:mask

The pictures are those of `--set data.shift=...` and `--shift` (docs/data.md), written once, for other programs or many
runs: OUTPUT/images/SPLIT/CLASS/NAME.jpg, and OUTPUT/masks/SPLIT/CLASS/NAME.png where masks are known (`--masks`, the
demo sets', and the rectangle of a whole picture that was laid). With equal `--data`, `--seed` and photographs the
folder is equal, wherever it is made.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fgssl.config.schema import DataConfig
from fgssl.data import available_splits, load_images
from fgssl.data.images import ImageSet
from fgssl.data.masks import mask_picture
from fgssl.errors import FgsslError, UnreadableImage
from fgssl.runtime.files import atomic_path, check_folder

QUALITY = 95  # of the JPEGs


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("source", help="as in fgssl pretrain --data")
    made.add_argument("--output", "-o", type=Path, required=True, help="an empty or new folder")
    made.add_argument("--shift", choices=("object", "crop"), default="crop", help="what is laid down [crop]")
    made.add_argument("--share", nargs=2, type=float, metavar=("MIN", "MAX"), default=(None, None),
                      help="longer side of what is laid, of the picture's [object 0.3 0.5, crop 0.45 0.7]")  # fmt: skip
    made.add_argument("--masks", help="folder of the objects' masks, named as the pictures")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--splits", nargs="+", help="these alone [all]")
    given = made.parse_args()
    share = dict(zip(("shift_min", "shift_max"), given.share, strict=True))
    data = DataConfig(source=given.source, masks=given.masks, shift=given.shift, shift_seed=given.seed, **share)
    if given.output.exists() and any(given.output.iterdir()):
        raise FgsslError(f"'{given.output}' is not empty", "give another --output")
    check_folder(given.output)
    for split in given.splits or available_splits(data):
        images = load_images(data, split)
        left_out = write(images, given.output)
        print(f"{split}: {len(images) - left_out} pictures, {left_out} left out, in {given.output}/images/{split}")


def write(images: ImageSet, output: Path) -> int:
    """All images of a split, and their masks; how many could not be read."""
    left_out, taken = 0, set[str]()
    for row in range(len(images)):
        name = place(images, row, taken)
        try:
            picture = images.load(row)
            masks = images.masks(row)
        except UnreadableImage as error:
            print(f"left out: {error.problem}", file=sys.stderr)
            left_out += 1
            continue
        with atomic_path(output / "images" / images.split / f"{name}.jpg") as path:
            picture.save(path, "JPEG", quality=QUALITY, subsampling=0)
        if masks is not None:
            with atomic_path(output / "masks" / images.split / f"{name}.png") as path:
                mask_picture(masks.object).save(path, "PNG")
    return left_out


def place(images: ImageSet, row: int, taken: set[str]) -> str:
    """CLASS/NAME of an image, another name where two of a class are called alike."""
    name = Path(images.name(row)).stem.rpartition("#")[2]
    if images.labels is not None:
        label = int(images.labels[row])
        folder = str(label) if images.class_names is None else images.class_names[label]
        name = f"{folder.replace('/', '-').strip('.') or label}/{name}"  # a class may be called anything
    if name in taken:
        name = f"{name}-{row}"
    taken.add(name)
    return name


if __name__ == "__main__":
    try:
        main()
    except FgsslError as error:
        sys.exit(f"error: {error}")
