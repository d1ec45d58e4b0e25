"""The encoder file: works alone, gives the same numbers, and says in one line what is wrong with a wrong one."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from running import BACKBONE, fgssl, finished_run, flat_photos, photos, plain_run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fgssl.backbones import build_backbone
from fgssl.config.schema import ObjectiveConfig, PretrainConfig, RationaleConfig
from fgssl.data import load_images
from fgssl.encoder import MAP_POOLS, Encoder
from fgssl.errors import FgsslError
from fgssl.evaluation.embed import embed
from fgssl.evaluation.subject import EvaluationOptions, open_subject
from fgssl.objectives.methods.mocov2 import MoCo
from fgssl.rationale import RationaleHead
from fgssl.runs.encoder_file import load_encoder, save_encoder


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """The encoder file of a run, copied to a place of its own under another name."""
    return Path(shutil.copy(finished_run()[0] / "encoder.safetensors", tmp_path / "my bird 🐦.safetensors"))


def pictures(count: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 64, 64), dtype=np.uint8))


# ---- works alone


def test_encoder_file_alone_serves_every_verb(alone: Path, tmp_path: Path) -> None:
    run = finished_run()[0]
    for verb in ("retrieve", "probe"):
        ours, theirs = (fgssl(verb, path, "--data", photos(), "--json").json() for path in (alone, run))
        assert {**ours, "checkpoint": ""} == {**theirs, "checkpoint": ""}
    for name, checkpoint in (("ours", alone), ("theirs", run)):
        assert fgssl("embed", checkpoint, "--data", photos(), "--output", tmp_path / name).code == 0
        picture = photos() / "test" / "class 1" / "01.png"
        drawn = fgssl("visualize", picture, "--checkpoint", checkpoint, "--output", tmp_path / f"{name}.png")
        assert drawn.code == 0
    assert torch.equal(load_file(tmp_path / "ours")["features"], load_file(tmp_path / "theirs")["features"])


def test_metadata_holds_config_and_data_source() -> None:
    with safe_open(finished_run()[0] / "encoder.safetensors", framework="pt") as file:
        saved = json.loads(file.metadata()["fgssl"])
    assert saved["format"] == "fgssl-encoder-1" and saved["config"]["data.source"] == str(photos())
    assert saved["config"]["backbone.name"] == BACKBONE == saved["backbone"]["name"]


@pytest.mark.parametrize("rationale", [None, RationaleConfig(projections=5), RationaleConfig(branch_norm="none")])
def test_saved_and_loaded_encoder_gives_exactly_the_same(rationale: RationaleConfig | None, tmp_path: Path) -> None:
    torch.manual_seed(1)
    backbone = build_backbone("resnet10t", image_size=64)
    objective = ObjectiveConfig(projector_dim=256)
    config = PretrainConfig(objective=objective, rationale=rationale or RationaleConfig(enabled=False))
    head = None if rationale is None else RationaleHead(backbone.channels, rationale)
    projector = MoCo.build_projector(backbone.channels, objective)
    keys = torch.nn.functional.normalize(torch.randn(7, 256), dim=1)
    encoder = Encoder(backbone, head, projector=projector, keys=keys, config=config)
    encoder.train()
    for _ in range(2):  # batch statistics that are not the initial ones
        feature_map = encoder.backbone(encoder.normalize(pictures()))
        if head is not None:
            head(feature_map)
    encoder.eval()
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    torch.manual_seed(2)
    loaded = load_encoder(str(tmp_path / "encoder.safetensors"))
    assert not loaded.training and loaded.config == config
    with torch.no_grad():
        for pool in MAP_POOLS if rationale else ("gap",):
            assert torch.equal(encoder(pictures(), pool), loaded(pictures(), pool))
    assert torch.equal(encoder.loss_gradcam(pictures()), loaded.loss_gradcam(pictures()))


def test_encoder_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(str(finished_run()[0]))
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(b"the former one")

    def cut(tensors: object, filename: Path, metadata: object) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fgssl.runs.encoder_file.save_file", cut)
    with pytest.raises(FgsslError, match="No space left"):
        save_encoder(path, encoder)
    assert path.read_bytes() == b"the former one" and len(list(tmp_path.iterdir())) == 1


# ---- in plain timm


def test_timm_opens_the_run_and_gives_equal_features() -> None:
    encoder = load_encoder(str(finished_run()[0]))
    model = timm.create_model(f"local-dir:{finished_run()[0] / 'timm'}", pretrained=True).eval()
    images = encoder.normalize(pictures())
    with torch.no_grad():
        assert torch.equal(model.forward_features(images), encoder.backbone(images))
    settings = timm.data.resolve_model_data_config(model)
    assert settings["input_size"] == (3, 64, 64) and tuple(settings["mean"]) == encoder.backbone.mean


# ---- wrong files


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _torch_pickle(path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(2)}}, path)


def _plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


def _other_tool(path: Path) -> None:
    save_file({"weight": torch.ones(2)}, path, metadata={"format": "pt"})


def _newer(path: Path) -> None:
    save_file({"weight": torch.ones(2)}, path, metadata={"fgssl": json.dumps({"format": "fgssl-encoder-9"})})


def _no_json(path: Path) -> None:
    save_file({"weight": torch.ones(2)}, path, metadata={"fgssl": "{"})


def _lost_tensor(path: Path) -> None:
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    del tensors["rationale.project.weight"]
    save_file(tensors, path, metadata=metadata)


def _lost_backbone(path: Path) -> None:
    tensors = {key: value for key, value in load_file(path).items() if not key.startswith("backbone.conv_stem")}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_cut, "cut off"),
        (_cut_header, "cut off"),
        (_empty, "cut off"),
        (_torch_pickle, "pickle"),
        (_plain_pickle, "pickle"),
        (_other_tool, "not written by fgssl"),
        (_newer, "update fgssl"),
        (_no_json, "not a safetensors file"),
        (_lost_tensor, "damaged"),
        (_lost_backbone, "conv_stem"),
    ],
)
def test_wrong_checkpoints_are_one_line(spoil: Callable[[Path], None], expected: str, alone: Path) -> None:
    spoil(alone)
    outcome = fgssl("retrieve", alone)
    error = outcome.error()
    assert expected in error and (str(alone) in error or BACKBONE in error)
    assert outcome.err.count("\n") == 1 and outcome.out == ""


def test_places_without_an_encoder(tmp_path: Path) -> None:
    assert "no checkpoint 'nowhere'" in fgssl("embed", "nowhere").error()
    unfinished = fgssl("probe", tmp_path).error()
    assert "holds no encoder.safetensors" in unfinished and "--resume" in unfinished
    assert "no finished run" in fgssl("visualize", photos() / "test" / "class 0" / "00.jpg", cwd=tmp_path).error()


def test_encoder_without_rationale_says_so() -> None:
    for pool in ("rationale", "concat"):
        error = fgssl("retrieve", plain_run(), "--data", photos(), "--pool", pool).error()
        assert "no rationale branch" in error and "--pool gap" in error


def test_timm_checkpoints(tmp_path: Path) -> None:
    assert BACKBONE in (offline := fgssl("retrieve", f"timm:{BACKBONE}", "--data", photos()).error())
    assert "offline" in offline and "timm:local-dir:FOLDER" in offline and "--no-pretrained" not in offline
    bare = fgssl("embed", "timm:test_mambaout", "--data", photos()).error()
    assert "has no published weights" in bare and "--no-pretrained" not in bare
    assert "mobilenetv3_small_050" in fgssl("retrieve", "timm:mobilenetv3_smal_050").error()
    # a local folder stands in for weights from the hub
    name = f"timm:local-dir:{finished_run()[0] / 'timm'}"
    assert "remembers no data set" in fgssl("retrieve", name).error()
    result = fgssl("retrieve", name, "--data", photos(), "--json").json()
    assert (result["pool"], result["queries"]) == ("gap", 12)
    ours = fgssl("retrieve", finished_run()[0], "--pool", "gap", "--json").json()
    assert result["mAP"] == pytest.approx(ours["mAP"])
    assert "no rationale branch" in fgssl("embed", name, "--data", flat_photos(), "--pool", "concat").error()


def test_a_data_set_that_has_gone_is_named_with_the_way_out(alone: Path, tmp_path: Path) -> None:
    tensors = load_file(alone)
    with safe_open(alone, framework="pt") as file:
        metadata = json.loads(file.metadata()["fgssl"])
    metadata["config"]["data.source"] = str(tmp_path / "gone")
    save_file(tensors, alone, metadata={"fgssl": json.dumps(metadata)})
    error = fgssl("retrieve", alone).error()
    assert str(tmp_path / "gone") in error and "--data" in error
    assert fgssl("retrieve", alone, "--data", photos()).code == 0


def test_embedding_of_a_run_equals_that_of_its_file(alone: Path) -> None:
    encoder = load_encoder(str(alone))
    assert encoder.config is not None
    images = load_images(encoder.config.data, "test")
    found = embed(encoder, images, pools=MAP_POOLS)
    again = embed(load_encoder(str(finished_run()[0])), images, pools=MAP_POOLS)
    assert all(torch.equal(found[pool].features, again[pool].features) for pool in MAP_POOLS)


# ---- the data that a file from elsewhere names


def _renamed_source(path: Path, source: str) -> None:
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["fgssl"])
    metadata["config"]["data.source"] = source
    save_file(tensors, path, metadata={"fgssl": json.dumps(metadata)})


@pytest.mark.parametrize("source", ["/etc", "../../../../etc", "evil/dataset", "~", "list.txt", "photos"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_source_that_only_a_file_names_is_not_opened(
    source: str, beside: bool, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _renamed_source(alone, source)
    if beside:  # the run of another source
        shutil.copy(finished_run()[0] / "config.yaml", alone.with_name("config.yaml"))
    for opened in ("fgssl.data.sources.open.open_source",):
        monkeypatch.setattr(opened, mock.Mock(side_effect=AssertionError("opened")))
    picture = photos() / "test" / "class 1" / "01.png"
    for verb in (("retrieve",), ("retrieve", "--query", picture), ("probe",), ("embed",), ("compare",)):
        error = fgssl(verb[0], alone, *verb[1:]).error()
        assert f"'{source}'" in error and "--data" in error


def test_a_source_is_used_that_the_users_own_run_or_a_preset_names(alone: Path) -> None:
    shutil.copy(finished_run()[0] / "config.yaml", alone.with_name("config.yaml"))
    assert fgssl("retrieve", alone, "--json").json()["data"] == str(photos())
    alone.with_name("config.yaml").write_text("- no: [config")
    assert "--data" in fgssl("retrieve", alone).error()
    _renamed_source(alone, "demo")
    assert open_subject(str(alone), EvaluationOptions()).data.source == "demo"


# ---- weights of other tools


def _with_head(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**state, "classifier.weight": torch.ones(3, 1024), "classifier.bias": torch.zeros(3)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The backbone of the shared run as other tools keep it."""
    folder = tmp_path_factory.mktemp("weights")
    state = load_file(finished_run()[0] / "timm" / "model.safetensors")
    save_file(_with_head(state), folder / "plain.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in _with_head(state).items()}}, folder / "w.pth")
    shutil.copytree(finished_run()[0] / "timm", folder / "timm")
    save_file(_with_head(state), folder / "timm" / "model.safetensors")
    return {"plain": folder / "plain.safetensors", "pickle": folder / "w.pth", "folder": folder / "timm"}


@pytest.mark.parametrize("kind", ["plain", "pickle", "folder", "timm:local-dir:"])
def test_what_init_opens_every_verb_opens_as_a_checkpoint(kind: str, weights: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = str(weights[kind]) if kind in weights else f"{kind}{weights['folder']}"
    size = ("--image-size", "64")
    named = ("--backbone", BACKBONE) if kind in ("plain", "pickle") else ()
    expected = fgssl("retrieve", finished_run()[0], "--pool", "gap", "--json").json()["mAP"]
    given = (checkpoint, "--data", photos(), *named, *size)
    assert fgssl("retrieve", *given, "--json").json()["mAP"] == pytest.approx(expected)
    assert fgssl("probe", *given, "--json").code == 0
    assert fgssl("embed", *given, "--output", tmp_path / "f").code == 0
    picture = photos() / "test" / "class 1" / "01.png"
    assert len(fgssl("retrieve", *given, "--query", picture, "--json").json()["queries"][0]["hits"]) == 10
    rows = fgssl("compare", finished_run()[0], checkpoint, "--pool", "gap", *named, *size, "--json").json()["rows"]
    assert rows[0]["mAP"] == pytest.approx(rows[1]["mAP"])
    drawn = fgssl("visualize", picture, "--checkpoint", checkpoint, *named, *size, "--output", tmp_path / "x.png")
    assert "no maps to draw" in drawn.error()


def test_weights_that_do_not_tell_their_architecture_ask_for_it(weights: dict[str, Path]) -> None:
    for kind in ("plain", "pickle"):
        error = fgssl("compare", finished_run()[0], weights[kind]).error()
        assert str(weights[kind]) in error and "--backbone" in error
        assert "resnet18" in fgssl("retrieve", weights[kind], "--data", photos(), "--backbone", "resnet18").error()


@pytest.mark.parametrize("part", ["backbone.", "rationale.", "projector.", "keys"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_with_their_file(part: str, value: float, alone: Path) -> None:
    tensors = load_file(alone)
    with safe_open(alone, framework="pt") as file:
        metadata = file.metadata()
    name = next(key for key, tensor in tensors.items() if key.startswith(part) and tensor.is_floating_point())
    tensors[name].view(-1)[0] = value
    save_file(tensors, alone, metadata=metadata)
    error = fgssl("embed", alone, "--data", photos()).error()
    assert str(alone) in error and "not finite" in error and name.removeprefix("backbone.") in error
