"""Tensors that are kept in a file of the cache: features of an encoder, or of a teacher."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from fgssl.data.cache.folder import remove_unused
from fgssl.data.cache.map_store import FREE_SPACE_SHARE, UNUSED_DAYS
from fgssl.errors import FgsslError
from fgssl.runtime.files import atomic_path


def keep_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> bool:
    """Whether they could be kept: a disk that is full or cannot be written must not stop who made them.

    Files beside it that nobody used for long go; what takes too large a part of the free disk is not kept.
    """
    with contextlib.suppress(OSError, FgsslError):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unused(path.parent, "*.safetensors", days=UNUSED_DAYS)
        room = FREE_SPACE_SHARE * shutil.disk_usage(path.parent).free
        if sum(tensor.nbytes for tensor in tensors.values()) <= room:
            with atomic_path(path) as temporary:
                save_file(tensors, temporary, metadata=metadata)
            return True
    return False
