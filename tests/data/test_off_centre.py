"""Sets whose objects are small and anywhere: the wild demo, masks of one's own, and photographs laid off the centre."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fgssl.config.schema import DataConfig
from fgssl.data import load_images
from fgssl.data.demo.demo_set import DemoSet
from fgssl.data.demo.wild import WILD_SIZE
from fgssl.data.images import Subset
from fgssl.data.masks import read_mask
from fgssl.data.shift import MARGIN, SHARES, Shifted, mask_box
from fgssl.errors import FgsslError, SettingError

RED, YELLOW = np.array([250, 10, 10]), np.array([250, 250, 10])
SIDE = 80


def disc(row: int, width: int = SIDE, height: int = SIDE) -> tuple[Image.Image, Image.Image]:
    """A disc striped red and yellow (orange, where it is blurred) in a picture of its own grey, and its mask."""
    box = (0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height)
    picture, mask = Image.new("RGB", (width, height), (60 + row, 60 + row, 60 + row)), Image.new("L", (width, height))
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    stripes = np.where((np.arange(width) // 4 % 2)[None, :, None], RED, YELLOW).astype(np.uint8)
    picture.paste(Image.fromarray(np.repeat(stripes, height, 0)), (0, 0), mask)
    return picture, mask


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ and masks/ of 40 discs in two classes; the names occur in both."""
    root = tmp_path_factory.mktemp("discs")
    for row in range(40):
        picture, mask = disc(row)
        for folder, image in (("photos", picture), ("masks", mask)):
            path = root / folder / "train" / f"class {row % 2}" / f"{row // 2}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return root


def shifted(discs: Path, how: str, **more: object) -> Shifted:
    data = DataConfig(source=str(discs / "photos"), masks=str(discs / "masks"), shift=how, **more)  # type: ignore[arg-type]
    found = load_images(data, "train")
    assert isinstance(found, Shifted)
    return found


def striped(picture: Image.Image) -> np.ndarray:
    levels = np.asarray(picture).astype(int)
    return np.minimum(*(np.abs(levels - colour).max(2) for colour in (RED, YELLOW))) < 70


# ---- the wild demo


def test_wild_birds_are_small_and_anywhere() -> None:
    images = DemoSet("test", wild=True)
    boxes = np.array([mask_box(images.masks(index).object) for index in range(48)])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert sides.min() > 0.25 and sides.max() < 0.55
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert (middles.std(0) > 0.12).all() and (middles.min(0) < 0.3).all() and (middles.max(0) > 0.7).all()
    assert images.load(3).size == (WILD_SIZE, WILD_SIZE) and images.identifier(3) == "demo:wild[test]#3"
    assert images.load(3).tobytes() == DemoSet("test", size=8, wild=True).load(3).tobytes()
    assert images.fingerprint() != DemoSet("test").fingerprint()


def test_wild_parts_stay_to_be_seen() -> None:
    images = DemoSet("train", wild=True)
    margin = WILD_SIZE // 16
    for index in range(24):
        masks = images.masks(index)
        assert masks.parts is not None and masks.parts.sum() > 0.1 * masks.object.sum()
        assert not (masks.parts & ~masks.object).any()
        assert masks.parts[margin:-margin, margin:-margin].sum() == masks.parts.sum()  # within the evaluation view


def test_the_source_is_opened_by_name() -> None:
    images = load_images(DataConfig(source="demo:wild"), "test")
    assert isinstance(images, DemoSet) and images.load(0).tobytes() == DemoSet("test", wild=True).load(0).tobytes()


# ---- masks by name


def test_masks_are_found_by_stem_and_nearest_folders(discs: Path) -> None:
    images = load_images(DataConfig(source=str(discs / "photos"), masks=str(discs / "masks")), "train")
    assert all(images.has_mask(row) for row in range(40))
    for row in (0, 25, 39):
        name = Path(images.name(row))
        own = read_mask(discs / "masks" / "train" / name.parent.name / name.name)
        assert np.array_equal(images.masks(row).object, own)
    part = Subset(images, [5])
    assert part.has_mask(0) and np.array_equal(part.masks(0).object, images.masks(5).object)


def test_masks_of_numbers_and_of_levels(tmp_path: Path) -> None:
    levels = np.zeros((4, 6), np.uint8)
    levels[1, 2:5] = 3  # a number of a class
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png"), levels > 0)
    levels[0, 0] = 255  # now half of white is the border
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png"), levels == 255)


def test_a_folder_without_masks_is_named(discs: Path, tmp_path: Path) -> None:
    data = DataConfig(source=str(discs / "photos"), masks=str(tmp_path))
    with pytest.raises(FgsslError, match=r"no mask in .* is named as a picture"):
        load_images(data, "train")
    with pytest.raises(FgsslError, match="no folder of masks"):
        load_images(DataConfig(source="demo", masks=str(tmp_path / "none")), "train")


def test_a_shift_by_masks_names_what_lacks_one(discs: Path, tmp_path: Path) -> None:
    disc(0)[1].save(tmp_path / "3.png")
    data = DataConfig(source=str(discs / "photos"), masks=str(tmp_path), shift="object")
    with pytest.raises(FgsslError, match=r"38 of 40 pictures of .* have no mask, such as .*0\.png"):
        load_images(data, "train")


# ---- laid off the centre


def test_an_object_is_laid_where_its_mask_says(discs: Path) -> None:
    images, places = shifted(discs, "object"), []
    for row in range(40):
        picture, mask = images.load(row), images.masks(row).object
        assert picture.width == picture.height == mask.shape[0] == mask.shape[1]
        found = striped(picture)
        assert (found & mask).sum() > 0.7 * mask.sum() and (found & ~mask).sum() < 0.1 * mask.sum()
        left, top, right, bottom = mask_box(mask)
        assert SHARES["object"][0] - 0.02 < right - left < SHARES["object"][1] + 0.02
        assert min(left, top) > MARGIN - 0.01 and max(right, bottom) < 1 - MARGIN + 0.01
        places.append(((left + right) / 2, (top + bottom) / 2))
    assert (np.std(places, 0) > 0.1).all() and np.abs(np.mean(places, 0) - 0.5).max() < 0.1


def test_whole_pictures_are_laid_anywhere(discs: Path) -> None:
    images = shifted(discs, "crop")
    boxes = np.array([mask_box(images.masks(row).object) for row in range(40)])
    for row in range(0, 40, 7):
        mask = images.masks(row).object
        assert (striped(images.load(row)) & mask).sum() > 0.6 * mask.sum()
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)  # the disc takes half of its photograph
    assert sides.min() > 0.2 and sides.max() < 0.37
    assert (((boxes[:, :2] + boxes[:, 2:]) / 2).std(0) > 0.08).all()
    plain = Shifted(load_images(DataConfig(source=str(discs / "photos")), "train"), "crop")
    assert plain.load(4).tobytes() == images.load(4).tobytes()  # no mask is needed


@pytest.mark.parametrize("size", [(90, 60), (48, 80)])
def test_a_whole_picture_that_is_laid_is_its_own_mask(tmp_path: Path, size: tuple[int, int]) -> None:
    """Of a white picture on a black one: the mask is what has become brighter, but for the edge that fades."""
    for row in range(2):
        Image.new("RGB", size, ("white", "black")[row]).save(tmp_path / f"{row}.png")
    images = Shifted(load_images(DataConfig(source=str(tmp_path)), "all"), "crop", seed=1)
    mask = images.masks(0).object
    seen = np.asarray(images.load(0).convert("L").resize(mask.shape[::-1])) > 0.03 * 255
    left, top, right, bottom = mask_box(mask)
    assert images.has_mask(0) and mask.sum() == pytest.approx((right - left) * (bottom - top) * mask.size)
    assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1], rel=0.02)
    assert SHARES["crop"][0] - 0.01 < max(right - left, bottom - top) < SHARES["crop"][1] + 0.01
    assert not (seen & ~mask).any() and np.abs(np.array(mask_box(seen)) - mask_box(mask)).max() < 0.02


def test_what_is_laid_is_as_large_as_asked(discs: Path) -> None:
    images = shifted(discs, "object", shift_min=0.2, shift_max=0.25)
    sides = [max(right - left, bottom - top) for left, top, right, bottom in
             (mask_box(images.masks(row).object) for row in range(40))]  # fmt: skip
    assert 0.19 < min(sides) < 0.215 and 0.235 < max(sides) < 0.26
    assert images.fingerprint() != shifted(discs, "object").fingerprint()
    same = shifted(discs, "object", shift_min=SHARES["object"][0])
    assert same.fingerprint() == shifted(discs, "object").fingerprint()
    with pytest.raises(SettingError, match=r"at least 0\.9 and at most 0\.5"):
        shifted(discs, "object", shift_min=0.9)


def test_a_mask_of_ones_own_is_preferred_to_the_whole_picture(discs: Path, tmp_path: Path) -> None:
    for row in range(1, 20):  # all but the first
        disc(row)[1].save(tmp_path / f"{row}.png")
    source = str(discs / "photos" / "train" / "class 0")
    images = load_images(DataConfig(source=source, masks=str(tmp_path), shift="crop"), "all")
    sides = {}
    for row in range(len(images)):
        box = mask_box(images.masks(row).object)
        sides[Path(images.name(row)).stem] = box[2] - box[0]
    assert sides.pop("0") > SHARES["crop"][0] - 0.01 and max(sides.values()) < SHARES["crop"][1] / 2 + 0.02


@pytest.mark.parametrize("how", ["object", "crop"])
def test_a_picture_is_a_function_of_seed_and_name(discs: Path, how: str, tmp_path: Path) -> None:
    images = shifted(discs, how)
    again, other = shifted(discs, how), shifted(discs, how, shift_seed=1)
    backwards = [again.load(row).tobytes() for row in range(39, -1, -1)][::-1]
    assert [images.load(row).tobytes() for row in range(40)] == backwards
    assert images.load(7).tobytes() != other.load(7).tobytes() and images.fingerprint() != other.fingerprint()
    moved = tmp_path / "elsewhere"  # by its name below the source, wherever that lies, and whatever the order
    moved.symlink_to(discs)
    listed = Shifted(Subset(load_images(DataConfig(source=str(moved / "photos"), masks=str(discs / "masks")), "train"),
                            list(range(39, -1, -1))), how)  # fmt: skip
    assert listed.load(39 - 7).tobytes() == images.load(7).tobytes()
    code = f"""
import hashlib, sys
from fgssl.config.schema import DataConfig
from fgssl.data import load_images
data = DataConfig(source={str(discs / "photos")!r}, masks={str(discs / "masks")!r}, shift={how!r})
print(hashlib.sha256(load_images(data, "train").load(7).tobytes()).hexdigest())
"""
    import hashlib

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == hashlib.sha256(images.load(7).tobytes()).hexdigest()


def test_a_smaller_reading_is_of_the_same_layout(discs: Path) -> None:
    images = shifted(discs, "object")
    small, large = images.load(3, 16), images.load(3)
    alike = np.asarray(large.resize((32, 32), Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(small.resize((32, 32), Image.Resampling.BOX)).astype(int) - alike).mean() < 4


# ---- the recipe


def test_the_recipe_writes_the_same_pictures(discs: Path, tmp_path: Path) -> None:
    recipe, target = Path(__file__).parents[2] / "recipes" / "off_centre.py", tmp_path / "out"
    command = [sys.executable, str(recipe), str(discs / "photos"), "--masks", str(discs / "masks"), "--shift", "object",
               "--output", str(target)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "train: 40 pictures, 0 left out" in done.stdout
    images, written = shifted(discs, "object"), load_images(
        DataConfig(source=str(target / "images"), masks=str(target / "masks")), "train"
    )  # fmt: skip
    assert written.class_names == images.class_names and written.labels.tolist() == images.labels.tolist()
    for row in (0, 39):
        assert Path(written.name(row)).stem == Path(images.name(row)).stem
        assert np.array_equal(written.masks(row).object, images.masks(row).object)
        difference = np.asarray(written.load(row)).astype(int) - np.asarray(images.load(row))
        assert np.abs(difference).mean() < 3  # JPEG
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 1 and "is not empty" in again.stderr
