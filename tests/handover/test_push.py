"""An encoder on the hub: pushed to a loopback one, opened from it by plain timm, fgssl and the script beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from hub_server import serve
from running import Outcome, fgssl, finished_run, photos, plain_run, trained_run
from scipy.stats import binomtest

from fgssl.backbones import build_backbone
from fgssl.config.schema import DataConfig
from fgssl.encoder import Encoder
from fgssl.evaluation.subject import open_split
from fgssl.handover import bundle
from fgssl.handover.card import code, wilson
from fgssl.handover.embed import Embedder
from fgssl.runs.encoder_file import load_encoder

ROOT = Path(__file__).parents[2]
FILES = {"README.md", "config.json", "config.yaml", "embed.py", "encoder.safetensors", "model.safetensors"}


def outside(code: list[str], environment: dict[str, str], cwd: Path | None = None) -> Outcome:
    """A command in a process of its own, whose hub is the loopback one."""
    made = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, env=made, cwd=cwd, timeout=60, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_a_pushed_encoder_opens_by_its_name(tmp_path: Path) -> None:
    run = finished_run()[0]
    with serve({}, token="hf_right") as hub:
        environment = {**hub.environment(tmp_path / "hub"), "HF_TOKEN": "hf_right"}
        for private in ([], ["--private"]):  # the second time it is there already
            done = outside(["-m", "fgssl", "push", str(run), "me/birds", "--json", *private], environment)
            assert done.code == 0, done.err
        assert hub.private == {"me/birds": False} and done.json()["address"].endswith("/me/birds")
        assert set(done.json()["files"]) >= FILES
        read = (
            "import timm, json; m = timm.create_model('hf-hub:me/birds', pretrained=True);"
            "print(json.dumps([float(v.double().sum()) for k, v in sorted(m.state_dict().items()) if 'bn1' in k]))"
        )
        found = outside(["-c", read], environment)
        assert found.code == 0, found.err
        plain = timm.create_model(f"local-dir:{run / 'timm'}", pretrained=True).state_dict()
        sums = [float(value.double().sum()) for key, value in sorted(plain.items()) if "bn1" in key]
        assert sums and found.json() == pytest.approx(sums)
        options = ["--data", str(photos()), "--init", "hf-hub:me/birds", "--batch-size", "8", "--dry-run", "--json"]
        planned = outside(["-m", "fgssl", "pretrain", *options], environment)
        assert planned.code == 0, planned.err
        assert planned.json()["facts"]["initial_weights"]["missing"] == []


def test_what_keeps_a_push_from_the_hub_is_one_line(tmp_path: Path) -> None:
    run = finished_run()[0]
    assert "is no name on the hub; write it as OWNER/NAME" in fgssl("push", run, "birds").error(2)
    assert "is no run of fgssl's" in fgssl("push", tmp_path / "none", "me/birds").error()
    assert "holds no encoder.safetensors" in fgssl("push", tmp_path, "me/birds").error()
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert "is no PNG or JPEG" in fgssl("push", run, "me/birds", "--picture", tmp_path / "a.png").error()
    command = ["-m", "fgssl", "push", str(run), "me/birds"]
    with serve({}, token="hf_right") as hub:
        environment = hub.environment(tmp_path / "hub")
        assert "there is no token for the hub; log in with" in outside(command, environment).error()
        refused = outside(command, {**environment, "HF_TOKEN": "hf_wrong"}).error()
        assert "the hub refuses me/birds: 403 This token has no write access" in refused
    gone = outside(command, {**environment, "HF_TOKEN": "hf_right"}).error()
    assert "the hub does not answer" in gone and "nothing was pushed" in gone


def test_a_dry_run_shows_the_card_and_needs_no_network() -> None:
    done = fgssl("push", finished_run()[0], "me/birds", "--dry-run", "--licence", "apache-2.0")
    assert done.code == 0, done.err
    for part in ("license: apache-2.0", "# me/birds", "hf-hub:me/birds", "| `trained` | `zoom` |", "## Limits",
                 "![The encoder, or its training](picture.png)", "would push encoder.safetensors"):  # fmt: skip
        assert part in done.out, part
    assert str(photos().parent) not in done.out  # no path of this machine
    done = fgssl("push", plain_run(), "me/plain", "--dry-run")
    assert "Not measured" in done.out and "None was given" in done.out


def test_nothing_of_this_machine_is_handed_on(tmp_path: Path) -> None:
    bundle.gather(finished_run()[0], tmp_path, "me/birds", licence=None, picture=None)
    handed = load_encoder(str(tmp_path / "encoder.safetensors"))
    assert handed.keys is None and handed.projector is None and handed.config is not None
    assert handed.config.data.source == "photos" and handed.rationale is not None
    place = str(photos().parent).encode()
    assert [path.name for path in tmp_path.iterdir() if place in path.read_bytes()] == []


@pytest.mark.parametrize("run", [finished_run, trained_run], ids=["trained", "whitened"])
def test_the_script_gives_fgssls_embedding(run: object, tmp_path: Path) -> None:
    made = run()  # type: ignore[operator]
    folder = made[0] if isinstance(made, tuple) else made
    bundle.gather(folder, tmp_path, "me/birds", licence=None, picture=None)
    encoder = load_encoder(str(folder))
    images = open_split(DataConfig(source=str(photos())), None, "test")
    pictures = [images.load(row) for row in range(6)]
    with torch.inference_mode():
        torch.testing.assert_close(Embedder(tmp_path)(pictures), encoder(pictures, "gap"), rtol=0, atol=1e-4)
    names = [str(path) for path in sorted(photos().rglob("*.png"))[:2]]
    done = outside([str(tmp_path / "embed.py"), "f.npy", *names], {"PYTHONPATH": ""}, tmp_path)
    assert done.code == 0 and (tmp_path / "f.npy").is_file(), done.err


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "swin_tiny_patch4_window7_224"])
def test_the_script_reads_every_kind_of_map(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = load_encoder(str(finished_run()[0]))
    backbone = build_backbone(name, image_size=64)
    encoder = Encoder(backbone, config=own.config).eval()
    encoder.stages = min(3, backbone.stages)
    width = backbone.pooled_width(encoder.stages)
    encoder.whiten_by(torch.nn.Linear(width, width), stages=encoder.stages)
    assert own.config is not None
    config = replace(own.config, rationale=replace(own.config.rationale, enabled=False))
    bundle.save_timm(backbone, tmp_path)
    bundle._save_public(encoder, config, tmp_path)
    pictures = [open_split(DataConfig(source=str(photos())), None, "test").load(row) for row in range(2)]
    with torch.inference_mode():
        torch.testing.assert_close(Embedder(tmp_path)(pictures), encoder(pictures, "gap"), rtol=0, atol=1e-4)


def test_foreign_text_stays_one_piece_of_code() -> None:
    assert code("a`b|c\n<script>") == "`a'b/c\\n<script>`"


def test_the_interval_is_wilsons() -> None:
    for hits, count in ((0, 7), (3, 12), (12, 12), (450, 640)):
        exact = binomtest(hits, count).proportion_ci(method="wilson")
        assert wilson(hits / count, count) == pytest.approx((exact.low, exact.high), abs=1e-5)


def test_json_names_the_files(tmp_path: Path) -> None:
    found = json.loads(fgssl("push", finished_run()[0], "me/birds", "--dry-run", "--json").out)
    assert found["address"] is None and set(found["files"]) == FILES | {"picture.png"}
