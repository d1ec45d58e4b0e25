"""A branch that sees finer maps beside the last: against the features side by side, and the places enlarged."""

from __future__ import annotations

import pytest
import torch
from rationale_cases import C, H, N, W, randn, rationale
from torch.nn import functional

from fgssl.rationale import RationaleHead, attention_map, fit_rationale, gradcam, pool_places, rationale_loss

FINER = 3  # channels of the finer map


def branch(**settings: object) -> RationaleHead:
    torch.manual_seed(1)
    return RationaleHead(C + FINER, rationale(stages=2, combine="linear", **settings))


def test_its_projections_are_those_of_the_features_side_by_side() -> None:
    head, last, finer = branch(), randn(N, C, H, W), randn(N, FINER, 2 * H, 2 * W, seed=1)
    beside = torch.cat([functional.interpolate(last, (2 * H, 2 * W), mode="bilinear"), finer], 1)
    wanted = torch.relu(head.norm(head.project(beside)))
    torch.testing.assert_close(head.projections(last, [finer]), wanted, rtol=1e-4, atol=1e-5)


def test_its_map_is_as_large_as_the_finest_and_a_distribution() -> None:
    attention = attention_map(branch().eval(), randn(N, C, H, W), [randn(N, FINER, 2 * H, 2 * W, seed=1)])
    assert attention.shape == (N, 2 * H, 2 * W)
    torch.testing.assert_close(attention.sum((1, 2)), torch.ones(N))


def test_it_is_fitted_to_gradcam_enlarged() -> None:
    head, finer = branch(fit="regression", sign="lower"), randn(N, FINER, 2 * H, 2 * W, seed=1)
    last = randn(N, C, H, W).requires_grad_()
    loss = (last.mean((2, 3)) ** 2).sum()
    enlarged = functional.interpolate(gradcam(loss, last, sign="lower")[:, None], (2 * H, 2 * W), mode="bilinear")[:, 0]
    wanted = rationale_loss(enlarged, head(last.detach(), [finer]), head.config).loss
    torch.testing.assert_close(fit_rationale(head, loss, last, [finer]).loss, wanted)


def test_a_place_weighs_what_the_finer_places_in_it_weigh_together() -> None:
    last, attention = randn(N, C, H, W), torch.softmax(randn(N, 4 * H * W, seed=2), 1).view(N, 2 * H, 2 * W)
    enlarged = last.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(pool_places(last, attention), pool_places(enlarged, attention), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [0, 2])
def test_too_few_maps_or_too_many_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="a branch of 2 stages"):
        branch()(randn(N, C, H, W), [randn(N, FINER, 2 * H, 2 * W)] * count)
