"""fgssl probe, retrieve, embed"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgssl.cli.console import make_reporter, out, print_json, print_table

if TYPE_CHECKING:
    from fgssl.evaluation import Subject

Checkpoint = Annotated[
    str,
    typer.Argument(metavar="CHECKPOINT", help="Run folder, encoder .safetensors, or timm:NAME.", show_default=False),
]
Data = Annotated[str | None, typer.Option(help="Data source. [the one the encoder was trained on]")]
Split = Annotated[str | None, typer.Option(help="Split to evaluate. [the source's test split]")]
PoolOption = Annotated[
    str | None, typer.Option(metavar="gap|rationale|concat", help="[rationale where there is one, else gap]")
]
Batch = Annotated[int | None, typer.Option(help="Images per forward. [64]")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. [best at hand]")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextmanager
def _subject(checkpoint: str, **options: Any) -> Iterator[Subject]:
    from fgssl.evaluation import open_subject

    reporter = make_reporter(quiet=False)
    try:
        yield open_subject(checkpoint, reporter=reporter, **options)
    finally:
        reporter.close()


def _name_faults(subject: Subject, *found: Any) -> None:
    for embeddings in found:
        for fault in embeddings.faults:
            subject.reporter.warn(f"left out: {fault.reason}")


def retrieve(
    checkpoint: Checkpoint,
    data: Data = None,
    split: Split = None,
    gallery_split: Annotated[
        str | None, typer.Option(help="Search in this split. [leave-one-out within --split]")
    ] = None,
    pool: PoolOption = None,
    batch_size: Batch = None,
    device: Device = None,
    json_output: Json = False,
) -> None:
    """Find images of the same class by nearest neighbours: rank-1, rank-5, mAP over the full ranking."""
    from fgssl.errors import FgsslError
    from fgssl.evaluation import open_split, overlapping, require_labels
    from fgssl.retrieval import evaluate_retrieval

    with _subject(checkpoint, data=data, pool=pool, batch_size=batch_size, device=device) as subject:
        images = open_split(subject.data, split, "test")
        gallery = None if gallery_split is None else open_split(subject.data, gallery_split, "gallery")
        for needed in (images, gallery):
            if needed is not None:
                require_labels(needed, "retrieval is scored by them")
        if gallery is not None and overlapping(gallery, images):
            raise FgsslError(
                f"--gallery-split {gallery.split} holds the queries themselves ({images.split})",
                "leave it out for leave-one-out",
            )
        queries = subject.embed(images)
        found = None if gallery is None else subject.embed(gallery)
        result = evaluate_retrieval(
            queries.features,
            queries.require_labels(images.split),
            gallery=None if found is None else found.features,
            gallery_labels=None if found is None else found.labels,
        )
        _name_faults(subject, *(e for e in (queries, found) if e is not None))
    metrics = result.to_dict()
    protocol = f"{images.split} -> {gallery.split}" if gallery is not None else f"leave-one-out in {images.split}"
    if json_output:
        print_json({"checkpoint": checkpoint, "data": subject.data.source, "protocol": protocol,
                    "pool": subject.pool, **metrics})  # fmt: skip
        return
    columns = ("rank1", "rank5", "mAP", "macro_rank1", "macro_mAP", "queries", "gallery", "lone_queries")
    counts = ("queries", "gallery", "lone_queries")
    row = [int(metrics[c]) if c in counts else metrics[c] for c in columns]
    title = f"Retrieval on {subject.data.source}, {protocol} (percent)"
    print_table(("pool", *columns), [[subject.pool, *row]], title=title)


def probe(
    checkpoint: Checkpoint,
    data: Data = None,
    split: Split = None,
    pool: PoolOption = None,
    batch_size: Batch = None,
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Seed of the slice the regularisation is chosen on.")] = 0,
    json_output: Json = False,
) -> None:
    """Fit a linear classifier on the frozen features of the train split; score it on the test split."""
    from fgssl.classifiers import linear_probe
    from fgssl.evaluation import probe_splits

    with _subject(checkpoint, data=data, pool=pool, batch_size=batch_size, device=device) as subject:
        splits = probe_splits(subject.data, split, seed=seed)
        train, test = subject.embed(splits.train), subject.embed(splits.test)
        _name_faults(subject, train, test)
        result = linear_probe(
            train.features,
            train.require_labels(splits.train.split),
            test.features,
            test.require_labels(splits.test.split),
            seed=seed,
            progress=lambda done, total: subject.reporter.progress("fitting the probe", done, total),
        )
    protocol = f"{result.protocol}; {splits.protocol}"
    if json_output:
        print_json({
            "checkpoint": checkpoint, "data": subject.data.source, "pool": subject.pool, "protocol": protocol,
            "labels": len(train.identifiers), **result.to_dict(),
        })  # fmt: skip
        return
    row = [subject.pool, result.top1, result.top5, result.mean_per_class, len(train.identifiers), len(test.identifiers)]
    print_table(
        ("pool", "top1", "top5", "mean per class", "labels", "test images"),
        [row],
        title=f"Linear probe on {subject.data.source} (percent)",
    )
    out.print(f"protocol: {protocol}", markup=False, soft_wrap=True)


def embed(
    checkpoint: Checkpoint,
    data: Data = None,
    split: Split = None,
    pool: PoolOption = None,
    batch_size: Batch = None,
    device: Device = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: features, labels, paths.")] = Path(
        "features.safetensors"
    ),
    json_output: Json = False,
) -> None:
    """Write the features of a split or a folder to one safetensors file."""
    from fgssl.evaluation import check_output, open_split, save_embeddings

    check_output(output)
    with _subject(checkpoint, data=data, pool=pool, batch_size=batch_size, device=device) as subject:
        images = open_split(subject.data, split, "test")
        found = subject.embed(images)
        _name_faults(subject, found)
        save_embeddings(output, found, checkpoint=checkpoint, pool=subject.pool, images=images)
    count, width = found.features.shape
    if json_output:
        print_json({"output": str(output), "images": count, "width": width, "pool": subject.pool,
                    "labels": found.labels is not None, "unreadable": len(found.faults)})  # fmt: skip
    else:
        out.print(f"{output}: {count} x {width} features ({subject.pool})", markup=False, soft_wrap=True)
