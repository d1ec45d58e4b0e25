"""fgssl visualize: where an encoder looks, drawn over pictures, or scored over a set of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option

from fgssl.cli import completion, options
from fgssl.cli.console import print_json, print_table, reporting, say
from fgssl.cli.options import Text
from fgssl.cli.pretrain import RUNS
from fgssl.data.decoding import require_files
from fgssl.drawing import PICTURE, save_png
from fgssl.runs.folder import newest_run
from fgssl.runtime.files import check_output, derived_name

if TYPE_CHECKING:
    from fgssl.evaluation.judge_maps import MapTable

_NEWEST = "Run folder or encoder file. [the newest run in runs/]"
_PICTURE = "PNG to write. [IMAGE-rationale.png in the current folder]"
_LOOK = "What is outlined: the windows of this pooling. [the encoder's own]"
_SCORE = """Score the maps of this run or encoder on a data set instead of drawing: deletion, insertion, steadiness,
shuffled weights; masks, where there are some."""
_COUNT = "With --score: pictures, spread evenly over the split. [64]"
COUNT = 64


def visualize(
    images: Annotated[
        list[Path] | None, Argument(metavar="IMAGE", help="Pictures to explain.", show_default=False)
    ] = None,
    checkpoint: Annotated[str | None, Option(help=_NEWEST, autocompletion=completion.checkpoint)] = None,
    output: Annotated[Path | None, Option("--output", "-o", help=_PICTURE)] = None,
    overwrite: options.Overwrite = False,
    pool: Annotated[
        Text, Option(metavar="zoom|parts|...", callback=lambda text: options.check_pools(text, most=1), help=_LOOK)
    ] = None,
    score: Annotated[Text, Option("--score", metavar="CHECKPOINT", help=_SCORE)] = None,
    data: options.Data = None,
    split: options.Split = None,
    count: Annotated[int | None, Option(help=_COUNT, callback=options.at_least(1, "--count"))] = None,
    masks: options.Masks = None,
    shift: options.Shift = None,
    backbone: options.Backbone = None,
    image_size: options.ImageSize = None,
    device: options.Device = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw what the encoder looks at. Image, GradCAM of the self-supervised loss and fitted rationale side by side.

    The cells of the maps are drawn as they are, and what the encoder sees enlarged is outlined.
    """
    scoring = {"data": data, "split": split, "count": count, "masks": masks, "shift": shift}
    opening = {"backbone": backbone, "image_size": image_size, "device": device}
    if score is not None:
        drawing = {"checkpoint": checkpoint, "output": output, "overwrite": overwrite or None, "pool": pool}
        refused = [*(["IMAGE"] if images else []), *options.given_flags(drawing)]
        if refused:
            raise BadParameter(f"{' and '.join(refused)} goes with drawing, not with --score")
        _score(score, scoring, opening, json_output=json_output, quiet=quiet)
        return
    if refused := options.given_flags(scoring):
        raise BadParameter(f"{' and '.join(refused)} goes with --score")
    if not images:
        raise BadParameter("name pictures to draw the maps of, or --score CHECKPOINT", param_hint="IMAGE")
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
    look: Any = pool or encoder.default_pool()
    encoder.require(look)
    save_png(draw(encoder, images, title=f"{encoder.backbone.name}, {source}", pool=look), target)
    document = {"output": str(target), "checkpoint": source, "images": [str(path) for path in images],
                "map_size": list(encoder.backbone.map_size)}  # fmt: skip
    print_json(document) if json_output else say(str(target))


def _score(
    checkpoint: str, scoring: dict[str, Any], opening: dict[str, Any], *, json_output: bool, quiet: bool
) -> None:
    options.check_paths(checkpoint, scoring["data"])
    from fgssl.evaluation.judge_maps import MEANINGS, judge_maps
    from fgssl.evaluation.subject import open_subject

    count, split = scoring.pop("count"), scoring.pop("split")
    with options.reported(quiet=quiet, pool="gap", **scoring, **opening) as asked:
        subject = open_subject(checkpoint, asked)
        table = judge_maps(subject, split=split, count=COUNT if count is None else count)
    if json_output:
        print_json({"checkpoint": checkpoint, "data": table.data, "images": table.images, "masks": table.masks,
                    "map_size": list(subject.encoder.backbone.map_size), "rows": table.rows,
                    "definitions": MEANINGS})  # fmt: skip
        return
    _print_table(table, checkpoint)


def _print_table(table: MapTable, checkpoint: str) -> None:
    from fgssl.evaluation.judge_maps import MEANINGS

    columns = [name for name in MEANINGS if any(name in row for row in table.rows)]
    cells = [[row["map"], *(f"{row[name]:.2f}" if name in row else None for name in columns)] for row in table.rows]
    title = f"Maps of {checkpoint} on {table.images} pictures of {table.data}"
    print_table(("map", *(name.replace("_", " ") for name in columns)), cells, title=title)
    for name in columns:
        say(f"{name.replace('_', ' ')}: {MEANINGS[name]}")
    say(f"masks: of {table.masks} pictures" if table.masks else "no masks: name a folder of them by --masks")
