"""Objects found by what the places of all pictures share: against numpy's decomposition, and where they were put."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fgssl.rationale import PlaceScatter, fullest_windows


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_objects(pictures: int, seed: int) -> tuple[Tensor, Tensor]:
    """Maps (N, 12, 8, 8) of backgrounds with an object of 3 x 3 places anywhere inside, and where (N, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    background, thing = torch.rand(2, 12, generator=generator)
    maps = background[None, :, None, None] + 0.1 * random(pictures, 12, 8, 8, seed=seed)
    inside = torch.zeros(pictures, 8, 8, dtype=torch.bool)
    for picture in range(pictures):
        row, column = torch.randint(1, 5, (2,), generator=generator).tolist()
        inside[picture, row : row + 3, column : column + 3] = True
        own = thing + 0.1 * random(12, seed=100 * seed + picture)  # objects differ from each other
        maps[picture, :, row : row + 3, column : column + 3] += (own - background)[:, None, None]
    return maps, inside


def test_the_direction_is_the_first_of_numpy_whatever_the_batches() -> None:
    maps = random(9, 6, 4, 5) + torch.arange(6.0)[None, :, None, None]
    whole, parts = PlaceScatter(6), PlaceScatter(6)
    whole.add(maps)
    for part in maps.split(2):
        parts.add(part)
    places = functional.normalize(maps, dim=1).permute(0, 2, 3, 1).reshape(-1, 6).double().numpy()
    first = np.linalg.svd(places - places.mean(0))[2][0]
    for scatter in (whole, parts):
        found = scatter.colocalizer()
        assert found is not None
        assert abs(float(found.direction.double().numpy() @ first)) == pytest.approx(1, abs=1e-5)
        expected = np.maximum((places - places.mean(0)) @ found.direction.double().numpy(), 0).reshape(9, 4, 5)
        assert found(maps).numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_objects_are_found_in_pictures_that_were_not_fitted(seed: int) -> None:
    maps, inside = with_objects(60, seed)
    scatter = PlaceScatter(12)
    scatter.add(maps[:40])
    found = scatter.colocalizer()
    assert found is not None
    said = found(maps[40:])
    assert said[inside[40:]].mean() > 10 * said[~inside[40:]].mean()
    centres = fullest_windows(said, 3 / 8)
    rows, columns = (torch.where(inside[40:].any(axis), torch.arange(8.0), torch.nan).nanmean(1) for axis in (2, 1))
    assert centres.numpy() == pytest.approx((torch.stack([rows, columns], 1).numpy() + 0.5) / 8, abs=0.07)


def test_places_that_are_all_alike_have_no_direction() -> None:
    scatter = PlaceScatter(3)
    assert scatter.colocalizer() is None
    scatter.add(torch.ones(5, 3, 2, 2))
    assert scatter.colocalizer() is None


@pytest.mark.parametrize(("shape", "share"), [((5, 5), 0.447), ((7, 4), 0.6), ((40, 40), 0.4), ((3, 3), 1.0)])
def test_the_fullest_window_holds_as_much_as_any(shape: tuple[int, int], share: float) -> None:
    """Against all windows of the map enlarged to the same grid, summed one by one."""
    maps = torch.relu(random(6, *shape))
    maps[0] = 0
    finer = functional.interpolate(maps[:, None], (40, 40), mode="bilinear")[:, 0]
    side = round(share * 40)
    centres = fullest_windows(maps, share)
    assert centres[0].tolist() == [0.5, 0.5]
    for picture in range(1, 6):
        best = max(
            float(finer[picture, row : row + side, column : column + side].sum())
            for row in range(41 - side)
            for column in range(41 - side)
        )
        row, column = (round(value * 40 - side / 2) for value in centres[picture].tolist())
        assert float(finer[picture, row : row + side, column : column + side].sum()) == pytest.approx(best, rel=1e-4)
