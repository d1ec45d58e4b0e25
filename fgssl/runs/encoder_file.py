"""The encoder file: backbone, rationale, heads, sample of keys, config and data source in one safetensors.

Works alone, copied anywhere. Never a pickle; the settings are JSON in the metadata.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fgssl import __version__
from fgssl.backbones import Backbone, build_backbone, open_weights, origin_of, rebuild_backbone
from fgssl.backbones.names import LOCAL_PREFIX
from fgssl.backbones.weights import reject_not_finite
from fgssl.config.resolve import config_from_flat
from fgssl.config.schema import PretrainConfig, flatten
from fgssl.encoder import Encoder
from fgssl.errors import FgsslError
from fgssl.objectives import OBJECTIVES
from fgssl.rationale import Colocalizer, RationaleHead
from fgssl.runs.folder import CANDIDATES, CONFIG_FILE, ENCODER_FILE, NAMES, TIMM_PREFIX, encoder_path
from fgssl.runtime.files import atomic_path
from fgssl.runtime.offline import WeightsError, WeightsOffline

FORMAT = "fgssl-encoder-1"
ADAPTED = ("whitening", "colocalizer", "window_whitening")  # fitted in closed form

Module = TypeVar("Module", bound=nn.Module | None)


def save_encoder(
    path: Path, encoder: Encoder, *, more: Mapping[str, Tensor] | None = None, told: Mapping[str, str] | None = None
) -> None:
    """Write one self-contained encoder file, atomically; with `more` tensors and what else is `told` beside them."""
    config = None if encoder.config is None else flatten(encoder.config)
    metadata = {"format": FORMAT, "fgssl": __version__, "timm": timm.__version__}
    metadata |= {"backbone": encoder.backbone.description(), "config": config, "stages": encoder.stages}
    metadata["window_weight"] = encoder.window_weight
    tensors: dict[str, Tensor] = dict(more or {})
    if encoder.keys is not None:
        tensors["keys"] = encoder.keys
    for name in ("backbone", "rationale", "projector", "predictor", *ADAPTED):
        module = encoder.backbone.model if name == "backbone" else getattr(encoder, name)
        if module is not None:
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    # own copies: safetensors refuses tensors that share memory (coat)
    tensors = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"fgssl": json.dumps(metadata), **(told or {})})


def load_encoder(checkpoint: str, *, backbone: str | None = None, image_size: int | None = None) -> Encoder:
    """The encoder of a checkpoint: the one door for every verb, in eval mode on the CPU.

    Args:
        checkpoint: A run folder or an encoder file; or whatever `--init` starts from, which has no rationale:
            `timm:NAME` and `hf-hub:OWNER/NAME` with their published weights, a folder of timm's (also as
            `timm:local-dir:FOLDER`), a state dict as .safetensors or .pth; a classifier in it is left out.
        backbone: The architecture of weights that do not tell it.
        image_size: Side in pixels of the pictures that such weights take; None for what they were trained at.

    Raises:
        FgsslError: nothing there, cut off, of a newer version, not finite, or of an architecture that nothing tells.
    """
    path = encoder_path(checkpoint)
    found = None if path is None else _read(path)
    if path is None or found is None:
        return Encoder(_weights(checkpoint, backbone, image_size)).eval()
    metadata, tensors = found
    try:
        reject_not_finite({key: value for key, value in tensors.items() if not key.startswith("backbone.")}, "it")
        saved = metadata["config"]
        config = None if saved is None else config_from_flat(saved, f"saved in {path.name}").config
        rebuilt = rebuild_backbone(metadata["backbone"], _part(tensors, "backbone"))
        encoder = Encoder(rebuilt, config=config, keys=tensors.get("keys"))
        if config is not None:
            made, told = OBJECTIVES[config.objective.name], config.objective
            head, channels, keys = config.rationale, rebuilt.channels, encoder.keys
            if head.enabled:
                rebuilt.bring_along(head.stages - 1)
                seen = rebuilt.seen_channels
                encoder.rationale = _filled(lambda: RationaleHead(seen, head), _part(tensors, "rationale"))
            if projector := _part(tensors, "projector"):  # a run that kept its start has none that belongs to it
                encoder.projector = _filled(lambda: made.build_projector(channels, told), projector)
                encoder.predictor = _filled(lambda: made.build_predictor(told), _part(tensors, "predictor"))
            if keys is not None and (keys.shape[1:] != (told.projector_dim,) or not keys.is_floating_point()):
                raise ValueError(f"keys of shape {tuple(keys.shape)}")
        if whitening := _part(tensors, "whitening"):
            stages = int(metadata.get("stages", 1))
            width = rebuilt.pooled_width(stages)
            encoder.whiten_by(_filled(lambda: nn.Linear(width, width), whitening), stages=stages)
            if window := _part(tensors, "window_whitening"):
                places = _filled(lambda: Colocalizer(rebuilt.channels), _part(tensors, "colocalizer"))
                layer = _filled(lambda: nn.Linear(width, width), window)
                encoder.look_by(places, layer, weight=float(metadata["window_weight"]))
    except FgsslError as error:
        raise FgsslError(f"'{path}': {error.problem}", error.remedy) from error
    except Exception as error:  # what a file says can fail anywhere in timm
        problem = f"'{path}' is damaged: {type(error).__name__} {(str(error) or '?').splitlines()[0][:200]}"
        raise FgsslError(problem, "use another copy, or train again") from error
    return encoder.eval()


def _weights(checkpoint: str, backbone: str | None, image_size: int | None) -> Backbone:
    source, local = checkpoint.removeprefix(TIMM_PREFIX), f"as {TIMM_PREFIX}local-dir:FOLDER"
    try:
        if checkpoint.startswith(NAMES) and not source.startswith(LOCAL_PREFIX):
            return build_backbone(source, pretrained=True, image_size=image_size)
    except WeightsOffline as error:
        network = "run once with a network (or HF_ENDPOINT set to a mirror), which keeps them"
        folder = f"a folder with timm's config.json and model.safetensors {local}"
        raise FgsslError(error.problem, f"{network}, or give {folder}") from error
    except WeightsError as error:
        raise FgsslError(error.problem, f"choose another model, or a whole folder of timm's {local}") from error
    told = origin_of(source) is not None
    if not told and backbone is None:
        problem = f"'{checkpoint}' was not written by fgssl pretrain and does not tell its architecture"
        raise FgsslError(problem, "name it with --backbone (fgssl backbones lists all)")
    return open_weights(source, name=None if told else backbone, image_size=image_size)


def identity(encoder: Encoder) -> str:
    """Hex identity of what an embedding depends on: weights, architecture, preprocessing; not of where they lie."""
    # without what a file of before it was a setting does not tell
    config = None if encoder.rationale is None else repr(encoder.rationale.config).replace(", stages=1", "")
    if encoder.window_weight is not None:
        config = f"{config} {encoder.window_weight}"
    digest = hashlib.blake2b(json.dumps([encoder.backbone.description(), config]).encode(), digest_size=16)
    for module in (encoder.backbone.model, encoder.rationale, *(getattr(encoder, name) for name in ADAPTED)):
        for key, value in () if module is None else module.state_dict().items():
            digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def saved_config(checkpoint: str) -> PretrainConfig | None:
    """The settings in an encoder file; None for other weights, and for what `load_encoder` will not open."""
    with contextlib.suppress(FgsslError, KeyError, TypeError, ValueError):
        path = encoder_path(checkpoint)
        found = None if path is None else _read(path)
        saved = None if found is None else found[0]["config"]
        return None if saved is None else config_from_flat(saved).config
    return None


def own_setting(checkpoint: str, section: str, name: str) -> str | None:
    """A setting in the config.yaml that a run of this user has left beside its encoder; None without one.

    What it names may be opened, as this user once did; an encoder file alone may come from anybody.
    """
    path = encoder_path(checkpoint)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        if path is not None:
            run = path.parent.parent if path.parent.name == CANDIDATES else path.parent
            return str(yaml.safe_load((run / CONFIG_FILE).read_text(encoding="utf-8"))[section][name])
    return None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Settings and tensors of an encoder file; None for safetensors of another tool."""
    try:
        with path.open("rb") as file:
            pickled = file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        if pickled:
            remedy = f"give an {ENCODER_FILE} written by fgssl pretrain"
            raise FgsslError(f"'{path}' is a pickle (.pth), which fgssl does not open", remedy)
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("fgssl")
            if header is None:
                return None
            metadata = json.loads(header)
            if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
                raise FgsslError(f"'{path}' is not an encoder this version of fgssl reads", "update fgssl")
            return metadata, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except PermissionError as error:
        raise FgsslError(f"cannot read '{path}': {error.strerror}", "check its permissions") from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FgsslError(f"'{path}' is cut off or not a safetensors file ({reason})", "use another copy") from error


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _filled(build: Callable[[], Module], weights: dict[str, Tensor]) -> Module:
    """A module with weights that fit it; sizes that a file only claims take no memory."""
    with torch.device("meta"):
        planned = build()
    wanted = {} if planned is None else {key: value.shape for key, value in planned.state_dict().items()}
    if wanted != {key: value.shape for key, value in weights.items()}:
        raise ValueError("weights and settings do not fit each other")
    module = build()
    if module is not None:
        module.load_state_dict(weights)
    return module
