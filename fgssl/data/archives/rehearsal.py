"""Small archives of the published layout, drawn: to prove that every step runs before the real one is at hand.

The pictures are coloured ovals with a spot, whatever the archive is called; boxes, parts and segmentations are true.
`draw_archive("cub", folder)` and `--data cub:FOLDER` go together; what reads it says that it is a rehearsal.
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from fgssl.data.archives.source import DRAWN
from fgssl.errors import FgsslError
from fgssl.runtime.extras import require
from fgssl.runtime.files import make_folder, write_text


class Drawn(NamedTuple):
    """One picture of an archive and what is marked on it, in its pixels."""

    number: int  # over all splits, from 1
    split: str
    label: int
    picture: Image.Image
    inside: np.ndarray  # (S, S) boolean, the object
    box: tuple[int, int, int, int]  # left, top, right, bottom
    point: tuple[int, int]  # x and y of the middle of its parts

    def save(self, path: Path) -> None:
        """The picture, by the suffix of the path."""
        make_folder(path.parent)
        self.picture.save(path)

    def save_inside(self, path: Path, values: tuple[int, int] = (0, 255)) -> None:
        """The segmentation, with these values outside and inside."""
        make_folder(path.parent)
        Image.fromarray(np.where(self.inside, values[1], values[0]).astype(np.uint8)).save(path)


def draw_archive(
    name: str, folder: Path, *, classes: int = 4, images: int = 4, size: int = 48, seed: int = 0, **kinds: Any
) -> Path:
    """Draw an archive of so many images a class and split into a folder, made where it is missing.

    Args:
        name: As before the colon of `--data cub:FOLDER`.
        size: Side of the pictures, in pixels.
        kinds: What an archive is published in several forms of: `test_labels` and `form` of cars, `form` of food.

    Returns the folder to give to `--data NAME:FOLDER`. Raises FgsslError: no such drawing, or the folder has files.
    """
    if name not in _DRAWINGS:
        raise FgsslError(f"no drawing of an archive '{name}'", f"there are {', '.join(_DRAWINGS)}")
    if min(classes, images) < 1 or size < 16:
        raise FgsslError(f"{images} images of {classes} classes of {size} px", "draw 1 or more, of 16 px or more")
    make_folder(folder)
    if any(folder.iterdir()):
        raise FgsslError(f"the folder {folder} holds files", "draw into a new one")
    _DRAWINGS[name](folder, _Drawer(classes, images, size, seed), **kinds)
    write_text(folder / DRAWN, f"Drawn by fgssl in the layout of '{name}', for rehearsals. It is not the data set.\n")
    return folder


class _Drawer(NamedTuple):
    """How many pictures of which size; each call draws the splits named, in order."""

    classes: int
    images: int
    size: int
    seed: int

    def __call__(self, *splits: str, first_class: int = 0, classes: int | None = None) -> list[Drawn]:
        labels = range(first_class, first_class + (classes or self.classes))
        wanted = [(split, label) for split in splits for label in labels for _ in range(self.images)]
        return [self._draw(number, split, label) for number, (split, label) in enumerate(wanted, start=1)]

    def _draw(self, number: int, split: str, label: int) -> Drawn:
        """An oval in one of eight hues, its spot in another: a class is a pair, told by neither alone."""
        rng, side = np.random.default_rng((self.seed, number, label)), self.size
        noise = Image.fromarray(rng.integers(90, 166, (4, 4, 3), dtype=np.uint8))
        picture = noise.resize((side, side), Image.Resampling.BICUBIC)
        width, height = (int(part) for part in rng.integers(side // 3, side // 2 + 1, 2))
        left, top = (int(rng.integers(0, side - length + 1)) for length in (width, height))
        stencil = Image.new("L", (side, side))
        ImageDraw.Draw(stencil).ellipse((left, top, left + width - 1, top + height - 1), fill=255)
        picture.paste(_colour(label % 8), (0, 0), stencil)
        x, y, reach = left + width // 2, top + height // 2, max(1, min(width, height) // 5)
        ImageDraw.Draw(picture).ellipse(
            (x - reach, y - reach, x + reach, y + reach), fill=_colour(label // 8 + label + 3)
        )
        inside = np.asarray(stencil) > 0
        rows, columns = np.nonzero(inside)
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        return Drawn(number, split, label, picture, inside, box, (x, y))


def _colour(hue: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 8 / 8, 0.9, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _write(folder: Path, texts: dict[str, Sequence[str]]) -> None:
    for name, lines in texts.items():
        make_folder((folder / name).parent)
        write_text(folder / name, "".join(f"{line}\n" for line in lines))


def _cub(folder: Path, draw: _Drawer) -> None:
    drawn = draw("train", "test")
    names = [f"{row + 1:03d}.Drawn_Bird_{row + 1}" for row in range(draw.classes)]
    paths = [f"{names[each.label]}/Drawn_Bird_{each.number:04d}.jpg" for each in drawn]
    for each, path in zip(drawn, paths, strict=True):
        each.save(folder / "images" / path)
        each.save_inside(folder / "segmentations" / Path(path).with_suffix(".png"))
    boxes = [(left, top, right - left, bottom - top) for left, top, right, bottom in (each.box for each in drawn)]
    _write(folder, {
        "images.txt": [f"{each.number} {path}" for each, path in zip(drawn, paths, strict=True)],
        "classes.txt": [f"{row} {name}" for row, name in enumerate(names, start=1)],
        "image_class_labels.txt": [f"{each.number} {each.label + 1}" for each in drawn],
        "train_test_split.txt": [f"{each.number} {int(each.split == 'train')}" for each in drawn],
        "bounding_boxes.txt": [
            " ".join((str(each.number), *(f"{value:.1f}" for value in box)))
            for each, box in zip(drawn, boxes, strict=True)
        ],
        "parts/parts.txt": ["1 back", "2 beak"],
        "parts/part_locs.txt": [
            f"{each.number} {part} {x} {y} {seen}"
            for each in drawn
            for part, x, y, seen in ((1, 0.0, 0.0, 0), (2, float(each.point[0]), float(each.point[1]), 1))
        ],
    })  # fmt: skip


def _aircraft(folder: Path, draw: _Drawer) -> None:
    drawn = draw("train", "val", "test")
    variants = [f"Variant {row + 1}/{row}" for row in range(draw.classes)]  # as published ones have slashes and spaces
    families = [f"Family {row // 2 + 1}" for row in range(draw.classes)]
    makers = [f"Maker {row // 4 + 1}" for row in range(draw.classes)]
    texts: dict[str, Sequence[str]] = {}
    for level, file, names in (
        ("variant", "variants", variants), ("family", "families", families), ("manufacturer", "manufacturers", makers)
    ):  # fmt: skip
        texts[f"data/{file}.txt"] = list(dict.fromkeys(names))
        for list_name, splits in (("train", "train"), ("val", "val"), ("trainval", "train val"), ("test", "test")):
            chosen = [each for each in drawn if each.split in splits.split()]
            lines = [f"{each.number:07d} {names[each.label]}" for each in chosen]
            texts[f"data/images_{level}_{list_name}.txt"] = lines
    for each in drawn:
        each.save(folder / "data" / "images" / f"{each.number:07d}.jpg")
    boxes = {each.number: (each.box[0] + 1, each.box[1] + 1, *each.box[2:]) for each in drawn}
    texts["data/images_box.txt"] = [f"{number:07d} {' '.join(map(str, box))}" for number, box in boxes.items()]
    _write(folder, texts)


def _cars(folder: Path, draw: _Drawer, *, test_labels: bool = True, form: str = "devkit") -> None:
    """`form`: devkit (.mat lists), folders (classes in train/ and test/, as mirrors have it), or both of them."""
    names = [f"Maker Model {row + 1} S/V 2012" for row in range(draw.classes)]
    drawn = draw("train", "test")
    for each in drawn:
        own = Path(f"cars_{each.split}")
        mirror = Path("car_data") / each.split / names[each.label].replace("/", "-")
        each.save(folder / (own if form == "devkit" else mirror) / f"{each.number:05d}.jpg")
    if form == "folders":
        return
    make_folder(folder / "devkit")
    save = require("scipy.io", extra="mat").savemat
    save(folder / "devkit/cars_meta.mat", {"class_names": np.array(names, dtype=object)})
    for file, split, labelled in (
        ("devkit/cars_train_annos.mat", "train", True),
        ("devkit/cars_test_annos.mat", "test", False),
        ("cars_test_annos_withlabels.mat", "test", True),
    ):
        if file.startswith("devkit") or test_labels:
            chosen = [each for each in drawn if each.split == split]
            save(folder / file, {"annotations": _structs([_car(each, labelled) for each in chosen])})


def _car(drawn: Drawn, labelled: bool) -> dict[str, Any]:
    left, top, right, bottom = drawn.box
    corners = {"bbox_x1": left + 1, "bbox_y1": top + 1, "bbox_x2": right, "bbox_y2": bottom}
    return {**corners, **({"class": drawn.label + 1} if labelled else {}), "fname": f"{drawn.number:05d}.jpg"}


def _structs(rows: list[dict[str, Any]]) -> np.ndarray:
    """Dicts as MATLAB's array of structs."""
    found = np.empty(len(rows), dtype=[(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        found[place] = tuple(row.values())
    return found


def _nabirds(folder: Path, draw: _Drawer) -> None:
    _cub(folder, draw)
    for file in (folder / "segmentations").rglob("*.png"):
        file.unlink()
    # a group above every class, without images of its own
    groups = [f"{row + 100} Group of {row}" for row in range(1, draw.classes + 1)]
    _write(folder, {
        "classes.txt": [*groups, *(f"{row} Drawn Bird {row} (Adult Male)" for row in range(1, draw.classes + 1))],
        "hierarchy.txt": [f"{row} {row + 100}" for row in range(1, draw.classes + 1)],
    })  # fmt: skip


def _pets(folder: Path, draw: _Drawer) -> None:
    drawn = draw("trainval", "test")
    names = [f"{'Drawn_Cat' if row % 2 == 0 else 'drawn_dog'}_{row + 1}" for row in range(draw.classes)]
    lines = {split: list[str]() for split in ("trainval", "test")}
    for each in drawn:
        image = f"{names[each.label]}_{each.number}"
        each.save(folder / "images" / f"{image}.jpg")
        each.save_inside(folder / "annotations" / "trimaps" / f"{image}.png", (2, 1))
        lines[each.split].append(f"{image} {each.label + 1} {each.label % 2 + 1} {each.label // 2 + 1}")
    everything = ["#Image CLASS-ID SPECIES BREED ID", *lines["trainval"], *lines["test"]]
    _write(folder / "annotations", {**{f"{name}.txt": own for name, own in lines.items()}, "list.txt": everything})


def _flowers(folder: Path, draw: _Drawer) -> None:
    drawn = draw("train", "val", "test")
    for each in drawn:
        each.save(folder / "jpg" / f"image_{each.number:05d}.jpg")
        blue = np.where(each.inside[..., None], np.asarray(each.picture), np.array((0, 0, 254)))
        make_folder(folder / "segmim")
        Image.fromarray(blue.astype(np.uint8)).save(folder / "segmim" / f"segmim_{each.number:05d}.jpg", quality=100)
    save = require("scipy.io", extra="mat").savemat
    save(folder / "imagelabels.mat", {"labels": np.array([[each.label + 1 for each in drawn]])})
    rows = {split: [each.number for each in drawn if each.split == split] for split in ("train", "val", "test")}
    save(folder / "setid.mat", {"trnid": [rows["train"]], "valid": [rows["val"]], "tstid": [rows["test"]]})


def _dogs(folder: Path, draw: _Drawer) -> None:
    drawn = draw("train", "test")
    breeds = [f"n{row:08d}-Drawn_{row + 1}" for row in range(draw.classes)]
    save = require("scipy.io", extra="mat").savemat
    for split in ("train", "test"):
        chosen = [each for each in drawn if each.split == split]
        files = [f"{breeds[each.label]}/n{each.label:08d}_{each.number}" for each in chosen]
        for each, file in zip(chosen, files, strict=True):
            each.save(folder / "Images" / f"{file}.jpg")
            left, top, right, bottom = each.box
            corners = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
            lines = [f"<{name}>{value}</{name}>" for name, value in corners.items()]
            _write(folder / "Annotation", {file: ["<annotation><object><bndbox>", *lines, "</bndbox></object>"]})
        columns = {"file_list": [f"{file}.jpg" for file in files], "annotation_list": files}
        cells = {name: np.array([[text] for text in column], dtype=object) for name, column in columns.items()}
        save(folder / f"{split}_list.mat", {**cells, "labels": [[each.label + 1] for each in chosen]})


def _food(folder: Path, draw: _Drawer, *, form: str = "txt") -> None:
    """`form` of the lists: txt or json."""
    lists: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for each in draw("train", "test"):
        dish = f"drawn_dish_{each.label + 1}"
        each.save(folder / "images" / dish / f"{each.number}.jpg")
        lists[each.split].setdefault(dish, []).append(f"{dish}/{each.number}")
    for split, tree in lists.items():
        lines = [json.dumps(tree)] if form == "json" else [image for images in tree.values() for image in images]
        _write(folder / "meta", {f"{split}.{form}": lines})


def _inaturalist(folder: Path, draw: _Drawer, *, form: str = "2019") -> None:
    """`form`: the year in the names of the lists, "" as 2021 has them."""
    drawn = draw("train", "val")
    categories = [
        {"id": row, "name": f"Drawnia picta{row}", "genus": f"Drawnia{row // 2}", "supercategory": "Birds"}
        for row in range(draw.classes)
    ]
    for split in ("train", "val"):
        chosen = [each for each in drawn if each.split == split]
        images = [{"id": each.number, "file_name": f"{split}/{each.label}/{each.number}.jpg"} for each in chosen]
        for each, image in zip(chosen, images, strict=True):
            each.save(folder / str(image["file_name"]))
        notes = [{"id": each.number, "image_id": each.number, "category_id": each.label} for each in chosen]
        document = {"images": images, "annotations": notes, "categories": categories}
        _write(folder, {f"{split}{form}.json": [json.dumps(document)]})


def _sop(folder: Path, draw: _Drawer) -> None:
    kinds = ("bicycle", "lamp")
    # no product of the test list is in the train list
    drawn = [*draw("train"), *draw("test", first_class=draw.classes)]
    for split in ("train", "test"):
        lines = ["image_id class_id super_class_id path"]
        for place, each in enumerate(each for each in drawn if each.split == split):
            kind = each.label % 2
            path = f"{kinds[kind]}_final/{each.label}_{place}.JPG"
            each.save(folder / path)
            lines.append(f"{place + 1} {each.label + 1} {kind + 1} {path}")
        _write(folder, {f"Ebay_{split}.txt": lines})


def _inshop(folder: Path, draw: _Drawer) -> None:
    drawn = [*draw("train"), *draw("query", "gallery", first_class=draw.classes)]
    lines, boxes = [], []
    for each in drawn:
        path = f"img/WOMEN/Dresses/id_{each.label:08d}/{each.number:02d}_{each.split}.jpg"
        each.save(folder / "Img" / path)
        lines.append(f"{path} id_{each.label:08d} {each.split}")
        boxes.append(f"{path} 3 1 {' '.join(f'{value:03d}' for value in each.box)}")
    _write(folder, {
        "Eval/list_eval_partition.txt": [str(len(lines)), "image_name item_id evaluation_status", *lines],
        "Anno/list_bbox_inshop.txt": [str(len(boxes)), "image_name clothes_type pose_type x_1 y_1 x_2 y_2", *boxes],
    })  # fmt: skip


_DRAWINGS: dict[str, Callable[..., None]] = {
    "cub": _cub, "cars": _cars, "aircraft": _aircraft, "nabirds": _nabirds, "pets": _pets, "flowers": _flowers,
    "dogs": _dogs, "food": _food, "inaturalist": _inaturalist, "sop": _sop, "inshop": _inshop,
}  # fmt: skip
