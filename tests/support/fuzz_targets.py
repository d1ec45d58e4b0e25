"""What is fuzzed: every kind of file that fgssl reads, written well once and then damaged."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from fuzzing import HOSTILE, Target, damaged_bytes, damaged_safetensors, damaged_value
from pictures import ArrayImages, make_picture
from PIL import Image

from fgssl.backbones import build_backbone
from fgssl.backbones.weights import read_checkpoint
from fgssl.config.resolve import load_config
from fgssl.config.schema import DataConfig, flatten, nested
from fgssl.data import load_images
from fgssl.data.cache.pixels import Shrunk, cache_path, open_pixels
from fgssl.data.decoding import decode_image, examine_image
from fgssl.encoder import Encoder
from fgssl.evaluation.embed import Embeddings, embed
from fgssl.evaluation.feature_file import is_feature_file, read_features, save_features
from fgssl.evaluation.retrieval.metrics import evaluate_retrieval
from fgssl.objectives.methods.mocov2 import MoCo
from fgssl.rationale import RationaleHead
from fgssl.runs.encoder_file import load_encoder, save_encoder
from fgssl.runs.folder import truncate_metrics
from fgssl.runs.resume_state import load_state, random_state, save_state

BACKBONE = "test_byobnet"  # timm's own tiny model


def _bytes_of(write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()


# ---- encoders


@functools.cache
def encoder_bytes() -> bytes:
    """A small encoder file with all its parts."""
    torch.manual_seed(0)
    config = load_config(
        sets=["objective.projector_hidden=8", "objective.projector_dim=4", f"backbone.name={BACKBONE}"]
    ).config
    backbone = build_backbone(BACKBONE, image_size=64)
    encoder = Encoder(backbone, config=config, keys=torch.randn(6, 4))
    encoder.rationale = RationaleHead(backbone.channels, config.rationale)
    encoder.projector = MoCo.build_projector(backbone.channels, config.objective)
    return _bytes_of(lambda path: save_encoder(path, encoder))


def _encoder(rng: random.Random, path: Path) -> None:
    path.write_bytes(damaged_safetensors(rng, encoder_bytes(), ("fgssl",)))


def _read_encoder(path: Path) -> object:
    """Load it, use it on two pictures, and ask what it remembers."""
    encoder = load_encoder(str(path))
    assert encoder.config is None or isinstance(encoder.config.data, DataConfig)
    images = ArrayImages([make_picture(n, 30, 40) for n in range(2)])
    return embed(encoder, images, pools=("gap", encoder.default_pool()), workers=0, cache="off")


# ---- settings


def _recipe(rng: random.Random, path: Path) -> None:
    tree = nested(flatten(load_config().config))
    if rng.random() < 0.6:
        text = yaml.safe_dump(damaged_value(rng, tree), allow_unicode=rng.random() < 0.5)
    else:
        lines = yaml.safe_dump(tree).splitlines()
        for _ in range(rng.randint(1, 3)):
            lines.insert(rng.randrange(len(lines)), rng.choice(YAML_LINES))
        text = "\n".join(lines)
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(damaged_bytes(rng, data) if rng.random() < 0.3 else data)


YAML_LINES = (
    "x: !!python/object/apply:os.system ['echo 1']", "x: !!python/name:os.system", "!!bool x: 1", "a: &a [*a]",
    "<<: [1, 2]", "? {a: b}\n: c", "- 1", "%YAML 9.9", "---", "...", "\t", "training: {epochs: !!int 'x'}",
    "training: {seed: !!binary aGk=}", "data: !!set {a, b}", "data: {source: 2024-01-01}", "? [1]\n: 2", "'", "{[",
    "backbone: {name: !<tag:yaml.org,2002:python/object:os.system> x}", "a: " + "[" * 900, "training: {epochs: 1_0}",
    "a: &x [1,1,1,1]\nb: &y [*x,*x,*x]\nc: &z [*y,*y,*y]\ntraining: [*z,*z,*z]",
)  # fmt: skip


def _pair(rng: random.Random, path: Path) -> None:
    key = rng.choice([*flatten(load_config().config), "", ".", "a.b", "training.", "..", "training.epochs.x"])
    value = rng.choice(HOSTILE)
    text = f"{key}={value if rng.random() < 0.5 else json.dumps(value)}"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def _read_pair(path: Path) -> object:
    return load_config(sets=[path.read_bytes().decode("utf-8", "surrogateescape")])


# ---- features, weights, states


@functools.cache
def feature_bytes() -> bytes:
    """A file as fgssl embed writes it."""
    names = tuple(f"a/{n}.jpg" for n in range(6))
    found = Embeddings(torch.randn(6, 5), torch.arange(6) % 3, names, ("x", "y", "z"), np.arange(6), ())
    return _bytes_of(lambda path: save_features(path, found, source="demo", split="test", pool="gap"))


def _features(rng: random.Random, path: Path) -> None:
    path.write_bytes(damaged_safetensors(rng, feature_bytes(), ("paths", "class_names", "source", "split")))


def _read_features(path: Path) -> object:
    is_feature_file(str(path))
    found = read_features(str(path)).embeddings
    return evaluate_retrieval(found.features, found.known_labels)


@functools.cache
def pickle_bytes() -> bytes:
    """A state dict as torch saves it."""
    return _bytes_of(lambda path: torch.save({"state_dict": {"a.weight": torch.ones(3, 2), "step": 3}}, path))


def _pickle(rng: random.Random, path: Path) -> None:
    path.write_bytes(damaged_bytes(rng, pickle_bytes()))


@functools.cache
def state_bytes() -> bytes:
    """A resume state."""
    with tempfile.TemporaryDirectory() as folder:
        state = {"model": {"a": torch.ones(4)}, "progress": {"step": 5}, "random": [random_state()]}
        save_state(Path(folder), 5, state)
        return (Path(folder) / "resume" / "000000005.pt").read_bytes()


def _state(rng: random.Random, path: Path) -> None:
    """Two states; the newest or both damaged, with the checksum of the damage or of the original."""
    (path / "resume").mkdir(parents=True, exist_ok=True)
    for number in (5, 6):
        data = damaged_bytes(rng, state_bytes()) if number == 6 or rng.random() < 0.5 else state_bytes()
        (path / "resume" / f"{number:09d}.pt").write_bytes(data)
        signed = data if rng.random() < 0.5 else state_bytes()
        checksum = hashlib.sha256(signed).hexdigest()
        if rng.random() < 0.2:
            checksum = damaged_bytes(rng, checksum.encode()).decode("latin-1")
        (path / "resume" / f"{number:09d}.sha256").write_text(checksum, encoding="latin-1")


def _metrics(rng: random.Random, path: Path) -> None:
    path.mkdir(exist_ok=True)
    lines = [json.dumps(damaged_value(rng, {"step": n, "loss": 0.5, "epoch": 1})) for n in range(5)]
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    (path / "metrics.jsonl").write_bytes(damaged_bytes(rng, data))


# ---- pictures, lists, caches


@functools.cache
def picture_bytes(form: str) -> bytes:
    """A picture in one format."""
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    make_picture(1, 40, 30).save(stream, form, **({"exif": exif} if form in ("JPEG", "PNG", "WEBP") else {}))
    return stream.getvalue()


def _picture(rng: random.Random, path: Path) -> None:
    form = rng.choice(("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"))
    path.write_bytes(damaged_bytes(rng, picture_bytes(form)))


def _read_picture(path: Path) -> object:
    examine_image(path, 16)
    return decode_image(path.read_bytes())


def _list(rng: random.Random, path: Path) -> None:
    lines = b"a.jpg\tx\nb.jpg\ty\n/etc/passwd\tz\n../../c.jpg\t[red]\n# note\n\xff\xfe.jpg\t\xff\n"
    path.write_bytes(damaged_bytes(rng, lines))


def _read_list(path: Path) -> object:
    images = load_images(DataConfig(source=str(path)), "all")
    images.fingerprint()
    return [images.identifier(index) for index in range(len(images))]


@functools.cache
def cached() -> tuple[ArrayImages, bytes]:
    """Pictures, and the file of their pixels."""
    images = ArrayImages([make_picture(n, 20, 16) for n in range(4)], broken=(2,))
    with tempfile.TemporaryDirectory() as folder:
        store = open_pixels(images, Shrunk(12), cache=folder)
        assert store.path is not None
        return images, store.path.read_bytes()


def _cache(rng: random.Random, path: Path) -> None:
    images, data = cached()
    place = cache_path(images, Shrunk(12), path)
    place.parent.mkdir(parents=True, exist_ok=True)
    # the end holds the index; pixels in front are believed, as a checksum of gigabytes would cost a run its start
    tail = damaged_bytes(rng, data[-260:])
    place.write_bytes(data[:-260] + tail)


def _read_cache(path: Path) -> object:
    images, _ = cached()
    store = open_pixels(images, Shrunk(12), cache=str(path))
    return [store.read(index) for index in range(len(store))]


def _load_state(path: Path) -> object:
    found: Any = load_state(path)
    return found


TARGETS = (
    Target("encoder", _encoder, _read_encoder, ".safetensors"),
    Target("recipe", _recipe, load_config, ".yaml"),
    Target("setting", _pair, _read_pair, ".txt"),
    Target("features", _features, _read_features, ".safetensors"),
    Target("weights", _features, read_checkpoint, ".safetensors"),
    Target("pickle", _pickle, read_checkpoint, ".pth"),
    Target("state", _state, _load_state, ""),
    Target("metrics", _metrics, lambda path: truncate_metrics(path, 3), ""),
    Target("picture", _picture, _read_picture, ".jpg"),
    Target("list", _list, _read_list, ".txt"),
    Target("cache", _cache, _read_cache, ""),
)
