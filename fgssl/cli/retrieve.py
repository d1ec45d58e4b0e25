"""fgssl retrieve"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgssl.cli.console import err, out, print_json, print_table
from fgssl.cli.early import check_paths, check_pictures
from fgssl.cli.subject import Batch, Cache, Checkpoint, Data, Device, Json, Overwrite, PoolOption, reported

if TYPE_CHECKING:
    from fgssl.evaluation.retrieval.scored import Scored
    from fgssl.evaluation.retrieval.search import Lookup

QUERY_FLAG = "--query"
_METRICS = ("rank1", "rank5", "rank10", "mAP", "mAP_at_R", "r_precision")


def retrieve(
    checkpoint: Checkpoint,
    data: Data = None,
    query_split: Annotated[
        str | None, typer.Option("--query-split", "--split", help="Split of the queries. [the source's test split]")
    ] = None,
    gallery: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Search here: a data source, or features.safetensors.")
    ] = None,
    gallery_split: Annotated[
        str | None,
        typer.Option(help="Split to search in. [all of --gallery; without --gallery leave-one-out in --query-split]"),
    ] = None,
    query: Annotated[
        list[Path] | None,
        typer.Option(
            QUERY_FLAG, metavar="IMAGE...", help="Find images like these instead of scoring; needs no labels."
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Hits of each --query.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Picture of queries and hits to write (.png, .jpg).")
    ] = None,
    overwrite: Overwrite = False,
    pool: PoolOption = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Scratch memory for scores, as 512M or 2G. [from the machine]")
    ] = None,
    batch_size: Batch = None,
    device: Device = None,
    cache: Cache = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print what each number means.")] = False,
    json_output: Json = False,
) -> None:
    """Score nearest neighbours, or find images like --query. Do they share a class? The search needs no labels."""
    from fgssl.drawing import PICTURE
    from fgssl.runtime.files import check_output

    check_paths(checkpoint, data, cache)
    check_pictures(query or ())
    if query and output is not None:
        inputs = (*query, *checkpoint.split("+"), data, gallery)
        check_output(output, kind=PICTURE, inputs=inputs, overwrite=overwrite)
    from fgssl.drawing import save_png
    from fgssl.evaluation.feature_file import is_feature_file
    from fgssl.evaluation.retrieval.scored import Asked, score_encoder, score_files
    from fgssl.evaluation.retrieval.search import draw_lookup, look_up
    from fgssl.runtime.machine import parse_bytes

    given = {"data": data, "pool": pool, "batch_size": batch_size, "device": device, "cache": cache}
    with reported(memory_bytes=None if memory is None else parse_bytes(memory), **given) as options:
        if query:
            _refuse({"--query-split": query_split, "--explain": explain or None}, "goes with scoring, not with --query")
            found = look_up(checkpoint, query, options, gallery=gallery, gallery_split=gallery_split, top=top)
            if output is not None:
                save_png(draw_lookup(found, title=f"{checkpoint} in {found.gallery}"), output)
        else:
            _refuse({"--output": output}, "draws the hits of --query; without it there are none")
            if is_feature_file(checkpoint):
                flags = {"query_split": query_split, "gallery_split": gallery_split, **given}
                of_encoder = {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
                _refuse(of_encoder, f"has no meaning for a file of features ('{checkpoint}')")
                scored = score_files(checkpoint, gallery, options)
            else:
                scored = score_encoder(checkpoint, Asked(query_split, gallery, gallery_split), options)
    if query:
        _print_hits(found, checkpoint, output, json_output)
    else:
        _print_scores(scored, checkpoint, explain, json_output)


def _refuse(flags: dict[str, Any], why: str) -> None:
    given = [flag for flag, value in flags.items() if value is not None]
    if given:
        raise typer.BadParameter(f"{' and '.join(given)} {why}")


def _print_scores(scored: Scored, checkpoint: str, explain: bool, json_output: bool) -> None:
    from fgssl.evaluation.retrieval.metrics import DEFINITIONS

    metrics, intervals = scored.result.to_dict(), scored.result.intervals()
    if json_output:
        print_json({
            "checkpoint": checkpoint, "data": scored.data, "protocol": scored.protocol, "pool": scored.pool, **metrics,
            "intervals": {name: [interval.low, interval.high] for name, interval in intervals.items()},
            "definitions": DEFINITIONS,
        })  # fmt: skip
        return
    rows = []
    for name in _METRICS:
        row: list[Any] = [name]
        for key in (name, f"macro_{name}"):
            row += [metrics[key], f"{intervals[key].low:.2f} to {intervals[key].high:.2f}"]
        rows.append(row)
    title = f"Retrieval on {scored.data}, {scored.protocol} (percent)"
    print_table(("", "mean", "95 % interval", "class mean", "95 % interval"), rows, title=title)
    counts = [f"{scored.result.queries} queries", f"{scored.result.gallery} gallery images"]
    counts += [f"{scored.result.lone_queries} lone queries left out"] if scored.result.lone_queries else []
    counts += [] if scored.pool is None else [f"{scored.pool} pooling"]
    out.print(", ".join(counts), soft_wrap=True)
    if explain:
        for name, meaning in DEFINITIONS.items():
            out.print(f"{name}: {meaning}", markup=False, soft_wrap=True)


def _print_hits(found: Lookup, checkpoint: str, output: Path | None, json_output: bool) -> None:
    if json_output:
        print_json({
            "checkpoint": checkpoint, "gallery": found.gallery, "images": found.images, "pool": found.pool,
            "score": "cosine", "output": None if output is None else str(output),
            "queries": [
                {"query": result.name, "hits": [hit._asdict() for hit in result.hits]} for result in found.results
            ],
        })  # fmt: skip
        return
    for result in found.results:
        if len(found.results) > 1:
            out.print(result.name, markup=False, soft_wrap=True)
        for hit in result.hits:
            out.print(f"{hit.rank:4d}  {hit.score:.4f}  {hit.path}", markup=False, soft_wrap=True)
    if output is not None:
        err.print(f"picture: {output}", markup=False, soft_wrap=True)
