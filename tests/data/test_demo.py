"""The demo set: deterministic, balanced, told by its parts and by nothing else."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "bench"))

from demo_baselines import colour_histogram, rank_1, thumbnail

from fgssl.data.demo.bird import Nuisance, draw_nuisance, paint
from fgssl.data.demo.demo_set import CLASS_NAMES, CLASS_TRAITS, IMAGE_SIZE, SIZES, SPLITS, DemoSet
from fgssl.errors import FgsslError

CHANCE = 1 / len(CLASS_NAMES)


def nuisance(index: int) -> Nuisance:
    return draw_nuisance(np.random.default_rng(1000 + index))


@pytest.fixture(scope="module")
def pictures() -> dict[str, list[Image.Image]]:
    sets = {split: DemoSet(split, size=512) for split in SPLITS}
    return {split: [images.load(index) for index in range(len(images))] for split, images in sets.items()}


@pytest.mark.parametrize("describe", [colour_histogram, thumbnail])
def test_colour_and_layout_hardly_tell_the_class(pictures, describe):
    train, test = (np.stack([describe(image) for image in pictures[split]]) for split in SPLITS)
    labels = DemoSet("train", size=512).labels
    assert rank_1(test, train, labels, labels, leave_one_out=False) / 100 < 2 * CHANCE


def test_nearest_neighbour_yardstick_can_succeed(pictures):
    """The weak figures above are not the fault of the yardstick: it finds an image's own copy."""
    rows = np.stack([colour_histogram(image) for image in pictures["test"]])
    unique = np.arange(len(rows))
    assert rank_1(rows, rows, unique, unique, leave_one_out=False) / 100 > 0.99


def test_one_seed_one_set():
    first, second, other = DemoSet("train"), DemoSet("train", size=40), DemoSet("train", seed=1)
    for index in (0, 17, 39):
        assert first.load(index).tobytes() == second.load(index).tobytes()  # whatever the size
        assert np.array_equal(first.masks(index).parts, second.masks(index).parts)
        assert first.load(index).tobytes() != other.load(index).tobytes()


def test_no_image_is_drawn_twice(pictures):
    drawn = [image.tobytes() for split in SPLITS for image in pictures[split]]
    assert len(set(drawn)) == len(drawn)


def test_shape_and_balance():
    for split in SPLITS:
        images = DemoSet(split)
        assert len(images) == SIZES[split] == len(images.labels)
        assert images.labels.dtype == np.int64
        assert set(np.bincount(images.labels, minlength=16)) == {SIZES[split] // 16}
        assert images.class_names == CLASS_NAMES
        assert images.load(5, min_side=32).size == (128, 128) and images.load(5).mode == "RGB"
        assert images.identifier(17) == f"demo[{split}]#17"
    assert DemoSet("test", size=20).labels.tolist() == DemoSet("test").labels[:20].tolist()


def test_two_parts_tell_the_class_and_one_does_not():
    assert len(set(CLASS_NAMES)) == len(CLASS_TRAITS) == 16
    for kept in [(0, 1), (0, 2), (1, 2)]:
        assert len({tuple(traits[part] for part in kept) for traits in CLASS_TRAITS}) == 16
    for part in range(3):
        assert np.unique([traits[part] for traits in CLASS_TRAITS], return_counts=True)[1].tolist() == [4, 4, 4, 4]


def test_classes_differ_inside_the_part_masks_only():
    rng = np.random.default_rng(0)
    for index in range(24):
        one, two = rng.choice(16, 2, replace=False)
        first, second = (paint(nuisance(index), CLASS_TRAITS[label]) for label in (one, two))
        changed = (np.asarray(first.picture) != np.asarray(second.picture)).any(axis=2)
        assert changed.sum() > 40  # the class can be seen
        assert not (changed & ~(first.parts | second.parts)).any()
        outside = first.bird != second.bird
        assert not (outside & ~(first.parts | second.parts)).any()


def test_bird_mask_covers_the_bird():
    """The same scene with another coat changes the bird's pixels and no others."""
    for index in range(12):
        drawn = nuisance(index)
        repainted = drawn._replace(plumage=((255, 0, 0),) * 4, leg=(255, 0, 0))
        first, second = (paint(each, CLASS_TRAITS[index]) for each in (drawn, repainted))
        changed = (np.asarray(first.picture) != np.asarray(second.picture)).any(axis=2)
        assert np.array_equal(first.bird, second.bird)
        assert not (changed & ~first.bird).any()
        body = first.bird & ~first.parts
        assert (changed & body).sum() > 0.9 * body.sum()  # all but the eye and pixels shared with a leaf


def test_masks_are_of_useful_size_and_place():
    images = DemoSet("test", seed=3)
    masks = [images.masks(index) for index in range(64)]
    objects, parts = (np.stack([mask[layer] for mask in masks]) for layer in range(2))
    assert objects.dtype == parts.dtype == bool and objects.shape[1:] == (IMAGE_SIZE, IMAGE_SIZE)
    assert not (parts & ~objects).any()
    assert objects.mean(axis=(1, 2)).min() > 0.15 and objects.mean(axis=(1, 2)).max() < 0.45
    assert parts.mean(axis=(1, 2)).min() > 0.02 and parts.mean(axis=(1, 2)).max() < 0.12
    rows, columns = np.arange(IMAGE_SIZE)[:, None], np.arange(IMAGE_SIZE)[None, :]
    centres = np.array([[(mask.parts * axis).sum() / mask.parts.sum() for axis in (rows, columns)] for mask in masks])
    assert (centres.std(axis=0) > 6).all()  # a fixed place is a poor answer


def test_pickle_and_fingerprint():
    images = DemoSet("train", seed=2, size=48)
    copy = pickle.loads(pickle.dumps(images))
    assert copy.load(9).tobytes() == images.load(9).tobytes()
    assert len(pickle.dumps(images)) < 10_000
    assert copy.fingerprint() == images.fingerprint()
    others = [DemoSet("test", seed=2, size=48), DemoSet("train", size=48), DemoSet("train", seed=2)]
    assert len({each.fingerprint() for each in [images, *others]}) == 4
    int(images.fingerprint(), 16)


def test_mistakes_are_named():
    with pytest.raises(FgsslError, match=r"'val'; its splits are train, test"):
        DemoSet("val")
    for wrong in ({"seed": -1}, {"size": 0}):
        with pytest.raises(FgsslError):
            DemoSet("train", **wrong)
    for index in (-1, 16):
        with pytest.raises(IndexError, match=r"demo\[train\]#"):
            DemoSet("train", size=16).load(index)
