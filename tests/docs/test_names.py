"""The names in the documentation exist, nothing that exists is left out, links resolve, and code is documented."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
from documents import DOCS, EVERYTHING, PAGES, RECIPES, ROOT, VERBS, check

import fgssl
from fgssl.config.defaults import RATIONALE_PRESETS, VIEW_PRESETS
from fgssl.config.resolve import load_config
from fgssl.config.schema import RationaleConfig, flatten
from fgssl.data.sources.presets import PRESETS

PRINTED = {"objective.covariance_weight"}  # of the objective that a page prints


def header(recipe: Path) -> str:
    lines = recipe.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))])


def objectives() -> set[str]:
    from fgssl.objectives import OBJECTIVES

    return set(OBJECTIVES)


def objectives_own() -> dict[str, str]:
    """Each setting that some objectives alone have, and one of them."""
    from fgssl.objectives import OBJECTIVES

    shared = flatten(load_config().config)
    own = {f"objective.{key}": name for name, item in OBJECTIVES.items() for key in item.settings.__dataclass_fields__}
    return {key: name for key, name in own.items() if key not in shared}


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
def test_every_name_is_documented(names: set[str]) -> None:
    words = set(re.findall(r"[\w.-]+", EVERYTHING))
    assert names and {name for name in names if name not in words} == set()


def test_every_objective_is_documented_and_its_name_in_the_config() -> None:
    page = PAGES["docs/objectives.md"]
    assert {name for name in objectives() if f"`--objective {name}`" not in page} == set()
    for name in objectives():
        load_config(sets=[f"objective.name={name}"])


@pytest.mark.parametrize("page", PAGES)
def test_settings_named_exist_with_the_values_shown(page: str) -> None:
    known, own = flatten(load_config().config), objectives_own()
    sections = {key.partition(".")[0] for key in known}
    text = re.sub(r"## Four journeys.*?(?=^## )", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)  # functions
    named = re.findall(r"(?:`|--set )([a-z]+\.[a-z_]+)(?:=([^`\s\\]+))?(?=[`\s\\])", text)
    settings = [(key, value) for key, value in named if key.partition(".")[0] in sections and key not in PRINTED]
    settings = [(key, value) for key, value in settings if not key.endswith((".py", ".md", ".yaml", ".png", ".jsonl"))]
    if page in ("docs/rationale.md", "docs/settings.md"):
        assert len(settings) > 10
    for key, value in settings:
        assert key in known or key in own, key
        if value and "..." not in value and not value.isupper():
            owner = {"objective.name": own[key]} if key in own else {}
            load_config(flags=owner, sets=[f"{key}={value}"])


def test_rationale_table_shows_the_presets_as_they_are() -> None:
    defaults = dataclasses.asdict(RationaleConfig())
    rows = re.findall(
        r"^\| `rationale\.(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", PAGES["docs/rationale.md"], re.MULTILINE
    )
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


@pytest.mark.parametrize("page", PAGES)
def test_files_named_exist(page: str) -> None:
    for path in re.findall(r"`(?:python |pytest )?((?:recipes|tests|fgssl|docs)/[\w./-]*)[` ]", PAGES[page]):
        assert (ROOT / path).exists(), path


def test_functions_on_the_journeys_exist() -> None:
    section = PAGES["docs/architecture.md"].partition("## Four journeys")[2].partition("\n## ")[0]
    named = [span for span in re.findall(r"`([\w.]+)`", section) if "." in span]
    assert len(named) > 12
    for name in named:
        words = name.split(".")
        cut = next(n for n in range(len(words), 0, -1) if _is_module(words[:n]))
        thing = importlib.import_module(".".join(["fgssl", *words[:cut]]))
        for word in words[cut:]:
            thing = getattr(thing, word)


def _is_module(words: list[str]) -> bool:
    path = (ROOT / "fgssl").joinpath(*words)
    return path.is_dir() or path.with_suffix(".py").is_file()


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """What a link to a heading of a page ends with."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", prose(PAGES[page])):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_one_link_from_the_readme() -> None:
    linked = {ROOT / link for link in re.findall(r"\]\(([^)#]+)", PAGES["README.md"])}
    assert {*DOCS.glob("*.md")} - linked == {DOCS / "index.md"}


def test_the_readme_fits_a_reader() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 250


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
        (recipe,) = (path for path in RECIPES if path.name == f"{name}-mocov2-official.yaml")
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
