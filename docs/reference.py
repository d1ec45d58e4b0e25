"""MkDocs hook: a page of the API reference for each room, made from its docstrings when the site is built."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LEFT_OUT = ("cli", "__main__")  # the command line has a page of its own


def _rooms() -> list[str]:
    """The rooms of `tests/test_rooms.py`, from the training run down to the ground."""
    spec = importlib.util.spec_from_file_location("generate", Path(__file__).with_name("generate.py"))
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    return [room for room in reversed(generate.rooms()) if room not in LEFT_OUT]


def _own_names(path: Path) -> list[str]:
    """Public functions and classes that a file defines itself."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return [node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")]


def _page(room: str) -> str:
    """The room's own docstring, then every module of it: names that a face only passes on are told once, at home."""
    place = ROOT / "fgssl" / room
    if not place.is_dir():
        return f"# fgssl.{room}\n\n::: fgssl.{room}\n"
    parts = [f"# fgssl.{room}\n"]
    for path in sorted(place.rglob("*.py"), key=lambda path: (path.parent, path.name != "__init__.py", path.name)):
        face = path.name == "__init__.py"
        name = ".".join((path.parent if face else path.with_suffix("")).relative_to(ROOT).parts)
        root = "false" if path.parent == place and face else "true"
        own = f"\n      members: {_own_names(path)}" if face else ""
        parts.append(f"::: {name}\n    options:\n      show_root_heading: {root}{own}\n")
    return "\n".join(parts)


def on_config(config: Any) -> Any:
    """The reference closes the navigation."""
    config.nav.append({"API": [{"Overview": "api/index.md"}, *({f"fgssl.{r}": f"api/{r}.md"} for r in _rooms())]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages."""
    listing = "\n".join(f"- [`fgssl.{room}`]({room}.md)" for room in _rooms())
    start = "What each room is, and what it may import: [Architecture](../architecture.md#rooms).\n"
    files.append(File.generated(config, "api/index.md", content=f"# API reference\n\n{start}\n{listing}\n"))
    for room in _rooms():
        files.append(File.generated(config, f"api/{room}.md", content=_page(room)))
    return files
