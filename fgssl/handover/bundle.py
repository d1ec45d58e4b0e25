"""What of a run is handed on: a folder that timm, fgssl and, by a script, anybody opens.

What would tell of this machine or of its pictures stays: paths, the sample of projected training images, the heads.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from fgssl.backbones import save_timm
from fgssl.backbones.stages import Stages
from fgssl.config.resolve import config_from_flat
from fgssl.config.schema import PretrainConfig, flatten, nested
from fgssl.encoder import Encoder
from fgssl.errors import FgsslError
from fgssl.handover.card import CARD_FILE, Card, card
from fgssl.runs.encoder_file import load_encoder, save_encoder
from fgssl.runs.folder import CONFIG_FILE, ENCODER_FILE, SUMMARY_FILE, encoder_path

SCRIPT = "embed.py"
LARGEST_PICTURE = 5_000_000  # bytes


def gather(run: Path, folder: Path, name: str, *, licence: str | None, picture: Path | None) -> str:
    """Write what is handed on of a finished run into an empty folder; the text of its model card.

    Args:
        run: A run folder.
        folder: Gets README.md (the card), config.json and model.safetensors (timm's), encoder.safetensors and
            config.yaml (fgssl's), embed.py, and a picture.
        name: OWNER/NAME on the hub.
        licence: Of the weights, by the hub's name of it; None where nobody has said.
        picture: PNG or JPEG for the card; None for the run's learning curve, if it has one.

    Raises:
        FgsslError: not a finished run, or a picture that is none.
    """
    if not run.is_dir() or encoder_path(str(run)) is None:
        raise FgsslError(f"'{run}' is no run of fgssl's", "give the folder of a finished run")
    summary = _summary(run)
    encoder = load_encoder(str(run))
    if encoder.config is None:
        raise FgsslError(f"the encoder in '{run}' tells no settings", "give the folder of a finished run")
    shown = _copy_picture(run / "curve.png" if picture is None else picture, folder, asked=picture is not None)
    config = _without_training(encoder)
    save_timm(encoder.backbone, folder, head=encoder.whitening if encoder.stages == 1 else None)
    text = yaml.safe_dump(nested(flatten(config)), sort_keys=False, allow_unicode=True)
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    write_scripted(encoder, folder)
    told = card(Card(name, encoder, config, summary, licence, shown))
    (folder / CARD_FILE).write_text(told, encoding="utf-8")
    return told


def public_config(config: PretrainConfig) -> PretrainConfig:
    """The settings with the last part alone of each path of this machine."""
    flat = {key: _public(value) if isinstance(value, str) else value for key, value in flatten(config).items()}
    return config_from_flat(flat).config


def _without_training(encoder: Encoder) -> PretrainConfig:
    """Take off, in place, what only continues the training, and what the settings tell of this machine."""
    assert encoder.config is not None
    encoder.config = public_config(encoder.config)
    encoder.projector = encoder.predictor = encoder.keys = None
    return encoder.config


def _public(value: str) -> str:
    local = value.startswith((os.sep, "~", ".")) or (os.sep in value and os.path.exists(value))
    return (Path(value).name or "data") if local else value


def write_scripted(encoder: Encoder, folder: Path) -> None:
    """The encoder file and the script that opens it, beside timm's config."""
    shutil.copyfile(Path(__file__).parent / SCRIPT, folder / SCRIPT)
    save_encoder(folder / ENCODER_FILE, encoder, told={"reading": json.dumps(reading(encoder, folder))})


def reading(encoder: Encoder, folder: Path) -> dict[str, Any]:
    """How `embed.py` reads the maps and prepares pictures: as timm's config beside it says."""
    backbone = encoder.backbone
    stages = backbone.earlier.first(encoder.stages - 1) if encoder.stages > 1 else Stages()
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    told = {key: data[key] for key in ("interpolation", "mean", "std", "crop_pct")}
    route, branch = backbone.plan.route, encoder.rationale
    return {
        "pool": encoder.default_pool(), "size": backbone.image_size, "zoom_size": encoder.view_size("zoom"),
        "window_weight": encoder.look_weight, "branch": None if branch is None else asdict(branch.config),
        "kind": route.kind, "final_norm": route.final_norm, "places": list(stages.places),
        "finer": list(backbone.beside.places), "last": backbone.all_earlier.last, "data": told,
    }  # fmt: skip


def _summary(run: Path) -> dict[str, Any]:
    path = run / SUMMARY_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found["versions"], dict) and isinstance(found["retrieval"], list):
            return found
    except (OSError, ValueError, KeyError, RecursionError):
        pass
    raise FgsslError(f"'{path}' is missing or damaged", "the card is made of it: give the folder of a finished run")


def _copy_picture(path: Path, folder: Path, *, asked: bool) -> str | None:
    """Copy the card's picture; its name there."""
    try:
        start, size = path.open("rb").read(8), path.stat().st_size
    except OSError as error:
        if not asked:
            return None
        raise FgsslError(f"cannot read the picture '{path}': {error.strerror}", "choose another --picture") from error
    kinds = {b"\x89PNG\r\n\x1a\n": "picture.png", b"\xff\xd8\xff": "picture.jpg"}
    name = next((name for begin, name in kinds.items() if start.startswith(begin)), None)
    if name is None or size > LARGEST_PICTURE:
        problem = f"the picture '{path}' is no PNG or JPEG of at most {LARGEST_PICTURE // 1_000_000} MB"
        raise FgsslError(problem, "choose another --picture")
    shutil.copyfile(path, folder / name)
    return name
