"""Search by example: hits against a loop by hand, the cache of embeddings, the sheet, and mistakes."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from pictures import make_picture
from PIL import Image
from running import fgssl, finished_run, flat_photos, photos, plain_run
from safetensors.torch import load_file, save_file

from fgssl.cli.options import repeat_flag
from fgssl.config.schema import DataConfig
from fgssl.data import load_images
from fgssl.data.cache.folder import cache_folder
from fgssl.evaluation import kept as kept_embeddings
from fgssl.evaluation.embed import embed
from fgssl.evaluation.feature_file import read_features
from fgssl.runs.encoder_file import load_encoder

PICTURES = sorted((photos() / "test" / "class 1").iterdir())[:2]


def look(*options: str | Path, run: Path | None = None) -> Any:
    return fgssl("retrieve", run or finished_run()[0], "--query", *options, "--json").json()


def paths(result: Any) -> list[list[str]]:
    return [[hit["path"] for hit in query["hits"]] for query in result["queries"]]


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_embeddings, "LEAST_KEPT", 1)


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """A folder of pictures of its own: the cache must not know it."""
    return Path(shutil.copytree(flat_photos(), tmp_path / "gallery"))


def forwards() -> Any:
    """Counts the images that are embedded."""
    return mock.patch("fgssl.evaluation.subject.embed", side_effect=embed)


# ---- hits


def test_hits_are_those_of_a_loop_by_hand(gallery: Path) -> None:
    found = look(*PICTURES, "--gallery", gallery, "--top", "4")
    encoder = load_encoder(str(finished_run()[0]))
    ours = embed(encoder, load_images(DataConfig(source=str(photos())), "test"), pools=("zoom",))["zoom"]
    theirs = embed(encoder, load_images(DataConfig(source=str(gallery)), "all"), pools=("zoom",))["zoom"]
    for picture, query in zip(PICTURES, found["queries"], strict=True):
        own = ours.features[ours.identifiers.index(str(picture))]
        scored = sorted(
            ((float(own @ other), name) for other, name in zip(theirs.features, theirs.identifiers, strict=True)),
            reverse=True,
        )
        assert query["query"] == str(picture) and [hit["rank"] for hit in query["hits"]] == [1, 2, 3, 4]
        assert [hit["path"] for hit in query["hits"]] == [name for _, name in scored[:4]]
        assert [hit["score"] for hit in query["hits"]] == pytest.approx([score for score, _ in scored[:4]], abs=1e-5)
        assert all(hit["label"] is None for hit in query["hits"])
    assert (found["images"], found["pool"], found["gallery"]) == (12, "zoom", f"{gallery} [all]")


def test_lines_on_stdout_are_ranks_scores_and_paths(gallery: Path) -> None:
    outcome = fgssl("retrieve", finished_run()[0], "--query", PICTURES[0], "--gallery", gallery, "--top", "3")
    lines = [line.split(maxsplit=2) for line in outcome.out.splitlines()]
    assert [line[0] for line in lines] == ["1", "2", "3"] and all(Path(line[2]).is_file() for line in lines)
    several = fgssl("retrieve", finished_run()[0], "--query", *PICTURES, "--gallery", gallery, "--top", "1").out
    assert [line for line in several.splitlines() if line[0] != " "] == [str(picture) for picture in PICTURES]


def test_without_a_gallery_all_the_data_of_the_encoder_are_searched_and_oneself_is_left_out() -> None:
    found = look(PICTURES[0], "--top", "99")
    assert found["images"] == 36 and len(paths(found)[0]) == 35 and str(PICTURES[0]) not in paths(found)[0]
    assert {hit["label"] for hit in found["queries"][0]["hits"]} == {"class 0", "class 1", "class 2"}
    train = look(PICTURES[0], "--gallery-split", "train", "--top", "99")
    assert len(paths(train)[0]) == 24 and "test" not in train["gallery"].split("[")[1]


def test_a_duplicate_of_the_query_is_found_first_with_score_one(gallery: Path) -> None:
    shutil.copy(PICTURES[0], gallery / "copy.jpg")
    best = look(PICTURES[0], "--gallery", gallery)["queries"][0]["hits"][0]
    assert best["path"] == str(gallery / "copy.jpg") and best["score"] == pytest.approx(1, abs=1e-5)


def test_more_than_the_gallery_is_the_whole_gallery(gallery: Path) -> None:
    outcome = fgssl("retrieve", finished_run()[0], "--query", PICTURES[0], "--gallery", gallery, "--top", "50")
    assert outcome.code == 0 and len(outcome.out.splitlines()) == 12 and "holds 12 images" in outcome.err


def test_a_gallery_of_features_gives_the_same_hits(gallery: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.safetensors"
    assert fgssl("embed", finished_run()[0], "--data", gallery, "--output", kept).code == 0
    assert paths(look(*PICTURES, "--gallery", kept)) == paths(look(*PICTURES, "--gallery", gallery))
    foreign = tmp_path / "foreign.safetensors"
    save_file({"features": load_file(kept)["features"]}, foreign)
    assert paths(look(PICTURES[0], "--gallery", foreign, "--top", "1"))[0][0].startswith(f"{foreign}#")


# ---- the cache


def test_the_second_search_embeds_nothing_and_finds_the_same(gallery: Path) -> None:
    with forwards() as embedded:
        first = look(PICTURES[0], "--gallery", gallery)
        assert embedded.call_count == 1
        assert look(PICTURES[0], "--gallery", gallery) == first and embedded.call_count == 1
        look(PICTURES[1], "--gallery", gallery, "--pool", "gap")  # another pooling
        look(PICTURES[0], "--gallery", gallery, run=plain_run())  # another encoder
        assert embedded.call_count == 3


@pytest.mark.parametrize("change", ["pixels", "new", "gone", "renamed"])
def test_changed_files_are_embedded_anew_and_the_former_features_go(change: str, gallery: Path) -> None:
    look(PICTURES[0], "--gallery", gallery)
    before = set((cache_folder() / "features").iterdir())
    victim = sorted(gallery.iterdir())[0]
    if change == "pixels":
        make_picture(999, 50, 50).save(victim)
    elif change == "new":
        shutil.copy(PICTURES[0], gallery / "new.jpg")
    elif change == "gone":
        victim.unlink()
    else:
        victim.rename(gallery / "renamed.jpg")
    with forwards() as embedded:
        found = look(PICTURES[0], "--gallery", gallery, "--top", "99")
    assert embedded.call_count == 1
    assert sorted(paths(found)[0]) == sorted(map(str, gallery.iterdir()))
    after = set((cache_folder() / "features").iterdir())
    assert len(after) == len(before) and len(after - before) == 1


def test_a_changed_checkpoint_embeds_anew(gallery: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run()[0], tmp_path / "run"))
    first = look(PICTURES[0], "--gallery", gallery, run=run)
    shutil.copy(plain_run() / "encoder.safetensors", run)
    with forwards() as embedded:
        second = look(PICTURES[0], "--gallery", gallery, run=run)
    assert embedded.call_count == 1 and first["pool"] == "zoom" and second["pool"] == "gap"


def test_a_damaged_or_unwritable_cache_only_costs_time(gallery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = look(PICTURES[0], "--gallery", gallery)
    newest = max((cache_folder() / "features").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-7])
    assert look(PICTURES[0], "--gallery", gallery) == first
    monkeypatch.setenv("FGSSL_CACHE", str(PICTURES[0]))  # a file, no folder
    assert look(PICTURES[0], "--gallery", gallery) == first


def test_unreadable_images_are_named_each_time_and_tried_again(gallery: Path) -> None:
    picture = sorted(gallery.iterdir())[3]
    good = picture.read_bytes()
    times = picture.stat()
    picture.write_bytes(b"x" * len(good))
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    shutil.copy(PICTURES[1], gallery / "more.jpg")
    for _ in range(2):
        outcome = fgssl("retrieve", finished_run()[0], "--query", PICTURES[0], "--gallery", gallery, "--top", "99")
        assert len(outcome.out.splitlines()) == 12 and f"left out: unreadable image {picture}" in outcome.err
    picture.write_bytes(good)  # mended without a trace: the same size and time
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    outcome = fgssl("retrieve", finished_run()[0], "--query", PICTURES[0], "--gallery", gallery, "--top", "99")
    assert len(outcome.out.splitlines()) == 13 and "left out" not in outcome.err


# ---- the sheet


def test_the_sheet_shows_queries_and_hits_with_and_without_rationale(gallery: Path, tmp_path: Path) -> None:
    sizes = []
    for run, name in ((finished_run()[0], "with.png"), (plain_run(), "without.jpg")):
        options = ("--gallery", gallery, "--top", "3", "--output", tmp_path / name)
        outcome = fgssl("retrieve", run, "--query", *PICTURES, *options)
        assert outcome.code == 0 and len(outcome.out.splitlines()) == 8 and str(tmp_path / name) in outcome.err
        with Image.open(tmp_path / name) as sheet:
            sizes.append(sheet.size)
    (wide, high), (other_wide, other_high) = sizes
    # a column of 200 pixels each for query and hits; the rationale doubles the height of both rows
    assert wide == other_wide and 800 < wide < 1000 and high - other_high > 2 * 200


def test_a_picture_that_is_gone_is_grey_on_the_sheet(gallery: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.safetensors"
    assert fgssl("embed", finished_run()[0], "--data", gallery, "--output", kept).code == 0
    shutil.rmtree(gallery)
    sheet = tmp_path / "sheet.png"
    found = look(PICTURES[0], "--gallery", kept, "--top", "1", "--output", sheet)
    assert found["output"] == str(sheet)
    with Image.open(sheet) as picture:
        colours = dict((colour, count) for count, colour in picture.getcolors(10**6))
    assert colours[(232, 232, 236)] == 200 * 200


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--query", "nowhere.jpg"), "no such file: nowhere.jpg; check the path"),
        (("--query", "text.jpg"), "unreadable image text.jpg: is not an image"),
        (("--query", "empty"), "the folder empty is empty"),
        (("--query", "q.jpg", "--gallery", "empty"), "the folder empty is empty"),
        (("--query", "q.jpg", "--gallery", "nowhere"), "nowhere"),
        (("--query", "q.jpg", "--gallery", "text.safetensors"), "cut off or not a safetensors file"),
        (("--query", "q.jpg", "--gallery", "narrow.safetensors"), "those of 'narrow.safetensors' 3"),
        (("--query", "q.jpg", "--gallery", "nan.safetensors"), "row 1 holds NaN"),
        (("--query", "q.jpg", "--top", "0"), "--top is 0"),
        (("--query", "q.jpg", "--output", "sheet.txt"), "'.txt'"),
        (("--query", "q.jpg", "--output", "none/sheet.png"), "no folder none"),
        (("--query", "q.jpg", "--gallery-split", "tset"), "tset"),
    ],
)
def test_mistakes_are_one_line(options: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    shutil.copy(PICTURES[0], tmp_path / "q.jpg")
    (tmp_path / "text.jpg").write_text("no picture at all")
    (tmp_path / "text.safetensors").write_text("no features at all")
    (tmp_path / "empty").mkdir()
    save_file({"features": torch.ones(2, 3)}, tmp_path / "narrow.safetensors")
    save_file({"features": torch.tensor([[1.0], [float("nan")]])}, tmp_path / "nan.safetensors")
    there = sorted(tmp_path.iterdir())
    outcome = fgssl("retrieve", finished_run()[0], *options, cwd=tmp_path)
    code = 2 if "--top" in options else 1
    assert expected in outcome.error(code) and outcome.out == "" and sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize(
    "options",
    [
        ("--query", PICTURES[0], "--query-split", "test"),
        ("--query", PICTURES[0], "--explain"),
        ("--output", "sheet.png"),
        ("--query",),
    ],
)
def test_options_of_the_other_mode_are_wrong_usage(options: tuple[str | Path, ...]) -> None:
    outcome = fgssl("retrieve", finished_run()[0], *options)
    assert outcome.code == 2 and "Error:" in outcome.err and outcome.out == ""


def test_a_file_of_features_cannot_embed_a_query(tmp_path: Path) -> None:
    save_file({"features": torch.ones(2, 3)}, tmp_path / "f.safetensors")
    error = fgssl("retrieve", tmp_path / "f.safetensors", "--query", PICTURES[0]).error()
    assert "holds features, not an encoder" in error and "--gallery" in error


def test_query_takes_every_word_up_to_the_next_option() -> None:
    assert repeat_flag(["run", "--query", "a", "b", "c", "--top", "3", "d"], "--query") == [
        "run", "--query", "a", "--query", "b", "--query", "c", "--top", "3", "d",
    ]  # fmt: skip
    for unchanged in (["--query"], ["--query", "a", "--", "b"], ["--query=a", "b"], ["a", "--top", "3"], []):
        assert repeat_flag(unchanged, "--query") == unchanged


# ---- names as they are


ODD = ["new\nline.png", "tab\tin.png", "\x1b[31mred.png", "x\n   1  0.9999  forged.jpg", os.fsdecode(b"latin-\xe9.png")]


@pytest.mark.parametrize("name", ODD)
def test_a_query_with_an_odd_name_is_not_its_own_hit_and_prints_no_line_of_its_own(
    name: str, gallery: Path, tmp_path: Path
) -> None:
    query = gallery / name
    shutil.copy(PICTURES[0], query)
    link = tmp_path / "link"
    link.symlink_to(gallery)
    for asked in (query, link / name):
        found = look(asked, "--gallery", gallery, "--top", "99")
        assert len(found["queries"][0]["hits"]) == 12 and str(query) not in paths(found)[0]
    other = look(PICTURES[0], "--gallery", gallery, "--top", "1")
    assert paths(other) == [[str(query)]] and other["queries"][0]["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    printed = fgssl("retrieve", finished_run()[0], "--query", PICTURES[0], "--gallery", gallery, "--top", "3")
    assert len(printed.out.splitlines()) == 3 and "\x1b" not in printed.out


def test_features_hold_paths_that_exist(gallery: Path, tmp_path: Path) -> None:
    for name in ODD:
        shutil.copy(PICTURES[0], gallery / name)
    kept = tmp_path / "kept.safetensors"
    assert fgssl("embed", finished_run()[0], "--data", gallery, "--output", kept).code == 0
    names = read_features(str(kept)).embeddings.identifiers
    assert len(names) == 17 and all(os.path.exists(name) for name in names)
    found = look(gallery / ODD[0], "--gallery", kept, "--top", "99")
    assert len(found["queries"][0]["hits"]) == 16 and str(gallery / ODD[0]) not in paths(found)[0]


def test_a_folder_of_pictures_may_query_and_its_broken_ones_are_left_out(gallery: Path, tmp_path: Path) -> None:
    folder = tmp_path / "asked"
    shutil.copytree(gallery, folder)
    for place in range(3):
        shutil.copy(PICTURES[0], folder / f"more{place}.png")
    (folder / "broken.jpg").write_text("no picture")
    found = look(PICTURES[1], folder, "--gallery", gallery, "--top", "2")
    queries = [query["query"] for query in found["queries"]]
    assert queries[0] == str(PICTURES[1]) and sorted(queries[1:]) == sorted(
        str(path) for path in folder.iterdir() if path.name != "broken.jpg"
    )
    one = look(sorted(folder.iterdir())[0], "--gallery", gallery, "--top", "2")["queries"][0]
    several = next(query for query in found["queries"] if query["query"] == one["query"])
    assert [hit["path"] for hit in one["hits"]] == [hit["path"] for hit in several["hits"]]
    assert one["hits"][0]["score"] == pytest.approx(1, abs=1e-5)  # the same picture by another name


def test_a_search_in_classes_prints_them() -> None:
    printed = fgssl("retrieve", finished_run()[0], "--query", PICTURES[0], "--top", "3").out
    assert all(line.endswith(")") and "(class " in line for line in printed.splitlines())


# ---- galleries in files, asked again and again


@pytest.mark.parametrize("name", ["g.safetensors", "half.safetensors", "g.lance", "g.faiss"])
def test_every_kind_of_gallery_answers_alike(name: str, gallery: Path, tmp_path: Path) -> None:
    run, target = finished_run()[0], tmp_path / name
    options = ["--index", target] if target.suffix in (".lance", ".faiss") else ["-o", target]
    assert fgssl("embed", run, "--data", gallery, *options, *(["--half"] if name.startswith("half") else [])).code == 0
    asked = (PICTURES[0], sorted(gallery.iterdir())[0])  # the second is its own nearest, and no hit
    plain, found = (look(*asked, "--gallery", where, "--top", "3") for where in (gallery, target))
    assert paths(found) == paths(plain)
    scores = [[hit["score"] for query in each["queries"] for hit in query["hits"]] for each in (plain, found)]
    assert scores[1] == pytest.approx(scores[0], abs=2e-3)
    sheet = tmp_path / "sheet.png"
    assert fgssl("retrieve", run, "--query", asked[0], "--gallery", target, "-o", sheet).code == 0 and sheet.exists()


def test_lines_of_stdin_are_answered_one_by_one_and_loaded_for_once(gallery: Path) -> None:
    lines = f"{PICTURES[0]}\nnowhere.jpg\n\n{PICTURES[1]}\n"
    with mock.patch("sys.stdin", io.StringIO(lines)), forwards() as embedded:
        done = fgssl("retrieve", finished_run()[0], "--gallery", gallery, "--query", "-", "--top", "2", "--json")
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert embedded.call_count == 1 and "nowhere.jpg" in done.err and done.code == 0
    assert [[hit["path"] for hit in answer["hits"]] for answer in answers] == paths(
        look(*PICTURES, "--gallery", gallery, "--top", "2")
    )
    with mock.patch("sys.stdin", io.StringIO(lines)):
        told = fgssl("retrieve", finished_run()[0], "--gallery", gallery, "--query", "-", "--top", "1").out.splitlines()
    assert told[::2] == [str(picture) for picture in PICTURES]  # whose hits they are
    assert [line.endswith(hits[0]) for line, hits in zip(told[1::2], paths({"queries": answers}), strict=True)]


def test_a_picture_with_many_links_to_it_in_the_gallery_is_none_of_its_hits(gallery: Path) -> None:
    first = sorted(gallery.iterdir())[0]
    for number in range(5):
        (gallery / f"link{number}.jpg").symlink_to(first)
    found = look(first, "--gallery", gallery, "--top", "3")["queries"][0]["hits"]
    assert len(found) == 3 and not {os.path.realpath(hit["path"]) for hit in found} & {os.path.realpath(first)}
