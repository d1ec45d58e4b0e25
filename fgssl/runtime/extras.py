"""Libraries that fgssl can do without: imported where they are used, asked for in one line where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from fgssl.errors import FgsslError


def require(module: str, *, extra: str) -> Any:
    """The module, imported. Raises FgsslError, naming the command that installs it, where it is not here."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if (error.name or package).partition(".")[0] != package:  # it is here, and something that it needs is not
            raise FgsslError(f"{package} cannot be imported ({error})", f"pip install 'fgssl[{extra}]'") from error
        raise FgsslError(f"{package} is not installed", f"pip install 'fgssl[{extra}]'") from error
