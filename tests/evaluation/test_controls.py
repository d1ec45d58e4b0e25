"""Windows that no map has chosen: their places by hand, and the embeddings with them against cuts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import ArrayImages, make_picture
from PIL import Image
from running import fgssl, finished_run, photos, plain_run
from torch.nn import functional

from fgssl.data.demo.demo_set import DemoSet
from fgssl.data.images import Masks
from fgssl.encoder import CONTROLS, Encoder
from fgssl.errors import FgsslError
from fgssl.evaluation.controls import mask_window, random_window, seen_mask, told_windows
from fgssl.evaluation.embed import embed
from fgssl.rationale import cut_windows
from fgssl.runs.encoder_file import load_encoder
from fgssl.views import EvaluationView


class Squares(ArrayImages):
    """Pictures with a mask each: a square of a quarter of the side at (row, column), in eighths."""

    def __init__(self, places: list[tuple[int, int]]) -> None:
        super().__init__([make_picture(seed, 128, 128) for seed in range(len(places))])
        self.places = places

    def has_mask(self, index: int) -> bool:
        return True

    def masks(self, index: int) -> Masks:
        mask, (row, column) = np.zeros((128, 128), bool), self.places[index]
        mask[16 * row : 16 * row + 32, 16 * column : 16 * column + 32] = True
        return Masks(mask)


@pytest.fixture(scope="module")
def plain() -> Encoder:
    return load_encoder(str(plain_run())).eval()


def test_the_window_of_a_mask_by_hand() -> None:
    mask = np.zeros((100, 100), bool)
    mask[40:60, 10:30] = True
    np.testing.assert_allclose(mask_window(mask), [0.5, 0.2, 0.23], atol=1e-6)
    mask[40:60, 0:40] = True  # the longer side counts, and the window stays in the picture
    np.testing.assert_allclose(mask_window(mask), [0.5, 0.23, 0.46], atol=1e-6)
    mask[:] = False
    mask[5, 95] = True  # never smaller than LEAST
    np.testing.assert_allclose(mask_window(mask), [0.1, 0.9, 0.2], atol=1e-6)
    for nothing in (None, np.zeros((4, 4), bool), np.ones((4, 4), bool)):
        assert mask_window(nothing).tolist() == [0.5, 0.5, 1.0]


def test_a_random_window_is_by_row_and_inside() -> None:
    windows = torch.stack([random_window(row, 0.4) for row in range(300)])
    assert torch.equal(windows[7], random_window(7, 0.4)) and not torch.equal(windows[7], windows[8])
    assert windows[:, :2].min() >= 0.2 and windows[:, :2].max() <= 0.8
    assert (windows[:, :2].mean(0) - 0.5).abs().max() < 0.05 and (windows[:, :2].std(0) > 0.15).all()  # uniform: 0.17


def test_a_mask_is_seen_as_the_picture_is() -> None:
    """A mask drawn as a white picture through the same view."""
    mask = DemoSet("test").masks(3).object
    view = EvaluationView(64, 0.875, "bilinear")
    drawn = np.asarray(view(Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")))[..., 0]
    assert np.abs(seen_mask(mask, view, 64).mean() - (drawn > 127).mean()) < 0.02


def test_windows_of_their_own_sides_are_resized() -> None:
    """Of a ramp, the window's first and last pixel tell its ends; a larger one skips no pixel."""
    side, size = 120, 30
    ramp = torch.arange(side).float().expand(2, 3, side, side) + 0.5
    cut = cut_windows(ramp, torch.tensor([[0.5, 0.5], [0.5, 0.7]]), size, sides=torch.tensor([1.0, 0.4]))
    assert cut.shape == (2, 3, size, size)
    steps = (torch.arange(size) + 0.5) / size
    np.testing.assert_allclose(cut[0, 0, 3], side * steps, atol=1e-3)
    np.testing.assert_allclose(cut[1, 1, 9], side * (0.5 + 0.4 * steps), atol=1e-3)
    checks = (torch.arange(side) % 2).float().expand(1, 3, side, side)
    flat = cut_windows(checks, torch.tensor([[0.5, 0.5]]), size, sides=torch.tensor([1.0]))
    np.testing.assert_allclose(flat, 0.5, atol=1e-5)


def test_without_sides_a_pixel_is_a_pixel() -> None:
    images = torch.arange(40).float().expand(2, 3, 40, 40) ** 1.0 + torch.arange(40).float()[:, None]
    centres = torch.tensor([[0.4, 0.5], [0.35, 0.6]])
    told = cut_windows(images, centres, 20, sides=torch.full((2,), 0.5))
    torch.testing.assert_close(told, cut_windows(images, centres, 20), rtol=0, atol=1e-5)


def test_the_mask_is_where_the_look_is(plain: Encoder) -> None:
    """The embedding beside one of the square cut by slices and resized by hand."""
    images = Squares([(0, 0), (2, 4), (6, 6)])
    found = embed(plain, images, pools=("zoom:mask",), cache="off", workers=0)["zoom:mask"].features
    side = plain.view_size("zoom:mask")
    view = plain.view("zoom:mask")
    assert side == round(plain.backbone.image_size / 0.4)
    windows = told_windows(plain, images, "zoom:mask", plain.view())
    assert windows is not None
    crop = view.crop_pct
    for row, (top, left) in enumerate(images.places):
        middle = [((8 * place + 8) / 64 - (1 - crop) / 2) / crop for place in (top, left)]
        told = windows([row])[0]
        if row == 1:
            np.testing.assert_allclose(told[:2], middle, atol=0.01)
            np.testing.assert_allclose(told[2], 1.15 * 0.25 / crop, atol=0.02)
        picture = torch.from_numpy(np.array(view(images.load(row)))).permute(2, 0, 1)[None]
        with torch.no_grad():
            window = plain.maps(cut_windows(picture, told[None, :2], plain.backbone.image_size, sides=told[None, 2]))
            own = functional.normalize(window[0].mean((2, 3)), dim=1)[0] / 2**0.5
        torch.testing.assert_close(found[row, len(own) :], own, rtol=0, atol=1e-5)


def test_the_middle_is_zoom_without_a_rationale(plain: Encoder) -> None:
    images = Squares([(1, 1), (4, 2)])
    found = embed(plain, images, pools=("zoom", "zoom:middle", "gap"), cache="off", workers=0)
    torch.testing.assert_close(found["zoom"].features, found["zoom:middle"].features)
    assert list(found) == ["zoom", "zoom:middle", "gap"]


def test_what_has_no_masks_is_named(plain: Encoder) -> None:
    with pytest.raises(FgsslError, match="has no masks"):
        embed(plain, ArrayImages([make_picture(0, 64, 64)]), pools=("gap", "zoom:mask"), cache="off", workers=0)
    with pytest.raises(FgsslError, match="control"):
        plain(torch.zeros(1, 3, *[plain.view_size("zoom:mask")] * 2, dtype=torch.uint8), "zoom:mask")


def test_a_table_has_the_controls_beside_zoom() -> None:
    """On the demo, which knows its masks; here of a run with a rationale, whose zoom is not the middle."""
    run, pools = finished_run()[0], ("gap", "zoom:middle", "zoom:random", "zoom")
    rows = fgssl("compare", run, "--data", photos(), "--pool", ",".join(pools), "--json").json()["rows"]
    assert {row["pool"] for row in rows} == set(pools)
    refused = fgssl("retrieve", run, "--data", photos(), "--pool", "zoom:mask")
    assert refused.code == 1 and "--masks" in refused.err
    search = fgssl(
        "retrieve", run, "--data", photos(), "--pool", "zoom:random", "--query", next(photos().rglob("*.*g"))
    )
    assert search.code == 1 and "control" in search.err
    assert set(CONTROLS) >= {"zoom:middle", "zoom:random"}


def test_a_shift_at_evaluation() -> None:
    """Other pictures, other numbers; and an unknown one is a usage error."""
    run = plain_run()
    centred, shifted = (
        fgssl("retrieve", run, "--data", photos(), "--pool", "gap", *more, "--json").json()
        for more in ((), ("--shift", "crop"))
    )
    assert centred["queries"] == shifted["queries"] and centred["mAP"] != shifted["mAP"]
    assert fgssl("retrieve", run, "--data", photos(), "--shift", "left").code == 2
