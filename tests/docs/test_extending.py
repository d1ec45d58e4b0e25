"""The code on the pages that say how to extend fgssl works as it is printed there."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from documents import PAGES
from running import TINY, fgssl, photos
from torch.nn import functional

from fgssl.objectives import OBJECTIVES


def code(page: str) -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)
    return str(block)


@pytest.fixture
def vicreg(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "vicreg.py"
    path.write_text(code("docs/add-objective.md"))
    spec = importlib.util.spec_from_file_location("vicreg", path)
    assert spec is not None and spec.loader is not None
    sys.modules["vicreg"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield "vicreg"
    del OBJECTIVES._items["vicreg"], sys.modules["vicreg"]  # type: ignore[attr-defined]


def test_the_objective_trains_and_is_drawn(vicreg: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = ("pretrain", "--data", photos(), *TINY, "--objective", vicreg, "--set", "objective.projector_hidden=32")
    outcome = fgssl(*given, "--set", "objective.covariance_weight=0.5", "--output", run)
    assert outcome.code == 0, outcome.err
    picture = next(photos().rglob("*.jpg"))
    drawn = fgssl("visualize", picture, "--checkpoint", run, "--output", tmp_path / "maps.png")
    assert drawn.code == 0 and (tmp_path / "maps.png").is_file(), drawn.err


def test_the_loss_is_the_papers(vicreg: str) -> None:
    """Equations 1 to 6 by loops over dimensions, scaled as in the authors' code."""

    class Given(torch.nn.Module):
        channels = 3

        def forward(self, views: torch.Tensor) -> torch.Tensor:
            return views

    config = OBJECTIVES[vicreg].settings(covariance_weight=1.0, projector_hidden=4, projector_dim=4)
    torch.manual_seed(0)
    objective = OBJECTIVES[vicreg](Given(), config)  # type: ignore[arg-type]
    objective.projector = torch.nn.Identity()
    first, second = torch.randn(2, 5, 3, 1, 1).unbind(0)
    loss = objective((first, second), torch.arange(5)).loss
    total = 25 * functional.mse_loss(first, second)
    for view in (first.flatten(1), second.flatten(1)):
        centred = view - view.mean(0)
        for i in range(3):
            variance = centred[:, i].square().sum() / 4
            total = total + 25 * max(torch.zeros(()), 1 - (variance + 1e-4).sqrt()) / 3 / 2
            for j in range(3):
                if i != j:
                    total = total + ((centred[:, i] * centred[:, j]).sum() / 4) ** 2 / 3
    torch.testing.assert_close(loss, total)
