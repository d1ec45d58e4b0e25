"""What the documentation reads off the code is as the code is now, and its picture of rooms is their table."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from documents import DOCS, PAGES

from fgssl.config.resolve import load_config
from fgssl.config.schema import flatten

SVG = "{http://www.w3.org/2000/svg}"


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()
OUTPUTS: dict[Path, str] = GENERATOR.outputs()


@pytest.mark.parametrize("path", OUTPUTS, ids=lambda path: path.name)
def test_generated_parts_are_current(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == OUTPUTS[path], "run python docs/generate.py"


def test_every_setting_has_a_line() -> None:
    assert {key for key in flatten(load_config().config) if f"| `{key}` |" not in PAGES["docs/settings.md"]} == set()


def test_the_picture_shows_each_room_once() -> None:
    words = [element.text for element in ElementTree.parse(DOCS / "images" / "rooms.svg").getroot().iter(f"{SVG}text")]
    assert sorted(map(str, words[:-1])) == sorted(set(GENERATOR.rooms()) - {"__main__", *GENERATOR.GROUND})
    assert all(room in str(words[-1]) for room in GENERATOR.GROUND)


def test_the_drawn_arrows_mean_the_table() -> None:
    table = {room: [r for r in allowed if r not in GENERATOR.GROUND] for room, allowed in GENERATOR.rooms().items()}
    drawn: dict[str, set[str]] = {room: set() for room in table}
    for room, other in GENERATOR.needed_arrows(table):
        drawn[room].add(other)

    def reached(room: str) -> set[str]:
        return drawn[room].union(*(reached(other) for other in drawn[room]))

    for room, allowed in table.items():
        assert drawn[room] <= set(allowed) <= reached(room)


def test_an_arrow_that_follows_is_left_out_and_a_long_one_has_its_own_way() -> None:
    table = {"a": ["b", "c", "d"], "b": ["c"], "c": [], "d": []}
    assert GENERATOR.needed_arrows(table) == [("a", "b"), ("a", "d"), ("b", "c")]
    place, routes = GENERATOR.laid_out(table)
    assert [len(route) for route in routes] == [2, 3, 2]  # a to d over one floor
    assert len(set(place.values())) == len(place) == 5
