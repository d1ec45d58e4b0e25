"""fgssl classify from the command line: what is fitted, saved and said of new pictures, and what is refused."""

from __future__ import annotations

import csv
import functools
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import make_picture
from PIL import Image
from running import Outcome, fgssl, finished_run, flat_photos, shared

from fgssl.classify.classifier import load_classifier
from fgssl.evaluation.embed import embed
from fgssl.evaluation.feature_file import read_features
from fgssl.runs.encoder_file import identity, load_encoder

TINTS = {"green": (60, 200, 60), "red": (210, 50, 50), "sea & <sky>": (40, 60, 220)}


def tinted(folder: Path, count: int, *, seed: int) -> None:
    for number, (name, tint) in enumerate(TINTS.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            noise = make_picture(seed + 100 * number + index, 64, 64)
            Image.blend(noise, Image.new("RGB", noise.size, tint), 0.7).save(folder / name / f"{index}.png")


@functools.cache
def colours() -> Path:
    """27 pictures to fit on and 12 to measure on, of 3 colours."""

    def make(folder: Path) -> None:
        tinted(folder / "train", 9, seed=0)
        tinted(folder / "test", 4, seed=1000)

    return shared("colours", make)


@functools.cache
def fitted() -> tuple[Path, Outcome]:
    path, outcomes = shared("classifier", lambda folder: folder.mkdir()) / "colours.safetensors", []
    outcome = fgssl("classify", "fit", colours(), "--checkpoint", finished_run()[0], "-o", path, "--json")
    assert outcome.code == 0, outcome.err
    outcomes.append(outcome)
    return path, outcomes[0]


def test_what_is_measured_is_what_the_probe_measures() -> None:
    told = fitted()[1].json()
    probe = fgssl("probe", finished_run()[0], "--data", colours(), "--json").json()
    assert told["held_out"]["accuracy"]["value"] == probe["top1"]
    assert told["held_out"]["images"] == 12 and told["pictures"] == 27 and told["classes"] == sorted(TINTS)
    assert told["held_out"]["accuracy"]["value"] > 60  # chance is 33
    assert "chosen on" in told["protocol"] and "measured on test" in told["protocol"] and told["temperature"] != 1


def test_a_prediction_is_the_softmax_of_what_the_file_says() -> None:
    picture = colours() / "test" / "red" / "2.png"
    outcome = fgssl("classify", "predict", fitted()[0], picture, "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json()["predictions"][0]
    made = load_classifier(str(fitted()[0]))
    run = finished_run()[0]
    features = fgssl("embed", run, "--data", colours(), "--output", fitted()[0].parent / "f.safetensors")
    assert features.code == 0
    told = read_features(str(fitted()[0].parent / "f.safetensors")).embeddings
    feature = told.features[[*map(Path, told.identifiers)].index(picture)].double().numpy()
    scores = (feature @ made.weight.double().numpy() + made.bias.double().numpy()) / made.told.temperature
    wanted = np.exp(scores) / np.exp(scores).sum()
    named = {guess["label"]: guess["confidence"] for guess in found["guesses"]}
    assert [named[name] for name in made.told.classes] == pytest.approx(wanted.tolist(), abs=1e-4)
    assert found["confidence"] == pytest.approx(wanted.max(), abs=1e-4)
    cosines = made.examples.double().numpy() @ feature
    nearest = cosines.argmax()
    assert found["examples"][0]["path"] == made.told.paths[nearest]
    assert found["examples"][0]["cosine"] == pytest.approx(cosines[nearest], abs=2e-3)


def test_the_file_is_an_encoder_as_well() -> None:
    assert identity(load_encoder(str(fitted()[0]))) == identity(load_encoder(str(finished_run()[0])))


def test_a_picture_that_was_fitted_on_is_its_own_nearest(tmp_path: Path) -> None:
    table = tmp_path / "found.csv"
    outcome = fgssl("classify", "predict", fitted()[0], colours() / "train", "-o", table)
    assert outcome.code == 0 and "27 pictures" in outcome.out
    assert "fitted on 27 of these 27 pictures" in outcome.err
    rows = [*csv.DictReader(io.StringIO(table.read_text()))]
    assert [row["nearest"] for row in rows] == [row["path"] for row in rows]
    right = [Path(row["path"]).parent.name == row["class"] for row in rows]
    assert sum(right) > 20 and all(float(row["nearest_cosine"]) > 0.999 for row in rows)
    again = fgssl("classify", "predict", fitted()[0], colours() / "train", "-o", table, "--quiet")
    assert again.code == 0  # its own table may be replaced
    table.write_text("a letter\n")
    assert "not a table of predictions" in fgssl("classify", "predict", fitted()[0], colours(), "-o", table).error()


def test_it_abstains_below_a_confidence() -> None:
    found = fgssl("classify", "predict", fitted()[0], colours() / "test", "--abstain", "0.9", "--json").json()
    assert len(found["predictions"]) == 12
    for each in found["predictions"]:
        assert each["class"] == (each["guesses"][0]["label"] if each["confidence"] >= 0.9 else None)
    nothing = fgssl("classify", "predict", fitted()[0], colours() / "test", "--abstain", "1")
    assert nothing.code == 0 and "0 of 12 answered" in nothing.out
    assert fgssl("classify", "predict", fitted()[0], colours(), "--abstain", "1.5").code == 2


def test_a_csv_says_the_same_as_class_folders(tmp_path: Path) -> None:
    train = colours() / "train"
    lines = [["Path", "note", "Label"]]
    lines += [[str(path), "a, b", path.parent.name] for name in TINTS for path in sorted((train / name).iterdir())]
    with (tmp_path / "few.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    (tmp_path / "one").mkdir()
    options = ("--checkpoint", finished_run()[0], "--held-out", "0", "--json")
    by_csv, by_folder = (
        fgssl("classify", "fit", source, *options, "-o", tmp_path / "one" / f"{name}.safetensors")
        for name, source in (("csv", tmp_path / "few.csv"), ("folder", train))
    )
    assert by_csv.code == by_folder.code == 0, by_csv.err + by_folder.err
    for key in ("classes", "temperature", "pictures", "held_out"):
        assert by_csv.json()[key] == by_folder.json()[key]
    assert by_csv.json()["held_out"] is None and "not measured" in by_csv.json()["protocol"]


def test_one_labelled_picture_of_each_class_is_enough(tmp_path: Path) -> None:
    for name in TINTS:
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(colours() / "train" / name / "0.png", tmp_path / "data" / name)
    arguments = ("classify", "fit", tmp_path / "data", "--checkpoint", finished_run()[0])
    outcome = fgssl(*arguments, "-o", tmp_path / "c.safetensors", "--json")
    told = outcome.json()
    assert told["temperature"] == 1 and told["held_out"] is None and "no class has two" in told["protocol"]
    found = fgssl("classify", "predict", tmp_path / "c.safetensors", colours() / "train" / "red" / "0.png", "--json")
    assert found.json()["predictions"][0]["class"] == "red"


def test_what_cannot_be_read_is_told_and_the_rest_is_classified(tmp_path: Path) -> None:
    broken, odd = tmp_path / "broken.jpg", tmp_path / 'a "b"\n<script>.png'
    broken.write_bytes(b"\xff\xd8 no picture")
    shutil.copy(colours() / "test" / "red" / "1.png", odd)
    outcome = fgssl("classify", "predict", fitted()[0], broken, odd, "-o", tmp_path / "t.csv", "--json")
    found = outcome.json()
    assert outcome.code == 0 and "broken.jpg" in outcome.err and len(found["unreadable"]) == 1
    assert "fitted on" not in outcome.err
    assert found["predictions"][0]["picture"] == str(odd)
    rows = [*csv.reader(io.StringIO((tmp_path / "t.csv").read_text()))]
    assert len(rows) == 2 and "\n" not in rows[1][0] and "<script>" in rows[1][0]
    assert "cannot be read" in fgssl("classify", "predict", fitted()[0], broken).error()
    assert "no such file" in fgssl("classify", "predict", fitted()[0], tmp_path / "nothing.jpg").error()


def test_what_is_no_classifier_is_said_in_one_line(tmp_path: Path) -> None:
    picture, file = colours() / "test" / "red" / "1.png", tmp_path / "c.safetensors"
    assert "no classifier" in fgssl("classify", "predict", finished_run()[0] / "encoder.safetensors", picture).error()
    assert "no classifier" in fgssl("classify", "predict", file, picture).error()
    file.write_bytes(fitted()[0].read_bytes()[:-100])
    assert "no classifier" in fgssl("classify", "predict", file, picture).error()


def test_fitting_needs_labels_and_writes_nothing_without(tmp_path: Path) -> None:
    target = tmp_path / "c.safetensors"
    arguments = ("--checkpoint", finished_run()[0], "-o", target)
    assert "has no labels" in fgssl("classify", "fit", flat_photos(), *arguments).error()
    (tmp_path / "few.csv").write_text("path,label\na.jpg,one\nb.jpg,\n")
    assert "empty in 1 of 2 rows" in fgssl("classify", "fit", tmp_path / "few.csv", *arguments).error()
    (tmp_path / "few.csv").write_text("path,genus\na.jpg,one\nb.jpg,two\n")
    assert "one of classes: path, genus)" in fgssl("classify", "fit", tmp_path / "few.csv", *arguments).error()
    assert fgssl("classify", "fit", colours(), *arguments, "--held-out", "1").code == 2
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ("path,label\n", "names no image"),
        ("name,label\na.jpg,one\n", "no column of paths"),
        ("path,label\n,one\n", "no path in row 2"),
        ("path\0,label\n", "no CSV"),
    ],
)
def test_a_bad_csv_is_said_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "few.csv").write_text(content)
    assert said in fgssl("data", "check", tmp_path / "few.csv").error()


def test_the_share_of_unreadable_pictures_is_the_callers_choice(tmp_path: Path) -> None:
    from fgssl.classify.predict import named_pictures
    from fgssl.errors import FgsslError

    shutil.copy(colours() / "test" / "red" / "1.png", tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no")
    images, encoder = named_pictures([tmp_path]), load_encoder(str(finished_run()[0]))
    with pytest.raises(FgsslError, match="1 of 2"):
        embed(encoder, images, pools=("gap",), cache="off")
    found = embed(encoder, images, pools=("gap",), cache="off", unreadable=0.5)["gap"]
    assert found.features.shape[0] == 1 and torch.isfinite(found.features).all()
