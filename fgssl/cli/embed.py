"""fgssl embed, fgssl visualize: what one encoder makes of pictures, in numbers and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from fgssl.cli import options
from fgssl.cli.console import print_json, print_table, reporting, say
from fgssl.cli.pretrain import RUNS
from fgssl.data.decoding import require_files
from fgssl.drawing import PICTURE, save_png
from fgssl.runs.folder import newest_run
from fgssl.runtime.files import check_output, derived_name

_OUTPUT = "File to write: features, labels, paths. [features.safetensors; with --stats none]"
_STATS = """Print signals that need no labels: effective rank, uniformity, alignment, whether two views have the same
neighbours. Of a features.safetensors in place of CHECKPOINT: the first two."""
_PICTURE = "PNG to write. [IMAGE-rationale.png in the current folder]"


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
    from fgssl.evaluation.feature_file import FEATURES, is_feature_file, read_features, save_features
    from fgssl.evaluation.metrics import feature_stats, view_stats
    from fgssl.evaluation.subject import open_split, open_subject
    from fgssl.runs.encoder_file import identity

    if stats and is_feature_file(checkpoint):
        signals = feature_stats(read_features(checkpoint).embeddings.features)
        with reporting(quiet=quiet) as reporter:
            reporter.note("alignment and neighbours under two views need the encoder and the pictures")
        document = {"features": checkpoint, "stats": signals}
        print_json(document) if json_output else _print_stats(signals, checkpoint)
        return
    target = output or (None if stats else Path("features.safetensors"))
    if target is not None:
        check_output(target, kind=FEATURES, inputs=(*checkpoint.split("+"), data), overwrite=overwrite)
    with options.reported(quiet=quiet, data=data, **encoding) as given:
        subject = open_subject(checkpoint, given)
        images = open_split(subject.data, split, "test")
        found = subject.embed(images)
        told: dict[str, Any] = {}
        if stats:
            views = view_stats(subject.encoder, images, pool=subject.pool, batch_size=subject.batch_size)
            told["stats"] = {**feature_stats(found.features), **views}
        if target is not None:
            save_features(
                target, found, source=images.source, split=images.split, pool=subject.pool,
                checkpoint=checkpoint, encoder=identity(subject.encoder),
            )  # fmt: skip
    count, width = found.features.shape
    if json_output:
        print_json({"output": target and str(target), "images": count, "width": width, "pool": subject.pool,
                    "labels": found.labels is not None, "unreadable": len(found.faults), **told})  # fmt: skip
        return
    if stats:
        _print_stats(told["stats"], f"{images.source} [{images.split}] by {checkpoint} ({subject.pool})")
    if target is not None:
        say(f"{target}: {count} x {width} features ({subject.pool})")


def _print_stats(signals: dict[str, Any], title: str) -> None:
    from fgssl.evaluation.metrics import MEANINGS

    of = {name: signals["images"] for name in ("effective_rank", "uniformity")}
    rows = [
        [name, meaning, f"{signals[name]:.3f}", of.get(name, signals.get("view_images"))]
        for name, meaning in MEANINGS.items()
        if name in signals
    ]
    print_table(("signal", "meaning", "value", "images"), rows, title=title, text=(0, 1))


def visualize(
    images: Annotated[list[Path], Argument(metavar="IMAGE", help="Pictures to explain.", show_default=False)],
    checkpoint: Annotated[str | None, Option(help="Run folder or encoder file. [the newest run in runs/]")] = None,
    output: Annotated[Path | None, Option("--output", "-o", help=_PICTURE)] = None,
    overwrite: options.Overwrite = False,
    backbone: options.Backbone = None,
    image_size: options.ImageSize = None,
    device: options.Device = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw what the encoder looks at. Image, GradCAM of the self-supervised loss and fitted rationale side by side."""
    require_files(images)
    source = checkpoint or str(newest_run(RUNS))
    options.check_paths(source)
    target = output or Path(derived_name(images[0].stem, "-rationale.png"))
    from fgssl.evaluation.explain import visualize as draw
    from fgssl.runs.encoder_file import load_encoder
    from fgssl.runtime.machine import resolve_device

    check_output(target, kind=PICTURE, inputs=(*images, source), overwrite=overwrite)
    with reporting(quiet=quiet, warn=False) as reporter:
        if checkpoint is None:
            reporter.note(f"checkpoint: {source} (newest in {RUNS}/)")
        encoder = load_encoder(source, backbone=backbone, image_size=image_size).to(resolve_device(device))
    save_png(draw(encoder, images, title=f"{encoder.backbone.name}, {source}"), target)
    document = {"output": str(target), "checkpoint": source, "images": [str(path) for path in images],
                "map_size": list(encoder.backbone.map_size)}  # fmt: skip
    print_json(document) if json_output else say(str(target))
