"""fgssl compare"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option

from fgssl.cli import options
from fgssl.cli.console import print_json, print_table, say
from fgssl.cli.options import Text

if TYPE_CHECKING:
    from fgssl.evaluation.compare import ComparisonTable

_CHECKPOINTS = """Run folders, encoder files, timm:NAME, weights, or features.safetensors (several of one model joined
by +), whose images are found by path."""
_POOLS = "[gap, rationale, zoom and cls where it has them]"


@options.takes({name: kind for name, kind in options.ENCODING.items() if name != "pool"}, before="seed")
def compare(
    checkpoints: Annotated[list[str], Argument(metavar="CHECKPOINT", help=_CHECKPOINTS)],
    data: Annotated[Text, Option(help="Data source. [the one the first encoder was trained on]")] = None,
    split: options.Split = None,
    pool: Annotated[Text, Option(metavar="gap,rationale,...", callback=options.check_pools, help=_POOLS)] = None,
    k: Annotated[int, Option("--k", help="Neighbours that vote in knn.")] = 20,
    seed: Annotated[int, Option(help="Seed of the probe's held-out slice and of the bootstrap.")] = 0,
    markdown: Annotated[bool, Option("--markdown", help="Print the tables as Markdown.")] = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    **encoding: Any,
) -> None:
    """Several encoders and poolings in one table. Retrieval, linear probe and nearest neighbours."""
    if json_output and markdown:
        raise BadParameter("choose one of --json and --markdown", param_hint="--markdown")
    pools: Any = None if pool is None else tuple(dict.fromkeys(pool.split(",")))
    if len(set(checkpoints)) != len(checkpoints):
        raise BadParameter("one checkpoint is named twice", param_hint="CHECKPOINT")
    options.check_paths(data=data, cache=encoding["cache"])
    from fgssl.evaluation.compare import compare as run

    with options.reported(quiet=quiet, data=data, **encoding) as asked:
        table = run(checkpoints, asked, split=split, pools=pools, k=k, seed=seed)
    print_json(_document(table, seed)) if json_output else _print(table, seed, markdown=markdown)


def _document(table: ComparisonTable, seed: int) -> dict[str, Any]:
    from fgssl.evaluation.compare import METRICS, against_first

    first = table.rows[0]
    return {
        "data": table.data, "protocol": table.protocol, "train_images": table.train_images,
        "test_images": table.test_images, "definitions": METRICS,
        "rows": [{"encoder": row.encoder, "pool": row.pool, "width": row.width, **row.values} for row in table.rows],
        "comparisons": [
            {"encoder": row.encoder, "pool": row.pool, "against": {"encoder": first.encoder, "pool": first.pool},
             "metric": metric, **found._asdict()}
            for row, metric, found in against_first(table.rows, seed=seed)
        ],
    }  # fmt: skip


def _print(table: ComparisonTable, seed: int, *, markdown: bool) -> None:
    from fgssl.evaluation.compare import METRICS, against_first

    rows = [[row.encoder, row.pool, row.width, *row.values.values()] for row in table.rows]
    title = f"{table.test_images} images of {table.data}, {table.train_images} to learn from (percent)"
    print_table(("encoder", "pool", "width", *table.rows[0].values), rows, title=title, text=(0, 1), markdown=markdown)
    if len(table.rows) > 1:
        cells: dict[str, list[str]] = {}
        for row, _, found in against_first(table.rows, seed=seed):
            difference = f"{found.difference:+.2f}{'*' if found.p < 0.05 else ''}"
            cells.setdefault(row.name, [row.name]).append(f"{difference} ({found.low:+.2f} to {found.high:+.2f})")
        title = f"Against {table.rows[0].name}: points with 95 % interval, paired bootstrap; * beyond chance (p < 0.05)"
        print_table(("encoder", *METRICS), cells.values(), title=title, markdown=markdown)
    say(f"protocol: {table.protocol}")
