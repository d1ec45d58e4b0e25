"""Runs whose rationale sees finer maps: resumed to the bit, frozen too, and their files open as what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from run_results import assert_equal_encoders, metrics
from running import TINY, fgssl, photos
from stopping import stopped_run

from fgssl.runs.encoder_file import load_encoder

FINER = (*TINY, "--set", "rationale.stages=2")


@pytest.mark.parametrize("flags", [FINER, (*FINER, "--freeze", "backbone")], ids=["trained", "frozen"])
def test_stopped_run_goes_on_bit_for_bit(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "cache"))
    assert fgssl("pretrain", "--data", photos(), *flags, "--output", tmp_path / "whole").code == 0
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "another"))
    run = stopped_run(tmp_path / "run", flags, step=4)
    assert fgssl("pretrain", "--resume", run, "--workers", "1").code == 0
    assert_equal_encoders(tmp_path / "whole", run)
    assert metrics(tmp_path / "whole") == metrics(run)


def test_its_file_holds_a_branch_with_a_finer_map_for_every_verb(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert fgssl("pretrain", "--data", photos(), *FINER, "--output", run).code == 0
    encoder = load_encoder(str(run))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        feature_map = encoder.backbone(encoder.normalize(images))
        attention = encoder.attention(feature_map)
        assert encoder(images, "concat").shape == (2, 2 * encoder.backbone.channels)
    assert attention.shape[1] == 2 * feature_map.shape[2]
    assert encoder.loss_gradcam(images).shape == feature_map[:, 0].shape
    assert fgssl("retrieve", run, "--pool", "parts").code == 0
    assert fgssl("visualize", "--score", run, "--count", "4").code == 0


def test_more_stages_than_there_are_is_one_line(tmp_path: Path) -> None:
    flags = (*TINY, "--backbone", "test_vit", "--set", "rationale.stages=2", "--set", "backbone.drop_path=null")
    outcome = fgssl("pretrain", "--data", photos(), *flags, "--output", tmp_path / "run")
    assert "has 0 earlier stages with finer maps" in outcome.error() and not (tmp_path / "run").exists()
