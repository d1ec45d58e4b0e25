"""What fgssl knows by name and others may add to: listed without an import, imported when it is asked for.

From outside a thing is added by a package with an entry point of its name in `fgssl.objectives`, `fgssl.datasets`,
`fgssl.archives` or `fgssl.metrics`, or by a Python file that the user names with `--plugin`; a recipe, a run or an
encoder file loads none.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from fgssl.errors import FgsslError

Item = TypeVar("Item")
_loading: list[str] = []  # the plugins whose code runs now
loaded_files: list[Path] = []  # by `load_plugin`: what a process that fgssl starts has to be given as well


class Registry(Mapping[str, Any]):
    """Things of one kind by name: fgssl's own first, modules of a package, whose names nobody takes."""

    def __init__(self, kind: str, package: str | None = None) -> None:
        self.kind, self.package = kind, package
        self._items: dict[str, Any] = {}
        self._origins: dict[str, str] = {}  # of what a plugin brought
        folder = None if package is None else Path(__file__).parents[1].joinpath(*package.split("."))
        self._modules = [] if folder is None else sorted(file.stem for file in folder.glob("[!_]*.py"))

    def register(self, name: str) -> Callable[[Item], Item]:
        """A decorator that makes something known under a name."""

        def remember(item: Item) -> Item:
            if _loading:
                if name in self._modules or name in self._items:
                    raise FgsslError(f"plugin {_loading[-1]}: fgssl knows the {self.kind} {name} already", "rename it")
                self._origins[name] = _loading[-1]
            self._items[name] = item
            return item

        return remember

    def origin(self, name: str) -> str | None:
        """The package and version, or the file, that a thing came from; None for fgssl's own."""
        entry = self._entries().get(name)
        return self._origins.get(name) or (None if entry is None or name in self._items else _package_of(entry))

    def __getitem__(self, name: str) -> Any:
        if name not in self._items and name in self._modules:
            importlib.import_module(f"{self.package}.{name}")
        entry = None if name in self._items else self._entries().get(name)
        if entry is not None:
            with _plugin(_package_of(entry)):
                self._items[name] = entry.load()
            self._origins[name] = _package_of(entry)
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> dict[str, None]:
        return dict.fromkeys([*self._modules, *self._items, *self._entries()])

    def _entries(self) -> dict[str, metadata.EntryPoint]:
        found = _entry_points(tuple((folder, _changed(folder)) for folder in sys.path))
        return {entry.name: entry for entry in found.select(group=f"fgssl.{self.kind}s")}


@functools.lru_cache(maxsize=1)
def _entry_points(_where: tuple[tuple[str, int], ...]) -> Any:
    """Of all that is installed, read again where something came or went: of hundreds of packages it takes a while."""
    return metadata.entry_points()


def _changed(folder: str) -> int:
    try:
        return os.stat(folder or ".").st_mtime_ns
    except (OSError, ValueError):
        return 0


def load_plugin(path: str | Path) -> None:
    """Run a Python file that the user named, whose things are known from then on; FgsslError where that fails."""
    file = Path(path).expanduser()
    name = f"fgssl_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise FgsslError(f"--plugin {path} is no Python file", "name a .py file that registers what it adds")
    if name in sys.modules:  # named twice
        return
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with _plugin(file.name):
            spec.loader.exec_module(module)
    except FgsslError:
        del sys.modules[name]
        raise
    loaded_files.append(file)


@contextmanager
def _plugin(origin: str) -> Iterator[None]:
    _loading.append(origin)
    try:
        yield
    except FgsslError:
        raise
    except Exception as error:  # of code that is not ours
        failed = f"plugin {origin} fails: {type(error).__name__}: {(str(error) or '?').splitlines()[0][:200]}"
        raise FgsslError(failed, "mend it, or leave it out") from error
    finally:
        _loading.pop()


def _package_of(entry: metadata.EntryPoint) -> str:
    return entry.value if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


OBJECTIVES = Registry("objective", "fgssl.objectives.methods")
DATASETS = Registry("dataset")
ARCHIVES = Registry("archive", "fgssl.data.archives.layouts")
METRICS = Registry("metric")
