"""Whether an output may be written: nothing of the user is lost, and he hears of it before the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fgssl.errors import FgsslError
from fgssl.runtime.files import OutputKind, check_output, derived_name

KIND = OutputKind("a note", (".txt", ".note"), lambda path: path.read_bytes().startswith(b"ours"))


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(FgsslError) as caught:
        check_output(path, kind=KIND, **options)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_new_and_own_files_may_be_written(tmp_path: Path) -> None:
    check_output(tmp_path / "new.txt", kind=KIND)
    (tmp_path / "old.TXT").write_bytes(b"ours")
    check_output(tmp_path / "old.TXT", kind=KIND, inputs=(tmp_path, None, "timm:resnet50"))
    assert [path.name for path in tmp_path.iterdir()] == ["old.TXT"]


def test_a_foreign_file_needs_overwrite_and_an_input_is_never_the_output(tmp_path: Path) -> None:
    foreign, twin, link = tmp_path / "a.txt", tmp_path / "twin.txt", tmp_path / "link.txt"
    foreign.write_text("thesis")
    os.link(foreign, twin)
    link.symlink_to(foreign)
    assert "--overwrite" in refusal(foreign)
    check_output(foreign, kind=KIND, overwrite=True)
    for path in (foreign, twin, link):
        assert "is an input" in refusal(path, overwrite=True, inputs=[foreign])
    for source in (str(tmp_path), f"cub:{tmp_path}", f"aircraft/family:{tmp_path}"):  # folders of pictures
        assert "is an input" in refusal(foreign, overwrite=True, inputs=[source])
    own = tmp_path / "own.txt"
    own.write_bytes(b"ours")
    assert "is an input" in refusal(own, inputs=[own])


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_bytes(b"ours")
    for name, target in (("a.txt", "own.txt"), ("dangling.txt", "nowhere")):
        (tmp_path / name).symlink_to(target)
        assert "is a link" in refusal(tmp_path / name)
        check_output(tmp_path / name, kind=KIND, overwrite=True)


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "to_folder.txt").symlink_to("folder.txt")
    for name, words in (("pipe.txt", "pipe"), ("folder.txt", "folder"), ("to_folder.txt", "folder")):
        assert words in refusal(tmp_path / name) and words in refusal(tmp_path / name, overwrite=True)
    bare = KIND._replace(suffixes=("",))
    with pytest.raises(FgsslError, match="device"):
        check_output(Path("/dev/null"), kind=bare, overwrite=True)


def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    assert ".txt, .note" in refusal(tmp_path / "a.jpg") and "missing" in refusal(tmp_path / "a")
    assert "no folder" in refusal(tmp_path / "none" / "a.txt")
    refusal(tmp_path / f"{'x' * 300}.txt")
    check_output(tmp_path / "new" / "a.txt", kind=KIND._replace(makes_folder=True))
    assert (tmp_path / "new").is_dir()


def test_a_derived_name_fits_any_file_system(tmp_path: Path) -> None:
    assert derived_name("bird", "-rationale.png") == "bird-rationale.png"
    for stem in ("x" * 255, "птица" * 40, os.fsdecode(b"\xff" * 250)):
        name = derived_name(stem, "-rationale.png")
        assert len(os.fsencode(name)) in (254, 255) and name.endswith("-rationale.png")
        (tmp_path / name).touch()
