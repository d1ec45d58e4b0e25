"""An objective, a data set and a metric from outside: an installed package with entry points, and a file of one's own.

VICReg (Bardes et al. 2022) stands for the objective; its loss is held to its three terms computed by numpy.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import TINY, Outcome, fgssl, photos

from fgssl.errors import FgsslError
from fgssl.registry import DATASETS, METRICS, OBJECTIVES, load_plugin

ROOT = Path(__file__).parents[2]
TOY = '''
import dataclasses

import torch
from torch.nn import functional

from fgssl.config.schema import ObjectiveConfig, knob
from fgssl.data import DatasetPreset
from fgssl.objectives import Objective, ObjectiveOutput
from fgssl.objectives.base import pool_map

BIRDS = DatasetPreset("toybirds", "PHOTOS", "train", "test", None, None, 3, "nobody", "drawn")


def vicreg_loss(first, second, invariance=25.0, variance=25.0, covariance=1.0):
    spread = unrelated = 0.0
    for z in (first, second):
        centred = z - z.mean(0)
        spread = spread + torch.relu(1 - (centred.var(0) + 1e-4).sqrt()).mean() / 2
        products = (centred.T @ centred / (len(z) - 1)) ** 2
        unrelated = unrelated + (products.sum() - products.diagonal().sum()) / z.shape[1]
    return invariance * functional.mse_loss(first, second) + variance * spread + covariance * unrelated


class VICReg(Objective):
    @dataclasses.dataclass(frozen=True)
    class Settings(ObjectiveConfig):
        covariance: float = knob(1.0, "weight of the covariance term")

    settings = Settings

    @classmethod
    def build_projector(cls, channels, config):
        return torch.nn.Sequential(
            torch.nn.Linear(channels, config.projector_hidden), torch.nn.BatchNorm1d(config.projector_hidden),
            torch.nn.ReLU(), torch.nn.Linear(config.projector_hidden, config.projector_dim),
        )

    def forward(self, views, index):
        maps = tuple(self.backbone(view) for view in views)
        first, second = (self.projector(pool_map(feature_map, self.pool)) for feature_map in maps)
        return ObjectiveOutput(vicreg_loss(first, second, covariance=self.config.covariance), maps, {})

    @staticmethod
    def picture_loss(anchor, positive, keys, config):
        return (anchor - positive).square().sum()


def spread(features, labels):
    """Mean distance to the class mean, and how many classes there are."""
    means = torch.stack([features[labels == label].mean(0) for label in labels.unique()])
    own = means[torch.searchsorted(labels.unique(), labels)]
    return {"toy_spread": float((features - own).norm(dim=1).mean()), "toy_classes": float(len(means))}
'''
REGISTERED = """
from fgssl.registry import DATASETS, METRICS, OBJECTIVES

OBJECTIVES.register("vicreg")(VICReg)
DATASETS.register("toybirds")(BIRDS)
METRICS.register("spread")(spread)
"""
POINTS = """[fgssl.objectives]
vicreg = toy_ssl:VICReg
[fgssl.datasets]
toybirds = toy_ssl:BIRDS
[fgssl.metrics]
spread = toy_ssl:spread
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip would leave it: a module and its dist-info."""
    site = tmp_path_factory.mktemp("site")
    (site / "toy_ssl.py").write_text(TOY.replace("PHOTOS", str(photos())))
    info = site / "toy_ssl-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-ssl\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(POINTS)
    return site


PROGRAM = """
import json, sys
from running import fgssl
print(json.dumps([fgssl(*words) for words in json.loads(sys.argv[1])]))
"""


def run(*commands: tuple[str | Path, ...], site: Path | None = None) -> list[Outcome]:
    """Command lines one after the other, in a process that sees the packages of a folder."""
    paths = map(str, filter(None, (ROOT, ROOT / "tests" / "support", site)))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([[*map(str, words)] for words in commands])], capture_output=True,
        text=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, cwd=ROOT, timeout=300,
    )  # fmt: skip
    return [Outcome(*outcome) for outcome in json.loads(done.stdout)]


def settings_of(document: dict[str, Any], key: str) -> Any:
    return document["settings"][key]["value"]


def test_a_package_adds_all_three_through_the_command_line_and_is_named_where_it_is_missed(
    site: Path, tmp_path: Path
) -> None:
    options = ("--data", "toybirds", "--objective", "vicreg", "--set", "objective.covariance=0.5", *TINY, "--quiet")
    folder = tmp_path / "run"
    trained, scored, shown, compared = run(
        ("pretrain", *options, "--output", folder), ("retrieve", folder, "--pool", "gap", "--json"),
        ("retrieve", folder, "--pool", "gap"), ("compare", folder, "--pool", "gap", "--json"), site=site,
    )  # fmt: skip
    assert trained.code == 0, trained.err
    assert scored.code == 0, scored.err
    document = scored.json()
    assert document["data"] == "toybirds" and document["toy_classes"] == 3 and document["toy_spread"] > 0
    assert "toy_spread" in shown.out and "toy_classes" in shown.out
    assert compared.json()["rows"][0]["toy_classes"] == 3
    for missed in run(("retrieve", folder), ("pretrain", "--resume", folder)):
        assert missed.code == 1 and "vicreg" in missed.err and "toy-ssl 1.2" in missed.err and "--plugin" in missed.err
        assert "Traceback" not in missed.err


def test_what_is_installed_or_removed_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert "toybirds" not in DATASETS and DATASETS.origin("toybirds") is None
    info = tmp_path / "toy_ssl-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-ssl\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(POINTS)
    assert "toybirds" in DATASETS and DATASETS.origin("toybirds") == "toy-ssl 1.2"
    monkeypatch.undo()
    assert "toybirds" not in DATASETS


def test_the_toys_loss_is_vicregs(site: Path) -> None:
    spec = importlib.util.spec_from_file_location("toy_ssl_here", site / "toy_ssl.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    first, second = torch.randn(2, 16, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = first.numpy(), second.numpy()
    expected = 25 * ((a - b) ** 2).mean()
    for z in (a, b):
        expected += 25 * np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean() / 2
        covariance = np.cov(z.T)
        expected += (covariance**2 - np.diag(np.diag(covariance) ** 2)).sum() / 5
    assert float(module.vicreg_loss(first, second)) == pytest.approx(expected, rel=1e-9)


@pytest.fixture
def forgotten() -> Any:
    """What a plugin adds to this process is taken back."""
    for name in OBJECTIVES:  # all of them first: a module that was imported meanwhile would not register again
        OBJECTIVES[name]
    kept = [(registry, dict(registry._items), dict(registry._origins)) for registry in (OBJECTIVES, DATASETS, METRICS)]
    modules = set(sys.modules)
    yield
    for registry, items, origins in kept:
        registry._items, registry._origins = items, origins
    for name in set(sys.modules) - modules:
        if name.startswith("fgssl_plugin_"):
            del sys.modules[name]


def test_a_file_adds_all_three_and_nothing_is_loaded_by_a_name_in_a_file(tmp_path: Path, forgotten: None) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(TOY.replace("PHOTOS", str(photos())) + REGISTERED)
    options = ("--data", "toybirds", "--objective", "vicreg", *TINY, "--dry-run", "--json")
    planned = fgssl("pretrain", *options, "--plugin", plugin)
    assert planned.code == 0, planned.err
    document = planned.json()
    assert settings_of(document, "objective.plugin") == "mine.py" and settings_of(document, "objective.covariance") == 1
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"objective:\n  name: vicreg\n  plugin: {plugin}\n")
    (missed,) = run(("pretrain", "--recipe", recipe, "--data", photos(), "--dry-run"))
    assert missed.code == 1 and "is not here; install that package, or name the file with --plugin" in missed.err


def test_a_plugin_that_fails_is_one_line(tmp_path: Path, forgotten: None) -> None:
    taken = "from fgssl.registry import OBJECTIVES\nOBJECTIVES.register('byol')(object)"
    for text, said in (("1 / 0", "ZeroDivisionError"), ("def", "SyntaxError"), (taken, "knows the objective byol")):
        (tmp_path / "bad.py").write_text(text)
        error = fgssl("backbones", "resnet18", "--no-measure", "--plugin", tmp_path / "bad.py").error()
        assert "plugin bad.py" in error and said in error
    for missing in (tmp_path / "no.py", tmp_path):
        with pytest.raises(FgsslError, match="is no Python file"):
            load_plugin(missing)


def test_a_metric_that_fails_is_named(tmp_path: Path, forgotten: None) -> None:
    from fgssl.evaluation.metrics import added_metrics

    features, labels = torch.rand(4, 2), torch.tensor([0, 0, 1, 1])
    METRICS.register("a")(lambda features, labels: {"x": 1})
    assert added_metrics(features, labels) == {"x": 1.0}
    METRICS.register("b")(lambda features, labels: {"x": 2})
    with pytest.raises(FgsslError, match=r"metric b .* both return x"):
        added_metrics(features, labels)
    METRICS._items["b"] = lambda features, labels: [1]
    with pytest.raises(FgsslError, match=r"metric b .* fails: AttributeError"):
        added_metrics(features, labels)
