"""Python's door: each function's example runs as it stands, and importing fgssl loads nothing heavy."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from run_results import assert_equal_encoders
from running import finished_run, photos
from stopping import stopped_run

import fgssl
from fgssl import api
from fgssl.errors import FgsslError


@pytest.mark.parametrize("name", fgssl.__all__)
def test_the_example_of_each_function_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "photos").symlink_to(finished_run()[0])
    (tmp_path / "photos").symlink_to(photos())
    monkeypatch.chdir(tmp_path)
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(fgssl, name), name, module=api)
    assert test.examples
    doctest.DebugRunner(verbose=False).run(test)


def test_pictures_embed_as_their_views_do() -> None:
    encoder = fgssl.load_encoder(finished_run()[0])
    images = fgssl.open_images(photos())
    pictures = [images.load(row) for row in range(4)]
    with torch.inference_mode():
        for pool in ("gap", "zoom"):
            assert torch.equal(encoder(pictures, pool), encoder(encoder.seen(pictures, pool), pool))
            torch.testing.assert_close(encoder(pictures, pool), fgssl.embed(encoder, images, pool=pool).features[:4])


def test_a_stopped_run_goes_on_and_ends_as_one_left_alone(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run", step=3)
    with pytest.raises(FgsslError, match="begun with other settings"):
        fgssl.pretrain(output=run, resume=True, settings={"optimizer.lr": 0.5})
    with pytest.raises(FgsslError, match="resume goes on"):
        fgssl.pretrain(output=run, resume=True, overwrite=True)
    with pytest.raises(FgsslError, match="is not a run folder"):
        fgssl.pretrain(output=tmp_path / "none", resume=True)
    assert fgssl.pretrain(output=run, resume=True).summary["steps"] == 6
    assert_equal_encoders(finished_run()[0], run)


def test_names_are_listed_and_others_are_errors() -> None:
    assert set(fgssl.__all__) <= set(dir(fgssl))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fgssl.nonsense  # noqa: B018


def test_the_loop_in_the_docs_runs() -> None:
    page = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["embedding"].shape == (8, found["model"].num_features)
    assert found["embedding"].isfinite().all() and found["fitted"].loss > 0
