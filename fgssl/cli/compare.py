"""fgssl compare: several encoders side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option

from fgssl.cli import completion, options
from fgssl.cli.console import print_json, print_table, say
from fgssl.cli.options import Text
from fgssl.cli.pages import ReportFile, check_page, write_page

if TYPE_CHECKING:
    from fgssl.evaluation.compare import ComparisonTable

_NO_START = "Leave out the rows of the trained weights that the runs began from, used as they are."
_SEARCHED = "Split to search. [leave-one-out, and beside it the train images]"
_FIRST = "Data source. [the one the first encoder was trained on]"
_CHECKPOINTS = """Run folders, encoder files, timm:NAME, weights, or features.safetensors (several of one model joined
by +), whose images are found by path."""


@options.takes({name: kind for name, kind in options.ENCODING.items() if name != "pool"}, before="seed")
def compare(
    checkpoints: Annotated[
        list[str], Argument(metavar="CHECKPOINT", help=_CHECKPOINTS, autocompletion=completion.checkpoint)
    ],
    data: Annotated[Text, Option(help=_FIRST, autocompletion=completion.source)] = None,
    split: options.Split = None,
    gallery_split: Annotated[Text, Option(help=_SEARCHED)] = None,
    pool: options.Pools = None,
    k: Annotated[int, Option("--k", help="Neighbours that vote in knn.", callback=options.at_least(1, "--k"))] = 20,
    seed: Annotated[int, Option(help="Seed of the probe's held-out slice and of the bootstrap.")] = 0,
    no_start: Annotated[bool, Option("--no-start", help=_NO_START)] = False,
    report: ReportFile = None,
    overwrite: options.Overwrite = False,
    markdown: Annotated[bool, Option("--markdown", help="Print the tables as Markdown.")] = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    **encoding: Any,
) -> None:
    """Several encoders and poolings in one table, beside the trained weights that they began from.

    Retrieval, linear probe and nearest neighbours, and which differences are beyond chance.
    """
    if json_output and markdown:
        raise BadParameter("choose one of --json and --markdown", param_hint="--markdown")
    pools: Any = None if pool is None else tuple(dict.fromkeys(pool.split(",")))
    if len(set(checkpoints)) != len(checkpoints):
        raise BadParameter("one checkpoint is named twice", param_hint="CHECKPOINT")
    for checkpoint in checkpoints:
        options.check_paths(checkpoint)
    options.check_paths(data=data, cache=encoding["cache"])
    check_page(report, inputs=(*checkpoints, data), overwrite=overwrite)
    from fgssl.evaluation.compare import compare as run

    with options.reported(quiet=quiet, data=data, **encoding) as asked:
        table = run(
            checkpoints, asked, split=split, gallery_split=gallery_split, pools=pools, k=k, seed=seed,
            start=not no_start,
        )  # fmt: skip
    print_json(_comparison(table, seed)) if json_output else _print_comparison(table, seed, markdown=markdown)
    write_page(report, lambda: _compared_page(table, seed), told=not json_output, quiet=quiet)


def _compared_page(table: ComparisonTable, seed: int) -> str:
    from fgssl.evaluation.compare import differences
    from fgssl.report.compare import compare_page

    return compare_page(table, list(differences(table.rows, seed=seed)))


def _comparison(table: ComparisonTable, seed: int) -> dict[str, Any]:
    from fgssl.evaluation.compare import differences

    return {
        "data": table.data, "protocol": table.protocol, "train_images": table.train_images,
        "test_images": table.test_images, "definitions": table.definitions, "no_start": table.no_start or None,
        "rows": [{"encoder": row.encoder, "pool": row.pool, "width": row.width, "start": row.is_start, **row.values}
                 for row in table.rows],
        "comparisons": [
            {"encoder": row.encoder, "pool": row.pool, "against": {"encoder": other.encoder, "pool": other.pool},
             "metric": metric, **found._asdict()}
            for row, other, metric, found in differences(table.rows, seed=seed)
        ],
    }  # fmt: skip


def _print_comparison(table: ComparisonTable, seed: int, *, markdown: bool) -> None:
    from fgssl.evaluation.compare import SIGNALS, differences

    names = dict.fromkeys(name for row in table.rows for name in row.values)
    rows = [[row.encoder, row.pool, row.width, *map(row.values.get, names)] for row in table.rows]
    learned = f"{table.train_images} to learn from (percent)" if table.definitions is not SIGNALS else "without labels"
    title = f"{table.test_images} images of {table.data}, {learned}"
    print_table(("encoder", "pool", "width", *names), rows, title=title, text=(0, 1), markdown=markdown)
    told: dict[str, dict[str, dict[str, str]]] = {}  # what against -> row -> metric -> difference
    for row, other, metric, found in differences(table.rows, seed=seed):
        against = f"{row.began}, by each column in its best pooling" if row.began else other.name
        difference = f"{found.difference:+.2f}{'*' if found.p < 0.05 else ''}"
        cells = told.setdefault(against, {}).setdefault(row.name, {})
        cells[metric] = f"{difference} ({found.low:+.2f} to {found.high:+.2f})"
    for against, lines in told.items():
        title = f"Against {against}: points with 95 % interval, paired bootstrap; * beyond chance (p < 0.05)"
        paired = [metric for metric in table.definitions if any(metric in cells for cells in lines.values())]
        cells_of = [[name, *(cells.get(metric, "best") for metric in paired)] for name, cells in lines.items()]
        print_table(("encoder", *paired), cells_of, title=title, markdown=markdown)
    if table.definitions is SIGNALS:
        for name, meaning in table.definitions.items():
            say(f"{name}: {meaning}")
    say(f"protocol: {table.protocol}")
