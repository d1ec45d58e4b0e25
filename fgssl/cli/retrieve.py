"""fgssl retrieve: an encoder scored by its nearest neighbours, or pictures found by example."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import BadParameter, Option

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
    from fgssl.evaluation.retrieval.scored import Scored
    from fgssl.evaluation.retrieval.search import Lookup, Result, Searcher
    from fgssl.evaluation.subject import EvaluationOptions

_QUERY = """Find images like these instead of scoring; no labels needed. "-" reads a path a line and answers each at
once, with encoder and gallery loaded once."""
_GALLERY = "Search this data source, features.safetensors or vector index."
_PROTOCOL = "Published evaluation, which says what searches what; its definition and source are printed."
_FILES = (".safetensors", ".lance", ".faiss")  # a gallery that is no data source
_METRICS = ("rank1", "rank5", "rank10", "mAP", "mAP_at_R", "r_precision")


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
    _check_usage(query, output, protocol, own, explain=explain)
    size = None if memory is None else parse_bytes(memory)
    options.check_paths(checkpoint, data, encoding["cache"])
    options.check_paths(data=None if gallery is None or gallery.endswith(_FILES) else gallery)
    if asks := query == [Path("-")]:
        if refused := options.given_flags({"output": output, "report": report, "processes": processes}):
            raise BadParameter(f"{' and '.join(refused)} goes with pictures that are named, not with --query -")
    else:
        require_files([path for path in query or () if not path.is_dir()])
    inputs = (*(query or ()), *checkpoint.split("+"), data, gallery)
    if query and output is not None:
        check_output(output, kind=PICTURE, inputs=inputs, overwrite=overwrite)
    check_page(report, inputs=inputs, overwrite=overwrite)
    options.share_out(processes, remedy=options.AGAIN)
    from fgssl.evaluation.retrieval import search

    given = {"data": data, **encoding}
    with options.reported(quiet=quiet, memory_bytes=size, **given) as asked:
        if asks:
            _answer(search.open_searcher(checkpoint, asked, gallery=gallery, split=gallery_split), top, json_output)
            return
        if query:
            found = search.look_up(checkpoint, query, asked, gallery=gallery, split=gallery_split, top=top)
            if output is not None and process_rank() == 0:
                save_png(search.draw_lookup(found, title=f"{checkpoint} in {found.searcher.gallery.name}"), output)
        else:
            result = _scored(checkpoint, gallery, asked, protocol, own, given)
    if query:
        _print_hits(found, checkpoint, output, json_output)
    else:
        _print_scores(result, checkpoint, explain, json_output)
    write_page(report, lambda: _page(found if query else result, checkpoint), told=not json_output, quiet=quiet)


def _check_usage(
    query: list[Path] | None, output: Path | None, protocol: str | None, own: dict[str, str | None], *, explain: bool
) -> None:
    """Refuses options that do not go together. Raises BadParameter."""
    if protocol is not None and protocol not in RETRIEVAL:
        raise BadParameter(f"'{protocol}' is not one of {', '.join(RETRIEVAL)}", param_hint="--protocol")
    if protocol is not None and (refused := options.given_flags(own)):
        raise BadParameter(f"--protocol says what searches what: leave out {' and '.join(refused)}")
    scoring = {"query_split": own["query_split"], "protocol": protocol, "explain": explain or None}
    if query and (refused := options.given_flags(scoring)):
        raise BadParameter(f"{' and '.join(refused)} goes with scoring, not with --query")
    if output and not query:
        raise BadParameter("--output draws the hits of --query; without it there are none")


def _scored(
    checkpoint: str, gallery: str | None, asked: EvaluationOptions, protocol: str | None, own: dict[str, str | None],
    given: dict[str, Any],
) -> Scored:  # fmt: skip
    """Scores of features in files, or of an encoder, by a published protocol where one is named."""
    from fgssl.evaluation.feature_file import is_feature_file
    from fgssl.evaluation.retrieval import scored

    if is_feature_file(checkpoint):
        if refused := options.given_flags({**own, **given}):
            raise BadParameter(f"{' and '.join(refused)} has no meaning for a file of features ('{checkpoint}')")
        return scored.score_files(checkpoint, gallery, asked, protocol=protocol)
    if protocol is not None:
        if gallery is not None:
            raise BadParameter("--protocol says what searches what: leave out --gallery")
        return scored.score_protocol(checkpoint, asked, protocol)
    split, gallery_split = own["query_split"], own["gallery_split"]
    return scored.score_encoder(checkpoint, asked, split=split, gallery=gallery, gallery_split=gallery_split)


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
