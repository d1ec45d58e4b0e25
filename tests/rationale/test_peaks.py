"""Several windows of a map: blobs whose place and size are known, and embeddings that are put together by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from running import finished_run, plain_run
from torch import Tensor
from torch.nn import functional

from fgssl.encoder import Encoder
from fgssl.errors import FgsslError
from fgssl.rationale import LEAST_SHARE, Peaks, cut_windows, find_peaks, look_again, part_features
from fgssl.rationale.peaks import MOST_PARTS, SPREADS, blob_windows, highest_place, moved_windows
from fgssl.runs.encoder_file import load_encoder


def blobs(*each: tuple[float, float, float, float], side: int = 40) -> Tensor:
    """(1, side, side) summing to 1: Gaussians of (row, column, deviation, height)."""
    places = (torch.arange(side) + 0.5) / side
    drawn = torch.zeros(side, side)
    for row, column, deviation, height in each:
        down, across = (torch.exp(-((places - c) ** 2) / (2 * deviation**2)) for c in (row, column))
        drawn += height * down[:, None] * across
    return (drawn / drawn.sum())[None]


@pytest.mark.parametrize(("row", "column", "deviation"), [(0.5, 0.5, 0.12), (0.4, 0.6, 0.11), (0.6, 0.45, 0.15)])
def test_a_blob_is_found_with_its_size(row: float, column: float, deviation: float) -> None:
    found = blob_windows(blobs((row, column, deviation, 1)), torch.tensor([[0.5, 0.5]]), least=0.0)[0]
    assert found[2] == pytest.approx(SPREADS * deviation, rel=0.08)
    half = float(found[2]) / 2
    expected = [min(max(c, half), 1 - half) for c in (row, column)]
    torch.testing.assert_close(found[:2], torch.tensor(expected), rtol=0, atol=0.02)


def usual(count: int) -> torch.Tensor:
    """The window of a flat map."""
    return torch.tensor([[0.5, 0.4, 0.45]]).expand(count, -1)


def test_two_objects_are_two_windows_and_a_weak_one_is_none() -> None:
    both = blobs((0.25, 0.25, 0.05, 1), (0.75, 0.7, 0.05, 0.8))
    one = blobs((0.25, 0.25, 0.05, 1), (0.75, 0.7, 0.05, 0.3))
    found = find_peaks(torch.cat([both, one]), usual(2))
    assert found.present.tolist() == [[True, True, False], [True, False, False]]
    torch.testing.assert_close(found.windows[0, :2, :2], torch.tensor([[0.25, 0.25], [0.75, 0.7]]), rtol=0, atol=0.03)
    assert (found.windows[..., 2] >= LEAST_SHARE).all() and found.windows.shape == (2, MOST_PARTS, 3)
    alone = find_peaks(both, usual(1))
    torch.testing.assert_close(alone.windows[0], found.windows[0])  # whatever lies beside it


def test_a_flat_map_has_the_window_of_zoom() -> None:
    for flat in (1 / 36, 0.0):  # and one in which nothing is found
        found = find_peaks(torch.full((3, 6, 6), flat), usual(3))
        assert found.present.tolist() == [[True, False, False]] * 3
        assert found.windows[:, 0].equal(usual(3))


def test_windows_stay_inside() -> None:
    maps = torch.rand(50, 5, 7, generator=torch.Generator().manual_seed(0)) ** 4
    maps = maps / maps.sum((1, 2), keepdim=True)
    row, column, side = find_peaks(maps, usual(50)).windows.unbind(2)
    for middle in (row, column):
        assert (middle - side / 2 >= -1e-6).all() and (middle + side / 2 <= 1 + 1e-6).all()


def test_a_window_within_a_window_by_hand() -> None:
    moved = moved_windows(
        torch.tensor([[0.5, 0.5, 0.8], [0.3, 0.3, 0.6]]), torch.tensor([[0.25, 0.75, 0.5], [0.0, 0.5, 2]])
    )
    torch.testing.assert_close(moved, torch.tensor([[0.3, 0.7, 0.4], [0.5, 0.5, 1.0]]), rtol=0, atol=1e-6)


def test_looking_again_finds_what_the_first_window_only_touches() -> None:
    """The map of what a window shows of a bright square: two rounds bring the square into the middle."""
    picture = torch.zeros(1, 3, 100, 100)
    picture[:, :, 15:35, 60:80] = 255

    def attend(images: Tensor, windows: Tensor) -> Tensor:
        seen = cut_windows(images, windows[:, :2], 40, sides=windows[:, 2])[:, 0]
        return seen / seen.sum((1, 2), keepdim=True).clamp(min=1e-6)

    begun = torch.tensor([[0.5, 0.5, 0.6]])
    found = look_again(attend, picture, begun)[0]
    assert (found[:2] - torch.tensor([0.25, 0.7])).abs().max() < 0.06 and found[2] == pytest.approx(
        LEAST_SHARE, abs=0.02
    )
    assert (begun[0, :2] - torch.tensor([0.25, 0.7])).abs().max() > 0.2


def test_parts_are_seen_each_by_itself() -> None:
    images = torch.arange(3.0)[:, None, None, None].expand(3, 3, 4, 4)
    windows = torch.arange(27.0).view(3, 3, 3)
    present = torch.tensor([[True, False, True], [True, True, False], [True, False, False]])

    def see(images: Tensor, windows: Tensor) -> Tensor:
        return torch.cat([images[:, 0, 0, :1], windows], 1)

    found = part_features(see, images, Peaks(windows, present))
    for row, part in itertools.product(range(3), range(3)):
        expected = torch.cat([torch.tensor([float(row)]), windows[row, part]]) if present[row, part] else torch.zeros(4)
        torch.testing.assert_close(found[row, part], expected)


# ---- the embeddings


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """With a sharpened map, as a few steps leave it nearly flat."""
    encoder = load_encoder(str(finished_run()[0])).eval()
    assert encoder.rationale is not None
    encoder.rationale.register_forward_hook(lambda head, given, maps: (maps / maps.amax((1, 2), keepdim=True)).pow(60))
    return encoder


@pytest.mark.parametrize("pool", ["parts", "zoom:again"])
def test_no_picture_depends_on_those_beside_it(encoder: Encoder, pool: str) -> None:
    size = encoder.view_size("parts")
    images = torch.randint(0, 256, (5, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.no_grad():
        together = encoder(images, pool)
        alone = torch.cat([encoder(image[None], pool) for image in images])
    # a window that moves by the map of what it shows makes more of the last bit
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 if pool == "parts" else 1e-3)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(5))


def test_parts_are_joined_by_their_mean(encoder: Encoder) -> None:
    size = encoder.view_size("parts")
    images = torch.randint(0, 256, (4, 3, size, size), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    with torch.no_grad():
        found = encoder(images, "parts")
        whole = functional.interpolate(
            images.float(), [encoder.backbone.image_size] * 2, mode="bilinear", antialias=True
        )
        peaks = encoder.look_windows(images, encoder.maps(whole)[0], "parts")
        width = found.shape[1] // 3
        for row in range(4):
            seen = []
            for window, present in zip(peaks.windows[row], peaks.present[row], strict=True):
                if present:
                    cut = cut_windows(
                        images[row : row + 1], window[None, :2], encoder.backbone.image_size, sides=window[2:]
                    )
                    seen.append(functional.normalize(encoder.maps(cut)[0].mean((2, 3)), dim=1)[0])
            expected = functional.normalize(torch.stack(seen).mean(0), dim=0) / 1.5  # weights 1, 1/2, 1: their norm
            torch.testing.assert_close(found[row, 2 * width :], expected, rtol=0, atol=1e-5)


def test_parts_need_a_rationale() -> None:
    plain = load_encoder(str(plain_run()))
    for pool in ("parts", "zoom:again"):
        with pytest.raises(FgsslError, match="no rationale branch"):
            plain.require(pool)


def test_the_highest_place() -> None:
    maps = torch.zeros(2, 3, 4)
    maps[0, 2, 1] = maps[1, 0, 3] = 1
    torch.testing.assert_close(highest_place(maps), torch.tensor([[2.5 / 3, 1.5 / 4], [0.5 / 3, 3.5 / 4]]))
