"""The code on the pages that say how to extend fgssl works as it is printed there, by `--plugin`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from documents import PAGES
from running import TINY, fgssl, finished_run, make_photos, photos
from torch.nn import functional

from fgssl.registry import ARCHIVES, DATASETS, METRICS, OBJECTIVES, load_plugin


def code(page: str) -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)
    return str(block)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What a plugin adds to this process is taken back."""
    registries = (OBJECTIVES, DATASETS, ARCHIVES, METRICS)
    for registry in (OBJECTIVES, ARCHIVES):  # all first: a module that was imported meanwhile would not register again
        dict(registry)
    kept = [(dict(registry._items), dict(registry._origins)) for registry in registries]
    modules = set(sys.modules)
    yield
    for registry, (items, origins) in zip(registries, kept, strict=True):
        registry._items, registry._origins = items, origins
    for name in set(sys.modules) - modules:
        if name.startswith("fgssl_plugin_"):
            del sys.modules[name]


def test_the_objective_trains_and_is_drawn(tmp_path: Path) -> None:
    plugin, run, sheet = tmp_path / "vicreg.py", tmp_path / "run", tmp_path / "maps.png"
    plugin.write_text(code("docs/add-objective.md"))
    given = ("--objective", "vicreg", "--plugin", plugin, "--set", "objective.covariance_weight=0.5")
    small = ("--set", "objective.projector_hidden=32")
    outcome = fgssl("pretrain", "--data", photos(), *TINY, *given, *small, "--output", run)
    assert outcome.code == 0, outcome.err
    picture = next(photos().rglob("*.jpg"))
    drawn = fgssl("visualize", picture, "--checkpoint", run, "--output", sheet, "--plugin", plugin)
    assert drawn.code == 0 and sheet.is_file(), drawn.err


def test_the_loss_is_the_papers(tmp_path: Path) -> None:
    """Equations 1 to 6 by loops over dimensions, scaled as in the authors' code."""

    class Given(torch.nn.Module):
        channels = 3

        def forward(self, views: torch.Tensor) -> torch.Tensor:
            return views

    (tmp_path / "vicreg.py").write_text(code("docs/add-objective.md"))
    load_plugin(tmp_path / "vicreg.py")
    config = OBJECTIVES["vicreg"].settings(covariance_weight=1.0, projector_hidden=4, projector_dim=4)
    torch.manual_seed(0)
    objective = OBJECTIVES["vicreg"](Given(), config)
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


def test_the_data_set_is_found_under_its_name(tmp_path: Path) -> None:
    page = code("docs/add-data-set.md")
    assert '"my-museum/shells"' in page and 'label_column="species"' in page
    plugin = tmp_path / "shells.py"
    plugin.write_text(page.replace("my-museum/shells", str(photos())).replace('"species"', "None"))
    outcome = fgssl("data", "check", "shells", "--plugin", plugin, "--json")
    assert outcome.code == 0 and outcome.json()["splits"], outcome.err


def test_the_archive_of_the_page_is_read(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGES["docs/archives.md"], re.MULTILINE | re.DOTALL)
    plugin, folder = tmp_path / "shells.py", tmp_path / "shells"
    plugin.write_text(next(block for block in blocks if "Layout(" in block))
    make_photos(folder / "images", 4, classes=2)
    files = sorted(path for path in (folder / "images").rglob("*.*") if path.is_file())
    lines = [f"{('train', 'test')[n % 2]} kind-{n // 2} {path.relative_to(folder)}" for n, path in enumerate(files[:4])]
    (folder / "shells.txt").write_text("\n".join(lines))
    outcome = fgssl("data", "check", f"shells:{folder}", "--plugin", plugin, "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json()
    assert [(split["name"], split["images"]) for split in found["splits"]] == [("train", 2), ("test", 2)]
    assert any("Shells as published 3,000 of 120" in finding["text"] for finding in found["findings"])


def test_the_metric_is_reported(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(code("docs/add-metric.md"))
    run, _ = finished_run()
    document = fgssl("retrieve", run, "--plugin", plugin, "--json").json()
    # features of unit length: mean squared distance to their mean is 1 - its squared length, so this is below 1
    assert 0 < document["spread"] < 1
