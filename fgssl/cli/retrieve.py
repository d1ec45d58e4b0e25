"""fgssl retrieve, fgssl compare: one encoder scored by its nearest neighbours, and several side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option

from fgssl.cli import completion, options
from fgssl.cli.console import print_error, print_json, print_table, process_rank, say, tell
from fgssl.cli.options import Text
from fgssl.cli.pages import ReportFile, check_page, write_page
from fgssl.config.values import parse_bytes
from fgssl.data.decoding import require_files
from fgssl.drawing import PICTURE, save_png
from fgssl.errors import FgsslError
from fgssl.evaluation.protocols import RETRIEVAL
from fgssl.runtime.files import check_output

if TYPE_CHECKING:
    from fgssl.evaluation.compare import ComparisonTable
    from fgssl.evaluation.retrieval.scored import Scored
    from fgssl.evaluation.retrieval.search import Lookup, Result, Searcher

_QUERY = """Find images like these instead of scoring; no labels needed. "-" reads a path a line and answers each at
once, with encoder and gallery loaded once."""
_GALLERY = "Search this data source, features.safetensors or vector index."
_NO_START = "Leave out the rows of the trained weights that the runs began from, used as they are."
_SEARCHED = "Split to search. [leave-one-out, and beside it the train images]"
_FIRST = "Data source. [the one the first encoder was trained on]"
_PROTOCOL = "Published evaluation, which says what searches what; its definition and source are printed."
_FILES = (".safetensors", ".lance", ".faiss")  # a gallery that is no data source
_METRICS = ("rank1", "rank5", "rank10", "mAP", "mAP_at_R", "r_precision")
_CHECKPOINTS = """Run folders, encoder files, timm:NAME, weights, or features.safetensors (several of one model joined
by +), whose images are found by path."""


@options.takes(options.ENCODING)
def retrieve(
    checkpoint: options.Checkpoint,
    data: options.Data = None,
    query_split: Annotated[Text, Option("--query-split", "--split", help="Split of queries. [the test split]")] = None,
    gallery: Annotated[Text, Option(metavar="SOURCE", help=_GALLERY, autocompletion=completion.source)] = None,
    gallery_split: Annotated[Text, Option(help="Split to search. [all of --gallery; else leave-one-out]")] = None,
    protocol: Annotated[Text, Option(metavar="|".join(RETRIEVAL), help=_PROTOCOL)] = None,
    query: Annotated[list[Path] | None, Option("--query", metavar="IMAGE...", help=_QUERY)] = None,
    top: Annotated[int, Option(help="Hits of each --query.", callback=options.at_least(1, "--top"))] = 10,
    output: Annotated[Path | None, Option("--output", "-o", help="Picture of queries and hits (.png, .jpg).")] = None,
    report: ReportFile = None,
    overwrite: options.Overwrite = False,
    memory: Annotated[Text, Option(metavar="SIZE", help="Memory for scores, as 512M or 2G. [by the machine]")] = None,
    explain: Annotated[bool, Option("--explain", help="Print what each number means.")] = False,
    processes: options.Processes = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    **encoding: Any,
) -> None:
    """Score nearest neighbours, or find images like --query. Scoring asks whether they share a class."""
    own = {"query_split": query_split, "gallery_split": gallery_split}
    if protocol is not None and protocol not in RETRIEVAL:
        raise BadParameter(f"'{protocol}' is not one of {', '.join(RETRIEVAL)}", param_hint="--protocol")
    if protocol is not None and (refused := options.given_flags(own)):
        raise BadParameter(f"--protocol says what searches what: leave out {' and '.join(refused)}")
    scoring = {"query_split": query_split, "protocol": protocol, "explain": explain or None}
    if query and (refused := options.given_flags(scoring)):
        raise BadParameter(f"{' and '.join(refused)} goes with scoring, not with --query")
    if output and not query:
        raise BadParameter("--output draws the hits of --query; without it there are none")
    size = None if memory is None else parse_bytes(memory)
    options.check_paths(checkpoint, data, encoding["cache"])
    options.check_paths(data=None if gallery is None or gallery.endswith(_FILES) else gallery)
    if asks := query == [Path("-")]:
        if refused := options.given_flags({"output": output, "report": report, "processes": processes}):
            raise BadParameter(f"{' and '.join(refused)} goes with pictures that are named, not with --query -")
    else:
        require_files([path for path in query or () if not path.is_dir()])
    if query and output is not None:
        inputs = (*query, *checkpoint.split("+"), data, gallery)
        check_output(output, kind=PICTURE, inputs=inputs, overwrite=overwrite)
    check_page(report, inputs=(*(query or ()), *checkpoint.split("+"), data, gallery), overwrite=overwrite)
    options.share_out(processes, remedy=options.AGAIN)
    from fgssl.evaluation.feature_file import is_feature_file
    from fgssl.evaluation.retrieval import scored, search

    given = {"data": data, **encoding}
    with options.reported(quiet=quiet, memory_bytes=size, **given) as asked:
        if asks:
            _answer(search.open_searcher(checkpoint, asked, gallery=gallery, split=gallery_split), top, json_output)
            return
        if query:
            found = search.look_up(checkpoint, query, asked, gallery=gallery, split=gallery_split, top=top)
            if output is not None and process_rank() == 0:
                save_png(search.draw_lookup(found, title=f"{checkpoint} in {found.searcher.gallery.name}"), output)
        elif is_feature_file(checkpoint):
            if refused := options.given_flags({"query_split": query_split, "gallery_split": gallery_split, **given}):
                raise BadParameter(f"{' and '.join(refused)} has no meaning for a file of features ('{checkpoint}')")
            result = scored.score_files(checkpoint, gallery, asked, protocol=protocol)
        elif protocol is not None:
            if gallery is not None:
                raise BadParameter("--protocol says what searches what: leave out --gallery")
            result = scored.score_protocol(checkpoint, asked, protocol)
        else:
            result = scored.score_encoder(
                checkpoint, asked, split=query_split, gallery=gallery, gallery_split=gallery_split
            )
    if query:
        _print_hits(found, checkpoint, output, json_output)
    else:
        _print_scores(result, checkpoint, explain, json_output)
    write_page(report, lambda: _page(found if query else result, checkpoint), told=not json_output, quiet=quiet)


def _page(result: Scored | Lookup, checkpoint: str) -> str:
    from fgssl.evaluation.retrieval.scored import Scored
    from fgssl.report.retrieval import lookup_page, scored_page

    return scored_page(result, checkpoint) if isinstance(result, Scored) else lookup_page(result, checkpoint)


def _print_scores(scored: Scored, checkpoint: str, explain: bool, json_output: bool) -> None:
    from fgssl.evaluation.retrieval.metrics import DEFINITIONS

    metrics, intervals = scored.result.to_dict(), scored.result.intervals()
    named = scored.named
    if json_output:
        stated = {} if named is None else {"definition": named.definition, "source": named.source}
        print_json({
            "checkpoint": checkpoint, "data": scored.data, "protocol": scored.protocol, "pool": scored.pool, **stated,
            **metrics, **scored.added,
            "intervals": {name: [interval.low, interval.high] for name, interval in intervals.items()},
            "definitions": DEFINITIONS,
        })  # fmt: skip
        return
    spans = {name: f"{interval.low:.2f} to {interval.high:.2f}" for name, interval in intervals.items()}
    shown = _METRICS if named is None else [name for name in named.metrics if name in metrics]
    rows = [[name, metrics[name], spans[name], metrics[f"macro_{name}"], spans[f"macro_{name}"]] for name in shown]
    rows += [[name, value, None, None, None] for name, value in scored.added.items()]
    title = f"Retrieval on {scored.data}, {scored.protocol} (percent)"
    print_table(("", "mean", "95 % interval", "class mean", "95 % interval"), rows, title=title)
    lone = f", {scored.result.lone_queries} lone queries left out" if scored.result.lone_queries else ""
    pooling = "" if scored.pool is None else f", {scored.pool} pooling"
    say(f"{scored.result.queries} queries, {scored.result.gallery} gallery images{lone}{pooling}")
    if named is not None:
        say(f"definition: {named.definition}")
        say(f"source: {named.source}")
    if explain:
        for name, meaning in DEFINITIONS.items():
            say(f"{name}: {meaning}")


def _answer(searcher: Searcher, top: int, json_output: bool) -> None:
    """The hits of each line of stdin, a JSON document a line where that is asked for; a bad picture is told of."""
    if sys.stdin.isatty():
        tell(f"{searcher.gallery.images} images: a picture a line; Ctrl-D ends")
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            path = Path(line.strip()).expanduser()
            require_files([] if path.is_dir() else [path])
            results = searcher.find([path], top=top)
        except FgsslError as error:
            print_error(error.problem, error.remedy)
            continue
        for result in results:
            if json_output:
                print_json({"query": result.name, "hits": [hit._asdict() for hit in result.hits]}, lines=True)
                continue
            say(result.name)
            _print_result(result)
        sys.stdout.flush()


def _print_result(result: Result) -> None:
    for hit in result.hits:
        say(f"{hit.rank:4d}  {hit.score:.4f}  {hit.path}{'' if hit.label is None else f'  ({hit.label})'}")


def _print_hits(found: Lookup, checkpoint: str, output: Path | None, json_output: bool) -> None:
    if json_output:
        searcher = found.searcher
        print_json({
            "checkpoint": checkpoint, "gallery": searcher.gallery.name, "images": searcher.gallery.images,
            "pool": searcher.subject.pool, "score": "cosine", "output": None if output is None else str(output),
            "queries": [{"query": each.name, "hits": [hit._asdict() for hit in each.hits]} for each in found.results],
        })  # fmt: skip
        return
    for result in found.results:
        if len(found.results) > 1:
            say(result.name)
        _print_result(result)
    if output is not None:
        tell(f"picture: {output}")


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
