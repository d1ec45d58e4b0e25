"""The documentation as the tests read it: pages, the commands in them, and the verbs these must parse with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from fgssl.cli import app
from fgssl.config.resolve import load_config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RECIPES = [
    path
    for folder in ("", "paper", "small")
    for path in sorted((ROOT / "recipes" / folder).glob("*.yaml"))
    if path.name != "tables.yaml"
]
# Page by its path from the root -> its text
PAGES: dict[str, str] = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
}
EVERYTHING = "\n".join(PAGES.values())


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


def shell_lines(text: str) -> Iterator[str]:
    """Lines inside ```sh fences, continued lines joined."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()


def spans(text: str) -> list[str]:
    """What stands between single backticks, outside fences."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [span.replace("\n", " ") for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


def commands(text: str) -> list[list[str]]:
    """The words after `fgssl` of every command in ```sh fences, `&&` and environment settings taken apart."""
    found = []
    for line in shell_lines(text):
        for part in re.split(r"&&|\|\|?|;", line.partition("  #")[0]):
            words = shlex.split(part, comments=True)
            for start, word in enumerate(words):
                if word == "fgssl" and (start == 0 or words[start - 1] == "-m" or "=" in words[start - 1]):
                    found.append(words[start + 1 :])
    return found


def inline_commands(text: str) -> list[list[str]]:
    """The words after `fgssl` of commands in the middle of a sentence; VERB and ... stand for anything."""
    found = [shlex.split(span)[1:] for span in spans(text) if span.startswith("fgssl ")]
    return [words for words in found if words[0].isalpha() and words[0].islower() and "..." not in words]


def complete(words: list[str]) -> bool:
    """Whether a command in a sentence has what its verb must be given; the name of a verb alone has not."""
    command = VERBS[verb_of(words)]
    needed = any(parameter.required and parameter.param_type_name == "argument" for parameter in command.params)
    return not needed or len(words) > len(verb_of(words).split())


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
