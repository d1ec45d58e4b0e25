"""What fgssl knows by name and others may add to: listed without an import, imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from typing import Any, TypeVar

Item = TypeVar("Item")


class Registry(Mapping[str, Any]):
    """Things of one kind by name. A module of the thing's name in `package` is enough: it registers it when imported.

    Args:
        kind: What a message calls one of them.
        package: Holds a module for each built-in one.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._items: dict[str, Any] = {}
        root, _, folders = package.partition(".")
        files = resources.files(root).joinpath(*folders.split(".")).iterdir()
        self._modules = {file.name.removesuffix(".py") for file in files if file.name.endswith(".py")} - {"__init__"}

    def register(self, name: str) -> Callable[[Item], Item]:
        """A decorator that makes a class known under a name."""

        def remember(item: Item) -> Item:
            self._items[name] = item
            return item

        return remember

    def __getitem__(self, name: str) -> Any:
        if name not in self._items and name in self._modules:
            importlib.import_module(f"{self.package}.{name}")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items or name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._modules | set(self._items)))

    def __len__(self) -> int:
        return len(self._modules | set(self._items))


OBJECTIVES = Registry("objective", "fgssl.objectives.methods")
