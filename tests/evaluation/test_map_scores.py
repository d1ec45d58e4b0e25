"""How maps are scored against masks: numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fgssl.errors import FgsslError
from fgssl.evaluation import map_scores as scores


def test_entropy_relative_to_uniform() -> None:
    uniform, point, blank = torch.full((2, 4), 0.2), torch.zeros(2, 4), torch.zeros(2, 4)
    point[1, 2] = 5
    half = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    got = scores.entropy_relative_to_uniform(torch.stack([uniform, point, blank, half]))
    np.testing.assert_allclose(got, [1, 0, 1, math.log(4) / math.log(8)], rtol=1e-6)
    assert scores.entropy_relative_to_uniform(torch.zeros(2, 1, 1)).tolist() == [1, 1]
    with pytest.raises(FgsslError, match="negative"):
        scores.entropy_relative_to_uniform(-uniform[None])


def test_energy_and_pointing_by_hand() -> None:
    maps = torch.tensor([[3.0, 1.0], [0.0, -2.0]])
    left = torch.tensor([[True, False], [True, False]])
    assert float(scores.energy_inside(maps, left)) == pytest.approx(0.75)
    assert float(scores.pointing_hit(maps, left)) == 1
    assert float(scores.pointing_hit(maps, ~left)) == 0
    stacked = scores.energy_inside(torch.stack([maps, maps]), torch.stack([left, ~left]))
    np.testing.assert_allclose(stacked, [0.75, 0.25])


def test_flat_maps_score_the_area_of_the_mask() -> None:
    mask = torch.zeros(8, 8)
    mask[:2, :4] = 1
    for flat in (torch.ones(3, 3), torch.zeros(3, 3)):
        assert float(scores.energy_inside(flat, mask)) == pytest.approx(8 / 64)
        assert float(scores.pointing_hit(flat, mask)) == pytest.approx(8 / 64)


def test_maps_are_resized_to_the_mask_bilinearly() -> None:
    # one row 0, 1 becomes 0, 1/4, 3/4, 1: centres of pixels aligned
    maps, mask = torch.tensor([[0.0, 1.0]]), torch.tensor([[0, 0, 1, 0]])
    assert float(scores.energy_inside(maps, mask)) == pytest.approx(0.75 / 2)
    assert float(scores.pointing_hit(maps, mask)) == 0


# ---- agreement, deletion, insertion


def test_agreement_is_the_correlation() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.random((5, 3, 4)), generator.random((5, 3, 4))
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(scores.agreement(torch.tensor(one), torch.tensor(other)), expected, atol=1e-9)
    same = torch.tensor(one)
    np.testing.assert_allclose(scores.agreement(same, 3 * same + 1), 1)
    flat = torch.full((1, 3, 4), 1 / 12)
    assert scores.agreement(flat, 2 * flat).tolist() == [1] and scores.agreement(flat, same[:1]).tolist() == [0]


@pytest.mark.parametrize("area", [0.2, 0.5])
def test_the_curves_of_a_map_that_is_the_mask(area: float) -> None:
    """A similarity that is the share of the mask's pixels in sight: it falls to 0 over the mask's area, and stays."""
    side = 40
    mask = torch.zeros(1, side, side)
    mask[:, : int(area * side)] = 1
    whole = 255 * torch.ones(1, 3, side, side)
    whole[..., 1::2] = 0  # blurred, no pixel is what it was

    def in_sight(images: torch.Tensor) -> torch.Tensor:
        return (((images == whole).all(1) * mask).sum((1, 2)) / mask.sum()).float()

    best, worst, even = (scores.similarity_curves(in_sight, whole, each) for each in (mask, 1 - mask, mask * 0))
    assert float(best.deletion) == pytest.approx(area / 2, abs=1e-5)
    assert float(best.insertion) == pytest.approx(1 - area / 2, abs=1e-5)
    assert float(worst.deletion) == pytest.approx(1 - area / 2, abs=1e-5)
    assert float(worst.insertion) == pytest.approx(area / 2, abs=1e-5)
    assert float(even.deletion) == pytest.approx(0.5, abs=0.02)  # a flat map: places by chance
    assert float(even.insertion) == pytest.approx(0.5, abs=0.02)


def test_a_map_that_is_the_mask_has_all_its_energy_inside() -> None:
    mask = torch.zeros(6, 6)
    mask[2:4, 1:5] = 1
    assert float(scores.energy_inside(mask, mask)) == 1 and float(scores.pointing_hit(mask, mask)) == 1
    assert float(scores.energy_inside(1 - mask, mask)) == 0 and float(scores.pointing_hit(1 - mask, mask)) == 0


def test_bad_maps_are_named() -> None:
    with pytest.raises(FgsslError, match="one map a mask"):
        scores.energy_inside(torch.ones(2, 3, 3), torch.ones(3, 3))
    with pytest.raises(FgsslError, match="NaN"):
        scores.pointing_hit(torch.full((3, 3), math.nan), torch.ones(3, 3))
