"""MATLAB files of both kinds as plain values: SciPy reads those up to version 7, h5py those of 7.3, which are HDF5.

Both are large and only the lists of a few archives need them: the extra `mat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgssl.errors import FgsslError
from fgssl.runtime.extras import require
from fgssl.runtime.text import shown

_HDF5 = b"\x89HDF\r\n\x1a\n"


def read_mat(path: str, *, name: str) -> dict[str, Any]:
    """The variables of a file: text as str, numbers as arrays or scalars, cells as sequences, structs as dicts.

    An array of structs is a sequence of dicts; `records`, `texts` and `numbers` take one of a single element as well.
    Raises FgsslError where the file cannot be read, or the library for its version is not installed.
    """
    try:
        with open(path, "rb") as stream:
            head = stream.read(520)
        if head.startswith(b"MATLAB 7.3") or _HDF5 in (head[:8], head[512:520]):
            return _read_hdf5(path)
        return _read_old(path)
    except FgsslError:
        raise
    except Exception as error:  # of damaged files both libraries raise anything
        reason = f"{type(error).__name__}: {shown(str(error))[:80]}"
        problem = f"cannot read the MATLAB file {shown(name)} ({reason})"
        raise FgsslError(problem, "it is damaged or no MATLAB file: unpack the archive again") from error


def records(value: Any) -> list[dict[str, Any]]:
    """An array of structs."""
    return [value] if isinstance(value, dict) else list(value)


def texts(value: Any) -> list[str]:
    """A cell array of text; of nested cells the first text."""
    if isinstance(value, str):
        return [value]
    return [each if isinstance(each, str) else texts(each)[0] for each in value]


def numbers(value: Any) -> NDArray[np.int64]:
    """Whole numbers (N,)."""
    return np.asarray(value).reshape(-1).astype(np.int64)


def _read_old(path: str) -> dict[str, Any]:
    found = require("scipy.io", extra="mat").loadmat(path, simplify_cells=True)
    return {name: value for name, value in found.items() if not name.startswith("__")}


def _read_hdf5(path: str) -> dict[str, Any]:
    h5py = require("h5py", extra="mat")
    with h5py.File(path, "r") as file:
        return {name: _plain(item, file) for name, item in file.items() if not name.startswith("#")}


def _plain(item: Any, file: Any) -> Any:
    """A dataset or group of MATLAB's as `_read_old` would give it."""
    if hasattr(item, "keys"):  # a struct: one value a field, or references to one value a struct and field
        fields = {name: _field(value, file) for name, value in item.items()}
        many = [value for name, value in fields.items() if _refers(item[name])]
        if many and len(many) == len(fields):
            return [dict(zip(fields, row, strict=True)) for row in zip(*fields.values(), strict=True)]
        return fields
    kind = item.attrs.get("MATLAB_class", b"")
    if item.attrs.get("MATLAB_empty", 0):
        return "" if kind == b"char" else []
    if kind == b"char":  # columns first, so that a row of text is read along its letters
        return "".join(map(chr, np.asarray(item[()]).reshape(-1)))
    if _refers(item):
        return _field(item, file)
    value = np.asarray(item[()]).T.squeeze()
    return value.item() if value.ndim == 0 else value


def _field(value: Any, file: Any) -> Sequence[Any]:
    if not _refers(value):
        plain: Sequence[Any] = _plain(value, file)
        return plain
    return [_plain(file[reference], file) for reference in np.asarray(value[()]).T.reshape(-1)]


def _refers(item: Any) -> bool:
    """Whether a dataset holds references, as cells and fields of several structs do."""
    cell = getattr(item, "attrs", {}).get("MATLAB_class", b"") != b"char"
    return cell and getattr(item, "dtype", None) == np.dtype("O") and not hasattr(item, "keys")
