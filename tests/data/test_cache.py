"""The cache of decoded pictures: equal to decoding, never believed when damaged, never fatal."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import pickle
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from pictures import ArrayImages, make_picture

from fgssl.config.schema import DataConfig
from fgssl.data import load_images
from fgssl.data.cache.folder import cache_files, cache_folder
from fgssl.data.cache.pixels import (
    FOOTER,
    PixelStore,
    Shrunk,
    cache_path,
    decode,
    open_pixels,
)
from fgssl.errors import UnreadableImage
from fgssl.views import EvaluationView

SHRINK = Shrunk(24)


def content(store: PixelStore) -> list[np.ndarray | str]:
    """Every image's pixels, or the reason why there are none."""
    rows: list[np.ndarray | str] = []
    for index in range(len(store)):
        try:
            rows.append(np.array(store[index]))
        except UnreadableImage as error:
            rows.append(str(error))
    return rows


def same(first: PixelStore, second: PixelStore) -> bool:
    pairs = zip(content(first), content(second), strict=True)
    return all(type(a) is type(b) and np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("prepare", [SHRINK, Shrunk(400), EvaluationView(16), EvaluationView(20, 1.0, "bicubic")])
def test_cached_pixels_are_the_decoded_ones(prepare, image_folder, tmp_path):
    images = load_images(DataConfig(source=str(image_folder)), "all")
    cached = open_pixels(images, prepare, cache=str(tmp_path / "cache"))
    assert cached.path is not None and len(cached) == 12
    assert same(cached, PixelStore(images, prepare))
    by_hand = prepare(images.load(5, prepare.side if isinstance(prepare, Shrunk) else 2 * prepare.size))
    assert np.array_equal(cached[5], np.asarray(by_hand)) and cached[5].dtype == np.uint8


@pytest.mark.parametrize("side,kept", [(100, 100), (115, 115), (116, 100), (90, 90), (400, 100)])
def test_a_picture_hardly_larger_than_asked_keeps_its_pixels(side, kept):
    picture = make_picture(1, side + 7, side)
    shrunk = Shrunk(100)(picture)
    assert min(shrunk.size) == kept
    assert kept != side or np.array_equal(np.asarray(shrunk), np.asarray(picture))


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="the system takes no such advice")
def test_pictures_asked_ahead_are_announced_in_whole_pages_and_nothing_else_is(memory_images, tmp_path):
    images = memory_images(5)
    store = open_pixels(images, SHRINK, cache=str(tmp_path))
    store.will_need(range(len(store)))  # the system takes it
    asked: list[tuple[int, int]] = []
    store._map = mock.Mock(madvise=lambda advice, start, length: asked.append((start, start + length)))
    store.will_need([3, 0])
    for (start, stop), index in zip(asked, (3, 0), strict=True):
        first, last = (int(store._offsets[place]) for place in (index, index + 1))
        assert start <= first < start + mmap.PAGESIZE and stop == last and start % mmap.PAGESIZE == 0
    store._map = mock.Mock(madvise=mock.Mock(side_effect=OSError("not this disk")))
    store.will_need([0])
    PixelStore(images, SHRINK).will_need([0])  # decoded at each reading: nothing to fetch


def test_the_second_opening_decodes_nothing(memory_images, tmp_path):
    images, calls = memory_images(5), []
    store = open_pixels(images, SHRINK, cache=str(tmp_path), progress=lambda *step: calls.append(step))
    assert images.loads == 5 and calls == [(i + 1, 5) for i in range(5)]
    again = open_pixels(images, SHRINK, cache=str(tmp_path), progress=lambda *step: calls.append(step))
    assert images.loads == 5 and len(calls) == 5
    assert same(store, again)


def test_each_preparation_and_split_has_its_own_file(memory_images, tmp_path):
    sets = (memory_images(3), memory_images(4), memory_images(4, (1,)))
    prepared = (
        Shrunk(16),
        Shrunk(17),
        EvaluationView(16),
        EvaluationView(16, 0.9),
        EvaluationView(16, 0.875, "bicubic"),
    )
    assert len({cache_path(images, p, tmp_path) for images in sets for p in prepared}) == 15


@pytest.mark.parametrize("change", ["pixels", "added", "removed", "renamed"])
def test_a_changed_folder_is_decoded_again(change, image_folder, tmp_path):
    def opened() -> PixelStore:
        images = load_images(DataConfig(source=str(image_folder)), "all")
        return open_pixels(images, SHRINK, cache=str(tmp_path / "cache"))

    before = opened()
    victim = sorted(image_folder.rglob("*.png"))[0]
    if change == "pixels":
        make_picture(99, 40, 40).save(victim)
    elif change == "added":
        make_picture(99, 40, 40).save(victim.with_name("new.png"))
    elif change == "removed":
        victim.unlink()
    else:
        victim.rename(victim.with_name("zz.png"))
    after = opened()
    assert after.path != before.path
    assert same(after, PixelStore(after.images, SHRINK))


def test_workers_change_nothing(memory_images, tmp_path):
    """70 pictures: above the size from which worker processes decode."""
    images = memory_images(70, (3, 69))
    paths = [open_pixels(images, SHRINK, cache=str(tmp_path / f"{n}"), workers=n).path for n in (0, 2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


# ---- unreadable images


def test_unreadable_images_are_recorded_not_fatal(memory_images, tmp_path):
    images = memory_images(6, (0, 2, 3, 5))
    for store in (open_pixels(images, SHRINK, cache=str(tmp_path)), open_pixels(images, SHRINK, cache=str(tmp_path))):
        assert sorted(store.faults) == [0, 2, 3, 5]
        assert store.faults[2] == "unreadable image memory#2: is broken; replace or remove it"
        assert same(store, PixelStore(images, SHRINK))
        with pytest.raises(UnreadableImage, match="memory#3: is broken"):
            store[3]


@pytest.mark.parametrize("broken", [(), (0, 1, 2)])
def test_no_readable_image_at_all_is_a_cache_too(broken, memory_images, tmp_path):
    images = memory_images(len(broken), broken)
    store = open_pixels(images, SHRINK, cache=str(tmp_path))
    assert store.path is not None and sorted(store.faults) == list(broken)


def test_files_that_break_are_named(image_folder, tmp_path):
    (image_folder / "class0" / "cut.jpg").write_bytes((image_folder / "class0" / "00.jpg").read_bytes()[:200])
    (image_folder / "class1" / "empty.png").touch()
    images = load_images(DataConfig(source=str(image_folder)), "all")
    store = open_pixels(images, SHRINK, cache=str(tmp_path / "cache"))
    assert len(store) == 14 and len(store.faults) == 2
    assert all(images.identifier(i) in reason for i, reason in store.faults.items())


def test_an_image_readable_since_is_decoded_again(memory_images, tmp_path):
    """A permission that was missing leaves size and time of the file, so the fingerprint, as they were."""

    class Locked(ArrayImages):
        def fingerprint(self) -> str:
            return "unchanged"

    pictures = memory_images(4).pictures
    first = open_pixels(Locked(pictures, (1, 2)), SHRINK, cache=str(tmp_path))
    assert sorted(first.faults) == [1, 2]
    second = open_pixels(Locked(pictures, (2,)), SHRINK, cache=str(tmp_path))
    assert second.path == first.path and sorted(second.faults) == [2]
    assert np.array_equal(second[1], decode(Locked(pictures), 1, SHRINK))


# ---- damage


def built(images: ArrayImages, folder: Path) -> Path:
    path = open_pixels(images, SHRINK, cache=str(folder)).path
    assert path is not None
    return path


@contextlib.contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """The file with one bit flipped, as long as the block lasts."""

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(bit // 8)
            value = file.read(1)[0] ^ 1 << bit % 8
            file.seek(bit // 8)
            file.write(bytes([value]))

    flip()
    yield
    flip()


def test_every_flipped_bit_of_the_footer_is_noticed(memory_images, tmp_path):
    images = memory_images(3, (1,))
    path = built(images, tmp_path)
    whole = path.read_bytes()
    for bit in range(8 * (len(whole) - FOOTER.size), 8 * len(whole)):
        with flipped(path, bit), pytest.raises(ValueError, match="not a complete cache file"):
            PixelStore(images, SHRINK, path)


def test_a_flipped_bit_of_the_index_changes_no_pixel(memory_images, tmp_path):
    """Offsets, shapes and faults: noticed, or harmless (a letter of a reason, the width of an unreadable image)."""
    images = memory_images(3, (1,))
    path, wanted = built(images, tmp_path), PixelStore(images, SHRINK)
    whole, noticed = path.read_bytes(), 0
    _, pixel_bytes, json_bytes, _ = FOOTER.unpack(whole[-FOOTER.size :])
    index_end = len(whole) - FOOTER.size - json_bytes
    for bit in range(8 * pixel_bytes, 8 * (len(whole) - FOOTER.size)):
        with flipped(path, bit):
            try:
                store = PixelStore(images, SHRINK, path)
            except ValueError:
                noticed += bit < 8 * index_end
                continue
            assert sorted(store.faults) == [1]
            assert all(np.array_equal(store[index], wanted[index]) for index in (0, 2))
    assert noticed >= 8 * (index_end - pixel_bytes) - 32


def test_a_damaged_file_is_built_again(memory_images, tmp_path):
    images = memory_images(3, (1,))
    path = built(images, tmp_path)
    whole = path.read_bytes()
    _, pixel_bytes, _, _ = FOOTER.unpack(whole[-FOOTER.size :])
    for place in (pixel_bytes, pixel_bytes + 8, len(whole) - 1, len(whole) - 30):
        damaged = bytearray(whole)
        damaged[place] ^= 8
        path.write_bytes(damaged)
        assert same(open_pixels(images, SHRINK, cache=str(tmp_path)), PixelStore(images, SHRINK))
        assert path.read_bytes() == whole


@pytest.mark.parametrize("cut", [0, 1, 15, 31, 32, 33, 64, 100, 500, 2000, -1, -2, -8, -31, -32, -33, -40, -100])
def test_a_cut_off_file_is_built_again(cut, memory_images, tmp_path):
    images = memory_images(3)
    path = built(images, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    assert same(open_pixels(images, SHRINK, cache=str(tmp_path)), PixelStore(images, SHRINK))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("rubbish", [b"", b"x", b"\0" * 500, b"fgsslpx1", FOOTER.pack(3, 0, 0, b"fgsslpx1")])
def test_rubbish_is_built_again(rubbish, memory_images, tmp_path):
    images = memory_images(3)
    path = built(images, tmp_path)
    path.write_bytes(rubbish)
    assert same(open_pixels(images, SHRINK, cache=str(tmp_path)), PixelStore(images, SHRINK))


# ---- places that cannot be written


def test_a_place_that_cannot_be_a_folder_is_done_without(memory_images, tmp_path):
    images, blocker = memory_images(3), tmp_path / "file"
    blocker.touch()
    store = open_pixels(images, SHRINK, cache=str(blocker / "below"))
    assert store.path is None and same(store, PixelStore(images, SHRINK))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_done_without(memory_images, tmp_path):
    tmp_path.chmod(0o555)
    assert open_pixels(memory_images(3), SHRINK, cache=str(tmp_path)).path is None


@pytest.mark.parametrize("call", ["tempfile.NamedTemporaryFile", "os.fsync", "os.replace"])
def test_a_failing_disk_is_done_without(call, memory_images, tmp_path, monkeypatch):
    """No space, read-only: at the start, while writing, at the end. Nothing half-made stays."""

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    module, _, name = call.partition(".")
    monkeypatch.setattr({"os": os, "tempfile": tempfile}[module], name, fail)
    images = memory_images(3)
    store = open_pixels(images, SHRINK, cache=str(tmp_path))
    assert store.path is None and same(store, PixelStore(images, SHRINK))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_what_is_too_large_for_the_disk_is_kept_as_jpeg_or_decoded_each_time(memory_images, tmp_path, monkeypatch):
    """Pixels need 3 * 24 * 24 * 4 bytes of at most a quarter of the free disk, JPEG a quarter of that."""
    usage = type("Usage", (), {"free": 3 * 24 * 24 * 4 - 1})
    monkeypatch.setattr("fgssl.data.cache.pixels.shutil.disk_usage", lambda _path: usage)
    kinds = []
    for more in (0, 1, 3 * 24 * 24 * 4 * 3 - 1, 1):
        usage.free += more
        path = open_pixels(memory_images(3), SHRINK, cache=str(tmp_path)).path
        kinds.append(path and path.suffix)
    assert kinds == [None, ".jpegs", ".jpegs", ".pixels"]


def above_budget(images: ArrayImages, folder: Path, prepare: Shrunk | EvaluationView = SHRINK) -> PixelStore:
    """A budget that holds half the pixels."""
    return open_pixels(images, prepare, cache=str(folder), budget=len(images) * 24 * 24 * 2 / 1e9)


def test_above_the_budget_shrunk_pictures_are_kept_as_jpeg(memory_images, tmp_path):
    """Nearly the same pixels, decoded from one file at each reading; unreadable pictures as ever."""
    images = memory_images(6, (2,))
    store, plain = above_budget(images, tmp_path), PixelStore(images, SHRINK)
    assert store.encoded and store.decodes and store.path is not None and sorted(store.faults) == [2]
    for index in (0, 1, 3, 4, 5):
        kept, wanted = store[index].astype(int), plain[index].astype(int)
        assert kept.shape == wanted.shape and 0 < np.abs(kept - wanted).mean() < 4  # 24 pixels of noise, the worst case
    with pytest.raises(UnreadableImage, match="memory#2: is broken"):
        store[2]
    loads = images.loads
    again = above_budget(images, tmp_path)
    assert same(again, store) and same(pickle.loads(pickle.dumps(again)), store)
    assert images.loads == loads + 1  # the unreadable one was tried again
    assert [file.path for file in cache_files(tmp_path)] == [store.path]


def test_more_room_later_gives_pixels(memory_images, tmp_path):
    images = memory_images(3)
    assert above_budget(images, tmp_path).encoded
    store = open_pixels(images, SHRINK, cache=str(tmp_path))
    assert not store.decodes and same(store, PixelStore(images, SHRINK))
    assert above_budget(images, tmp_path).path == store.path  # it is there: nothing is saved by not using it


def test_evaluation_is_never_read_from_jpeg(memory_images, tmp_path):
    images = memory_images(3)
    store = above_budget(images, tmp_path, EvaluationView(24))
    assert store.path is None and same(store, PixelStore(images, EvaluationView(24)))


def test_damage_to_jpeg_is_noticed_or_decoded_from_the_picture(memory_images, tmp_path):
    images = memory_images(3)
    store = above_budget(images, tmp_path)
    whole, wanted = store.path.read_bytes(), decode(images, 1, SHRINK)
    start, end = map(int, store._offsets[1:3])
    path, rows = store.path, content(store)
    del store  # a mapped file must not be cut
    for damaged in (
        whole[:start] + bytes(end - start) + whole[end:],
        whole[: start + 2] + whole[start:end] + whole[end + 2 :],
    ):
        path.write_bytes(damaged)
        assert np.array_equal(PixelStore(images, SHRINK, path)[1], wanted)
    for cut in (0, 10, start, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises((ValueError, OSError)):
            PixelStore(images, SHRINK, path)
        again = content(above_budget(images, tmp_path))
        assert all(map(np.array_equal, again, rows)) and path.read_bytes() == whole


def test_an_interrupted_build_leaves_nothing(memory_images, tmp_path):
    def interrupt(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_pixels(memory_images(3), SHRINK, cache=str(tmp_path), progress=interrupt)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_what_killed_builders_left_is_removed(memory_images, tmp_path):
    folder = tmp_path / "decoded"
    folder.mkdir()
    old, young = folder / ".building-old", folder / ".building-young"
    old.touch()
    young.touch()
    os.utime(old, (0, time.time() - 90_000))
    open_pixels(memory_images(2), SHRINK, cache=str(tmp_path))
    assert not old.exists() and young.exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_other_users_may_read_the_cache(memory_images, tmp_path):
    previous = os.umask(0o022)
    try:
        path = built(memory_images(2), tmp_path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


# ---- processes


class SlowImages(ArrayImages):
    """Every picture takes a moment, so that two builders overlap."""

    def load(self, index: int, min_side: int | None = None):
        time.sleep(0.01)
        return super().load(index, min_side)


def _build_beside(images, folder, barrier, queue) -> None:
    barrier.wait(30)
    store = open_pixels(images, SHRINK, cache=str(folder))
    queue.put((images.loads, str(store.path), [row.tobytes() for row in content(store)]))


def test_two_processes_may_build_at_once(memory_images, tmp_path):
    images = SlowImages(memory_images(12).pictures)
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_build_beside, args=(images, tmp_path, barrier, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = queue.get(timeout=60), queue.get(timeout=60)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert first[0] == second[0] == 12, "both should have been building"
    assert first[1:] == second[1:]
    assert first[2] == [row.tobytes() for row in content(PixelStore(images, SHRINK))]
    assert [p.suffix for p in tmp_path.rglob("*") if p.is_file()] == [".pixels"]


def test_a_store_travels_to_other_processes_as_a_path(memory_images, tmp_path):
    images = memory_images(5, (4,))
    store = open_pixels(images, SHRINK, cache=str(tmp_path))
    store.images.pictures = images.pictures[:1] * 5  # pixels must come from the file
    copy = pickle.loads(pickle.dumps(store))
    assert same(copy, store) and copy.faults == store.faults
    large = pickle.dumps(store)
    store.images.pictures = []
    assert len(pickle.dumps(store)) < len(large) < 40_000  # no pixels of the file within


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("FGSSL_CACHE", "~/here")
    assert cache_folder() == Path("~/here").expanduser()
    monkeypatch.delenv("FGSSL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/fgssl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("~/.cache/fgssl").expanduser()


def test_off_means_off(memory_images):
    store = open_pixels(memory_images(2), SHRINK, cache="off")
    assert store.path is None and store.faults == {}
