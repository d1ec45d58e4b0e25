"""Who may import whom. The table is the architecture's diagram: a new arrow is a decision, made here.

images -> views -> feature map -> objective (+ rationale) -> encoder file || encoder -> embeddings -> probe, retrieve
"""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fgssl"

# Room (a package, or a module right below fgssl) -> the rooms it may import. From the ground up.
MAY_IMPORT: dict[str, str] = {
    # ground: known to everyone
    "errors": "",
    "registry": "errors",
    "config": "errors registry",
    "runtime": "errors",
    # pictures
    "views": "config",
    "data": "config errors registry runtime views",
    "drawing": "errors runtime",
    "check": "config data errors",
    # models: objectives do not know the rationale, neither knows the other
    "backbones": "errors runtime",
    "objectives": "backbones config errors registry",
    "rationale": "config",
    "encoder": "backbones config errors objectives rationale views",
    # the one bridge between training and evaluation
    "runs": "backbones config drawing encoder errors objectives rationale runtime",
    # trained weights made better without a gradient
    "adaptation": "config data encoder errors rationale views",
    # evaluation knows encoders and their files, not how they were trained
    "evaluation": "config data drawing encoder errors rationale registry runs runtime views",
    # pages: whatever was found, for people
    "report": "check config data drawing encoder errors evaluation runtime",
    "training": "adaptation backbones config data drawing encoder errors evaluation objectives rationale report runs "
    "runtime",
    # many runs as one table; they are made by the verbs, which it is handed
    "experiments": "backbones config data errors registry runs runtime",
    # what is made of embeddings
    "classify": "config data encoder errors evaluation runs runtime",
    "explore": "check data drawing errors evaluation report runtime",
    # an encoder handed on, with a card
    "handover": "backbones config encoder errors runs runtime",
    # Python's door: what `import fgssl` offers, loaded when it is asked for
    "api": "config data encoder errors evaluation runs training",
    # the command line, which nothing imports
    "cli": "backbones check classify config data drawing errors evaluation experiments explore handover registry "
    "report runs runtime training",
    "__main__": "cli",
}
ROOT_MODULES = 12  # more at the root, and nobody knows where to look
# imported at once by `fgssl --help` or by loader processes that only decode
LIGHT = (
    "fgssl", "fgssl.cli", "fgssl.errors", "fgssl.config.schema", "fgssl.config.resolve", "fgssl.runtime.reporting",
    "fgssl.runtime.files", "fgssl.data", "fgssl.data.sources.presets", "fgssl.data.sources.open", "fgssl.data.images",
    "fgssl.data.sources.folder", "fgssl.data.sources.files", "fgssl.data.decoding", "fgssl.drawing",
    "fgssl.check", "fgssl.report",
)  # fmt: skip
HEAVY = ("torch", "torchvision", "timm", "datasets", "accelerate", "pyarrow", "pandas", "huggingface_hub")


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> Iterator[str]:
    """The rooms of fgssl that a file imports anywhere, inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import hides where it goes"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            words = name.split(".")
            if words[0] == "fgssl" and words[1:] and words[1] != "__version__":
                yield words[1]


@functools.cache
def arrows() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in sources():
        found.setdefault(part(path), set()).update(imported_parts(path))
    return {name: parts - {name} for name, parts in found.items()}


def reachable(start: str, table: dict[str, set[str]]) -> set[str]:
    seen, waiting = set[str](), [start]
    while waiting:
        for name in table[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_what_the_table_allows(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        assert set(imported_parts(path)) == {"api"}  # for type checkers; else it is imported when asked for
        return
    assert part(path) in MAY_IMPORT, f"add {part(path)} to the table"
    allowed = {*MAY_IMPORT[part(path)].split(), part(path)}
    assert set(imported_parts(path)) <= allowed


def test_the_table_holds_no_arrow_that_nobody_uses() -> None:
    used = arrows()
    for name, allowed in MAY_IMPORT.items():
        assert set(allowed.split()) == used.get(name, set()), name


def test_no_room_imports_itself_by_a_detour() -> None:
    assert [name for name in MAY_IMPORT if name in reachable(name, arrows())] == []


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def module_arrows() -> dict[str, set[str]]:
    """Module -> the modules of fgssl it imports when it is imported itself."""
    names = {module_name(path): path for path in sources()}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        imports = [
            node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)
        ]
        targets = {(f"{node.module}.{alias.name}", node.module or "") for node in imports for alias in node.names}
        found[name] = {long if long in names else short for long, short in targets if {long, short} & set(names)}
    return found


def test_no_module_imports_itself_by_a_detour() -> None:
    table = module_arrows()
    assert [name for name in table if name in reachable(name, table)] == []


def test_the_root_holds_few_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= ROOT_MODULES


def test_every_room_says_what_it_is() -> None:
    faces = [path for path in sources() if path.name == "__init__.py"]
    assert [str(path) for path in faces if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))] == []


def test_objectives_and_rationale_do_not_know_each_other() -> None:
    table = arrows()
    assert "rationale" not in reachable("objectives", table) and "objectives" not in reachable("rationale", table)


def test_evaluation_does_not_know_how_an_encoder_was_trained() -> None:
    assert "training" not in reachable("evaluation", arrows()) | reachable("runs", arrows())


def test_nothing_imports_the_command_line() -> None:
    assert [name for name, rooms in arrows().items() if "cli" in rooms] == ["__main__"]


# ---- only the command line prints


def spoken(path: Path) -> Iterator[str]:
    """Everything in a file that reaches a terminal or belongs to a command line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input"):
            yield f"{place} {node.func.id}()"
        if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr", "__stdout__", "__stderr__"):
            yield f"{place} {node.attr}"
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"{place} {name}" for name in names if name.split(".")[0] in ("rich", "typer", "click", "argparse"))


def test_only_the_command_line_prints() -> None:
    assert [place for path in sources() if part(path) != "cli" for place in spoken(path)] == []
    assert any(True for path in sources() if part(path) == "cli" for _ in spoken(path))  # the search does find


# ---- light imports


def loaded_modules(code: str) -> set[str]:
    """The heavy modules that are loaded after some code, in a process of its own."""
    program = f"import sys, json\n{code}\nprint('\\n' + json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True, timeout=120
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_light_modules_load_no_torch() -> None:
    assert loaded_modules(f"import {', '.join(LIGHT)}") == set()


SLIPS = (
    "pretrain --set backbone.nme=1", "pretrain --device tpu9", "pretrain --objective x", "retrieve RUN --pool x",
    "retrieve RUN --shift x", "retrieve RUN --device tpu9", "retrieve RUN --memory x", "retrieve RUN --batch-size 0",
    "retrieve RUN --image-size 0", "retrieve RUN --top 0", "embed RUN --batch-size 0", "probe RUN --pool x",
    "probe RUN --tries 0", "probe RUN --epochs 0", "probe RUN --k 0", "probe RUN --episodes 0", "compare RUN --k 0",
    "compare RUN --pool x", "visualize --score RUN --count 0", "classify predict FILE PICTURE --examples 0",
)  # fmt: skip


def test_wrong_values_are_refused_before_torch_is_loaded() -> None:
    code = f"""
from fgssl.cli import answered
codes = [answered(words.split()) for words in {SLIPS!r}]
assert codes == [2] * len(codes), codes
"""
    assert loaded_modules(code) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["--version"], ["pretrain", "--nope"]])
def test_help_loads_no_torch(arguments: list[str]) -> None:
    code = f"""
sys.argv = ["fgssl", *{arguments!r}]
from fgssl.cli import main
try:
    main()
except SystemExit:
    pass
"""
    assert loaded_modules(code) == set()
