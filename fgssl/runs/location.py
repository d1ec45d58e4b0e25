"""Where a checkpoint argument points to; opening it is `fgssl.runs.encoder_file`'s."""

from __future__ import annotations

from pathlib import Path

from fgssl.errors import FgsslError

ENCODER_FILE = "encoder.safetensors"
TIMM_PREFIX = "timm:"


def encoder_path(checkpoint: str) -> Path:
    """The encoder file a checkpoint argument names. Raises FgsslError when there is none."""
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        path = path / ENCODER_FILE
        if not path.is_file():
            raise FgsslError(
                f"folder '{checkpoint}' holds no {ENCODER_FILE}",
                "give a finished run's folder; an unfinished one goes on with fgssl pretrain --resume",
            )
    if not path.is_file():
        raise FgsslError(
            f"no checkpoint '{checkpoint}'", "give a run folder, a .safetensors file of fgssl, or timm:NAME"
        )
    return path
