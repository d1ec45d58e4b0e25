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

# Part (a module or package right below fgssl) -> the parts it may import. From the ground up.
MAY_IMPORT: dict[str, str] = {
    # ground: nothing but each other
    "errors": "",
    "files": "errors",
    "config": "",
    "defaults": "config errors",
    "changes": "config errors resolve",
    "resolve": "config errors",
    "reporting": "",
    "machine": "errors",
    "stopping": "",
    "listening": "",
    "bars": "listening",
    "offline": "bars errors",
    "encoderfile": "errors",
    "runlock": "errors files",
    "launch": "",
    "memory": "",
    "norms": "",
    "watch": "config errors",
    "waiting": "config data",
    "evidence": "data files",
    # pictures
    "views": "config",
    "data": "bars config errors files listening offline stopping views",
    "check": "config data errors",
    "drawing": "errors",
    # models: objectives do not know the rationale, neither knows the other
    "backbone": "errors files offline",
    "objectives": "backbone config",
    "rationale": "config mapshape",
    "mapshape": "config",
    "zoom": "config",
    "encoder": "backbone config errors objectives rationale zoom",
    "checkpoint": "backbone config encoder encoderfile errors files objectives offline rationale resolve",
    # pure functions on features
    "features": "errors",
    "ranking": "",
    "bootstrap": "errors",
    "logistic": "",
    "stratified": "errors features",
    "nearest": "errors features ranking",
    "fewshot": "bootstrap errors features",
    "retrieval": "bootstrap errors features nearest ranking",
    "metrics": "errors features nearest retrieval",
    "signals": "config data encoder features metrics",
    "judgement": "metrics",
    "classifiers": "errors features fewshot judgement logistic nearest stratified",
    "sgd": "errors",
    "trials": "bootstrap errors judgement stratified",
    # evaluation: knows encoders and their files, not how they were trained
    "share": "",
    "embed": "data encoder errors machine share stopping views",
    "evaluation": "checkpoint config data embed encoder errors machine reporting share",
    "sgd_probe": "data encoder machine sgd",
    "probing": "classifiers data embed errors evaluation fewshot judgement probe_splits reporting sgd sgd_probe trials",
    "probe_splits": "classnames config data errors evaluation featurefile featuretable stratified",
    "featuretable": "data embed errors featurefile reporting",
    "comparison": "bootstrap classifiers config embed encoder encoderfile errors evaluation featuretable probe_splits "
    "reporting retrieval",
    "probe_files": "embed files judgement probing trials",
    "featurefile": "embed errors features files",
    "classnames": "errors",
    "visualize": "data drawing embed encoder errors",
    "gallery": "checkpoint config data embed errors evaluation featurefile",
    "retrieve": "classnames config data embed errors evaluation featurefile features gallery machine reporting "
    "retrieval",
    "featurecache": "checkpoint data embed errors evaluation files",
    "lookup": "data drawing embed encoder errors evaluation featurecache featurefile features gallery machine nearest "
    "reporting visualize",
    # training
    "start": "backbone defaults errors resolve",
    "plan": "backbone config data defaults errors machine resolve start",
    "optimizer": "backbone config",
    "frozen": "backbone data plan reporting",
    "training": "backbone config encoder errors metrics objectives plan rationale",
    "state": "errors files",
    "runfolder": "config errors files plan runlock",
    "finish": "backbone data drawing embed encoder encoderfile errors machine nearest plan reporting "
    "retrieval runfolder state visualize",
    "stepfeed": "data frozen machine plan reporting training",
    "steplog": "data machine plan reporting runfolder signals stepfeed training waiting watch",
    "trainer": "config data embed errors evidence frozen memory norms optimizer plan pulse reporting state stepfeed "
    "steplog stopping training",
    "processes": "config errors plan reporting",
    "pulse": "reporting",
    "pretrain": "checkpoint config data encoderfile errors finish machine optimizer plan processes pulse "
    "reporting runfolder state stopping trainer training",
    # the command line, which nothing imports
    "cli": "backbone changes check checkpoint comparison config data drawing embed encoderfile errors evaluation "
    "featurefile featuretable files finish launch listening lookup machine offline plan pretrain probe_files "
    "probe_splits probing reporting resolve retrieval retrieve runfolder runlock signals state stopping visualize",
    "__main__": "cli",
}
TRAINING = {
    "start", "frozen", "optimizer", "plan", "stepfeed", "steplog", "training", "trainer", "state", "runfolder",
    "finish", "pretrain", "cli",
}  # fmt: skip
EVALUATION = {"embed", "evaluation", "probing", "visualize", "retrieval", "metrics", "nearest", "checkpoint"}
# imported at once by `fgssl --help` or by loader processes that only decode
LIGHT = (
    "fgssl", "fgssl.cli", "fgssl.errors", "fgssl.config", "fgssl.resolve", "fgssl.reporting", "fgssl.files",
    "fgssl.data", "fgssl.data.presets", "fgssl.data.sources", "fgssl.data.images", "fgssl.data.folder",
    "fgssl.data.textlist", "fgssl.data.decode", "fgssl.drawing", "fgssl.check",
)  # fmt: skip
HEAVY = ("torch", "torchvision", "timm", "datasets", "accelerate", "pyarrow", "pandas", "huggingface_hub")


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> Iterator[str]:
    """The parts of fgssl that a file imports anywhere, inside functions as well."""
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


def reachable(start: str) -> set[str]:
    table, seen, waiting = arrows(), set[str](), [start]
    while waiting:
        for name in table[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_what_the_table_allows(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        assert set(imported_parts(path)) == set()
        return
    assert part(path) in MAY_IMPORT, f"add {part(path)} to the table"
    allowed = {*MAY_IMPORT[part(path)].split(), part(path)}
    assert set(imported_parts(path)) <= allowed


def test_the_table_holds_no_arrow_that_nobody_uses() -> None:
    used = arrows()
    for name, allowed in MAY_IMPORT.items():
        assert set(allowed.split()) == used.get(name, set()), name


def test_no_part_imports_itself_by_a_detour() -> None:
    assert [name for name in MAY_IMPORT if name in reachable(name)] == []


def test_objectives_and_rationale_do_not_know_each_other() -> None:
    assert "rationale" not in reachable("objectives") and "objectives" not in reachable("rationale")


def test_evaluation_does_not_know_how_an_encoder_was_trained() -> None:
    assert {name: reachable(name) & TRAINING for name in EVALUATION} == {name: set() for name in EVALUATION}


def test_nothing_imports_the_command_line() -> None:
    assert [name for name, parts in arrows().items() if "cli" in parts] == ["__main__"]


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
