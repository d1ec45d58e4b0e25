"""Crops on the place that the rationale finds: where it is, when it is found, and that a run with it can be stopped."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from run_results import assert_equal_encoders, metrics
from running import TINY, fgssl, flat_photos, photos
from stopping import stopped_run
from tiny_trainer import tiny_trainer
from torch.nn import functional
from two_processes import launched

from fgssl.config.defaults import Draft
from fgssl.config.resolve import load_config
from fgssl.config.schema import PretrainConfig, flatten
from fgssl.data.cache.pixels import PixelStore
from fgssl.data.feed import CropBatch, placed_key
from fgssl.errors import SettingError, UnreadableImage
from fgssl.runs.resume_state import load_state
from fgssl.training.loop import Trainer
from fgssl.training.places import Places
from fgssl.training.plan import make_plan
from fgssl.training.start import _derive_freeze

SHARE = 0.2**0.5  # side of zoom's window, that of the smallest crop
BROKEN, BLANK = 5, 7  # pictures: that cannot be read, that has nothing in it
SEEN = np.arange(10) != BLANK
ON_PLACE = ("--backbone", "test_resnet", "--set", "views.place=map", "--set", "views.place_warmup=1")


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Dark pictures of two shapes, each with a white square; rows and columns (N, 2) of their middles, in (0, 1)."""
    folder, random, middles = tmp_path_factory.mktemp("squares"), np.random.default_rng(0), []
    for number in range(10):
        width, height = (80, 60) if number % 2 else (64, 96)
        pixels = np.zeros((height, width, 3), np.uint8)
        top, left = (int(random.integers(0, side - 16)) for side in (height, width))
        pixels[top : top + 16, left : left + 16] = 0 if number == BLANK else 255
        middles.append(((top + 8) / height, (left + 8) / width))
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder, np.array(middles)


@contextlib.contextmanager
def bright() -> Iterator[None]:
    """The map is the picture's own brightness."""

    def levels(_places: Places, batch: CropBatch) -> torch.Tensor:
        return functional.avg_pool2d(batch.images.float(), 8).mean(1, keepdim=True)

    with (
        mock.patch.object(Places, "_feature_map", levels),
        mock.patch.object(Places, "_attend", lambda _places: lambda maps: maps[:, 0]),
    ):
        yield


@contextlib.contextmanager
def never_flat() -> Iterator[None]:
    """After a few steps every map is."""
    with mock.patch("fgssl.rationale.windows.ABOVE_EVEN", 0.0):
        yield


def trainer_on(folder: Path, output: Path, place: str, **settings: object) -> Trainer:
    views = {"views.place": place, "views.place_warmup": 2, "training.epochs": 6}
    return tiny_trainer(output, **{"data.source": str(folder), "training.batch_size": 5, **views, **settings})


# ---- where


def test_windows_hold_the_brightest_place_of_the_whole_picture(squares, tmp_path: Path) -> None:
    """Of pictures of any shape, by shares of their sides; none where nothing can be read, or the map is flat."""
    folder, middles = squares
    read = PixelStore.__getitem__

    def broken(store: PixelStore, index: int) -> np.ndarray:
        if index == BROKEN:
            raise UnreadableImage("gone")
        return read(store, index)

    trainer = trainer_on(folder, tmp_path, "map")
    with bright(), mock.patch.object(PixelStore, "__getitem__", broken):
        windows = trainer.feed.places.at(2)
    found = SEEN & (np.arange(10) != BROKEN)
    assert np.isnan(windows[~found]).all() and windows[found, 2] == pytest.approx(SHARE)
    half = SHARE / 2 + 0.03  # a map has 8 places a side, and windows are at 40
    assert (np.abs(windows[found, :2] - middles[found]) <= half).all()
    assert (np.abs(windows[found, 3:] - middles[found]) <= half / 2 + 0.03).all()  # of the smaller square likewise
    assert (tmp_path / "places.png").stat().st_size > 1000


@pytest.mark.parametrize("place", ["middle", "random"])
def test_controls_have_the_windows_of_the_map_elsewhere(place: str, squares, tmp_path: Path) -> None:
    folder, _ = squares
    with bright():
        told = trainer_on(folder, tmp_path, "map").feed.places.at(2)
        trainer = trainer_on(folder, tmp_path, place)
        control, later = (trainer.feed.places.at(epoch) for epoch in (2, 4))
    assert np.array_equal(told[:, 2], control[:, 2], equal_nan=True)
    known, hidden = control[SEEN], control[SEEN, 3:]
    assert np.isnan(control[BLANK]).all()
    half = known[:, 2:3] / 2
    assert (known[:, :2] - half >= -1e-9).all() and (known[:, :2] + half <= 1 + 1e-9).all()
    if place == "middle":
        assert (known[:, [0, 1, 3, 4]] == 0.5).all()
    else:
        assert (hidden >= SHARE / 4).all() and (hidden <= 1 - SHARE / 4).all() and len(np.unique(hidden)) == hidden.size
        assert len(np.unique(known[:, :2])) == known[:, :2].size and not np.array_equal(later, control, equal_nan=True)


def test_what_all_places_share_says_where_in_a_run_that_looks_by_it(squares, tmp_path: Path) -> None:
    """One direction tells the squares' places from the dark ones, so its map is where the features are the squares'."""
    folder, middles = squares
    trainer = trainer_on(folder, tmp_path, "map")
    rationale = dataclasses.replace(trainer.plan.config.rationale, windows="common")
    trainer.setup = dataclasses.replace(
        trainer.setup, plan=trainer.plan._replace(config=dataclasses.replace(trainer.plan.config, rationale=rationale))
    )
    places, channels = Places(trainer.setup, workers=0), trainer.plan.backbone.channels
    kinds = torch.nn.functional.one_hot(torch.tensor([0, 1]), channels).float()

    def features(_places: Places, batch: CropBatch) -> torch.Tensor:
        on_square = functional.avg_pool2d(batch.images.float(), 8).mean(1) > 40
        return kinds[on_square.long()].permute(0, 3, 1, 2)

    with mock.patch.object(Places, "_feature_map", features):
        windows = places.at(2)
    assert np.isnan(windows[BLANK]).all()
    assert (np.abs(windows[SEEN, :2] - middles[SEEN]) <= SHARE / 2 + 0.03).all()


def test_processes_share_the_pictures_and_all_know_every_window(squares, tmp_path: Path) -> None:
    folder, _ = squares
    trainer, shares = trainer_on(folder, tmp_path, "map"), list[Any]()
    with bright():
        alone = trainer.feed.places.at(2)
        for rank in range(3):
            accelerator = mock.Mock(num_processes=3, process_index=rank, autocast=contextlib.nullcontext)
            setup = dataclasses.replace(trainer.setup, accelerator=accelerator)
            with mock.patch("fgssl.training.places.gather_object", lambda found: shares.extend(found) or shares):
                windows = Places(setup, workers=0).at(2)
    assert np.array_equal(windows, alone, equal_nan=True) and [len(rows) for rows, _ in shares] == [4, 3, 3]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_finer_maps_of_a_branch_that_has_them_say_where(precision: str, squares, tmp_path: Path) -> None:
    folder, _ = squares
    more = {"rationale.stages": 2, "training.mixed_precision": precision, "backbone.name": "test_resnet"}
    trainer, seen = trainer_on(folder, tmp_path, "map", **more), list[torch.Size]()
    trainer.model.encoder.rationale.register_forward_hook(lambda _head, _given, maps: seen.append(maps.shape[1:]))
    with never_flat():
        assert np.isfinite(trainer.feed.places.at(2)).all()
    assert seen == [trainer.plan.backbone.map_shapes[-1][1:]] and seen[0] > trainer.plan.backbone.map_size


def test_what_is_known_is_hidden_in_a_share_of_the_crops(squares, tmp_path: Path) -> None:
    """The white square is grey in both views of every picture, wherever they were cut."""
    folder, _ = squares
    plain = {"views.preset": "geometric", "views.jitter": 0.0, "views.blur": 0.0, "views.grayscale": 0.0}
    shown = {"views.place_share": 0.0, "views.hide_share": 1.0, "views.crop_min": 0.9}
    trainer = trainer_on(folder, tmp_path, "map", **plain, **shown)
    views = trainer.setup.views
    with bright():
        places = trainer.feed.places.at(2)
    pictures = [views.pixels[row] for row in range(10)]
    for hidden, known in ((True, places), (False, None)):
        made = views.make(pictures, [placed_key(2, row, known) for row in range(10)])[:, SEEN].float()
        white = (made > 200).all(2).float().mean((2, 3))
        assert (white < 0.005).all() if hidden else (white > 0.015).all()


# ---- when


def test_places_are_found_after_the_warmup_and_anew_after_as_long_again(squares, tmp_path: Path) -> None:
    folder, _ = squares
    places, found = trainer_on(folder, tmp_path, "map").feed.places, list[int]()
    with bright(), mock.patch.object(places, "_find", lambda epoch: found.append(epoch) or np.full((10, 5), epoch)):
        seen = [places.at(epoch) for epoch in range(6)]
    assert found == [2, 4] and seen[:2] == [None, None]
    assert [window[0, 0] for window in seen[2:]] == [2, 2, 4, 4]
    assert places.known(3)[0, 0] == 2  # a line of the log may span both
    once = trainer_on(folder, tmp_path, "map", **{"views.place_warmup": 0}).feed.places
    with mock.patch.object(once, "_find", lambda epoch: found.append(epoch) or np.zeros((10, 5))):
        assert all(once.at(epoch) is not None for epoch in range(6))
    assert found == [2, 4, 0]


def test_nothing_is_found_or_saved_where_crops_lie_anywhere(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    assert trainer.plan.config.views.place_warmup is None
    assert trainer.feed.places.at(50) is None and trainer.feed.places.known(50) is None
    assert trainer.feed.places.state() == {}


def test_finding_leaves_nothing_behind(squares, tmp_path: Path) -> None:
    """Neither random numbers, nor statistics, nor another mode."""
    folder, _ = squares
    trainer = trainer_on(folder, tmp_path, "map")
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    state = torch.get_rng_state()
    trainer.feed.places.at(2)
    assert torch.equal(state, torch.get_rng_state()) and trainer.model.encoder.training
    assert [key for key, value in trainer.model.state_dict().items() if not torch.equal(value, before[key])] == []
    assert trainer.feed.places.took() > 0 and trainer.feed.places.took() == 0


def test_a_state_holds_the_windows_of_these_pictures_alone(squares, tmp_path: Path) -> None:
    folder, _ = squares
    first, second = (trainer_on(folder, tmp_path, "map").feed.places for _ in range(2))
    with bright():
        windows = first.at(2)
        second.restore(first.state()["places"])
        with mock.patch.object(second, "_find", side_effect=AssertionError):
            assert np.array_equal(second.at(3), windows, equal_nan=True)
        second.restore({2: torch.zeros(7, 5)})  # of another split
        assert np.array_equal(second.at(3), windows, equal_nan=True)


# ---- a run


def run(output: Path, *more: str) -> Path:
    assert fgssl("pretrain", "--data", photos(), *TINY, *ON_PLACE, *more, "--output", output).code == 0
    return output


@pytest.mark.parametrize(("step", "more"), [
    (4, ()), (3, ()), (4, ("--accumulate", "2", "--cache", "off")),
    (5, ("--set", "views.place=random", "--set", "views.hide_share=0.7")),
])  # fmt: skip
def test_a_run_stopped_among_placed_epochs_is_as_one_left_alone(
    step: int, more: tuple[str, ...], tmp_path: Path
) -> None:
    """In the middle of one, and where the next places are about to be found."""
    with never_flat():
        whole = run(tmp_path / "whole", *more)
        cut = stopped_run(tmp_path / "cut", (*TINY, *ON_PLACE, *more), step=step)
        saved = load_state(cut)
        assert saved is not None and list(saved.state.get("places", {})) == ([1] if step > 3 else [])
        assert fgssl("pretrain", "--resume", cut).code == 0
    assert_equal_encoders(whole, cut)
    assert metrics(whole) == metrics(cut)


def test_loader_processes_and_a_cache_change_nothing_and_the_place_does(tmp_path: Path) -> None:
    with never_flat():
        one, other = run(tmp_path / "one"), run(tmp_path / "other", "--workers", "1", "--cache", "off")
        anywhere = run(tmp_path / "anywhere", "--set", "views.place=anywhere")
        flat = run(tmp_path / "flat", "--set", "views.place_share=0.01")
    assert_equal_encoders(one, other)
    assert metrics(anywhere)[0] == metrics(one)[0] and metrics(anywhere)[-1] != metrics(one)[-1]
    assert (one / "places.png").exists() and not (anywhere / "places.png").exists()
    assert metrics(flat)[0] == metrics(one)[0]


def test_flat_maps_place_nothing_and_say_so(tmp_path: Path) -> None:
    with mock.patch("fgssl.rationale.windows.ABOVE_EVEN", 1e9):
        outcome = fgssl("pretrain", "--data", photos(), *TINY, *ON_PLACE, "--output", tmp_path / "run")
    assert outcome.code == 0 and "in 0 of 24 images, as the maps of all are flat" in outcome.err
    assert_equal_encoders(tmp_path / "run", run(tmp_path / "anywhere", "--set", "views.place=anywhere"))


def test_two_processes_learn_alike_on_the_same_places(tmp_path: Path) -> None:
    act = """
    import gc, fgssl.rationale.windows as windows
    from fgssl.training.places import Places
    windows.ABOVE_EVEN = 0.0
    if step == 9:
        (places,) = [item for item in gc.get_objects() if isinstance(item, Places)]
        torch.save(places.state(), f"{sys.argv[-1]}.places{rank}.pt")
"""
    options = ("--max-steps", "9", "--set", "views.place=map", "--set", "views.place_warmup=1")
    process = launched(act.strip(), tmp_path / "run", *options)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    weights = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    assert [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])] == []
    places = [torch.load(tmp_path / f"run.places{rank}.pt")["places"] for rank in (0, 1)]
    assert torch.equal(places[0][2], places[1][2]) and torch.isfinite(places[0][2]).all() and len(places[0][2]) == 24


# ---- what is derived and refused


def plan_of(**flags: object):
    given = {"data.source": str(flat_photos()), "backbone.name": "test_resnet", "backbone.pretrained": False}
    given |= {"training.device": "cpu", "training.workers": 0, "backbone.image_size": 64, "training.batch_size": 4}
    return make_plan(load_config(flags={**given, **flags}), load_weights=False)


def test_the_warmup_is_a_fifth_of_the_run() -> None:
    for epochs, expected in ((100, 20), (7, 1), (2, 1)):
        plan = plan_of(**{"views.place": "map", "training.epochs": epochs})
        assert plan.config.views.place_warmup == expected
        assert plan.origins["views.place_warmup"] == "derived: a fifth of the run (ContrastiveCrop)"
    assert plan_of(**{"views.place": "map", "training.max_steps": 30}).config.views.place_warmup == 2  # of ten epochs
    with pytest.raises(SettingError, match=r"place_warmup 4 leaves views\.place nothing of a run of 4 epochs; lower"):
        plan_of(**{"views.place": "map", "views.place_warmup": 4, "training.epochs": 4})


def test_trained_weights_are_trained_where_a_place_is_asked_for() -> None:
    draft = Draft({**flatten(PretrainConfig()), "backbone.pretrained": True}, {"views.place": "--set"})
    _derive_freeze(draft)
    assert draft["backbone.freeze"] == "none" and "views.place was asked for" in draft.origins["backbone.freeze"]


@pytest.mark.parametrize(("options", "problem"), [
    (("--no-rationale",), "--no-rationale leaves views.place map no map to be found by; leave one out"),
    (("--freeze", "backbone"), "--freeze backbone has no use for views.place map; leave it out"),
    (("--set", "views.place_share=0"), "views.place map has no use; raise views.place_share or views.hide_share"),
    (("--epochs", "1"), "views.place_warmup 1 leaves views.place nothing of a run of 1 epochs; lower it"),
    (("--set", "views.hide_share=2"), "views.hide_share is 2.0; it must be at least 0 and at most 1"),
    (("--set", "views.hide_share=1", "--set", "views.place=anywhere"), "views.hide_share without views.place; say"),
    (("--set", "views.place=centre"), "views.place cannot be 'centre'"),
])  # fmt: skip
def test_contradictions_are_one_line(options: tuple[str, ...], problem: str) -> None:
    base = ("pretrain", "--data", flat_photos(), *TINY, "--set", "views.place=map", "--dry-run")
    assert problem in fgssl(*base, *options).error(2)
