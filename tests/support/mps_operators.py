"""Which operators MPS has, by torch's own table, which comes with it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torchgen
import yaml

EVERYWHERE = ("MPS", "CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    path = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return {entry["func"].split("(")[0]: entry for entry in yaml.load(path.read_text(), loader)}


def missing_on_mps(operators: Iterable[Any]) -> set[str]:
    """Names, such as `aten._cdist_backward`, of operators of a TorchDispatchMode that nothing computes on MPS."""
    return {str(each.overloadpacket) for each in operators if each.namespace == "aten" and not _is_there(each)}


def _is_there(operator: Any) -> bool:
    name = operator._schema.name.removeprefix("aten::")
    entry = _table().get(f"{name}.{operator._overloadname}" if operator._overloadname != "default" else name)
    if entry is None:
        return False
    entry = _table()[entry["structured_delegate"]] if "structured_delegate" in entry else entry
    dispatch = entry.get("dispatch")
    if dispatch is None:  # made of other operators
        return True
    keys = {key.strip() for keys in dispatch for key in keys.split(",")}
    return not keys.isdisjoint(EVERYWHERE)
