"""Embeddings: the promised file, and a result that depends on the images and the encoder alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from pictures import ArrayImages, make_picture
from PIL import Image
from running import fgssl, finished_run, flat_photos, photos, plain_run
from safetensors import safe_open
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config

from fgssl.backbones import build_backbone, save_timm
from fgssl.config.schema import DataConfig
from fgssl.data import load_images
from fgssl.data.images import Subset
from fgssl.encoder import MAP_POOLS, Encoder
from fgssl.errors import FgsslError
from fgssl.evaluation import kept
from fgssl.evaluation.embed import embed, reject_unreadable
from fgssl.runs.encoder_file import load_encoder


@pytest.fixture
def encoder() -> Encoder:
    return load_encoder(str(finished_run()[0]))


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return load_file(path), file.metadata()


# ---- the file


def test_file_holds_features_labels_paths_and_class_names(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "features.safetensors"
    outcome = fgssl("embed", finished_run()[0], "--output", path, "--json")
    tensors, metadata = read(path)
    assert tensors.keys() == {"features", "labels"}
    assert tensors["features"].shape == (12, 3 * 288) and tensors["features"].dtype == torch.float32
    assert tensors["labels"].shape == (12,) and tensors["labels"].dtype == torch.int64
    torch.testing.assert_close(tensors["features"].norm(dim=1), torch.ones(12))
    paths, names = json.loads(metadata["paths"]), json.loads(metadata["class_names"])
    assert names == ["class 0", "class 1", "class 2"]
    assert [Path(path).parent.name for path in paths] == [names[label] for label in tensors["labels"].tolist()]
    assert sorted(map(Path, paths)) == sorted((photos() / "test").rglob("*.*"))
    assert (metadata["split"], metadata["pool"], metadata["source"]) == ("test", "zoom", str(photos()))
    assert outcome.json() == {
        "output": str(path), "images": 12, "width": 864, "pool": "zoom", "labels": True, "unreadable": 0,
    }  # fmt: skip


def test_unlabelled_folder_has_no_labels_and_concat_is_twice_as_wide(tmp_path: Path) -> None:
    path = tmp_path / "features"
    options = ("--data", flat_photos(), "--pool", "concat", "--output", path)
    assert fgssl("embed", finished_run()[0], *options).out == f"{path}: 12 x 576 features (concat)\n"
    tensors, metadata = read(path)
    assert tensors.keys() == {"features"} and json.loads(metadata["class_names"]) is None
    assert [Path(name).name for name in json.loads(metadata["paths"])] == sorted(
        p.name for p in flat_photos().iterdir()
    )


def test_output_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    unread = tmp_path / "broken.safetensors"  # would be another error
    unread.touch()
    for output, expected in ((tmp_path, "is a folder"), (tmp_path / "file" / "features", "cannot create the folder")):
        outcome = fgssl("embed", unread, "--output", output)
        assert expected in outcome.error()


def test_a_failure_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "features"
    path.write_text("former")

    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fgssl.evaluation.feature_file.save_file", full)
    assert "No space left" in fgssl("embed", plain_run(), "--output", path, "--overwrite").error()
    assert path.read_text() == "former" and len(list(tmp_path.iterdir())) == 1


# ---- the result


def test_each_image_embeds_as_it_does_alone(encoder: Encoder) -> None:
    """The oracle: one image after another through decoding, view and backbone by hand."""
    images = load_images(DataConfig(source=str(photos())), "test")
    found = embed(encoder, images, pools=MAP_POOLS)
    view, backbone = encoder.view(), encoder.backbone
    mean, std = torch.tensor(backbone.mean).view(3, 1, 1), torch.tensor(backbone.std).view(3, 1, 1)
    for row in range(len(images)):
        pixels = torch.from_numpy(np.array(view(Image.open(images.identifier(row)).convert("RGB"))))
        with torch.no_grad():
            feature_map = backbone(((pixels.permute(2, 0, 1) / 255 - mean) / std)[None])[0]  # (C, H, W)
            attention = encoder.attention(feature_map[None])[0]
        gap = torch.nn.functional.normalize(feature_map.mean((1, 2)), dim=0)
        weighted = torch.nn.functional.normalize((feature_map * attention).sum((1, 2)), dim=0)
        expected = {"gap": gap, "rationale": weighted, "concat": torch.cat([gap, weighted]) / 2**0.5}
        for pool in MAP_POOLS:
            torch.testing.assert_close(found[pool].features[row], expected[pool], rtol=0, atol=1e-5)
            assert found[pool].identifiers == tuple(images.identifier(i) for i in range(len(images)))


@pytest.mark.parametrize("batch_size", [1, 5, 12, 64])
def test_result_does_not_depend_on_the_batch(batch_size: int, encoder: Encoder) -> None:
    images = load_images(DataConfig(source=str(photos())), "test")
    whole = embed(encoder, images, pools=MAP_POOLS, batch_size=12)
    parts = embed(encoder, images, pools=MAP_POOLS, batch_size=batch_size)
    for pool in MAP_POOLS:
        torch.testing.assert_close(parts[pool].features, whole[pool].features, rtol=0, atol=1e-5)
        assert parts[pool].identifiers == whole[pool].identifiers


@pytest.mark.parametrize("workers", [0, 2])
def test_cache_and_workers_change_nothing(
    workers: int, encoder: Encoder, memory_images: Callable[..., ArrayImages], tmp_path: Path
) -> None:
    images = memory_images(11, broken=(1,))
    options = {"pools": ("rationale",), "batch_size": 4, "workers": workers}
    off = embed(encoder, images, cache="off", **options)["rationale"]
    for _ in range(2):  # built, then read
        cached = embed(encoder, images, cache=str(tmp_path), **options)["rationale"]
        assert torch.equal(cached.features, off.features)
        assert cached.identifiers == off.identifiers and cached.faults == off.faults


def test_train_mode_is_used_in_eval_mode_and_restored(
    encoder: Encoder, memory_images: Callable[..., ArrayImages]
) -> None:
    images = memory_images(6)
    expected = embed(encoder, images, pools=("gap",))["gap"]
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder.train()
    assert torch.equal(embed(encoder, images, pools=("gap",))["gap"].features, expected.features)
    assert encoder.training
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_progress_counts_every_image_once(encoder: Encoder, memory_images: Callable[..., ArrayImages]) -> None:
    calls: list[tuple[int, int]] = []
    images = memory_images(12, broken=(3,))
    embed(encoder, images, pools=("gap",), batch_size=5, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(5, 12), (10, 12), (12, 12)]


@pytest.mark.parametrize("verb", ["embed", "probe", "retrieve", "compare"])
def test_every_verb_takes_the_cache_where_it_is_told(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is filled, `off` writes nothing, and neither changes the result."""
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "usual"))
    shown = {}
    for cache in (str(tmp_path / "asked"), "off"):
        options = ("--output", tmp_path / "features") if verb == "embed" else ()
        shown[cache] = fgssl(verb, finished_run()[0], "--cache", cache, "--json", *options).json()
        assert not (tmp_path / "usual").exists()
    assert list((tmp_path / "asked" / "decoded").glob("*.pixels")) and len({str(s) for s in shown.values()}) == 1


def test_a_gallery_is_kept_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "usual"))
    monkeypatch.setattr(kept, "LEAST_KEPT", 1)
    asked = ("retrieve", finished_run()[0], "--query", next((photos() / "test").rglob("*.jpg")), "--json")
    found = fgssl(*asked, "--cache", tmp_path / "asked").json()
    assert list((tmp_path / "asked" / "features").iterdir())
    assert fgssl(*asked, "--cache", "off").json() == found and not (tmp_path / "usual").exists()


# ---- unreadable images


def test_unreadable_images_are_left_out_and_the_rest_keep_their_order(
    encoder: Encoder, memory_images: Callable[..., ArrayImages]
) -> None:
    whole = embed(encoder, memory_images(20), pools=("gap",))["gap"]
    kept = [row for row in range(20) if row not in (0, 7)]
    found = embed(encoder, memory_images(20, broken=(0, 7)), pools=("gap",), batch_size=1)["gap"]
    assert found.identifiers == tuple(f"memory#{row}" for row in kept)
    torch.testing.assert_close(found.features, whole.features[kept], rtol=0, atol=1e-5)
    assert [(fault.index, "memory#" in fault.reason) for fault in found.faults] == [(0, True), (7, True)]


def test_labels_follow_their_images(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(photos() / "test", broken)
    (broken / "class 0" / "00.jpg").write_bytes(b"no picture")
    outcome = fgssl("embed", finished_run()[0], "--data", broken, "--output", tmp_path / "features", "--json")
    assert outcome.json()["unreadable"] == 1 and outcome.json()["images"] == 11
    assert "left out" in outcome.err and "00.jpg" in outcome.err
    tensors, metadata = read(tmp_path / "features")
    paths, names = json.loads(metadata["paths"]), json.loads(metadata["class_names"])
    assert str(broken / "class 0" / "00.jpg") not in paths and len(paths) == 11
    assert [Path(path).parent.name for path in paths] == [names[label] for label in tensors["labels"].tolist()]


def test_more_than_a_tenth_is_an_error(encoder: Encoder, memory_images: Callable[..., ArrayImages]) -> None:
    with pytest.raises(FgsslError, match=r"2 of 12 images of memory\[all\].*memory#3.*memory#4"):
        embed(encoder, memory_images(12, broken=(3, 4)), pools=("gap",))
    with pytest.raises(FgsslError, match="12 of 12"):
        embed(encoder, memory_images(12, broken=tuple(range(12))), pools=("gap",))
    with pytest.raises(FgsslError, match=r"1 of 2 images taken from the 12 images of memory\[all\] cannot be read"):
        embed(encoder, Subset(memory_images(12, broken=(3,)), [3, 5]), pools=("gap",))
    reject_unreadable([], memory_images(0))  # nothing is wrong with nothing


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_timm_alone_embeds_alike(name: str, tmp_path: Path) -> None:
    """From file to embedding: the cache and JPEGs decoded at reduced size on one side, only timm on the other."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(90, 160), (301, 200), (1100, 700), (64, 64)]):
        make_picture(number, *size).save(folder / f"{number}.jpg", quality=90)
    torch.manual_seed(0)
    encoder = Encoder(build_backbone(name, image_size=64)).eval()
    images = load_images(DataConfig(source=str(folder)), "all")
    found = embed(encoder, images, pools=["gap"], cache=str(tmp_path / "cache"))["gap"]
    model = timm.create_model(f"local-dir:{save_timm(encoder.backbone, tmp_path / 'timm')}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model.pretrained_cfg))
    with torch.no_grad():
        views = torch.stack([transform(Image.open(path).convert("RGB")) for path in found.identifiers])
        maps = model.forward_features(views)
    pooled = maps[:, model.num_prefix_tokens :].mean(1) if maps.ndim == 3 else maps.mean((2, 3))
    assert torch.cosine_similarity(pooled, found.features).min() > 0.999
