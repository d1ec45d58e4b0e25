"""Views against torchvision: the same pixels for the same parameters, the same distributions of parameters."""

from __future__ import annotations

import colorsys
import dataclasses
import functools
import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import make_picture
from PIL import Image
from scipy import stats
from timm.data import create_transform
from torchvision import transforms as v1
from torchvision.transforms.v2 import functional as tv

from fgssl.config.defaults import VIEW_PRESETS
from fgssl.config.resolve import load_config
from fgssl.config.schema import ViewsConfig
from fgssl.views import DRAWS as NUMBERS
from fgssl.views import EvaluationView, Views, draw_views, make_views, resize_short_side
from fgssl.views import device as colours
from fgssl.views.cpu import Painter
from fgssl.views.device import LEAST_SIGMA, blur_radius, pack_views, resize_matrix
from fgssl.views.draw import ORDERS

DRAWS = 3000
HEIGHT, WIDTH, SIZE = 150, 200, 64

# the paper's: every operation of the jitter takes part
paper = functools.partial(ViewsConfig, saturation=0.4, hue=0.1, grayscale=0.2)


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


class View(NamedTuple):
    """One view in words."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    colour: tuple[tuple[str, float], ...]  # jitter operations in the order they are applied
    grayscale: bool
    sigma: float
    solarize: bool


NAMES = ("brightness", "contrast", "saturation", "hue")


def in_words(views: Views) -> list[View]:
    """Each row of the parameters; operations of strength 0 are left out, as torchvision leaves them out."""
    found = []
    for row in range(len(views.flip)):
        order, factors = int(views.order[row]), views.factors[row].tolist()
        neutral = (1.0, 1.0, 1.0, 0.0)
        steps = [o for o in (ORDERS[order] if order >= 0 else ()) if factors[o] != neutral[o]]
        found.append(
            View(
                *views.box[row].tolist(), bool(views.flip[row]), tuple((NAMES[o], factors[o]) for o in steps),
                bool(views.grayscale[row]), float(views.sigma[row]), bool(views.solarize[row]),
            )
        )  # fmt: skip
    return found


def draw_many(views: ViewsConfig, height: int, width: int, size: int, count: int, seed: int = 0) -> Views:
    randoms = np.random.default_rng(seed).random((count, NUMBERS))
    return draw_views(randoms, views, heights=np.full(count, height), widths=np.full(count, width), size=size)


def one_view(box: tuple[int, int, int, int], *, flip: bool = False, solarize: bool = False) -> Views:
    """Parameters of a single view without jitter."""
    no = np.array([False])
    return Views(
        np.array([box]), np.array([flip]), np.array([-1]), np.ones((1, 4), np.float32), no,
        np.zeros(1, np.float32), np.array([solarize]), np.zeros((1, 4), np.int64),
    )  # fmt: skip


def on_cpu(image: torch.Tensor, views: Views, size: int) -> torch.Tensor:
    """Views of one (3, H, W) picture."""
    return make_views([image.permute(1, 2, 0).numpy()] * len(views.flip), views, size)


def on_device(image: torch.Tensor, views: Views, size: int) -> torch.Tensor:
    """The same by the batched path that a GPU takes."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    packed = pack_views([pixels], np.zeros(len(views.flip), np.int64), views, size)
    return packed.make(torch.device("cpu"))


def batched_hue(image: torch.Tensor, turns: float) -> torch.Tensor:
    """(3, S, S) uint8 by the operation of the device."""
    levels = image[None].float()
    colours.shift_hue(levels, torch.full((1, 1, 1, 1), turns))
    return levels[0].round().to(torch.uint8)


def painted_hue(image: torch.Tensor, turns: float) -> torch.Tensor:
    """The same by the CPU's."""
    return torch.from_numpy(Painter(image.shape[-1]).shifted_hue(image.float().numpy(), turns)).round().to(torch.uint8)


def batched_blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    radius = blur_radius(sigma, image.shape[-1])
    return colours.blurred(image[None].float(), torch.tensor([sigma]), radius)[0].round().clamp(0, 255).to(torch.uint8)


def painted_blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    found = np.rint(Painter(image.shape[-1]).blurred(image.float().numpy(), sigma))
    return torch.from_numpy(found).clamp(0, 255).to(torch.uint8)


HUES = pytest.mark.parametrize("shift_hue", [batched_hue, painted_hue])
BLURS = pytest.mark.parametrize("blur", [batched_blur, painted_blur])


# ---- single operations


@HUES
@pytest.mark.parametrize("turns", [-0.5, -0.31, -0.1, 0.0, 0.013, 0.1, 0.25, 1 / 3, 0.5])
def test_hue_is_torchvisions(turns, shift_hue):
    """At most one level apart (torchvision cuts off where this rounds)."""
    image = noise(96, 96)
    assert difference(shift_hue(image, turns), tv.adjust_hue(image, turns)).max() <= 1


@HUES
@pytest.mark.parametrize("turns", [-0.5, -0.45, -0.27, -0.15, -0.02, 0.0, 0.05, 1 / 12, 0.1, 1 / 6, 0.22, 0.35, 0.5])
def test_hue_is_the_textbooks_in_double_precision(turns, shift_hue):
    """The standard library's HSV pixel by pixel, rounded; greys, primaries and ties included."""
    corners = torch.tensor(list(itertools.product([0, 1, 127, 128, 255], repeat=3)), dtype=torch.uint8)  # (125, 3)
    image = torch.cat([corners, noise(1, 316)[:, 0].T]).T.reshape(3, 21, 21).contiguous()
    expected = []
    for pixel in image.reshape(3, -1).T.tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(*(v / 255 for v in pixel))
        expected.append([255 * v for v in colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)])
    error = shift_hue(image, turns).reshape(3, -1).T.double() - torch.tensor(expected, dtype=torch.float64)
    assert error.abs().max() <= 0.5 + 1e-3


@BLURS
@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.5, 1.0, 2.0, 7.0, 60.0])
@pytest.mark.parametrize("size", [8, 33, 96])
def test_blur_is_torchvisions(sigma, size, blur):
    """With torchvision's kernel made as wide as ours; reflecting borders, kernels wider than the image included."""
    image = noise(size, size)
    kernel = 2 * blur_radius(sigma, size) + 1
    expected = tv.gaussian_blur(image, [kernel, kernel], [sigma, sigma])
    assert difference(blur(image, sigma), expected).max() <= 1


@BLURS
def test_blur_keeps_constants_and_the_mean_level(blur):
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


BOTH = pytest.mark.parametrize("make", [on_cpu, on_device])


@BOTH
def test_views_are_torchvisions_pixels(make):
    """Crop, flip, grey and blur within 2 levels. With jitter at most 8: torchvision cuts off after each of four
    operations, which later ones amplify by up to 1.4 each; the mean stays below 2.5 levels."""
    off_mean, plain = [], 0
    for seed in range(12):
        image = picture(HEIGHT, WIDTH, seed)
        views = draw_many(paper(blur=0.4, grayscale=0.3, solarize=0.0), HEIGHT, WIDTH, SIZE, 10, seed)
        made = make(image, views, SIZE)
        for view, result in zip(in_words(views), made, strict=True):
            off = difference(result, torchvision_view(image, view, SIZE))
            off_mean.append(off.float().mean())
            plain += not view.colour
            assert off.max() <= (8 if view.colour else 2), view
    assert plain > 5 and np.mean(off_mean) < 1.5 and max(off_mean) < 2.5


def test_both_paths_make_the_same_views():
    """Of pictures of different sizes in one batch: they differ by the rounding of the resize, amplified by contrast."""
    sides = enumerate([(60, 90), (70, 40), (33, 33)])
    pictures = [picture(h, w, seed).permute(1, 2, 0).contiguous().numpy() for seed, (h, w) in sides]
    sources = np.arange(60) % 3
    heights, widths = np.array([p.shape[:2] for p in pictures]).T[:, sources]
    randoms = np.random.default_rng(3).random((60, NUMBERS))
    views = draw_views(randoms, paper(solarize=0.2), heights=heights, widths=widths, size=32)
    cpu = make_views([pictures[s] for s in sources], views, 32).int()
    device = pack_views(pictures, sources, views, 32).make(torch.device("cpu")).int()
    off = (cpu - device).abs().flatten(1)[~views.solarize]  # at the threshold one level becomes many
    assert off.max() <= 4 and off.float().mean() < 0.5
    assert (cpu - device).abs().float().mean() < 1.0


def test_a_view_does_not_depend_on_those_beside_it():
    """Bit for bit: batches are cut differently by different numbers of processes."""
    image = noise(50, 40)
    views = draw_many(paper(solarize=0.3), 50, 40, 32, 40)
    together = on_cpu(image, views, 32)
    for row in range(40):
        assert torch.equal(on_cpu(image, views.take(np.array([row])), 32)[0], together[row])


def test_floats_are_the_levels_of_bytes():
    image, views = noise(50, 40), draw_many(paper(), 50, 40, 32, 20)
    pixels = [image.permute(1, 2, 0).numpy()] * 20
    assert torch.equal(make_views(pixels, views, 32, dtype=torch.float32), make_views(pixels, views, 32).float())


@pytest.mark.parametrize("length,size", [(5, 8), (8, 8), (33, 8), (97, 32), (20, 32)])
def test_resize_matrix_is_torchs_kernel(length, size):
    """The weights, by resizing unit vectors in floating point."""
    longest = length + 3  # beyond the axis: zeros
    unit = torch.eye(length)[:, None, None]  # (length, 1, 1, length)
    expected = torch.nn.functional.interpolate(unit, (1, size), mode="bilinear", antialias=True)[:, 0, 0].T
    matrix = resize_matrix(torch.tensor([length]), longest, size)[0]
    assert torch.allclose(matrix[:, :length], expected, atol=1e-5) and (matrix[:, length:] == 0).all()


@BLURS
def test_a_blur_left_out_changes_nothing(blur):
    """Below LEAST_SIGMA no level of any image would change: checked on the hardest, a checkerboard."""
    board = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).mul(255).to(torch.uint8).expand(3, 16, 16)
    assert torch.equal(blur(board, LEAST_SIGMA), board)


@BOTH
@pytest.mark.parametrize("threshold_side", ["below", "above"])
def test_solarize_inverts_from_128_on(threshold_side, make):
    level = 127 if threshold_side == "below" else 128
    image = torch.full((3, 16, 16), level, dtype=torch.uint8)
    made = make(image, one_view((0, 0, 16, 16), solarize=True), 16)
    assert made.unique().tolist() == [level if level < 128 else 255 - level]


@BOTH
def test_the_whole_crop_at_the_same_size_is_the_image(make):
    image = noise(24, 24)
    assert torch.equal(make(image, one_view((0, 0, 24, 24)), 24)[0], image)
    assert torch.equal(make(image, one_view((0, 0, 24, 24), flip=True), 24)[0], image.flip(-1))


# ---- distributions


def drawn(views: ViewsConfig, height: int, width: int, count: int = DRAWS) -> list[View]:
    return in_words(draw_many(views, height, width, 224, count, seed=1))


@pytest.mark.parametrize("height,width", [(150, 200), (64, 64), (60, 170)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.08, 1.0), (0.5, 0.6)])
def test_crops_are_distributed_as_random_resized_crops(height, width, scale):
    """Two-sample Kolmogorov-Smirnov on area, aspect and position; (60, 170) often takes the centred fallback."""
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    theirs = np.array(
        [v1.RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(DRAWS)], float
    )
    ours = np.array([v[:4] for v in drawn(paper(crop_min=scale[0], crop_max=scale[1]), height, width)], float)
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
    ours = drawn(paper(jitter=1.0, brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1), 64, 64)
    names = ("brightness", "contrast", "saturation", "hue")
    for place, name in enumerate(names):
        sample = [dict(view.colour)[name] for view in ours]
        assert stats.ks_2samp(sample, [t[1 + place] for t in theirs]).pvalue > 1e-3
    orders = [tuple(name for name, _ in view.colour) for view in ours]
    counts = [orders.count(order) for order in itertools.permutations(names)]
    assert sum(counts) == DRAWS and stats.chisquare(counts).pvalue > 1e-3


def test_switches_come_at_their_rates_and_independently():
    views = paper(flip=0.3, jitter=0.8, grayscale=0.2, blur=0.5, solarize=0.1)
    sample = drawn(views, 64, 64)
    table = np.array([[v.flip, bool(v.colour), v.grayscale, v.sigma > 0, v.solarize] for v in sample])
    for column, rate in zip(table.T, (0.3, 0.8, 0.2, 0.5, 0.1), strict=True):
        assert stats.binomtest(int(column.sum()), DRAWS, rate).pvalue > 1e-3
    correlation = np.corrcoef(table.T.astype(float)) - np.eye(5)
    assert np.abs(correlation).max() < 4 / DRAWS**0.5
    sigmas = [v.sigma for v in sample if v.sigma > 0]
    assert stats.kstest(sigmas, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


def test_blur_scales_with_the_view():
    large, small = (draw_many(paper(blur=1.0), 64, 64, size, 20).sigma for size in (224, 56))
    assert small == pytest.approx(large / 4)


def test_probabilities_zero_and_one_are_exact():
    never = paper(flip=0, jitter=0, grayscale=0, blur=0, solarize=0)
    always = paper(flip=1, jitter=1, grayscale=1, blur=1, solarize=1)
    for view in drawn(never, 50, 50, 300):
        assert view[4:] == (False, (), False, 0.0, False)
    for view in drawn(always, 50, 50, 300):
        assert view.flip and len(view.colour) == 4 and view.grayscale and view.sigma > 0 and view.solarize


@pytest.mark.parametrize("brightness", [1.0, 3.0])
def test_strong_jitter_has_no_negative_factors(brightness):
    factors = [dict(v.colour)["brightness"] for v in drawn(paper(jitter=1, brightness=brightness), 9, 9, 300)]
    assert 0 <= min(factors) < 0.1 and max(factors) <= 1 + brightness


def test_what_is_drawn_depends_on_its_own_numbers_alone():
    """A switch or the image's size changes nothing else of a view, and other rows change nothing."""
    first = draw_many(paper(), 64, 128, 32, 50)
    other = draw_many(paper(jitter=1.0, blur=0.0), 999, 30, 32, 50)
    assert (first.flip == other.flip).all() and (first.factors == other.factors).all()
    assert (first.order == other.order)[first.order >= 0].all() and (first.grayscale == other.grayscale).all()
    alone = draw_many(paper(), 64, 128, 32, 1)
    assert all((a[0] == f[0]).all() for a, f in zip(alone, first, strict=True))


# ---- presets: what they promise


def test_mocov2_is_the_papers_and_the_default_where_colour_is_paint():
    views = preset("mocov2")
    for source in ("cars", "aircraft"):
        assert load_config(flags={"data.source": source}).config.views == views
    assert (views.crop_min, views.crop_max, views.flip, views.jitter, views.grayscale) == (0.2, 1.0, 0.5, 0.8, 0.2)
    assert (views.brightness, views.contrast, views.saturation, views.hue) == (0.4, 0.4, 0.4, 0.1)
    assert (views.blur, views.blur_sigma_min, views.blur_sigma_max, views.solarize) == (0.5, 0.1, 2.0, 0.0)


def preset(name: str) -> ViewsConfig:
    return load_config(flags={"data.source": "photos", "views.preset": name}).config.views


def test_the_default_keeps_colour_and_else_is_the_papers():
    views = load_config(flags={"data.source": "photos"}).config.views
    assert views == preset("colour") == ViewsConfig()
    kept = {"preset": "mocov2", "saturation": 0.4, "hue": 0.1, "grayscale": 0.2}
    assert dataclasses.replace(views, **kept) == preset("mocov2")


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
    views = draw_many(paper(solarize=0.5), height, width, 32, 30)
    for view in in_words(views):
        assert view.height >= 1 and view.width >= 1
        assert 0 <= view.top <= height - view.height and 0 <= view.left <= width - view.width
    for make in (on_cpu, on_device):
        out = make(image, views, 32)
        assert out.shape == (30, 3, 32, 32) and out.dtype == torch.uint8
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    for evaluation in (EvaluationView(32), EvaluationView(224, 0.95, "bicubic"), EvaluationView(17, 1.0, "lanczos")):
        assert evaluation(pil).size == (evaluation.size, evaluation.size)
    assert min(resize_short_side(pil, 16).size) >= 1


# ---- the evaluation view


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size,crop_pct", [(160, 0.95), (224, 0.875), (97, 1.0), (64, 0.9)])
def test_evaluation_is_timms_own_transform(size, crop_pct, interpolation):
    """Of shapes that leave nothing to round and of those that do: within one level, nearly everywhere the same."""
    options = {"input_size": (3, size, size), "crop_pct": crop_pct, "interpolation": interpolation}
    transform = create_transform(**options, normalize=False)
    for number, (width, height) in enumerate([(256, 256), (333, 500), (641, 427), (300, 301), (50, 333), (1, 40)]):
        pil = Image.fromarray(noise(height, width, number).permute(1, 2, 0).numpy())
        found = torch.from_numpy(np.array(EvaluationView(size, crop_pct, interpolation)(pil))).permute(2, 0, 1)
        off = difference(found, transform(pil))
        assert off.max() <= 1 and off.float().mean() < 0.01, (width, height)


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
        assert out.size == (min(width, 8 * side), min(height, 8 * side))
    else:
        assert (out.width <= out.height) == (width <= height) or out.width == out.height
        long_side = side * max(width, height) / min(width, height)
        assert abs(max(out.size) - min(long_side, 8 * side)) <= 0.5 + 1e-9


def test_shrinking_is_a_resize():
    pil = make_picture(7, 300, 200)
    expected = pil.resize((150, 100), Image.Resampling.BILINEAR)
    off = np.abs(np.asarray(resize_short_side(pil, 100), int) - np.asarray(expected, int))
    assert off.max() <= 3  # reducing_gap trades a little precision for speed


# ---- crops on a place


def pixel_choices(side: int, own: int, middle: float, extent: float) -> list[int]:
    """By a slow loop: where a crop may begin so that its middle lies in the window, else where it is nearest."""
    starts = range(side - own + 1)
    inside = [start for start in starts if abs((start + own / 2) / side - middle) <= extent / 2]
    return inside or [min(starts, key=lambda start: abs((start + own / 2) / side - middle))]


def test_crops_on_a_place_have_their_middle_there_evenly_and_differ_in_nothing_else() -> None:
    """Against a slow loop over all places; rows without a window are those of crops anywhere."""
    count, random = 400, np.random.default_rng(1)
    randoms, config = random.random((count, NUMBERS)), paper()
    windows = np.column_stack([random.uniform(0, 1, (count, 2)), random.uniform(0.1, 0.6, count)])
    windows[::4] = np.nan
    sizes = {"heights": np.full(count, HEIGHT), "widths": np.full(count, WIDTH), "size": SIZE}
    anywhere = draw_views(randoms, config, **sizes)
    placed = draw_views(randoms, config, **sizes, windows=windows)
    assert np.array_equal(anywhere.box[::4], placed.box[::4])
    assert np.array_equal(anywhere.box[:, 2:], placed.box[:, 2:])
    assert all(np.array_equal(one, other) for one, other in zip(anywhere[1:], placed[1:], strict=True))
    ranks = []
    for row in np.flatnonzero(np.arange(count) % 4):
        for axis, side in ((0, HEIGHT), (1, WIDTH)):
            choices = pixel_choices(side, placed.box[row, 2 + axis], windows[row, axis], windows[row, 2])
            ranks += [(choices.index(placed.box[row, axis]) + 0.5) / len(choices)] if len(choices) > 20 else []
            assert placed.box[row, axis] in choices
    assert len(ranks) > 100 and stats.kstest(ranks, "uniform").pvalue > 0.001


def test_a_picture_too_long_for_any_crop_keeps_its_middle_one() -> None:
    randoms, window = np.random.default_rng(0).random((1, NUMBERS)), np.array([[0.1, 0.1, 0.2]])
    told = {"heights": np.array([10]), "widths": np.array([400]), "size": SIZE, "windows": window}
    box = draw_views(randoms, ViewsConfig(crop_min=0.9), **told).box
    assert np.array_equal(box, [[0, 193, 10, 13]])


# ---- hidden patches


def hidden_by_hand(window: tuple[float, float, float], box: list[int], flip: bool, sides: tuple[int, int], size: int):
    """Pixel by pixel: whether its middle lies in the window of the picture, as a boolean (size, size)."""
    found = torch.zeros(size, size, dtype=torch.bool)
    for row in range(size):
        for column in range(size):
            place = (row + 0.5, (size - column - 0.5) if flip else column + 0.5)
            in_picture = [(box[axis] + place[axis] * box[2 + axis] / size) / sides[axis] for axis in (0, 1)]
            found[row, column] = all(abs(in_picture[axis] - window[axis]) <= window[2] / 2 for axis in (0, 1))
    return found


@pytest.mark.parametrize("make", [on_cpu, on_device])
def test_what_a_crop_shows_of_a_hidden_window_is_grey(make) -> None:
    """Of one that crops meet, leave out, and have at their border; of none of a picture without a window."""
    count, sides, size = 24, (70, 90), 32
    picture = torch.full((3, *sides), 255, dtype=torch.uint8)
    random = np.random.default_rng(3)
    windows = np.concatenate([random.random((count, 2)), random.uniform(0.1, 0.5, (count, 1))], 1)
    windows[::6] = np.nan
    config = ViewsConfig(jitter=0.0, blur=0.0, grayscale=0.0, crop_min=0.1)
    views = draw_views(
        random.random((count, NUMBERS)), config, heights=np.full(count, sides[0]), widths=np.full(count, sides[1]),
        size=size, hidden=windows,
    )  # fmt: skip
    made, seen = make(picture, views, size), 0
    for row, view in enumerate(made):
        grey = (view == torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]).all(0)
        assert (grey | (view == 255).all(0)).all()
        told = windows[row]
        by_hand = hidden_by_hand(told, views.box[row].tolist(), bool(views.flip[row]), sides, size)
        assert not grey.any() if np.isnan(told[2]) else (grey ^ by_hand).float().mean() <= 2 / size
        edges = [grey.any(axis).nonzero() for axis in (0, 1)]
        assert not grey.any() or grey.sum() == edges[0].numel() * edges[1].numel()  # a rectangle
        seen += int(grey.any())
    assert 5 < seen < count


def test_hidden_patches_change_nothing_else() -> None:
    """With all colours on, the pixels beside a patch are those of the same view without it."""
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 60, 60), dtype=np.uint8))
    numbers, sides = np.random.default_rng(1).random((16, NUMBERS)), np.full(16, 60)
    plain = draw_views(numbers, ViewsConfig(), heights=sides, widths=sides, size=24)
    hidden = draw_views(
        numbers, ViewsConfig(), heights=sides, widths=sides, size=24, hidden=np.full((16, 3), (0.5, 0.5, 0.3))
    )
    for make in (on_cpu, on_device):
        before, after = make(picture, plain, 24), make(picture, hidden, 24)
        for row, (top, left, bottom, right) in enumerate(hidden.hidden.tolist()):
            outside = torch.ones(24, 24, dtype=torch.bool)
            outside[top:bottom, left:right] = False
            assert torch.equal(before[row][:, outside], after[row][:, outside])
