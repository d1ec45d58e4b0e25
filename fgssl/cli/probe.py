"""fgssl probe"""

from __future__ import annotations

from typing import Annotated

import typer

from fgssl.cli.console import out, print_json, print_table
from fgssl.cli.subject import Batch, Checkpoint, Data, Device, Json, PoolOption, Split, name_faults, opened


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

    with opened(checkpoint, data=data, pool=pool, batch_size=batch_size, device=device) as subject:
        splits = probe_splits(subject.data, split, seed=seed)
        train, test = subject.embed(splits.train), subject.embed(splits.test)
        name_faults(subject, train, test)
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
