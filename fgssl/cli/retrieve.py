"""fgssl retrieve"""

from __future__ import annotations

from typing import Annotated

import typer

from fgssl.cli.console import print_json, print_table
from fgssl.cli.subject import Batch, Checkpoint, Data, Device, Json, PoolOption, Split, name_faults, opened


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

    with opened(checkpoint, data=data, pool=pool, batch_size=batch_size, device=device) as subject:
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
        name_faults(subject, *(e for e in (queries, found) if e is not None))
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
