"""What a folder is taken for: a stray entry is left out and said, a test split is never trained on unasked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pictures import make_picture
from PIL import Image
from running import SHORT, fgssl, make_photos, plain_run

from fgssl.config.schema import DataConfig
from fgssl.data import available_splits, default_split, load_images
from fgssl.data.images import ImageSet
from fgssl.data.sources.files import list_line
from fgssl.errors import FgsslError

CLASSES = [f"{kind}/{number}.jpg" for kind in ("jay", "owl") for number in range(6)]
SPLITS = [f"{split}/{name}" for split in ("train", "test") for name in CLASSES]


def put(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 6), (number, 0, 0)).save(root / name, "PNG")
    return root


def source(root: Path) -> DataConfig:
    return DataConfig(source=str(root))


def opened(root: Path, split: str = "all") -> ImageSet:
    return load_images(source(root), split)


def said(images: ImageSet, level: str) -> str:
    return "\n".join(remark.text for remark in images.remarks if remark.level == level)


@pytest.mark.parametrize("stray", ["cover.jpg", "holdout/jay/1.jpg", "docs/figure.png"])
def test_what_lies_beside_splits_is_left_out_and_named(stray: str, tmp_path: Path) -> None:
    put(tmp_path, *SPLITS, stray)
    assert available_splits(source(tmp_path)) == ("test", "train")
    assert default_split(source(tmp_path), "train") == "train"
    for split in ("train", "test"):
        images = opened(tmp_path, split)
        assert len(images) == 12 and images.class_names == ("jay", "owl")
        warning = said(images, "warning")
        assert "are in no split and left out" in warning and stray.split("/")[0] in warning


def test_a_clean_folder_is_not_remarked_on(tmp_path: Path) -> None:
    for root in (put(tmp_path / "a", *CLASSES), put(tmp_path / "b", "1.jpg", "2.jpg")):
        assert opened(root).remarks == ()
    assert opened(put(tmp_path / "c", *SPLITS), "train").remarks == ()


def test_a_few_pictures_beside_classes_are_strays(tmp_path: Path) -> None:
    images = opened(put(tmp_path, *CLASSES, "cover.jpg"))
    assert len(images) == 12 and images.class_names == ("jay", "owl") and images.unlabelled == ""
    assert "are in no class and left out: cover.jpg" in said(images, "warning")


def test_many_pictures_beside_classes_are_a_set_without_labels(tmp_path: Path) -> None:
    images = opened(put(tmp_path, *CLASSES, "a.jpg", "b.jpg", "c.jpg", "d.jpg"))
    assert len(images) == 16 and images.labels is None
    assert "beside the class folders" in images.unlabelled and "a.jpg, b.jpg, c.jpg and 1 more" in images.unlabelled
    assert "all pictures are one set without labels" in said(images, "warning")


@pytest.mark.parametrize(
    ("folders", "train", "test"),
    [
        (("Train", "TEST"), "Train", "TEST"),
        (("train2017", "val2017"), "train2017", "val2017"),
        (("train_images", "test_images"), "train_images", "test_images"),
        (("training set", "valid"), "training set", "valid"),
        (("test", "photos"), None, "test"),  # never trained on unasked, whatever lies beside it
        (("val", "other"), None, "val"),
        (("train", "holdout"), "train", None),
    ],
)
def test_splits_by_any_usual_name(
    folders: tuple[str, ...], train: str | None, test: str | None, tmp_path: Path
) -> None:
    put(tmp_path, *(f"{folder}/{name}" for folder in folders for name in CLASSES))
    assert default_split(source(tmp_path), "train") == train
    assert default_split(source(tmp_path), "test") == test


def test_a_flat_folder_beside_a_test_split_is_not_a_class(tmp_path: Path) -> None:
    put(tmp_path, *CLASSES, "test/1.jpg", "test/2.jpg")
    assert available_splits(source(tmp_path)) == ("test",) and default_split(source(tmp_path), "train") is None
    outcome = fgssl("pretrain", "--data", tmp_path, *SHORT, "--output", tmp_path / "run")
    assert "has no training split" in outcome.error() and "left out: jay, owl" in outcome.error()


def test_a_class_called_train_is_said_to_be_one(tmp_path: Path) -> None:
    images = opened(put(tmp_path, "bus/1.jpg", "car/2.jpg", "train/3.jpg"))
    assert images.class_names == ("bus", "car", "train")
    assert "the folder train of" in said(images, "warning") and "is taken for a class like bus, car" in said(
        images, "warning"
    )


@pytest.mark.parametrize("inner", ["train/train", "train/images", "data/train/images"])
def test_folders_around_a_split_are_entered(inner: str, tmp_path: Path) -> None:
    put(tmp_path, *(f"{inner}/{name}" for name in CLASSES))
    put(tmp_path, *(f"{inner.replace('train', 'test')}/{name}" for name in CLASSES[:6]))
    train, test = opened(tmp_path, "train"), opened(tmp_path, "test")
    assert train.class_names == test.class_names == ("jay", "owl")
    assert train.labels is not None and train.labels.tolist() == [0] * 6 + [1] * 6
    assert test.labels is not None and test.labels.tolist() == [0] * 6  # a split of one class


def test_why_there_are_no_labels(tmp_path: Path) -> None:
    put(tmp_path / "one", "photos/2024/1.jpg", "photos/2024/2.jpg")
    assert "directly in" in opened(tmp_path / "one").unlabelled
    put(tmp_path / "single", "train/jay/1.jpg", "test/jay/2.jpg")
    reason = opened(tmp_path / "single", "train").unlabelled
    assert "a single class tells nothing apart" in reason and "one class folder: jay" in reason


def test_empty_class_folders_are_said(tmp_path: Path) -> None:
    put(tmp_path, *CLASSES)
    (tmp_path / "wren").mkdir()
    (tmp_path / "wren" / "Thumbs.db").touch()
    (tmp_path / "README.md").touch()
    images = opened(tmp_path)
    assert images.class_names == ("jay", "owl") and "without pictures are no classes: wren" in said(images, "note")


def test_a_run_inside_a_photo_folder_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = make_photos(tmp_path / "photos", 12)
    monkeypatch.chdir(photos)
    before = opened(photos)
    assert fgssl("pretrain", "--data", ".", *SHORT).code == 0
    (run,) = (photos / "runs").iterdir()
    assert (run / "views.png").exists()
    after = opened(photos)
    assert [after.name(i) for i in range(len(after))] == [before.name(i) for i in range(len(before))]
    assert (
        after.class_names == before.class_names
        and "passed over" in said(after, "note")
        and run.name in said(after, "note")
    )
    again = fgssl("pretrain", "--data", ".", *SHORT)
    assert again.code == 0 and "runs of fgssl are passed over" in again.err
    with pytest.raises(FgsslError, match="is a run of fgssl"):
        opened(run)


ODD = [
    "a\nb.jpg",
    "tab\t.jpg",
    "esc\x1b[31m.jpg",
    "\udcff\udcfe.jpg",
    " space .jpg",
    "#no.jpg",
    '"quoted".jpg',
    "é🐦.jpg",
]


def odd_photos(root: Path) -> Path:
    for kind in ("jay", "owl"):
        (root / kind).mkdir(parents=True)
        for number, name in enumerate(ODD):
            make_picture(number + 50 * (kind == "owl"), 40, 36).save(str(root / kind / name), "PNG")
    return root


def test_names_are_true_and_their_identifiers_printable(tmp_path: Path) -> None:
    images = opened(odd_photos(tmp_path / "odd"))
    names = [images.name(index) for index in range(len(images))]
    assert sorted(names) == sorted(str(tmp_path / "odd" / kind / name) for kind in ("jay", "owl") for name in ODD)
    assert all(images.identifier(index).isprintable() for index in range(len(images)))


def test_a_list_holds_any_name(tmp_path: Path) -> None:
    images = opened(odd_photos(tmp_path / "odd"))
    names = [images.name(index) for index in range(len(images))]
    lines = [list_line(name, "jay" if "/jay/" in name else "owl") for name in names]
    (tmp_path / "list.txt").write_text("".join(lines), encoding="utf-8")
    listed = opened(tmp_path / "list.txt")
    assert [listed.name(index) for index in range(len(listed))] == names
    assert listed.labels is not None and images.labels is not None and (listed.labels == images.labels).all()
    assert all(listed.load(index) for index in range(len(listed)))
    (tmp_path / "odd.txt").write_text('"not json.jpg\n', encoding="utf-8")
    assert opened(tmp_path / "odd.txt").name(0).endswith('"not json.jpg')


def test_lists_of_a_probe_lead_to_the_pictures(tmp_path: Path) -> None:
    odd_photos(tmp_path / "odd")
    outcome = fgssl("probe", plain_run(), "--data", tmp_path / "odd", "--labels", "0.5", "--output", tmp_path / "probe")
    assert outcome.code == 0, outcome.err
    (drawn,) = (tmp_path / "probe").glob("labels-0.5-*.txt")
    listed = opened(drawn)
    assert len(listed) > 1 and all(os.path.exists(listed.name(index)) for index in range(len(listed)))


# ---- reports of peers, with the right value


def test_file_names_tell_no_split(tmp_path: Path) -> None:
    """huggingface/datasets #5021, #7201: a picture called train.png became the only one of the set."""
    images = opened(put(tmp_path, "cat.jpg", "photo of a train.jpg", "photo of test tubes.jpg", "train.png", "val.jpg"))
    assert len(images) == 5 and images.split == "all" and images.remarks == ()


def test_splits_without_classes_have_no_labels(tmp_path: Path) -> None:
    """huggingface/datasets #7880: train/ and test/ became the classes."""
    put(tmp_path, "train/1.jpg", "train/2.jpg", "test/3.jpg")
    assert opened(tmp_path, "train").labels is None and opened(tmp_path, "test").labels is None
    assert "directly in" in opened(tmp_path, "train").unlabelled


def test_an_empty_or_absent_class_folder_moves_no_id(tmp_path: Path) -> None:
    """pytorch-image-models #957, ultralytics #13936, vision #4925: ids by position among the folders with pictures."""
    put(
        tmp_path, "train/0/1.jpg", "train/180/2.jpg", "train/270/3.jpg", "train/90/4.jpg", "val/0/5.jpg", "val/90/6.jpg"
    )
    (tmp_path / "val" / "180").mkdir()
    train, val = opened(tmp_path, "train"), opened(tmp_path, "val")
    assert train.class_names == val.class_names == ("0", "180", "270", "90")
    assert val.labels is not None and val.labels.tolist() == [0, 3]


def test_hidden_folders_and_thumbnails_are_no_classes(tmp_path: Path) -> None:
    """open-mmlab/mmpretrain #507, pytorch/vision #109: .ipynb_checkpoints became class 0; ._a.jpg is no picture."""
    put(tmp_path, *CLASSES, ".ipynb_checkpoints/1.jpg", "jay/._0.jpg", "jay/.ipynb_checkpoints/0-checkpoint.jpg")
    images = opened(tmp_path)
    assert images.class_names == ("jay", "owl") and len(images) == 12 and images.remarks == ()


def test_a_test_folder_without_classes_is_not_a_class(tmp_path: Path) -> None:
    """fastai #1552, #2336: the flat test folder beside train/CLASS/ was the class 'test' of the training data."""
    put(tmp_path, *(f"train/{name}" for name in CLASSES), "test/1.jpg", "labels.csv")
    train = opened(tmp_path, "train")
    assert train.class_names == ("jay", "owl") and len(train) == 12
    assert opened(tmp_path, "test").labels is None


def test_data_check_tells_the_layout_and_why_there_are_no_labels(tmp_path: Path) -> None:
    put(tmp_path, *SPLITS, "holdout/jay/1.jpg", "cover.jpg")
    outcome = fgssl("data", "check", tmp_path, "--json")
    texts = {finding["text"]: finding["level"] for finding in outcome.json()["findings"]}
    said = [text for text in texts if "left out" in text]
    assert len(said) == 2 and {texts[text] for text in said} == {"warning"} and "left out" not in outcome.err
    flat = fgssl("data", "check", put(tmp_path / "flat", "1.jpg", "2.jpg"), "--json").json()["findings"]
    assert any("all has no labels: its pictures lie directly in" in finding["text"] for finding in flat)
