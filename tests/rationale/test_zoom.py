"""The second look of --pool zoom: where the window lies, what is cut, and the embedding against one made by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from pictures import ArrayImages, make_picture
from PIL import Image
from running import fgssl, finished_run, flat_photos, photos, plain_run
from scipy.ndimage import map_coordinates
from torch import Tensor
from torch.nn import functional

from fgssl.config.schema import ViewsConfig
from fgssl.encoder import POOLS, Encoder, Pool
from fgssl.evaluation.embed import embed
from fgssl.rationale import centre_prior, crop_windows, cut_windows, window_centres, window_share
from fgssl.runs.encoder_file import load_encoder

SIZE, LARGE, C = 64, 143, 288  # the runs' input, 64 / sqrt(0.2) rounded, and the channels of their map
SIGMA = 0.25


@pytest.fixture
def encoder() -> Encoder:
    """Of the run with a rationale, whose map is sharpened: after six steps all its windows would be in the middle."""
    encoder = load_encoder(str(finished_run()[0]))
    assert encoder.rationale is not None
    encoder.rationale.register_forward_hook(lambda head, given, maps: (maps / maps.amax((1, 2), keepdim=True)).pow(60))
    return encoder


@pytest.fixture
def plain() -> Encoder:
    return load_encoder(str(plain_run()))


def cropped(encoder: Encoder, crop_min: float) -> Encoder:
    """As if trained on crops of at least this area."""
    assert encoder.config is not None
    views = dataclasses.replace(encoder.config.views, crop_min=crop_min)
    encoder.config = dataclasses.replace(encoder.config, views=views)
    return encoder


def levels(count: int, side: int) -> Tensor:
    """(N, 3, side, side) uint8 of pictures."""
    pictures = np.stack([np.asarray(make_picture(seed, side, side)) for seed in range(count)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_place(height: int, width: int, row: int, column: int) -> Tensor:
    place = torch.zeros(1, height, width)
    place[0, row, column] = 0.3
    return place


# ---- where the window lies


@pytest.mark.parametrize(
    ("crop_min", "share"), [(0.25, 0.5), (0.64, 0.8), (1.0, 1.0), (0.16, 0.4), (0.08, 0.4), (0.0, 0.4)]
)
def test_the_window_is_the_smallest_crop_but_not_below_two_fifths(crop_min: float, share: float) -> None:
    assert window_share(ViewsConfig(crop_min=crop_min)) == pytest.approx(share)


@pytest.mark.parametrize("shape", [(7, 7), (8, 8), (4, 9), (1, 1), (1, 6)])
def test_the_prior_is_a_gaussian_of_a_quarter_of_each_side_around_the_middle(shape: tuple[int, int]) -> None:
    height, width = shape
    prior = centre_prior(height, width)
    assert prior.shape == shape and float(prior.sum()) == pytest.approx(1)
    assert torch.allclose(prior, prior.flip(0)) and torch.allclose(prior, prior.flip(1))
    assert float(prior[height // 2, width // 2]) == pytest.approx(float(prior.max()))
    for row in range(height):
        for column in range(width):
            squared = ((row + 0.5) / height - 0.5) ** 2 + ((column + 0.5) / width - 0.5) ** 2
            middle = (0.5 / height * (1 - height % 2)) ** 2 + (0.5 / width * (1 - width % 2)) ** 2
            expected = math.exp((middle - squared) / (2 * SIGMA**2))  # relative to the largest
            assert float(prior[row, column] / prior.max()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(7, 7), (4, 9), (5, 2)])
def test_the_middle_is_the_mean_place_of_map_times_prior_by_loops(shape: tuple[int, int]) -> None:
    attention = randn(6, *shape).exp()
    found = window_centres(attention, 1e-6)
    for picture, centre in zip(attention.double().numpy(), found.tolist(), strict=True):
        total, moments = 0.0, [0.0, 0.0]
        for row, column in np.ndindex(shape):
            y, x = (row + 0.5) / shape[0], (column + 0.5) / shape[1]
            weight = picture[row, column] * math.exp(-((y - 0.5) ** 2 + (x - 0.5) ** 2) / (2 * SIGMA**2))
            total, moments = total + weight, [moments[0] + weight * y, moments[1] + weight * x]
        assert centre == pytest.approx([moment / total for moment in moments], abs=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(7, 7), (3, 8)])
def test_one_place_is_the_middle_as_far_as_the_window_stays_inside(shape: tuple[int, int], share: float) -> None:
    for row, column in np.ndindex(shape):
        (centre,) = window_centres(one_place(*shape, row, column), share).tolist()
        places = ((row + 0.5) / shape[0], (column + 0.5) / shape[1])
        assert centre == pytest.approx([min(max(p, share / 2), 1 - share / 2) for p in places], abs=1e-6)


def test_two_places_by_hand() -> None:
    """Equal weights at 0.35 and 0.05 of the side from the middle: the nearer one counts exp(0.12 / 0.125)."""
    attention = one_place(5, 10, 2, 1) + one_place(5, 10, 2, 5)  # columns at 0.15 and 0.55
    far, near = math.exp(-(0.35**2) / (2 * SIGMA**2)), math.exp(-(0.05**2) / (2 * SIGMA**2))
    assert near / far == pytest.approx(math.exp(0.12 / 0.125))
    (centre,) = window_centres(attention, 0.1).tolist()
    assert centre == pytest.approx([0.5, (0.15 * far + 0.55 * near) / (far + near)], abs=1e-6)


@pytest.mark.parametrize("shape", [(7, 7), (8, 8), (2, 5), (1, 1)])
def test_a_map_that_says_nothing_leaves_the_window_in_the_middle(shape: tuple[int, int]) -> None:
    assert torch.allclose(window_centres(torch.full((2, *shape), 0.02), 0.4), torch.full((2, 2), 0.5), atol=1e-6)


def test_a_map_of_zeros_leaves_the_window_in_the_middle() -> None:
    assert torch.allclose(window_centres(torch.zeros(2, 7, 7), 0.4), torch.full((2, 2), 0.5), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 0.01, 300.0, 1e12])
def test_the_scale_of_the_map_does_not_matter(scale: float) -> None:
    attention = randn(4, 6, 5).exp()
    expected = window_centres(attention, 0.4)
    assert expected.std(0).min() > 0.005  # they do differ
    assert torch.allclose(window_centres(scale * attention, 0.4), expected, atol=1e-6)


# ---- what is cut


def centre_of(offsets: list[tuple[float, float]], size: int, side: int) -> Tensor:
    """Of windows that begin at these rows and columns."""
    return (torch.tensor(offsets) + size / 2) / side


def test_windows_at_whole_pixels_are_slices() -> None:
    images, offsets = levels(4, 11), [(0, 0), (2, 7), (7, 3), (7, 7)]
    for pictures in (images, images.float()):
        windows = cut_windows(pictures, centre_of(offsets, 4, 11), 4)
        assert windows.dtype == torch.float32
        for picture, window, (row, column) in zip(images, windows, offsets, strict=True):
            expected = picture[:, row : row + 4, column : column + 4].float()
            torch.testing.assert_close(window, expected, rtol=0, atol=1e-3)


def test_windows_at_half_pixels_are_the_mean_of_the_neighbours() -> None:
    images = levels(3, 10)
    x = images.double()
    by_rows, by_columns, by_both = cut_windows(images, centre_of([(2.5, 1), (3, 0.5), (4.5, 4.5)], 5, 10), 5).double()
    torch.testing.assert_close(by_rows, (x[0, :, 2:7, 1:6] + x[0, :, 3:8, 1:6]) / 2, rtol=0, atol=1e-3)
    torch.testing.assert_close(by_columns, (x[1, :, 3:8, 0:5] + x[1, :, 3:8, 1:6]) / 2, rtol=0, atol=1e-3)
    four = x[2, :, 4:9, 4:9] + x[2, :, 5:10, 4:9] + x[2, :, 4:9, 5:10] + x[2, :, 5:10, 5:10]
    torch.testing.assert_close(by_both, four / 4, rtol=0, atol=1e-3)


def test_a_window_of_the_pictures_size_is_the_picture() -> None:
    images = levels(2, 13)
    whole = cut_windows(images, torch.full((2, 2), 0.5), 13)
    torch.testing.assert_close(whole, images.float(), rtol=0, atol=1e-3)


def test_windows_between_pixels_are_those_of_scipy() -> None:
    images, size, side = levels(3, 20), 9, 20
    centres = 0.25 + 0.5 * torch.rand(3, 2, generator=torch.Generator().manual_seed(2))
    windows = cut_windows(images, centres, size)
    for picture, window, centre in zip(images.double().numpy(), windows, centres.double().numpy(), strict=True):
        rows, columns = (c * side - size / 2 + np.arange(size) for c in centre)  # places of a pixel are whole numbers
        grid = np.meshgrid(rows, columns, indexing="ij")
        expected = np.stack([map_coordinates(channel, grid, order=1) for channel in picture])
        np.testing.assert_allclose(window.numpy(), expected, atol=2e-3)


# ---- the pictures it takes


def test_the_view_is_larger_by_as_much_as_the_window_is_smaller(encoder: Encoder) -> None:
    assert {pool: encoder.view_size(pool) for pool in POOLS} == {
        "gap": SIZE, "rationale": SIZE, "concat": SIZE, "cls": SIZE, "zoom": LARGE,
        "parts": 160, "zoom:again": 160, "zoom:middle": LARGE, "zoom:random": LARGE, "zoom:mask": 160,
    }  # fmt: skip
    for crop_min, side in ((1.0, 64), (0.25, 128), (0.64, 80), (0.01, 160)):
        assert cropped(encoder, crop_min).view_size("zoom") == side
        assert encoder.view("zoom").size == side and encoder.view().size == SIZE
    encoder.config = None  # trained elsewhere: the default crops of pretraining
    assert encoder.view_size("zoom") == LARGE


def test_the_view_shows_the_same_part_of_the_picture(encoder: Encoder) -> None:
    """A picture of one ramp: each view's first and last pixel tell where it ends.

    The same but for whole pixels: timm crops at whole ones of the resized picture, so that each view's ends may lie
    half a pixel of its own off the middle.
    """
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 400)[None, :, None], (400, 1, 3)).astype(np.uint8))
    ends = []
    for pool in ("gap", "zoom"):
        row = np.asarray(encoder.view(pool)(ramp))[0, :, 0].astype(float)
        step = (row[-1] - row[0]) / (len(row) - 1)
        ends.append((row[0] - step / 2, row[-1] + step / 2))
    assert ends[0] == pytest.approx(ends[1], abs=255 * (0.5 / SIZE + 0.5 / LARGE))


# ---- the embedding


def whole_by_pillow(picture: Tensor, size: int) -> Tensor:
    """(3, Z, Z) -> (3, size, size) without rounding to bytes."""
    channels = [Image.fromarray(channel.float().numpy()) for channel in picture]
    return torch.stack(
        [torch.from_numpy(np.array(c.resize((size, size), Image.Resampling.BILINEAR))) for c in channels]
    )


def window_by_slices(picture: Tensor, centre: tuple[float, float], size: int) -> Tensor:
    """Four slices, weighted by how near they are."""
    window = torch.zeros(3, size, size, dtype=torch.float64)
    (row, y), (column, x) = ((int(p), p - int(p)) for p in (c * picture.shape[-1] - size / 2 for c in centre))
    padded = functional.pad(picture.double()[None], (0, 1, 0, 1), mode="replicate")[0]
    for down, weight in ((0, 1 - y), (1, y)):
        for right, factor in ((0, 1 - x), (1, x)):
            top, left = row + down, column + right
            window += weight * factor * padded[:, top : top + size, left : left + size]
    return window.float()


def by_hand(encoder: Encoder, picture: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """The zoom embedding of one (3, Z, Z) picture and the middle of its window."""
    backbone = encoder.backbone
    mean, std = torch.tensor(backbone.mean).view(3, 1, 1), torch.tensor(backbone.std).view(3, 1, 1)
    with torch.no_grad():
        feature_map = backbone(((whole_by_pillow(picture, SIZE) / 255 - mean) / std)[None])[0]
        parts = [functional.normalize(feature_map.mean((1, 2)), dim=0)]
        centre = (0.5, 0.5)
        if encoder.rationale is not None:
            attention = encoder.attention(feature_map[None])[0]
            parts.append(functional.normalize((feature_map * attention).sum((1, 2)), dim=0))
            total, y, x = 0.0, 0.0, 0.0
            for row, column in np.ndindex(*attention.shape):
                place = (row + 0.5) / attention.shape[0], (column + 0.5) / attention.shape[1]
                squared = sum((p - 0.5) ** 2 for p in place)
                weight = float(attention[row, column]) * math.exp(-squared / (2 * SIGMA**2))
                total, y, x = total + weight, y + weight * place[0], x + weight * place[1]
            half = SIZE / picture.shape[-1] / 2
            centre = (min(max(y / total, half), 1 - half), min(max(x / total, half), 1 - half))
        window = backbone(((window_by_slices(picture, centre, SIZE) / 255 - mean) / std)[None])[0]
    parts.append(functional.normalize(window.mean((1, 2)), dim=0))
    weights = (1 / math.sqrt(2),) * 2 if encoder.rationale is None else (2 / 3, 1 / 3, 2 / 3)  # squares sum to 1
    return torch.cat([weight * part for weight, part in zip(weights, parts, strict=True)]), centre


@pytest.mark.parametrize("kind", ["encoder", "plain"])
def test_each_picture_embeds_as_by_hand(
    kind: str, memory_images: Callable[..., ArrayImages], request: pytest.FixtureRequest
) -> None:
    encoder: Encoder = request.getfixturevalue(kind)
    images = memory_images(8)
    found = embed(encoder, images, pools=("zoom",))["zoom"].features
    assert found.shape == (8, 3 * C if kind == "encoder" else 2 * C)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(8))
    view, centres = encoder.view("zoom"), []
    for row in range(8):
        picture = torch.from_numpy(np.array(view(images.load(row)))).permute(2, 0, 1)
        assert picture.shape == (3, LARGE, LARGE)
        expected, centre = by_hand(encoder, picture)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-5)
        centres.append(centre)
    spread = LARGE * torch.tensor(centres).std(0).max()  # in pixels
    assert spread > 2 if kind == "encoder" else spread == 0


def test_without_a_rationale_the_window_is_the_middle(plain: Encoder) -> None:
    """A window of half the side of 128 pixels: rows and columns 32 to 95, and nothing to interpolate."""
    pictures = levels(3, 128)
    with torch.no_grad():
        found = cropped(plain, 0.25).eval()(pictures, "zoom")
        middle = plain(pictures[:, :, 32:96, 32:96], "gap")
        assert torch.allclose(plain.window_centres(randn(2, C, 2, 2)), torch.full((2, 2), 0.5), atol=1e-6)
    torch.testing.assert_close(found[:, C:], middle / math.sqrt(2), rtol=0, atol=1e-5)


def test_where_training_saw_whole_pictures_the_window_is_the_whole_picture(encoder: Encoder) -> None:
    pictures = levels(3, SIZE)
    with torch.no_grad():
        found = cropped(encoder, 1.0).eval()(pictures, "zoom")
        gap, weighted = encoder(pictures, "gap"), encoder(pictures, "rationale")
    torch.testing.assert_close(found, torch.cat([2 * gap, weighted, 2 * gap], 1) / 3, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_result_does_not_depend_on_the_batch(
    batch_size: int, encoder: Encoder, memory_images: Callable[..., ArrayImages]
) -> None:
    images = memory_images(11)
    whole, parts = (embed(encoder, images, pools=("zoom",), batch_size=size)["zoom"] for size in (11, batch_size))
    torch.testing.assert_close(parts.features, whole.features, rtol=0, atol=1e-5)
    assert parts.identifiers == whole.identifiers == tuple(f"memory#{row}" for row in range(11))


def test_several_poolings_at_once_are_each_as_asked_alone(
    encoder: Encoder, memory_images: Callable[..., ArrayImages]
) -> None:
    images = memory_images(11, broken=(4,))
    pools: tuple[Pool, ...] = ("zoom", "gap", "concat", "rationale")
    together = embed(encoder, images, pools=pools, batch_size=4)
    assert tuple(together) == pools
    for pool in pools:
        alone = embed(encoder, images, pools=(pool,), batch_size=4)[pool]
        torch.testing.assert_close(together[pool].features, alone.features, rtol=0, atol=1e-6)
        assert together[pool].identifiers == alone.identifiers and len(alone.identifiers) == 10
        assert together[pool].faults == alone.faults and [fault.index for fault in alone.faults] == [4]


def test_progress_counts_images_of_each_pass(encoder: Encoder, memory_images: Callable[..., ArrayImages]) -> None:
    expected: dict[tuple[Pool, ...], list[tuple[int, int]]] = {
        ("zoom",): [(5, 12), (10, 12), (12, 12)],
        ("gap", "rationale"): [(5, 12), (10, 12), (12, 12)],
        ("zoom", "gap", "rationale"): [(5, 24), (10, 24), (12, 24), (17, 24), (22, 24), (24, 24)],
    }
    for pools, counted in expected.items():
        calls: list[tuple[int, int]] = []
        count = mock.Mock(side_effect=lambda done, total, calls=calls: calls.append((done, total)))
        embed(encoder, memory_images(12, broken=(3,)), pools=pools, batch_size=5, progress=count)
        assert calls == counted


def test_zoom_is_refused_where_there_are_only_maps_or_other_pictures(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="zoom takes more than the map"):
        encoder.pool([randn(1, C, 2, 2)], "zoom")
    with pytest.raises(ValueError, match="zoom takes pictures of another size than gap, zoom"):
        encoder.embeddings(levels(1, LARGE), ("gap", "zoom"))


# ---- the command line


@contextlib.contextmanager
def embedded() -> Iterator[list[tuple[tuple[Pool, ...], int, int]]]:
    """Poolings, number and side of the pictures of each forward pass."""
    seen: list[tuple[tuple[Pool, ...], int, int]] = []
    embeddings = Encoder.embeddings

    def watched(
        self: Encoder, images: Tensor, pools: tuple[Pool, ...], windows: Tensor | None = None
    ) -> dict[Pool, Tensor]:
        seen.append((tuple(pools), len(images), images.shape[-1]))
        return embeddings(self, images, pools, windows)

    with mock.patch.object(Encoder, "embeddings", watched):
        yield seen


@pytest.mark.parametrize("verb", ["retrieve", "embed", "probe"])
def test_the_default_is_zoom_with_a_rationale_and_gap_without(verb: str, tmp_path: Path) -> None:
    options = ("--output", tmp_path / "features") if verb == "embed" else ()
    for run, pool, width in ((finished_run()[0], "zoom", 3 * C), (plain_run(), "gap", C)):
        found = fgssl(verb, run, "--data", photos(), *options, "--json").json()
        assert found["pool"] == pool and found.get("width", width) == width
        assert fgssl(verb, run, "--data", photos(), *options, "--pool", pool, "--json").json() == found


def test_any_encoder_can_take_a_second_look(tmp_path: Path) -> None:
    timm = f"timm:local-dir:{finished_run()[0] / 'timm'}"
    for encoder in (str(plain_run()), timm):
        options = ("--data", photos(), "--pool", "zoom", "--output", tmp_path / "features", "--json")
        found = fgssl("embed", encoder, *options).json()
        assert (found["pool"], found["width"], found["images"]) == ("zoom", 2 * C, 12)
        assert fgssl("retrieve", encoder, "--data", photos(), "--pool", "zoom", "--json").json()["pool"] == "zoom"


def test_the_probe_on_crops_takes_crops_of_the_larger_size() -> None:
    with embedded() as seen:
        found = fgssl("probe", finished_run()[0], "--protocol", "sgd", "--epochs", "2", "--json").json()
    assert (found["pool"], found["labels"]) == ("zoom", 24)
    assert {(pools, side) for pools, _, side in seen} == {(("zoom",), LARGE)}
    assert sum(count for _, count, _ in seen) == 24 + 12 + 2 * 24  # both splits, and two epochs of crops


def test_stats_of_two_views_are_of_the_larger_size(tmp_path: Path) -> None:
    with embedded() as seen:
        assert fgssl("embed", finished_run()[0], "--stats", "--output", tmp_path / "features").code == 0
    assert {(pools, side) for pools, _, side in seen} == {(("zoom",), LARGE)}
    assert sum(count for _, count, _ in seen) == 12 + 2 * 12  # the split, and two views of it


@pytest.mark.parametrize("run", ["rationale", "plain"])
def test_a_copy_of_the_query_scores_one(run: str, tmp_path: Path) -> None:
    picture = next(iter(sorted((photos() / "test" / "class 1").iterdir())))
    gallery = Path(shutil.copytree(flat_photos(), tmp_path / "gallery"))
    shutil.copy(picture, gallery / f"copy{picture.suffix}")
    encoder = finished_run()[0] if run == "rationale" else plain_run()
    options = ("--query", picture, "--gallery", gallery, "--pool", "zoom", "--json")
    for _ in range(2):  # embedded, then from the kept gallery
        found = fgssl("retrieve", encoder, *options).json()
        best, second = found["queries"][0]["hits"][:2]
        assert found["pool"] == "zoom" and best["path"] == str(gallery / f"copy{picture.suffix}")
        assert best["score"] == pytest.approx(1, abs=1e-4) and second["score"] < best["score"]


def test_crops_lie_where_most_of_the_map_is_and_anywhere_where_it_is_flat() -> None:
    maps = torch.full((4, 8, 8), 1 / 64)
    maps[0, 1:3, 5:7] = 1.0
    maps[1] *= 1 + 0.25 * torch.rand(8, 8)  # its highest place is 1.25 times an even one
    maps[2] = 0
    windows = crop_windows(maps, 0.5)
    assert torch.isnan(windows).all(1).tolist() == [False, True, True, True]
    row, column, side = windows[0].tolist()
    assert side == 0.5
    for middle, ends in ((row, (1 / 8, 3 / 8)), (column, (5 / 8, 7 / 8))):
        assert middle - side / 2 <= ends[0] + 0.02 and ends[1] - 0.02 <= middle + side / 2
