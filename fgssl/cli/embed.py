"""fgssl embed"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from fgssl.cli import options
from fgssl.cli.console import print_json, print_table, reporting, say

_OUTPUT = "File to write: features, labels, paths. [features.safetensors; with --stats none]"
_STATS = """Print signals that need no labels: effective rank, uniformity, alignment, whether two views have the same
neighbours. Of a features.safetensors in place of CHECKPOINT: the first two."""


@options.takes(options.ENCODING)
def embed(
    checkpoint: options.Checkpoint,
    data: options.Data = None,
    split: options.Split = None,
    output: Annotated[Path | None, Option("--output", "-o", help=_OUTPUT)] = None,
    overwrite: options.Overwrite = False,
    stats: Annotated[bool, Option("--stats", help=_STATS)] = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    **encoding: Any,
) -> None:
    """Write the features of a split or folder to one file. A safetensors file."""
    options.check_paths(checkpoint, data, encoding["cache"])
    from fgssl.evaluation.feature_file import FEATURES, is_feature_file, save_features
    from fgssl.evaluation.label_free import feature_stats, view_stats
    from fgssl.evaluation.subject import open_split, open_subject
    from fgssl.runs.encoder_file import identity
    from fgssl.runtime.files import check_output

    if stats and is_feature_file(checkpoint):
        _file_stats(checkpoint, json_output=json_output, quiet=quiet)
        return
    target = output or (None if stats else Path("features.safetensors"))
    if target is not None:
        check_output(target, kind=FEATURES, inputs=(*checkpoint.split("+"), data), overwrite=overwrite)
    with options.reported(quiet=quiet, data=data, **encoding) as given:
        subject = open_subject(checkpoint, given)
        images = open_split(subject.data, split, "test")
        found = subject.embed(images)
        subject.name_faults(found)
        signals = None
        if stats:
            views = view_stats(subject.encoder, images, pool=subject.pool, batch_size=subject.batch_size)
            signals = {**feature_stats(found.features), **views}
        if target is not None:
            save_features(
                target, found, source=images.source, split=images.split, pool=subject.pool,
                checkpoint=checkpoint, encoder=identity(subject.encoder),
            )  # fmt: skip
    count, width = found.features.shape
    if json_output:
        told = {} if signals is None else {"stats": signals}
        print_json({"output": target and str(target), "images": count, "width": width, "pool": subject.pool,
                    "labels": found.labels is not None, "unreadable": len(found.faults), **told})  # fmt: skip
        return
    if signals is not None:
        _print_stats(signals, f"{images.source} [{images.split}] by {checkpoint} ({subject.pool})")
    if target is not None:
        say(f"{target}: {count} x {width} features ({subject.pool})")


def _file_stats(path: str, *, json_output: bool, quiet: bool) -> None:
    from fgssl.evaluation.feature_file import read_features
    from fgssl.evaluation.label_free import feature_stats

    signals = feature_stats(read_features(path).embeddings.features)
    with reporting(quiet=quiet) as reporter:
        reporter.note("alignment and neighbours under two views need the encoder and the pictures")
    if json_output:
        print_json({"features": path, "stats": signals})
    else:
        _print_stats(signals, path)


def _print_stats(signals: dict[str, Any], title: str) -> None:
    from fgssl.evaluation.label_free import MEANINGS

    of = {name: signals["images"] for name in ("effective_rank", "uniformity")}
    rows = [
        [name, meaning, f"{signals[name]:.3f}", of.get(name, signals.get("view_images"))]
        for name, meaning in MEANINGS.items()
        if name in signals
    ]
    print_table(("signal", "meaning", "value", "images"), rows, title=title, text=(0, 1))
