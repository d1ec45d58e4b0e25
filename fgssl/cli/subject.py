"""What the verbs that evaluate an encoder share: their common options, and opening what they evaluate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgssl.cli.console import evaluation_reporter

if TYPE_CHECKING:
    from fgssl.evaluation.subject import EvaluationOptions

Checkpoint = Annotated[
    str,
    typer.Argument(metavar="CHECKPOINT", help="Run folder, encoder .safetensors, or timm:NAME.", show_default=False),
]
Data = Annotated[str | None, typer.Option(help="Data source. [the one the encoder was trained on]")]
Split = Annotated[str | None, typer.Option(help="Split to evaluate. [the source's test split]")]
POOL_NAMES = ("gap", "rationale", "concat", "zoom", "cls")


def check_pools(text: str | None) -> str | None:
    """Names of poolings, joined by commas where a verb takes several; the first unknown one is a usage error."""
    for name in () if text is None else text.split(","):
        if name not in POOL_NAMES:
            raise typer.BadParameter(f"'{name}': choose from {', '.join(POOL_NAMES)}", param_hint="--pool")
    return text


def _one_pool(text: str | None) -> str | None:
    if text is not None and "," in text:
        raise typer.BadParameter(f"'{text}': one pooling; fgssl compare takes several", param_hint="--pool")
    return check_pools(text)


PoolOption = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(POOL_NAMES),
        callback=_one_pool,
        help="Features: gap (mean of the map), rationale (weighted by it), concat (both), zoom (gap, rationale and a "
        "closer look), cls (class token). [zoom with a rationale, else gap]",
    ),
]
Batch = Annotated[int | None, typer.Option(help="Images per forward. [64]")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. [best at hand]")]
Cache = Annotated[
    str | None, typer.Option(help="Decoded pictures and galleries: auto, off, or a folder.", metavar="auto|off|PATH")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an output that fgssl did not write; never an input.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextmanager
def reported(**given: Any) -> Iterator[EvaluationOptions]:
    """The options that the user has given, with progress on the terminal until the block ends."""
    from fgssl.evaluation.subject import EvaluationOptions

    reporter = evaluation_reporter()
    try:
        yield EvaluationOptions(
            reporter=reporter, **{name: value for name, value in given.items() if value is not None}
        )  # fmt: skip
    finally:
        reporter.close()
