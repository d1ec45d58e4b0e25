"""Writes the parts of the documentation that are read off the code: tables between markers, and the picture of rooms.

    python docs/generate.py

A page says where by a line `<!-- generated: NAME -->`, and everything up to `<!-- end -->` is replaced.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
from dataclasses import fields, is_dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

DOCS = Path(__file__).parent
ROOT = DOCS.parent
# known to everyone: their arrows would cover all others
GROUND = ("errors", "registry", "config", "runtime")
BOX_WIDTH, BOX_HEIGHT, COLUMN, LINE = 118, 34, 150, 84
INK, PAPER, ROOM, FOUNDATION = "#1f2430", "#ffffff", "#e8eaf6", "#eceff1"


# ---- settings


def shown(value: Any) -> str:
    """A value as a recipe writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def choices(hint: Any) -> str:
    """The words that a setting takes; empty where it takes more."""
    arms = [arm for arm in (hint, *get_args(hint)) if get_origin(arm) is Literal]
    return ", ".join(f"`{word}`" for arm in arms for word in get_args(arm))


def settings_tables() -> str:
    """Every setting by section: name, default, meaning."""
    from fgssl.config.schema import PretrainConfig

    parts = []
    for section in fields(PretrainConfig):
        kind: Any = get_type_hints(PretrainConfig)[section.name]
        assert is_dataclass(kind)
        hints = get_type_hints(kind)
        parts += [f"## {section.name}", "", (kind.__doc__ or "").splitlines()[0], ""]
        parts += ["| setting | default | meaning |", "|---|---|---|"]
        for field in fields(kind):
            words = choices(hints[field.name])
            meaning = field.metadata["help"] + (f": {words}" if words else "")
            meaning += f" ({field.metadata['range'].words})" if field.metadata["range"] else ""
            default = shown(field.default)
            parts.append(
                f"| `{section.name}.{field.name}` | {f'`{default}`' if default else 'open'} "
                f"| {meaning.replace('|', chr(92) + '|')} |"
            )
        parts.append("")
    return "\n".join(parts).rstrip()


# ---- rooms


def rooms() -> dict[str, list[str]]:
    """Room -> the rooms it may import, as `tests/test_rooms.py` has it."""
    for node in ast.parse((ROOT / "tests" / "test_rooms.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "MAY_IMPORT":
            assert node.value is not None
            return {name: allowed.split() for name, allowed in ast.literal_eval(node.value).items()}
    raise SystemExit("tests/test_rooms.py has no table MAY_IMPORT")


def clause(room: str) -> str:
    """What a room says it is: the first sentence of its docstring."""
    place = ROOT / "fgssl" / room
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=\.)\s", " ".join(text.split("\n\n")[0].split()))[0].rstrip(".")


def rooms_table() -> str:
    """The table of rooms, from the command line down to the ground."""
    lines = ["| room | what it is | may import |", "|---|---|---|"]
    for room, allowed in reversed(rooms().items()):
        if room != "__main__":
            lines.append(f"| `{room}` | {clause(room)} | {', '.join(allowed)} |")
    return "\n".join(lines)


def depths(table: dict[str, list[str]]) -> dict[str, int]:
    """Floor of each room: one above the highest it imports."""
    found: dict[str, int] = {}

    def depth(room: str) -> int:
        if room not in found:
            found[room] = 1 + max((depth(other) for other in table[room]), default=-1)
        return found[room]

    for room in table:
        depth(room)
    return found


def needed_arrows(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    """The arrows that no detour over other rooms stands for."""

    def reaches(start: str) -> set[str]:
        return {start}.union(*(reaches(other) for other in table[start]))

    return [
        (room, other)
        for room, allowed in table.items()
        for other in allowed
        if not any(other in reaches(third) for third in allowed if third != other)
    ]


def laid_out(table: dict[str, list[str]]) -> tuple[dict[str, tuple[float, int]], list[list[str]]]:
    """Column and floor of each room, and each arrow as the points it goes through.

    An arrow over several floors holds a place of its own on each floor between, so that it passes no box from behind.
    Rows are ordered, down and up again, by the mean place of what their entries are tied to.
    """
    floors = depths(table)
    routes = []
    for room, other in needed_arrows(table):
        between = [f"{room}>{other}@{floor}" for floor in range(floors[room] - 1, floors[other], -1)]
        floors |= {name: floors[room] - 1 - number for number, name in enumerate(between)}
        routes.append([room, *between, other])
    rows = [[name for name in floors if floors[name] == floor] for floor in range(max(floors.values()) + 1)]
    ties: dict[str, list[str]] = {name: [] for name in floors}
    for route in routes:
        for upper, lower in itertools.pairwise(route):
            ties[upper].append(lower)
            ties[lower].append(upper)
    column: dict[str, float] = {}
    for sweep in range(8):
        for row in rows if sweep % 2 else reversed(rows):
            weight = {name: _mean([column[tied] for tied in ties[name] if tied in column]) for name in row}
            row.sort(key=lambda name: (weight[name], name))
            column |= _columns(row)
    return {name: (column[name], floors[name]) for name in floors}, routes


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _columns(row: list[str]) -> dict[str, float]:
    """Places of a row around its middle; an arrow that passes takes less than a box."""
    widths = [0.35 if ">" in name else 1.0 for name in row]
    ends = list(itertools.accumulate(widths))
    return {name: end - width / 2 - ends[-1] / 2 for name, width, end in zip(row, widths, ends, strict=True)}


def rooms_picture() -> str:
    """The table as an SVG that needs nothing but itself: an arrow points to what is imported."""
    whole = {room: allowed for room, allowed in rooms().items() if room != "__main__"}
    table = {room: [r for r in allowed if r not in GROUND] for room, allowed in whole.items() if room not in GROUND}
    place, routes = laid_out(table)
    top, widest = max(floor for _, floor in place.values()), max(abs(column) for column, _ in place.values())
    width = round(2 * widest * COLUMN + BOX_WIDTH + 40)
    height = (top + 1) * LINE + BOX_HEIGHT + 40
    centre = {
        name: (width / 2 + column * COLUMN, 20 + BOX_HEIGHT / 2 + (top - floor) * LINE)
        for name, (column, floor) in place.items()
    }
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="14" role="img" aria-label="Which room imports which">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>',
        f'<rect width="{width}" height="{height}" rx="6" fill="{PAPER}"/>',
        *(_arrow([centre[name] for name in route]) for route in routes),
        *(_box(room, *centre[room], BOX_WIDTH, ROOM, clause(room)) for room in table),
    ]
    words = f"known to everyone: {', '.join(GROUND)}"
    out.append(_box(words, width / 2, height - 20 - BOX_HEIGHT / 2, width - 40, FOUNDATION, "the ground"))
    return "\n".join([*out, "</svg>", ""])


def _arrow(points: list[tuple[float, float]]) -> str:
    """A curve from box to box, straight where it passes a floor."""
    half = BOX_HEIGHT / 2
    path = f"M{points[0][0]:.0f} {points[0][1] + half:.0f}"
    for (x1, y1), (x2, y2) in itertools.pairwise(points):
        low, high = y1 + half, y2 - half
        bend = (high - low) / 2
        path += f"L{x1:.0f} {low:.0f}C{x1:.0f} {low + bend:.0f} {x2:.0f} {high - bend:.0f} {x2:.0f} {high:.0f}"
    return f'<path d="{path}" fill="none" stroke="{INK}" stroke-opacity=".55" marker-end="url(#tip)"/>'


def _box(text: str, x: float, y: float, width: float, colour: str, title: str) -> str:
    return (
        f'<g><title>{escape(title)}</title><rect x="{x - width / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" '
        f'width="{width:.0f}" height="{BOX_HEIGHT}" rx="4" fill="{colour}" stroke="{INK}" stroke-opacity=".4"/>'
        f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" fill="{INK}">{escape(text)}</text></g>'
    )


# ---- recipes


def recipes_table() -> str:
    """The recipes of the paper's tables by set and objective, a form a column."""
    from fgssl.experiments.tablefile import read_tables

    found: dict[tuple[str, str], dict[str, str]] = {}
    for table in read_tables(ROOT / "recipes" / "paper").values():
        for row in table.rows:
            if row.recipe is not None:
                _, objective, form = row.recipe.stem.split("-")
                found.setdefault((table.title.partition(",")[0], objective), {})[form] = f"`{row.recipe.name}`"
    forms = ("plain", "official", "default")
    lines = [f"| set | objective | {' | '.join(forms)} |", f"|---|---|{'---|' * len(forms)}"]
    for (title, objective), files in found.items():
        lines.append(f"| {title} | {objective} | {' | '.join(files.get(form, '') for form in forms)} |")
    return "\n".join(lines)


# ---- pages

TABLES = {"settings": settings_tables, "rooms": rooms_table, "recipes": recipes_table}
MARKED = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def outputs() -> dict[Path, str]:
    """Every file with generated parts, as it should be."""
    found = {DOCS / "images" / "rooms.svg": rooms_picture()}
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        made = MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)
        if MARKED.search(text):
            found[page] = made
    return found


def main() -> None:
    """Write what differs."""
    sys.path.insert(0, str(ROOT))
    for path, text in outputs().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
