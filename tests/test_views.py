"""Views against torchvision: the same pixels for the same parameters, the same distributions of parameters."""

from __future__ import annotations

import colorsys
import itertools

import numpy as np
import pytest
import torch
from conftest import make_picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torchvision import transforms as v1
from torchvision.transforms.v2 import functional as tv

from fgssl.config import VIEW_PRESETS, ViewsConfig
from fgssl.resolve import load_config
from fgssl.views import (
    EvaluationView,
    View,
    apply_view,
    blur,
    blur_radius,
    draw_view,
    resize_short_side,
    shift_hue,
)

DRAWS = 3000
HEIGHT, WIDTH, SIZE = 150, 200, 64


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(3, H, W) uint8 noise: the hardest case for rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(3, H, W) uint8, smooth."""
    return torch.from_numpy(np.array(make_picture(seed, width, height))).permute(2, 0, 1).contiguous()


def difference(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Absolute difference in levels."""
    assert first.shape == second.shape and first.dtype == second.dtype == torch.uint8
    return (first.int() - second.int()).abs()


# ---- single operations


@pytest.mark.parametrize("turns", [-0.5, -0.31, -0.1, 0.0, 0.013, 0.1, 0.25, 1 / 3, 0.5])
def test_hue_is_torchvisions(turns):
    """At most one level apart (torchvision cuts off where this rounds)."""
    image = noise(96, 96)
    assert difference(shift_hue(image, turns), tv.adjust_hue(image, turns)).max() <= 1


@pytest.mark.parametrize("turns", [-0.27, 0.05, 0.1, 0.5])
def test_hue_is_the_textbooks_in_double_precision(turns):
    """The standard library's HSV pixel by pixel, rounded; greys, primaries and ties included."""
    corners = torch.tensor(list(itertools.product([0, 1, 127, 128, 255], repeat=3)), dtype=torch.uint8)  # (125, 3)
    image = torch.cat([corners, noise(1, 300)[:, 0].T]).T.reshape(3, 1, -1).contiguous()
    expected = []
    for pixel in image.reshape(3, -1).T.tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(*(v / 255 for v in pixel))
        expected.append([255 * v for v in colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)])
    error = shift_hue(image, turns).reshape(3, -1).T.double() - torch.tensor(expected, dtype=torch.float64)
    assert error.abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.5, 1.0, 2.0, 7.0, 60.0])
@pytest.mark.parametrize("size", [8, 33, 96])
def test_blur_is_torchvisions(sigma, size):
    """With torchvision's kernel made as wide as ours; reflecting borders, kernels wider than the image included."""
    image = noise(size, size)
    kernel = 2 * blur_radius(sigma, size) + 1
    expected = tv.gaussian_blur(image, [kernel, kernel], [sigma, sigma])
    assert difference(blur(image, sigma), expected).max() <= 1


def test_blur_keeps_constants_and_the_mean_level():
    flat = torch.full((3, 40, 40), 77, dtype=torch.uint8)
    assert torch.equal(blur(flat, 3.0), flat)
    image = picture(40, 40)
    assert blur(image, 1.5).float().mean() == pytest.approx(image.float().mean(), abs=1.0)


# ---- a whole view


def torchvision_view(image: torch.Tensor, view: View, size: int) -> torch.Tensor:
    """The same parameters through torchvision alone."""
    out = tv.crop(image, view.top, view.left, view.height, view.width)
    out = tv.resize(out, [size, size], antialias=True)
    if view.flip:
        out = tv.horizontal_flip(out)
    adjust = {
        "brightness": tv.adjust_brightness,
        "contrast": tv.adjust_contrast,
        "saturation": tv.adjust_saturation,
        "hue": tv.adjust_hue,
    }
    for name, value in view.colour:
        out = adjust[name](out, value)
    if view.grayscale:
        out = tv.to_grayscale(out, num_output_channels=3)
    if view.sigma > 0:
        kernel = 2 * blur_radius(view.sigma, size) + 1
        out = tv.gaussian_blur(out, [kernel, kernel], [view.sigma, view.sigma])
    return tv.solarize(out, 128) if view.solarize else out


def test_views_are_torchvisions_pixels():
    """Equal to torchvision without hue and blur; else within 3 levels (one of hue, amplified by contrast <= 1.4)."""
    views = ViewsConfig(blur=0.4, grayscale=0.3)
    rng, exact = np.random.default_rng(0), 0
    for seed in range(60):
        image = picture(HEIGHT, WIDTH, seed)
        view = draw_view(rng, views, height=HEIGHT, width=WIDTH, size=SIZE)
        off = difference(apply_view(image, view, SIZE), torchvision_view(image, view, SIZE))
        if view.colour or view.sigma > 0:
            assert off.max() <= 3 and off.float().mean() < 0.6
        else:
            exact += 1
            assert off.max() == 0
    assert exact > 3


@pytest.mark.parametrize("threshold_side", ["below", "above"])
def test_solarize_inverts_from_128_on(threshold_side):
    level = 127 if threshold_side == "below" else 128
    image = torch.full((3, 16, 16), level, dtype=torch.uint8)
    view = View(0, 0, 16, 16, False, (), False, 0.0, True)
    assert apply_view(image, view, 16).unique().tolist() == [level if level < 128 else 255 - level]


def test_the_whole_crop_at_the_same_size_is_the_image():
    image = noise(24, 24)
    view = View(0, 0, 24, 24, False, (), False, 0.0, False)
    assert torch.equal(apply_view(image, view, 24), image)
    assert torch.equal(apply_view(image, view._replace(flip=True), 24), image.flip(-1))


# ---- distributions


def drawn(views: ViewsConfig, height: int, width: int, count: int = DRAWS) -> list[View]:
    rng = np.random.default_rng(1)
    return [draw_view(rng, views, height=height, width=width, size=224) for _ in range(count)]


@pytest.mark.parametrize("height,width", [(150, 200), (64, 64), (60, 170)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.08, 1.0), (0.5, 0.6)])
def test_crops_are_distributed_as_random_resized_crops(height, width, scale):
    """Two-sample Kolmogorov-Smirnov on area, aspect and position; (60, 170) often takes the centred fallback."""
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    theirs = np.array(
        [v1.RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(DRAWS)], float
    )
    ours = np.array([v[:4] for v in drawn(ViewsConfig(crop_min=scale[0], crop_max=scale[1]), height, width)], float)
    for describe in (
        lambda c: c[:, 2] * c[:, 3],
        lambda c: c[:, 3] / c[:, 2],
        lambda c: c[:, 0],
        lambda c: c[:, 1],
        lambda c: c[:, 0] + c[:, 2],
        lambda c: c[:, 1] + c[:, 3],
    ):
        assert stats.ks_2samp(describe(ours), describe(theirs)).pvalue > 1e-3
    assert (ours[:, :2] >= 0).all() and (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


def test_jitter_is_distributed_as_color_jitter():
    torch.manual_seed(0)
    jitter = v1.ColorJitter(0.4, 0.3, 0.2, 0.1)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    theirs = [v1.ColorJitter.get_params(*ranges) for _ in range(DRAWS)]
    ours = drawn(ViewsConfig(jitter=1.0, brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1), 64, 64)
    names = ("brightness", "contrast", "saturation", "hue")
    for place, name in enumerate(names):
        sample = [dict(view.colour)[name] for view in ours]
        assert stats.ks_2samp(sample, [t[1 + place] for t in theirs]).pvalue > 1e-3
    orders = [tuple(name for name, _ in view.colour) for view in ours]
    counts = [orders.count(order) for order in itertools.permutations(names)]
    assert sum(counts) == DRAWS and stats.chisquare(counts).pvalue > 1e-3


def test_switches_come_at_their_rates_and_independently():
    views = ViewsConfig(flip=0.3, jitter=0.8, grayscale=0.2, blur=0.5, solarize=0.1)
    sample = drawn(views, 64, 64)
    table = np.array([[v.flip, bool(v.colour), v.grayscale, v.sigma > 0, v.solarize] for v in sample])
    for column, rate in zip(table.T, (0.3, 0.8, 0.2, 0.5, 0.1), strict=True):
        assert stats.binomtest(int(column.sum()), DRAWS, rate).pvalue > 1e-3
    correlation = np.corrcoef(table.T.astype(float)) - np.eye(5)
    assert np.abs(correlation).max() < 4 / DRAWS**0.5
    sigmas = [v.sigma for v in sample if v.sigma > 0]
    assert stats.kstest(sigmas, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


def test_blur_scales_with_the_view():
    pairs = [
        [
            draw_view(np.random.default_rng(s), ViewsConfig(blur=1.0), height=64, width=64, size=z).sigma
            for z in (224, 56)
        ]
        for s in range(20)
    ]
    assert all(small == pytest.approx(large / 4) for large, small in pairs)


def test_probabilities_zero_and_one_are_exact():
    never = ViewsConfig(flip=0, jitter=0, grayscale=0, blur=0, solarize=0)
    always = ViewsConfig(flip=1, jitter=1, grayscale=1, blur=1, solarize=1)
    for view in drawn(never, 50, 50, 300):
        assert view[4:] == (False, (), False, 0.0, False)
    for view in drawn(always, 50, 50, 300):
        assert view.flip and len(view.colour) == 4 and view.grayscale and view.sigma > 0 and view.solarize


@pytest.mark.parametrize("brightness", [1.0, 3.0])
def test_strong_jitter_has_no_negative_factors(brightness):
    factors = [dict(v.colour)["brightness"] for v in drawn(ViewsConfig(jitter=1, brightness=brightness), 9, 9, 300)]
    assert 0 <= min(factors) < 0.1 and max(factors) <= 1 + brightness


def test_a_draw_takes_as_much_randomness_whatever_is_drawn():
    """So that the second view of an image does not change when a probability or the image's size does."""
    states = []
    for views, side in ((ViewsConfig(), 64), (ViewsConfig(jitter=0, blur=0, crop_min=0.9), 999), (ViewsConfig(), 1)):
        rng = np.random.default_rng(7)
        draw_view(rng, views, height=side, width=2 * side, size=32)
        states.append(rng.bit_generator.state)
    assert states[0] == states[1] == states[2]


# ---- presets: what they promise


def test_the_default_is_the_papers_moco_v2():
    views = load_config().config.views
    assert (views.crop_min, views.crop_max, views.flip, views.jitter, views.grayscale) == (0.2, 1.0, 0.5, 0.8, 0.2)
    assert (views.brightness, views.contrast, views.saturation, views.hue) == (0.4, 0.4, 0.4, 0.1)
    assert (views.blur, views.blur_sigma_min, views.blur_sigma_max, views.solarize) == (0.5, 0.1, 2.0, 0.0)


def preset(name: str) -> ViewsConfig:
    return load_config(flags={"views.preset": name}).config.views


def test_colour_preset_keeps_the_colour():
    """No grey view, no hue operation, saturation within a tenth."""
    for view in drawn(preset("colour"), 64, 64, 500):
        colour = dict(view.colour)
        assert not view.grayscale and "hue" not in colour
        assert 0.9 <= colour.get("saturation", 1.0) <= 1.1


def test_geometric_preset_only_crops_and_flips():
    sample = drawn(preset("geometric"), 64, 64, 500)
    assert all(v.colour == () and not v.grayscale and v.sigma == 0 and not v.solarize for v in sample)
    assert {v.flip for v in sample} == {False, True} and len({v[:4] for v in sample}) > 400


def test_shape_preset_leaves_little_of_the_colour():
    """Every view is grey or of any hue: 3,000 draws cover the circle evenly."""
    sample = drawn(preset("shape"), 64, 64)
    hues = [dict(v.colour)["hue"] for v in sample]  # jitter always
    assert stats.kstest(hues, stats.uniform(-0.5, 1).cdf).pvalue > 1e-3
    assert stats.binomtest(sum(v.grayscale for v in sample), DRAWS, 0.4).pvalue > 1e-3


def test_every_preset_is_tested():
    assert set(VIEW_PRESETS) == {"mocov2", "colour", "shape", "geometric"}


# ---- extreme images


@pytest.mark.parametrize("height,width", [(1, 1), (1, 4000), (4000, 1), (2, 3), (1, 2)])
def test_extreme_images_make_views(height, width):
    image = noise(height, width)
    rng = np.random.default_rng(0)
    for _ in range(30):
        view = draw_view(rng, ViewsConfig(solarize=0.5), height=height, width=width, size=32)
        assert view.height >= 1 and view.width >= 1
        assert 0 <= view.top <= height - view.height and 0 <= view.left <= width - view.width
        out = apply_view(image, view, 32)
        assert out.shape == (3, 32, 32) and out.dtype == torch.uint8
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    for evaluation in (EvaluationView(32), EvaluationView(224, 0.95, "bicubic"), EvaluationView(17, 1.0, "lanczos")):
        assert evaluation(pil).size == (evaluation.size, evaluation.size)
    assert min(resize_short_side(pil, 16).size) >= 1


# ---- the evaluation view


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [256, 512, 1024, 128])
def test_evaluation_is_resize_and_centre_crop(name, side):
    """Square pictures, where torchvision's 256 / 224 needs no rounding: within one level."""
    pil = make_picture(3, side, side)
    mode = getattr(v1.InterpolationMode, name.upper())
    expected = v1.CenterCrop(224)(v1.Resize(256, mode)(pil))
    off = np.abs(np.asarray(EvaluationView(224, 224 / 256, name)(pil), int) - np.asarray(expected, int))
    assert off.max() <= 1


def test_evaluation_of_odd_shapes_is_near_resize_and_centre_crop():
    """Where torchvision rounds (to half a pixel of 256), a smooth picture differs by little."""
    for width, height in ((333, 500), (641, 427), (300, 301)):
        pil = make_picture(4, width, height).resize((width, height), reducing_gap=None)
        expected = v1.CenterCrop(224)(v1.Resize(256)(pil))
        off = np.abs(np.asarray(EvaluationView(224)(pil), int) - np.asarray(expected, int))
        assert off.mean() < 2


@pytest.mark.parametrize("width,height", [(100, 100), (101, 77), (64, 99), (50, 333)])
def test_evaluation_is_centred(width, height):
    """A mirrored picture gives the mirrored view: nothing shifts, not even by half a pixel."""
    pil = make_picture(5, width, height)
    for flip in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
        first = np.asarray(EvaluationView(32)(pil.transpose(flip)), int)
        second = np.asarray(EvaluationView(32)(pil).transpose(flip), int)
        assert np.abs(first - second).max() <= 1


def test_evaluation_of_the_whole_square():
    pil = make_picture(6, 48, 48)
    assert np.array_equal(np.asarray(EvaluationView(48, 1.0)(pil)), np.asarray(pil))
    assert np.array_equal(np.asarray(EvaluationView(48, 5.0)(pil)), np.asarray(pil))  # never beyond the picture


# ---- shrinking


@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 150))
def test_shrinking_keeps_the_short_side_and_the_shape(width, height, side):
    """Short side exactly `side`, never enlarged; aspect ratio kept within rounding up to 8 : 1."""
    out = resize_short_side(Image.new("RGB", (width, height)), side)
    assert min(out.size) == min(side, width, height)
    if side >= min(width, height):
        assert out.size == (width, height)
    else:
        assert (out.width <= out.height) == (width <= height) or out.width == out.height
        long_side = side * max(width, height) / min(width, height)
        assert abs(max(out.size) - min(long_side, 8 * side)) <= 0.5 + 1e-9


def test_shrinking_is_a_resize():
    pil = make_picture(7, 300, 200)
    expected = pil.resize((150, 100), Image.Resampling.BILINEAR)
    off = np.abs(np.asarray(resize_short_side(pil, 100), int) - np.asarray(expected, int))
    assert off.max() <= 3  # reducing_gap trades a little precision for speed
