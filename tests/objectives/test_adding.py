"""An objective that is added from outside: settings of its own, its defaults, and what others are told of it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator

import pytest
from running import photos
from torch import Tensor

from fgssl.config.defaults import Draft, RunFacts
from fgssl.config.resolve import config_from_flat, load_config
from fgssl.config.schema import ObjectiveConfig, flatten, knob
from fgssl.errors import FgsslError
from fgssl.objectives import OBJECTIVES, Objective, ObjectiveOutput
from fgssl.objectives.base import project
from fgssl.registry import OBJECTIVES as REGISTRY
from fgssl.training.plan import make_plan


@pytest.fixture
def toy() -> Iterator[str]:
    @REGISTRY.register("toy")
    class Toy(Objective):
        @dataclasses.dataclass(frozen=True)
        class Settings(ObjectiveConfig):
            margin: float | None = knob(None, "distance that suffices")

        settings = Settings
        uses = ("temperature",)

        @classmethod
        def derive(cls, draft: Draft, run: RunFacts) -> None:
            draft.derive("objective.margin", 0.5, "usual")
            draft.derive("objective.temperature", 0.07, "usual")
            super().derive(draft, run)

        def forward(self, views: tuple[Tensor, ...], index: Tensor) -> ObjectiveOutput:
            feature_map = self.backbone(views[0])
            return ObjectiveOutput(project(feature_map, self.projector).mean(), (feature_map,), {})

    yield "toy"
    del REGISTRY._items["toy"]


def test_its_settings_are_keys_of_the_config_and_survive_a_file(toy: str) -> None:
    config = load_config(sets=["objective.name=toy", "objective.margin=0.25"]).config
    assert config.objective.margin == 0.25 and flatten(config)["objective.margin"] == 0.25
    assert config_from_flat(flatten(config)).config == config
    assert {"mocov2", "byol", "toy"} <= set(OBJECTIVES)


def test_its_defaults_are_derived_and_explained(toy: str) -> None:
    flags = {"data.source": str(photos()), "objective.name": toy, "backbone.name": "resnet10t", "training.workers": 0}
    plan = make_plan(load_config(flags={**flags, "backbone.pretrained": False}), load_weights=False)
    objective = plan.config.objective
    assert (objective.margin, objective.temperature, objective.projector_dim) == (0.5, 0.07, 256)
    assert plan.origins["objective.margin"] == "derived: usual"
    assert plan.origins["objective.queue_size"] == "derived: toy has none"


def test_others_refuse_its_settings(toy: str) -> None:
    with pytest.raises(FgsslError, match=r"objective byol has no objective.margin; .*use --objective .*toy"):
        load_config(sets=["objective.name=byol", "objective.margin=0.25"])
    with pytest.raises(FgsslError, match=r"unknown setting 'objective.margins'; did you mean 'objective.margin'"):
        load_config(sets=["objective.name=toy", "objective.margins=0.25"])
    with pytest.raises(FgsslError, match=r"objective.margin cannot be 'wide'"):
        load_config(sets=["objective.name=toy", "objective.margin=wide"])
    with pytest.raises(FgsslError, match=r"objective.name cannot be 'toi'; did you mean 'toy'"):
        load_config(sets=["objective.name=toi"])


def test_names_are_known_without_torch_and_a_plain_run_needs_no_objective() -> None:
    code = "import sys; from fgssl.config.resolve import load_config; from fgssl.registry import OBJECTIVES\n"
    code += "load_config(sets=['training.epochs=3'])\n"
    code += "print(sorted(OBJECTIVES), 'byol' in OBJECTIVES, 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'mocov2'" in said and said.strip().endswith("] True False")


def test_nothing_of_an_objective_is_at_home_elsewhere() -> None:
    for name, objective in OBJECTIVES.items():
        assert objective.__module__ == f"fgssl.objectives.methods.{name}"
        assert set(objective.uses) <= {field.name for field in dataclasses.fields(ObjectiveConfig)}
        assert objective.settings is ObjectiveConfig or name != ObjectiveConfig.name
