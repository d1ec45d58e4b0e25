"""An option that takes every word up to the next option, as `--query a.jpg b.jpg`; click's take a fixed number."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from fgssl.cli.retrieve import QUERY_FLAG


def repeat_flag(words: list[str], flag: str) -> list[str]:
    """`--query a b --top 3` as `--query a --query b --top 3`."""
    found: list[str] = []
    taking = first = False
    for place, word in enumerate(words):
        if word == "--":
            return found + words[place:]
        if word.startswith("-") and word != "-":
            taking = first = word == flag
        elif taking and not first:
            found.append(flag)
        else:
            first = False
        found.append(word)
    return found


class QueryCommand(TyperCommand):
    """A command whose `--query` takes several pictures."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the words with the flag before each of its values."""
        return super().parse_args(ctx, repeat_flag(args, QUERY_FLAG))
