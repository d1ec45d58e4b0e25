"""Lists the benchmarks: `python -m recipes.bench`. Each is a command: `python recipes/bench/NAME.py --help`."""

from __future__ import annotations

import ast
from pathlib import Path


def listed() -> dict[str, str]:
    """Benchmark -> the first line of what it says of itself."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        text = path.read_text(encoding="utf-8")
        if 'if __name__ == "__main__":' in text:
            found[path.name] = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
    return found


if __name__ == "__main__":
    for name, line in listed().items():
        print(f"{name:22} {line}")
