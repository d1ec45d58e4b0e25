"""Archives read by their own lists: splits, classes, what is marked, and the line for what does not fit."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgssl.config.schema import DataConfig
from fgssl.data import available_splits, default_split, load_images
from fgssl.data.archives.rehearsal import draw_archive
from fgssl.data.images import Concatenated, Subset
from fgssl.errors import FgsslError
from fgssl.registry import ARCHIVES

SPLITS = {
    **dict.fromkeys(("cub", "nabirds", "cars", "dogs", "food", "sop"), ("train", "test")),
    **dict.fromkeys(("aircraft", "flowers"), ("train", "val", "test")),
    "pets": ("trainval", "test"), "inaturalist": ("train", "val"), "inshop": ("train", "query", "gallery"),
}  # fmt: skip


def drawn(name: str, folder: Path, **options) -> DataConfig:
    return DataConfig(source=f"{name}:{draw_archive(name, folder / name, classes=3, images=2, size=32, **options)}")


def said(data: DataConfig, split: str) -> str:
    return "\n".join(text for _, text in load_images(data, split).remarks)


@pytest.mark.parametrize("name", SPLITS)
def test_every_split_has_its_images_and_classes(name: str, tmp_path: Path) -> None:
    data = drawn(name, tmp_path)
    assert available_splits(data) == SPLITS[name]
    for split in SPLITS[name]:
        images = load_images(data, split)
        later = 3 * (name in ("sop", "inshop") and split != "train")  # classes of their own
        assert images.labels.tolist() == [later + label for label in (0, 0, 1, 1, 2, 2)]
        assert len(set(images.class_names)) == len(images.class_names) == (6 if name in ("sop", "inshop") else 3)
        assert images.load(5).size == (32, 32)
    assert "drawn rehearsal" in said(data, SPLITS[name][0])


@pytest.mark.parametrize("name", SPLITS)
def test_a_plain_folder_is_known_by_its_lists(name: str, tmp_path: Path) -> None:
    named = drawn(name, tmp_path)
    plain = DataConfig(source=named.source.partition(":")[2])
    for data in (plain, DataConfig(source=str(tmp_path))):  # the folder, or the one it was unpacked in
        assert available_splits(data) == available_splits(named)
        assert f"as {name}:FOLDER would be" in said(data, SPLITS[name][1])


def test_every_archive_can_be_drawn() -> None:
    assert set(SPLITS) == set(ARCHIVES)
    for layout in ARCHIVES.values():
        assert {*layout.train.split("+"), layout.test} <= set(layout.counts) and layout.citation and layout.address


def test_the_lists_of_food_and_inaturalist_have_other_forms(tmp_path: Path) -> None:
    for name, form in (("food", "json"), ("inaturalist", "")):
        data = drawn(name, tmp_path, form=form)
        assert load_images(data, "train").labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("source, classes, labels", [
    ("pets/species", ("cat", "dog"), [0, 0, 1, 1, 0, 0]),
    ("sop/kind", ("bicycle", "lamp"), [0, 0, 1, 1, 0, 0]),
    ("inaturalist/genus", ("Drawnia0", "Drawnia1"), [0, 0, 0, 0, 1, 1]),
])  # fmt: skip
def test_classes_by_another_level(source: str, classes: tuple[str, ...], labels: list[int], tmp_path: Path) -> None:
    name = source.partition("/")[0]
    data = DataConfig(source=drawn(name, tmp_path).source.replace(name, source, 1))
    images = load_images(data, default_split(data, "train"))
    assert images.class_names == classes and images.labels.tolist() == labels


@pytest.mark.parametrize("name", ["pets", "flowers", "dogs", "inshop", "nabirds"])
def test_marks_of_the_others_reach_the_masks(name: str, tmp_path: Path) -> None:
    data = drawn(name, tmp_path)
    images = load_images(data, default_split(data, "train"))
    mask = images.masks(0).object
    rows, columns = np.nonzero(mask)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    if images.regions.boxes is None:  # an oval fills pi / 4 of its box
        assert 0.6 < mask.sum() / ((box[2] - box[0]) * (box[3] - box[1])) < 0.9
    else:
        assert box == tuple(images.regions.boxes[0].astype(int))
    assert (images.masks(0).parts is not None) == (name == "nabirds")


def test_aircraft_by_level_and_its_trainval(tmp_path: Path) -> None:
    data = drawn("aircraft", tmp_path)
    assert default_split(data, "train") == "train+val" and default_split(data, "test") == "test"
    assert len(load_images(data, "trainval")) == 12
    for source, column in ((data.source, "family"), (data.source.replace(":", "/family:", 1), None)):
        images = load_images(DataConfig(source=source, label_column=column), "test")
        assert images.class_names == ("Family 1", "Family 2") and images.labels.tolist() == [0, 0, 0, 0, 1, 1]
    with pytest.raises(FgsslError, match="no classes by 'wing'; its levels: variant, family, manufacturer"):
        load_images(DataConfig(source=data.source, label_column="wing"), "test")


def test_the_masks_are_segmentation_box_and_parts(tmp_path: Path) -> None:
    images = load_images(drawn("cub", tmp_path), "train")
    inside = np.asarray(Image.open(tmp_path / "cub/segmentations/001.Drawn_Bird_1/Drawn_Bird_0001.png")) > 127
    mask = images.masks(0)
    assert np.array_equal(mask.object, inside)
    left, top, right, bottom = images.regions.boxes[0].astype(int)
    rows, columns = np.nonzero(inside)
    assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    # one of the two parts is visible: a disc around it of a twentieth of the box, in pixels whose middle lies in it
    x, y = images.regions.parts[0, 1]
    radius = max(1.0, 0.05 * max(right - left, bottom - top))
    disc = [(r, c) for r in range(32) for c in range(32) if (c + 0.5 - x) ** 2 + (r + 0.5 - y) ** 2 <= radius**2]
    assert [tuple(place) for place in np.argwhere(mask.parts)] == disc and np.isnan(images.regions.parts[0, 0]).all()
    # without the download of segmentations the box is the object; subsets and joined splits know it, too
    for file in (tmp_path / "cub/segmentations").rglob("*.png"):
        file.unlink()
    joined = Concatenated([Subset(images, [3]), Subset(images, [0])])
    box = np.zeros((32, 32), bool)
    box[top:bottom, left:right] = True
    assert np.array_equal(joined.masks(1).object, box)


@pytest.mark.parametrize("name", ["cars", "aircraft"])
def test_boxes_are_counted_from_the_first_pixel(name: str, tmp_path: Path) -> None:
    images = load_images(drawn(name, tmp_path), "train")
    picture = np.asarray(images.load(0), np.int16)
    left, top, right, bottom = images.regions.boxes[0].astype(int)
    inside = np.abs(picture - picture[(top + bottom) // 2, left + 1]).sum(2) < 60  # the colour of its left end
    assert inside[(top + bottom) // 2, left] or left == 0
    assert images.masks(0).object.sum() == (right - left) * (bottom - top)


def test_a_turned_picture_has_turned_masks(tmp_path: Path) -> None:
    images = load_images(drawn("cars", tmp_path), "train")
    plain = images.masks(0).object
    picture = Image.open(images.content(0))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    picture.save(images.content(0), exif=exif)
    assert np.array_equal(images.masks(0).object, np.rot90(plain, -1))


def test_cars_without_the_classes_of_its_test_list(tmp_path: Path) -> None:
    images = load_images(drawn("cars", tmp_path, test_labels=False), "test")
    assert images.labels is None and "cars_test_annos_withlabels.mat" in images.unlabelled


def test_cars_as_class_folders(tmp_path: Path) -> None:
    data = drawn("cars", tmp_path, form="folders")
    images = load_images(data, "test")
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2] and images.class_names[1] == "Maker Model 2 S-V 2012"
    assert "read by its class folders, nothing marked" in said(data, "test")
    assert images.masks(0) is None


@pytest.mark.parametrize("test_labels", [True, False])
def test_cars_as_class_folders_beside_the_devkit(tmp_path: Path, test_labels: bool) -> None:
    """The boxes are the devkit's; the folders tell the classes that the test list does not."""
    archive = load_images(drawn("cars", tmp_path), "test")
    draw_archive("cars", tmp_path / "both", classes=3, images=2, size=32, form="both", test_labels=test_labels)
    images = load_images(DataConfig(source=f"cars:{tmp_path / 'both'}"), "test")
    assert images.labels.tolist() == archive.labels.tolist() and images.class_names == archive.class_names
    assert np.array_equal(images.regions.boxes, archive.regions.boxes)
    assert np.array_equal(images.masks(3).object, archive.masks(3).object)


def test_counts_are_held_against_the_published_ones(tmp_path: Path) -> None:
    data = drawn("cub", tmp_path)
    (tmp_path / "cub/drawn-by-fgssl.txt").unlink()
    assert "has 6 images of 3 classes, CUB-200-2011 as published 5,994 of 200" in said(data, "train")


@pytest.mark.parametrize(
    "file, line, says",
    [
        ("images.txt", None, "images.txt is missing"),
        ("classes.txt", "1 one", "classes.txt says nothing of"),
        ("train_test_split.txt", "1 1", "train_test_split.txt says nothing of 2 and 10 more of images.txt"),
        ("train_test_split.txt", "".join(f"{n} 2\n" for n in range(1, 13)), "says '2' where 1"),
        ("images.txt", "1 a.jpg\n1 b.jpg", "images.txt names an id twice"),
        ("bounding_boxes.txt", "1 2 3", "line 1 of bounding_boxes.txt has 3 of 5 fields"),
        ("bounding_boxes.txt", "1 2 3 x 5", "bounding_boxes.txt has '2 3 x 5' where numbers belong"),
    ],
)
def test_lists_that_do_not_fit_are_one_line(file: str, line: str | None, says: str, tmp_path: Path) -> None:
    data = drawn("cub", tmp_path)
    path = tmp_path / "cub" / file
    path.write_text(line) if line else path.unlink()
    with pytest.raises(FgsslError, match=says) as error:
        load_images(data, "train")
    assert "\n" not in str(error.value) and error.value.remedy


def test_an_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    data = drawn("aircraft", tmp_path)
    lists = tmp_path / "aircraft/data"
    lists.joinpath("images_variant_test.txt").write_text(lists.joinpath("images_variant_val.txt").read_text())
    with pytest.raises(FgsslError, match="image 0000007 is in val and in test"):
        load_images(data, "train")


def test_missing_images_are_told_and_many_refused(tmp_path: Path) -> None:
    folder = draw_archive("cub", tmp_path / "cub", classes=2, images=11, size=32)
    data = DataConfig(source=f"cub:{folder}")
    (folder / "images/001.Drawn_Bird_1/Drawn_Bird_0001.jpg").unlink()
    assert "1 of 22 images of train that CUB-200-2011 lists are missing: images/001" in said(data, "train")
    for file in (folder / "images/001.Drawn_Bird_1").iterdir():
        file.unlink()
    with pytest.raises(FgsslError, match=r"11 of 22 images of train .* such as images/001"):
        load_images(data, "train")


@pytest.mark.parametrize("source, says", [
    ("cub:", "names no folder"), ("cub:/no/where", "no folder /no/where"), ("cub:{}", "no CUB-200-2011 in"),
])  # fmt: skip
def test_what_is_no_archive_is_one_line(source: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(FgsslError, match=says):
        available_splits(DataConfig(source=source.format(tmp_path)))


# ---- MATLAB


def as_hdf5(old: Path) -> None:
    """The variables of a .mat file written again as MATLAB 7.3 does: references to texts, numbers and structs."""
    import h5py
    from scipy.io import loadmat

    found = {name: value for name, value in loadmat(old).items() if not name.startswith("__")}
    with h5py.File(old, "w", userblock_size=512) as file:
        pool = file.create_group("#refs#")

        def kept(value) -> h5py.Reference:
            name = str(len(pool))
            if isinstance(value, str):
                pool[name] = np.array([[ord(letter)] for letter in value], np.uint16)
                pool[name].attrs["MATLAB_class"] = np.bytes_("char")
            else:
                pool[name] = np.array([[value]], np.float64)
                pool[name].attrs["MATLAB_class"] = np.bytes_("double")
            return pool[name].ref

        for name, value in found.items():
            if value.dtype.names:
                group = file.create_group(name)
                group.attrs["MATLAB_class"] = np.bytes_("struct")
                for key in value.dtype.names:
                    references = [[kept(each.item())] for each in value[key].ravel()]
                    group.create_dataset(key, data=references, dtype=h5py.ref_dtype)
            else:
                references = [[kept(each.item())] for each in value.ravel()]
                file.create_dataset(name, data=references, dtype=h5py.ref_dtype)
                file[name].attrs["MATLAB_class"] = np.bytes_("cell")
    content = bytearray(old.read_bytes())
    content[:19] = b"MATLAB 7.3 MAT-file"
    old.write_bytes(content)


def test_matlab_files_of_both_versions_say_the_same(tmp_path: Path) -> None:
    data = drawn("cars", tmp_path)
    before = {split: load_images(data, split) for split in ("train", "test")}
    for file in (tmp_path / "cars").rglob("*.mat"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            as_hdf5(file)
    for split, images in before.items():
        again = load_images(data, split)
        assert again.class_names == images.class_names and again.labels.tolist() == images.labels.tolist()
        assert again.content(0) == images.content(0) and np.array_equal(again.regions.boxes, images.regions.boxes)


@pytest.mark.parametrize("module, version", [("scipy", 5), ("h5py", 7)])
def test_the_library_that_is_missing_is_named(module: str, version: int, tmp_path: Path, monkeypatch) -> None:
    data = drawn("cars", tmp_path)
    if version == 7:
        for file in (tmp_path / "cars").rglob("*.mat"):
            as_hdf5(file)
    monkeypatch.setitem(__import__("sys").modules, "scipy.io" if module == "scipy" else module, None)
    with pytest.raises(FgsslError, match=rf"{module} .*pip install 'fgssl\[mat\]'"):
        load_images(data, "train")


def test_a_damaged_matlab_file_is_one_line(tmp_path: Path) -> None:
    data = drawn("cars", tmp_path)
    file = tmp_path / "cars/devkit/cars_train_annos.mat"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(FgsslError, match="cannot read the MATLAB file devkit"):
        load_images(data, "train")
