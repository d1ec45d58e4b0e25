"""fgssl compare"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgssl.cli.console import cell, echo, out, print_json, print_table
from fgssl.cli.early import check_cache, check_data
from fgssl.cli.subject import Batch, Cache, Device, Json, Split, check_pools, reported

if TYPE_CHECKING:
    from fgssl.evaluation.compare import ComparisonTable


def compare(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT...", show_default=False, help="Run folders, encoder files, timm:NAME, or "
            "features.safetensors (several of one model joined by +), whose images are found by path."
        ),
    ],
    data: Annotated[str | None, typer.Option(help="Data source. [the one the first encoder was trained on]")] = None,
    split: Split = None,
    pool: Annotated[
        str | None,
        typer.Option(
            metavar="gap,rationale,...", callback=check_pools, help="[gap, rationale, zoom and cls where it has them]"
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Neighbours that vote in knn.")] = 20,
    batch_size: Batch = None,
    device: Device = None,
    cache: Cache = None,
    seed: Annotated[int, typer.Option(help="Seed of the probe's held-out slice and of the bootstrap.")] = 0,
    json_output: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
) -> None:  # fmt: skip
    """Several encoders and poolings in one table. Retrieval, linear probe and nearest neighbours."""
    if json_output and markdown:
        raise typer.BadParameter("choose one of --json and --markdown", param_hint="--markdown")
    pools: Any = None if pool is None else tuple(dict.fromkeys(pool.split(",")))
    if len(set(checkpoints)) != len(checkpoints):
        raise typer.BadParameter("one checkpoint is named twice", param_hint="CHECKPOINT")
    check_data(data)
    check_cache(cache)
    from fgssl.evaluation.compare import compare as run

    with reported(data=data, batch_size=batch_size, device=device, cache=cache) as options:
        table = run(checkpoints, options, split=split, pools=pools, k=k, seed=seed)
    if json_output:
        print_json(_document(table, seed))
        return
    _print(table, seed, markdown=markdown)


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

    show: Any = _print_markdown if markdown else print_table
    rows = [[row.encoder, row.pool, row.width, *row.values.values()] for row in table.rows]
    title = f"{table.test_images} images of {table.data}, {table.train_images} to learn from (percent)"
    show(("encoder", "pool", "width", *METRICS), rows, title=title, text_columns=2)
    if len(table.rows) > 1:
        cells: dict[str, list[str]] = {}
        for row, _, found in against_first(table.rows, seed=seed):
            cells.setdefault(row.name, []).append(_difference(found))
        title = f"Against {table.rows[0].name}: points with 95 % interval, paired bootstrap; * beyond chance (p < 0.05)"
        show(("encoder", *METRICS), [[name, *row] for name, row in cells.items()], title=title)
    out.print(f"{chr(10) if markdown else ''}protocol: {table.protocol}", markup=False, soft_wrap=True)


def _difference(found: Any) -> str:
    star = "*" if found.p < 0.05 else ""
    return f"{found.difference:+.2f}{star} ({found.low:+.2f} to {found.high:+.2f})"


def _print_markdown(columns: Any, rows: Any, *, title: str, text_columns: int = 1) -> None:
    def line(cells: Any) -> str:
        return "| " + " | ".join(str(value).replace("|", "\\|") for value in cells) + " |"

    rules = ["---" if place < text_columns else "---:" for place in range(len(columns))]
    text = [f"**{title}**", "", line(columns), line(rules), *(line([cell(v) for v in row]) for row in rows), ""]
    echo("\n".join(text))
