"""An encoder on the hub: pushed to a loopback one, opened from it by plain timm, fgssl and the script beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hub_server import Repository, serve
from huggingface_hub import constants
from PIL import Image
from running import fgssl, finished_run, photos, plain_run, trained_run
from scipy.stats import binomtest

from fgssl.backbones import build_backbone, save_timm
from fgssl.config.schema import DataConfig, RationaleConfig
from fgssl.encoder import Encoder, Pool
from fgssl.evaluation.subject import open_split
from fgssl.handover import bundle
from fgssl.handover.card import code, wilson
from fgssl.handover.embed import Embedder
from fgssl.rationale import RationaleHead
from fgssl.runs.encoder_file import load_encoder

ROOT = Path(__file__).parents[2]
FILES = {"README.md", "config.json", "config.yaml", "embed.py", "encoder.safetensors", "model.safetensors"}

PUSHED = """
import json, sys
import timm
from running import fgssl

done = [fgssl("push", sys.argv[1], "me/birds", "--json", *more) for more in ([], ["--private"])]
model = timm.create_model("hf-hub:me/birds", pretrained=True)
sums = [float(value.double().sum()) for key, value in sorted(model.state_dict().items()) if "bn1" in key]
start = ("--init", "hf-hub:me/birds", "--batch-size", "8", "--dry-run", "--json")
planned = fgssl("pretrain", "--data", sys.argv[2], *start)
print(json.dumps([[json.loads(each.out) for each in done], sums, json.loads(planned.out)]))
"""

WRAPPED = """
import json, sys
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

model, processor = (kind.from_pretrained("me/birds") for kind in (AutoModel, AutoImageProcessor))
pixels = processor(Image.open(sys.argv[1]).convert("RGB"), return_tensors="pt")["pixel_values"]
with torch.inference_mode():
    print(json.dumps(model.eval()(pixels).last_hidden_state.mean((2, 3)).tolist()))
"""


def told(code: list[str], environment: dict[str, str], cwd: Path | None = None) -> str:
    """What a Python process prints whose hub is the loopback one."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    done = subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path, **environment},
        cwd=cwd, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_pushed_encoder_opens_by_its_name(tmp_path: Path) -> None:
    run = finished_run()[0]
    with serve({}, token="hf_right") as hub:
        environment = {**hub.environment(tmp_path / "hub"), "HF_TOKEN": "hf_right"}
        (first, second), sums, planned = json.loads(told(["-c", PUSHED, str(run), str(photos())], environment))
        assert hub.private == {"me/birds": False}  # the second time it was there already
    assert first["address"] == second["address"] == f"{hub.url}/me/birds"
    assert set(first["files"]) == FILES | {"picture.png"}
    plain = timm.create_model(f"local-dir:{run / 'timm'}", pretrained=True).state_dict()
    assert sums and sums == pytest.approx(
        [float(value.double().sum()) for key, value in sorted(plain.items()) if "bn1" in key]
    )
    assert planned["facts"]["initial_weights"]["missing"] == []


def test_transformers_wrapper_gives_the_same_features(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "made").mkdir()
    bundle.gather(finished_run()[0], tmp_path / "made", "me/birds", licence=None, picture=None)
    files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    picture = next(photos().rglob("*.png"))
    with serve({"me/birds": Repository(files, kind="model")}) as hub:
        found = json.loads(told(["-c", WRAPPED, str(picture)], hub.environment(tmp_path / "hub")))
    encoder = load_encoder(str(finished_run()[0]))
    with torch.inference_mode():
        seen = encoder.seen([Image.open(picture)])
        wanted = encoder.backbone(encoder.normalize(seen)).mean((2, 3))
    assert float(torch.cosine_similarity(torch.tensor(found), wanted)) > 0.999


def test_what_keeps_a_push_from_the_hub_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished_run()[0]
    assert "is no name on the hub; write it as OWNER/NAME" in fgssl("push", run, "birds").error(2)
    assert "is no run of fgssl's" in fgssl("push", tmp_path / "none", "me/birds").error()
    assert "holds no encoder.safetensors" in fgssl("push", tmp_path, "me/birds").error()
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert "is no PNG or JPEG" in fgssl("push", run, "me/birds", "--picture", tmp_path / "a.png").error()
    with monkeypatch.context() as at:
        at.setattr("tempfile.tempdir", None)
        at.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
        assert "no folder for temporary files" in fgssl("push", run, "me/birds", "--dry-run").error()
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert "there is no token for the hub; log in with" in fgssl("push", run, "me/birds").error()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    gone = fgssl("push", run, "me/birds").error()  # the tests run without a hub
    assert "the hub does not answer" in gone and "nothing was pushed" in gone
    with serve({}, token="hf_right") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        refused = fgssl("push", run, "me/birds").error()
    assert "the hub refuses me/birds: 403 This token has no write access" in refused


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


def scripted(encoder: Encoder, folder: Path) -> Path:
    """The folder with what `embed.py` needs of an encoder."""
    save_timm(encoder.backbone, folder)
    bundle.write_scripted(encoder, folder)
    return folder


def assert_script_agrees(folder: Path, encoder: Encoder, count: int = 3) -> None:
    images = open_split(DataConfig(source=str(photos())), None, "test")
    pictures = [images.load(row) for row in range(count)]
    pools: tuple[Pool, ...] = ("gap", "zoom")
    for pool in pools:
        with torch.inference_mode():
            found = Embedder(folder, pool=pool)(pictures)
            torch.testing.assert_close(found, encoder(pictures, pool), rtol=0, atol=1e-4)


def test_the_script_gives_fgssls_embedding_without_fgssl(tmp_path: Path) -> None:
    bundle.gather(trained_run(), tmp_path, "me/birds", licence=None, picture=None)
    encoder = load_encoder(str(trained_run()))
    assert encoder.colocalizer is not None and encoder.rationale is not None  # of trained weights: all there can be
    assert_script_agrees(tmp_path, encoder)
    names = [str(path) for path in sorted(photos().rglob("*.png"))[:2]]
    program = "import runpy, sys; sys.modules['fgssl'] = None; runpy.run_path('embed.py', run_name='__main__')"
    told(["-c", program, "f.npy", *names], {"PYTHONPATH": ""}, tmp_path)
    with torch.inference_mode():
        wanted = encoder([Image.open(name) for name in names], encoder.default_pool())
    np.testing.assert_allclose(np.load(tmp_path / "f.npy"), wanted.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"combine": "linear", "branch_norm": "none", "normalization": "batch"},
        {"fit": "regression", "pool": "gem"},
        {"prediction_temperature": 0.3, "axis": "row"},
        {"prediction_temperature": 0.3},
        {"stages": 2},
        {"stages": 3, "fit": "regression", "pool": "gem"},
        None,
    ],
)
def test_the_script_reads_every_rationale(settings: dict[str, Any] | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = load_encoder(str(finished_run()[0]))
    encoder.rationale = None
    if settings is not None:
        config = RationaleConfig(**settings)
        encoder.backbone.bring_along(config.stages - 1)
        encoder.rationale = RationaleHead(encoder.backbone.seen_channels, config).eval()
    assert_script_agrees(scripted(encoder, tmp_path), encoder)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "swin_tiny_patch4_window7_224"])
def test_the_script_reads_every_kind_of_map(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=64)
    encoder = Encoder(backbone).eval()
    stages = min(3, backbone.stages)
    width = backbone.pooled_width(stages)
    encoder.whiten_by(torch.nn.Linear(width, width), stages=stages)
    assert_script_agrees(scripted(encoder, tmp_path), encoder, count=2)


def test_foreign_text_stays_one_piece_of_code() -> None:
    assert code("a`b|c\n<script>") == "`a'b/c\\n<script>`"


def test_the_interval_is_wilsons() -> None:
    for hits, count in ((0, 7), (3, 12), (12, 12), (450, 640)):
        exact = binomtest(hits, count).proportion_ci(method="wilson")
        assert wilson(hits / count, count) == pytest.approx((exact.low, exact.high), abs=1e-5)
