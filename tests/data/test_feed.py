"""The feed: batches are a function of (seed, epoch, image) alone, whoever makes them and whenever."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import ArrayImages, make_picture
from PIL import Image

from fgssl.config.schema import ViewsConfig
from fgssl.data.cache.pixels import PixelStore, Shrunk, open_pixels
from fgssl.data.feed import (
    LOCAL_STREAM,
    Ahead,
    Key,
    Place,
    StepSampler,
    ViewBatch,
    ViewDataset,
    WholeDataset,
    build_feed,
)
from fgssl.data.order import LANES, epoch_order, local_order
from fgssl.errors import UnreadableImage
from fgssl.views import DRAWS, draw_views, make_views

SIZE, BATCH, COUNT = 16, 4, 12  # 3 steps an epoch


@pytest.fixture(scope="module")
def pixels() -> PixelStore:
    return PixelStore(ArrayImages([make_picture(i, 30 + i, 45 - i) for i in range(COUNT)]), Shrunk(24))


def batches(pixels: PixelStore, *, workers: int = 0, seed: int = 3, start: int = 0, stop: int = 7, **share) -> list:
    """All batches of some steps."""
    sampler = StepSampler(len(pixels), BATCH, seed=seed, start=start, stop=stop, **share)
    dataset = ViewDataset(pixels, ViewsConfig(), size=SIZE, seed=seed)
    return list(build_feed(dataset, sampler, workers=workers, pin=False))


def assert_equal(first: list[ViewBatch], second: list[ViewBatch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        # bytes from a worker process, floats of the same levels from this one
        assert torch.equal(one.views.float(), other.views.float()) and torch.equal(one.index, other.index)
        assert one.faults == other.faults


# ---- order


@given(st.integers(2, 40), st.integers(1, 10), st.integers(0, 2**40), st.integers(1, 3))
def test_an_epoch_has_each_image_once(length, batch_size, seed, epochs):
    """All images where the batch divides their number, else all but fewer than a batch; never one twice."""
    batch_size = min(batch_size, length)
    steps = length // batch_size
    sampler = StepSampler(length, batch_size, seed=seed, start=0, stop=epochs * steps)
    keys = list(sampler)
    assert len(keys) == len(sampler) == epochs * steps
    for epoch in range(epochs):
        chosen = [key for step in keys[epoch * steps : (epoch + 1) * steps] for key in step]
        assert {key.epoch for key in chosen} == {epoch}
        assert len({key.index for key in chosen}) == len(chosen) == steps * batch_size
        assert {key.index for key in chosen} <= set(range(length))


def test_orders_differ_between_epochs_and_seeds():
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in range(5)]
    assert len(set(orders)) == 10
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] == tuple(epoch_order(50, 0, 0))


def test_every_image_comes_first_about_as_often():
    """Position 0 over 3,000 epochs of 10 images: 300 each, 5 standard deviations are 82."""
    counts = np.bincount([epoch_order(10, 0, epoch)[0] for epoch in range(3000)], minlength=10)
    assert np.abs(counts - 300).max() < 82


@given(st.integers(1, 5000), st.integers(0, 2**40), st.integers(0, 9))
def test_a_local_order_has_each_image_once_and_is_its_arguments_alone(length, seed, epoch):
    order = local_order(length, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(length)) and np.array_equal(order, local_order(length, seed, epoch))


def test_in_a_local_order_a_process_reads_lanes_of_its_own_in_windows_along_the_disk():
    """100,000 images, 4 processes: 16 lanes each, their windows eight runs of neighbours; a batch mixes them all."""
    length, world, batch, window = 100_000, 4, 256, 8
    order, block = local_order(length, 0, 1), length // (LANES * window)
    assert (order != local_order(length, 0, 2)).mean() > 0.99
    for lane in range(LANES):
        images = order[lane::LANES][: 7 * block]
        assert len(np.unique(images // block)) <= window
        assert (np.diff(images) != 1).mean() > 0.9  # shuffled within
    lanes = {rank: order[:90_000][rank::world] // block for rank in range(world)}
    assert all(not set(lanes[one]) & set(lanes[two]) for one in lanes for two in lanes if one < two)
    assert np.median([len(np.unique(order[start : start + batch] // block)) for start in range(0, 80_000, batch)]) > 150


@pytest.mark.parametrize("order", [epoch_order, local_order])
def test_a_run_resumed_with_other_processes_sees_what_it_would_have_seen(order):
    """Two processes for six steps, then four, or one, or three, which the lanes are no multiple of."""

    def steps(start, stop, world):
        shares = [
            list(StepSampler(200, 12, seed=1, start=start, stop=stop, rank=rank, world=world, order=order))
            for rank in range(world)
        ]
        return [[key for row in zip(*step, strict=True) for key in row] for step in zip(*shares, strict=True)]

    whole = steps(0, 40, 1)
    for world in (1, 3, 4):
        assert steps(0, 6, 2) + steps(6, 40, world) == whole


@given(st.integers(4, 30), st.sampled_from([1, 2, 4]), st.integers(0, 9), st.integers(0, 9), st.integers(0, 99))
def test_shares_of_processes_interleave_to_the_global_batch(length, world, start, more, seed):
    def steps(**share) -> list[list[Key]]:
        return list(StepSampler(length, 4, seed=seed, start=start, stop=start + more, **share))

    shares = [steps(rank=rank, world=world) for rank in range(world)]
    for step, whole in enumerate(steps()):
        assert all(len(share[step]) == 4 // world for share in shares)
        assert [key for row in zip(*(share[step] for share in shares), strict=True) for key in row] == whole


# ---- content


@pytest.mark.parametrize("workers", [0, 1])
def test_views_are_those_of_the_seed_epoch_and_image(workers, pixels):
    """Each batch against one made by hand from the definition."""
    for step, batch in enumerate(batches(pixels, workers=workers)):
        epoch, position = divmod(step, COUNT // BATCH)
        chosen = epoch_order(COUNT, 3, epoch)[position * BATCH : (position + 1) * BATCH]
        assert batch.index.tolist() == chosen.tolist() and batch.faults == ()
        assert batch.views.shape == (2, BATCH, 3, SIZE, SIZE)
        assert batch.views.dtype == (torch.uint8 if workers else torch.float32)
        for place, index in enumerate(chosen):
            image = np.array(pixels[index])
            height, width = (np.full(2, side) for side in image.shape[:2])
            randoms = np.random.default_rng([3, epoch, index]).random((2, DRAWS))
            views = draw_views(randoms, ViewsConfig(), heights=height, widths=width, size=SIZE)
            assert torch.equal(batch.views[:, place], make_views([image, image], views, SIZE).to(batch.views.dtype))


@pytest.mark.parametrize("workers", [0, 1])
def test_views_made_on_the_device_are_nearly_those_of_the_cpu(workers, pixels):
    """The same parameters, at most 4 levels apart, through pickling and pinning-shaped batches alike."""
    sampler = StepSampler(COUNT, BATCH, seed=3, start=0, stop=4)
    dataset = ViewDataset(pixels, ViewsConfig(), size=SIZE, seed=3, on_device=True)
    for batch, other in zip(build_feed(dataset, sampler, workers=workers, pin=False), batches(pixels), strict=False):
        made = batch.views_on(torch.device("cpu"))
        assert made.shape == (2, BATCH, 3, SIZE, SIZE) and made.dtype == torch.uint8
        assert torch.equal(batch.index, other.index)
        assert (made.float() - other.views).abs().max() <= 4


@pytest.mark.parametrize("workers", [0, 1])
def test_local_views_are_small_ones_of_small_parts_and_change_no_other(workers, pixels):
    """By hand from the definition, on the device, and as this process's share."""
    settings = ViewsConfig(local_count=3, local_size=8)
    for on_device in (False, True):
        dataset = ViewDataset(pixels, settings, size=SIZE, seed=3, on_device=on_device)
        sampler = StepSampler(COUNT, BATCH, seed=3, start=0, stop=4)
        feed = build_feed(dataset, sampler, workers=workers, pin=False)
        for step, (batch, plain) in enumerate(zip(feed, batches(pixels, stop=4), strict=True)):
            local = batch.local_on(torch.device("cpu"))
            assert plain.local is None and plain.local_on(torch.device("cpu")) is None
            assert local.shape == (3, BATCH, 3, 8, 8)
            if not on_device:
                assert torch.equal(batch.views.float(), plain.views)
            for place, index in enumerate(batch.index.tolist()):
                image = np.array(pixels[index])
                randoms = np.random.default_rng([3, step // 3, index, LOCAL_STREAM]).random((3, DRAWS))
                parts = ViewsConfig(crop_min=0.05, crop_max=0.25)
                height, width = (np.full(3, side) for side in image.shape[:2])
                drawn = draw_views(randoms, parts, heights=height, widths=width, size=8)
                made = make_views([image] * 3, drawn, 8)
                assert (local[:, place].float() - made.float()).abs().max() <= (4 if on_device else 0)
                assert (drawn.box[:, 2] * drawn.box[:, 3] / (height * width) < 0.3).all()


def test_the_two_views_the_epochs_and_the_seeds_differ(pixels):
    def view(number: int, step: int, seed: int, image: int) -> torch.Tensor:
        for batch in batches(pixels, seed=seed, start=step, stop=step + 3):
            if image in batch.index.tolist():
                return batch.views[number, batch.index.tolist().index(image)]
        raise AssertionError("not in this epoch")

    seen = [view(0, 0, 3, 5), view(1, 0, 3, 5), view(0, 3, 3, 5), view(0, 0, 4, 5)]
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


# ---- crops on a place


def middles_inside(boxes: np.ndarray, window: tuple[float, float, float], height: int, width: int) -> np.ndarray:
    middles = (boxes[:, :2] + boxes[:, 2:] / 2) / (height, width)
    return (np.abs(middles - window[:2]) <= window[2] / 2 + 1e-9).all(1)


@pytest.mark.parametrize("local", [False, True])
def test_a_share_of_the_crops_lies_on_the_place(local):
    """Share + (1 - share) x chance, which is counted for the size of each crop; of small views as well."""
    height, width, window, share, epochs = 60, 80, (0.4, 0.6, 0.5), 0.3, 1500
    picture = np.zeros((height, width, 3), np.uint8)
    store = PixelStore(ArrayImages([make_picture(0, width, height)]), Shrunk(height))
    settings = ViewsConfig(crop_max=0.3, place_share=share, local_count=2, local_size=8)
    dataset = ViewDataset(store, settings, size=SIZE, seed=0)
    keys = [Key(epoch, 0, Place(*window, 0.5, 0.5)) for epoch in range(epochs)]
    crops = dataset.local if local else dataset
    boxes = crops.draw([picture] * epochs, keys, 2).box
    chances = []
    for own_height, own_width in boxes[:, 2:]:
        tops, lefts = np.arange(height - own_height + 1), np.arange(width - own_width + 1)
        rows = np.abs((tops + own_height / 2) / height - window[0]) <= window[2] / 2 + 1e-9
        columns = np.abs((lefts + own_width / 2) / width - window[1]) <= window[2] / 2 + 1e-9
        chances.append(rows.mean() * columns.mean())
    expected = share + (1 - share) * np.array(chances)
    sd = np.sqrt((expected * (1 - expected)).sum()) / len(expected)
    assert abs(middles_inside(boxes, window, height, width).mean() - expected.mean()) < 4 * sd
    assert 4 * sd < 0.05 < np.abs(np.mean(chances) - expected.mean())  # so that the check is one
    whole = dataclasses.replace(settings, place_share=1.0)
    placed = ViewDataset(store, whole, size=SIZE, seed=0)
    placed = placed.local if local else placed
    assert middles_inside(placed.draw([picture] * epochs, keys, 2).box, window, height, width).all()
    assert not crops.draw([picture] * epochs, keys, 2).hidden.any()
    hiding = ViewDataset(store, dataclasses.replace(settings, hide_share=0.6), size=SIZE, seed=0)
    hidden = (hiding.local if local else hiding).draw([picture] * epochs, keys, 2)
    shows = np.maximum(hidden.box[:, :2], [22.5, 30]) < np.minimum(hidden.box[:, :2] + hidden.box[:, 2:], [37.5, 50])
    expected = (0.0 if local else 0.6) * shows.all(1).mean()  # some show less than half a pixel of the square
    assert np.array_equal(hidden.box, boxes)
    assert expected - 0.05 < (hidden.hidden[:, 2] > 0).mean() < expected + 0.03
    anywhere = crops.draw([picture] * epochs, [Key(epoch, 0) for epoch in range(epochs)], 2)
    assert np.array_equal(anywhere.box[:, 2:], boxes[:, 2:])


@pytest.mark.parametrize("workers", [0, 1])
def test_places_reach_the_loader_processes_and_only_their_epochs(workers, pixels):
    windows = np.tile([0.2, 0.8, 0.4, 0.2, 0.8], (COUNT, 1))
    windows[5] = np.nan
    told = [None, windows]
    placed = batches(pixels, workers=workers, stop=6, place=lambda epoch: told[epoch])
    plain = batches(pixels, stop=6)
    assert_equal(placed[:3], plain[:3])
    assert all(torch.equal(one.index, other.index) for one, other in zip(placed, plain, strict=True))
    same = {
        index: torch.equal(one.views[:, place].float(), other.views[:, place])
        for one, other in zip(placed[3:], plain[3:], strict=True)
        for place, index in enumerate(one.index.tolist())
    }
    assert same[5] and sum(same.values()) < COUNT / 2
    settings = ViewsConfig()
    for batch in placed[3:]:
        for place, index in enumerate(batch.index.tolist()):
            rng, image = np.random.default_rng([3, 1, index]), np.array(pixels[index])
            randoms, on_place = rng.random((2, DRAWS)), rng.random(2) < 0.5
            window = np.where(on_place[:, None], windows[index, :3], np.nan)
            height, width = (np.full(2, side) for side in image.shape[:2])
            views = draw_views(randoms, settings, heights=height, widths=width, size=SIZE, windows=window)
            assert torch.equal(batch.views[:, place].float(), make_views([image, image], views, SIZE).float())


def test_whole_pictures_are_pressed_into_squares(pixels):
    dataset = WholeDataset(pixels, size=SIZE, seed=0)
    batch = dataset.__getitems__([Key(0, index) for index in range(COUNT)])
    assert batch.images.shape == (COUNT, 3, SIZE, SIZE) and batch.index.tolist() == list(range(COUNT))
    for index in range(COUNT):
        expected = Image.fromarray(np.array(pixels[index])).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        found = batch.images[index].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(found - np.asarray(expected)).max() <= 2


# ---- nothing but (seed, epoch, image) matters


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers, pixels):
    assert_equal(batches(pixels, workers=workers), batches(pixels))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_change_nothing(world, pixels):
    shares = [batches(pixels, rank=rank, world=world) for rank in range(world)]
    for step, whole in enumerate(batches(pixels)):
        together = torch.stack([share[step].views for share in shares], 2).flatten(1, 2)
        assert torch.equal(together, whole.views)
        assert torch.equal(torch.stack([share[step].index for share in shares], 1).flatten(), whole.index)


@given(batches=st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=5))
def test_batches_are_announced_one_ahead_and_handed_out_in_order(batches):
    told: list[list[int]] = []
    ahead = Ahead(batches, told.append)
    assert len(ahead) == len(batches)
    for number, batch in enumerate(ahead):
        assert batch == batches[number] and told == batches[: number + 2]
    assert told == batches


def test_the_training_process_fetches_the_next_pictures_and_loader_processes_do_not(pixels, monkeypatch):
    told: list[list[int]] = []
    monkeypatch.setattr(PixelStore, "will_need", lambda store, indices: told.append(list(indices)))
    data = ViewDataset(pixels, ViewsConfig(), size=8, seed=0)
    batches = [[Key(0, 1), Key(0, 2)], [Key(0, 3)], [Key(1, 0)]]
    feed = iter(build_feed(data, batches, workers=0, pin=False))
    assert next(feed).index.tolist() == [1, 2] and told == [[1, 2], [3]]
    assert [batch.index.tolist() for batch in feed] == [[3], [0]] and told == [[1, 2], [3], [0]]
    told.clear()
    assert len(list(build_feed(data, batches, workers=1, pin=False))) == 3 and told == []


@pytest.mark.parametrize("start", range(8))
def test_resuming_changes_nothing(start, pixels):
    """From every step, epoch borders included."""
    assert_equal(batches(pixels, start=start), batches(pixels)[start:])


def test_resuming_with_other_workers_and_processes_changes_nothing(pixels):
    shares = [batches(pixels, start=4, workers=1, rank=rank, world=2) for rank in range(2)]
    for step, whole in enumerate(batches(pixels)[4:]):
        assert torch.equal(shares[1][step].views.float(), whole.views[:, 1::2])


def test_global_random_state_changes_and_is_changed_by_nothing(pixels):
    expected = batches(pixels, stop=2)
    torch.manual_seed(99)
    np.random.seed(99)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    dataset = ViewDataset(pixels, ViewsConfig(), size=SIZE, seed=3)
    keys = list(StepSampler(COUNT, BATCH, seed=3, start=0, stop=2))
    assert_equal([dataset.__getitems__(step) for step in keys], expected)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_the_cache_changes_nothing(pixels, tmp_path):
    cached = open_pixels(pixels.images, Shrunk(24), cache=str(tmp_path))
    assert cached.path is not None
    assert_equal(batches(cached, workers=1), batches(pixels))


def test_a_pickled_data_set_gives_the_same_batch(pixels):
    """What a spawned worker receives."""
    dataset = ViewDataset(pixels, ViewsConfig(), size=SIZE, seed=0)
    keys = [Key(0, 1), Key(0, 2)]
    copy = pickle.loads(pickle.dumps(dataset))
    assert_equal([copy.__getitems__(keys)], [dataset.__getitems__(keys)])


# ---- unreadable images


def with_broken(*broken: int) -> PixelStore:
    return PixelStore(ArrayImages([make_picture(i, 30, 30) for i in range(6)], broken), Shrunk(24))


@pytest.mark.parametrize(
    "broken,asked,used,reported",
    [
        ((2,), 2, 3, [2]),
        ((2, 3), 2, 4, [2, 3]),
        ((5,), 5, 0, [5]),  # the next one after the last is the first
        ((4, 5, 0), 4, 1, [4, 5, 0]),
        ((0, 1, 2, 3, 5), 5, 4, [5, 0, 1, 2, 3]),
        ((2,), 3, 3, []),
    ],
)
def test_an_unreadable_image_is_replaced_by_the_next_and_reported(broken, asked, used, reported):
    store = with_broken(*broken)
    batch = ViewDataset(store, ViewsConfig(), size=SIZE, seed=0).__getitems__([Key(0, asked), Key(0, used)])
    assert batch.index.tolist() == [used, used]  # the key queue must know which image it really was
    assert [fault.index for fault in batch.faults] == reported
    assert all(f"memory#{fault.index}: is broken" in fault.reason for fault in batch.faults)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cached", [False, True])
def test_broken_images_do_not_disturb_the_others(workers, cached, tmp_path):
    whole, store = with_broken(), with_broken(2)
    if cached:
        store = open_pixels(store.images, Shrunk(24), cache=str(tmp_path))
    for good, batch in zip(batches(whole, stop=3), batches(store, workers=workers, stop=3), strict=True):
        untouched = good.index != 2
        assert torch.equal(good.views[:, untouched], batch.views[:, untouched].float())
        assert torch.equal(batch.index, torch.where(untouched, good.index, 3))
        assert [fault.index for fault in batch.faults] == good.index[~untouched].tolist()


def test_a_split_without_any_readable_image_is_an_error():
    dataset = ViewDataset(with_broken(*range(6)), ViewsConfig(), size=SIZE, seed=0)
    with pytest.raises(UnreadableImage, match="no image of the training split can be read"):
        dataset.__getitems__([Key(0, 1)])
