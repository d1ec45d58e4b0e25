"""fgssl embed"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgssl.cli.console import out, print_json
from fgssl.cli.subject import Batch, Checkpoint, Data, Device, Json, PoolOption, Split, name_faults, opened


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
    from fgssl.checkpoint import identity
    from fgssl.evaluation import open_split
    from fgssl.featurefile import check_output, save_features

    check_output(output)
    with opened(checkpoint, data=data, pool=pool, batch_size=batch_size, device=device) as subject:
        images = open_split(subject.data, split, "test")
        found = subject.embed(images)
        name_faults(subject, found)
        save_features(
            output, found, source=images.source, split=images.split, pool=subject.pool,
            checkpoint=checkpoint, encoder=identity(subject.encoder),
        )  # fmt: skip
    count, width = found.features.shape
    if json_output:
        print_json({"output": str(output), "images": count, "width": width, "pool": subject.pool,
                    "labels": found.labels is not None, "unreadable": len(found.faults)})  # fmt: skip
    else:
        out.print(f"{output}: {count} x {width} features ({subject.pool})", markup=False, soft_wrap=True)
