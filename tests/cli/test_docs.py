"""The documentation is true: its commands parse, its names exist, and nothing that exists is left out."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from fgssl.cli import app
from fgssl.config.resolve import load_config
from fgssl.config.schema import RATIONALE_PRESETS, VIEW_PRESETS, RationaleConfig, flatten
from fgssl.data.sources.presets import PRESETS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def verbs(group: Any, start: str = "") -> Iterator[tuple[str, Any]]:
    """Every command under what a user types for it: "probe", "data check"."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, f"{start}{name} ")
        else:
            yield f"{start}{name}", command


VERBS: dict[str, Any] = dict(verbs(typer.main.get_command(app)))


def verb_of(words: list[str]) -> str:
    """The verb at the start of a command line."""
    return " ".join(words[:2]) if " ".join(words[:2]) in VERBS else words[0]


def fences(text: str) -> list[str]:
    """What stands between ``` fences."""
    return re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def fenced_lines(text: str) -> Iterator[str]:
    """Lines inside fences, continued lines joined."""
    for block in fences(text):
        yield from block.replace("\\\n", " ").splitlines()


def commands(text: str) -> list[list[str]]:
    """The words after `fgssl` of every command in fences, `&&` and environment settings taken apart."""
    found = []
    for line in fenced_lines(text):
        for part in re.split(r"&&|\|\|?|;", line.partition("  #")[0]):
            words = shlex.split(part, comments=True)
            for start, word in enumerate(words):
                if word == "fgssl" and (start == 0 or words[start - 1] == "-m" or "=" in words[start - 1]):
                    found.append(words[start + 1 :])
    return found


def header(recipe: Path) -> str:
    lines = recipe.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))])


def check(words: list[str]) -> None:
    """Parses a command line as the program would, without running it."""
    verb = verb_of(words)
    assert verb in VERBS, f"no verb {verb}"
    arguments = words[len(verb.split()) :]
    command = VERBS[verb]
    with command.make_context(verb, [*arguments], resilient_parsing=False) as context:
        sets = context.params.get("sets") or ()
        recipe = context.params.get("recipe")
        if verb == "pretrain" and context.params.get("resume") is None:
            load_config(ROOT / recipe if recipe else None, sets=sets)


def test_the_search_for_commands_finds_them() -> None:
    lines = [
        "A=b fgssl probe x --json   # why",
        "pip install . && fgssl pretrain \\",
        " --lr 1",
        "python -m fgssl embed y",
    ]
    text = "\n".join(["```sh", *lines, "```", "fgssl nothing", "```", "x", "```"])
    assert commands(text) == [["probe", "x", "--json"], ["pretrain", "--lr", "1"], ["embed", "y"]]
    with pytest.raises(Exception, match=r"--jsonn|No such option"):
        check(["probe", "x", "--jsonn"])


@pytest.mark.parametrize("words", commands(README), ids=" ".join)
def test_every_command_of_the_readme_parses(words: list[str]) -> None:
    check(words)


def test_readme_shows_every_verb_at_work() -> None:
    assert {verb_of(words) for words in commands(README)} == set(VERBS)


def test_every_flag_named_in_the_readme_exists() -> None:
    known = {option for command in VERBS.values() for parameter in command.params for option in parameter.opts}
    known |= {option for command in VERBS.values() for p in command.params for option in p.secondary_opts}
    known |= {"--help", "--version", "--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint"}
    # the benchmarks and SLURM have their own
    lines = [line for line in README.splitlines() if "recipes/bench/" not in line and not line.startswith("#SBATCH")]
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", "\n".join(lines)))
    assert named <= known, named - known


def objectives() -> set[str]:
    from fgssl.objectives import OBJECTIVES

    return set(OBJECTIVES)


@pytest.mark.parametrize(
    "names",
    [
        set(" ".join(VERBS).split()),
        set(VIEW_PRESETS),
        set(RATIONALE_PRESETS),
        set(PRESETS),
        {"demo"},
        {r.name for r in RECIPES},
    ],
    ids=["verbs", "views", "rationales", "data", "demo", "recipes"],
)
def test_every_name_is_in_the_readme(names: set[str]) -> None:
    words = set(re.findall(r"[\w.-]+", README))
    assert names and {name for name in names if name not in words} == set()


def test_every_objective_is_in_the_readme_and_its_name_in_the_config() -> None:
    assert {name for name in objectives() if f"`--objective {name}`" not in README} == set()
    for name in objectives():
        load_config(sets=[f"objective.name={name}"])


def test_settings_named_in_the_readme_exist_with_the_values_it_shows() -> None:
    known = flatten(load_config().config)
    sections = {key.partition(".")[0] for key in known}
    named = re.findall(r"`(?:--set )?([a-z]+\.[a-z_]+)(?:=([^`\s]+))?`", README)
    settings = [(key, value) for key, value in named if key.partition(".")[0] in sections and key.count(".") == 1]
    settings = [(key, value) for key, value in settings if not key.endswith((".py", ".md", ".yaml"))]
    assert len(settings) > 10
    for key, value in settings:
        assert key in known, key
        if value and "..." not in value:
            load_config(sets=[f"{key}={value}"])


def test_rationale_table_shows_the_presets_as_they_are() -> None:
    defaults = dataclasses.asdict(RationaleConfig())
    rows = re.findall(r"^\| `rationale\.(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", README, re.MULTILINE)
    assert len(rows) >= 8
    for key, *columns in rows:
        for shown, preset in zip(columns, RATIONALE_PRESETS, strict=True):
            value = RATIONALE_PRESETS[preset].get(key, defaults[key])
            text = (
                str(value).lower()
                if isinstance(value, bool)
                else f"{value:g}"
                if isinstance(value, float)
                else str(value)
            )
            assert shown.strip() == text, (key, preset)
    assert {key for key, *_ in rows} <= set(RationaleConfig.__dataclass_fields__)


def test_files_named_in_the_readme_exist_and_modules_are_all_named() -> None:
    for path in re.findall(r"`((?:recipes|tests|fgssl)/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path
    for image in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / image).is_file(), image
    tree = next(block for block in fences(README) if "\nfgssl/\n" in block)
    named = set(re.findall(r"[\w]+(?:\.py|/)", README)) | set(re.findall(r"\b\w+\.py\b|\b\w+/", tree))
    there = {
        path.name if path.suffix else f"{path.name}/" for path in (ROOT / "fgssl").iterdir() if path.name[0] != "_"
    }
    assert there - named == set(), "give each a clause in the README's tree"


# ---- recipes


def test_there_are_recipes_for_the_papers_data_sets_and_a_debug_one() -> None:
    names = [recipe.name for recipe in RECIPES]
    assert [any(word in name for name in names) for word in ("cub", "cars", "aircraft", "debug")] == [True] * 4


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_its_header_says_what_to_expect(recipe: Path) -> None:
    resolved = load_config(recipe)
    assert sum(origin == f"recipe {recipe.name}" for origin in resolved.origins.values()) >= 2
    text = header(recipe)
    for word in ("Command:", "Hardware:", "Time:", "Numbers:", "Source:"):
        assert word in text, f"{recipe.name} has no {word}"
    found = [
        shlex.split(line) for line in re.findall(r"\bfgssl ((?:pretrain|probe|retrieve) .*?)(?:\s{2,}|$)", text, re.M)
    ]
    assert any(words[0] == "pretrain" and str(recipe.relative_to(ROOT)) in words for words in found)
    for words in found:
        check(words)


def test_paper_recipes_have_the_papers_settings() -> None:
    for name in ("cub", "cars", "aircraft"):
        (recipe,) = (path for path in RECIPES if path.name == f"{name}-resnet50-moco.yaml")
        config = load_config(recipe).config
        assert (config.data.source, config.training.epochs, config.training.batch_size) == (name, 100, 128)
        assert (config.objective.temperature, config.objective.momentum, config.optimizer.lr) == (0.2, 0.999, 0.03)
        assert (config.rationale.projections, config.backbone.image_size) == (32, 224)


# ---- help texts


def test_every_option_has_a_help_text() -> None:
    for verb, command in VERBS.items():
        assert command.help, verb
        assert [p.name for p in command.params if not getattr(p, "help", None)] == [], verb


def test_every_public_function_and_class_has_a_docstring() -> None:
    import importlib
    import pkgutil

    import fgssl

    missing = []
    for info in pkgutil.walk_packages(fgssl.__path__, "fgssl."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        assert module.__doc__, info.name
        for name, thing in vars(module).items():
            own = getattr(thing, "__module__", None) == info.name
            if own and not name.startswith("_") and (inspect.isclass(thing) or inspect.isfunction(thing)):
                missing += [] if thing.__doc__ else [f"{info.name}.{name}"]
    assert missing == []
