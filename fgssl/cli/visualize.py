"""fgssl visualize"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from fgssl.cli import options
from fgssl.cli.console import print_json, reporting, say
from fgssl.cli.pretrain import RUNS

_OUTPUT = "PNG to write. [IMAGE-rationale.png in the current folder]"


def visualize(
    images: Annotated[list[Path], Argument(metavar="IMAGE", help="Pictures to explain.", show_default=False)],
    checkpoint: Annotated[str | None, Option(help="Run folder or encoder file. [the newest run in runs/]")] = None,
    output: Annotated[Path | None, Option("--output", "-o", help=_OUTPUT)] = None,
    overwrite: options.Overwrite = False,
    backbone: options.Backbone = None,
    image_size: options.ImageSize = None,
    device: options.Device = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw what the encoder looks at. Image, GradCAM of the self-supervised loss and fitted rationale side by side."""
    from fgssl.data.decoding import require_files
    from fgssl.runs.folder import newest_run
    from fgssl.runtime.files import check_output, derived_name

    require_files(images)
    source = checkpoint or str(newest_run(RUNS))
    options.check_paths(source)
    target = output or Path(derived_name(images[0].stem, "-rationale.png"))

    from fgssl.drawing import PICTURE, save_png
    from fgssl.evaluation.explain import visualize as draw
    from fgssl.runs.encoder_file import load_encoder
    from fgssl.runtime.machine import resolve_device

    check_output(target, kind=PICTURE, inputs=(*images, source), overwrite=overwrite)
    with reporting(quiet=quiet, warn=False) as reporter:
        if checkpoint is None:
            reporter.note(f"checkpoint: {source} (newest in {RUNS}/)")
        encoder = load_encoder(source, backbone=backbone, image_size=image_size).to(resolve_device(device))
    sheet = draw(encoder, images, title=f"{encoder.backbone.name}, {source}")
    save_png(sheet, target)
    document = {"output": str(target), "checkpoint": source, "images": [str(path) for path in images],
                "map_size": list(encoder.backbone.map_size)}  # fmt: skip
    print_json(document) if json_output else say(str(target))
