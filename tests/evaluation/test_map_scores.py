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


def test_bad_maps_are_named() -> None:
    with pytest.raises(FgsslError, match="one map a mask"):
        scores.energy_inside(torch.ones(2, 3, 3), torch.ones(3, 3))
    with pytest.raises(FgsslError, match="NaN"):
        scores.pointing_hit(torch.full((3, 3), math.nan), torch.ones(3, 3))
