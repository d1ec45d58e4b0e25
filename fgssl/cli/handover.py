"""fgssl push and fgssl export: an encoder handed on."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from fgssl.cli import completion, options
from fgssl.cli.console import print_json, reporting, say
from fgssl.runtime.files import check_output

_RUN = "Folder of a finished run."
_NAME = "Where to: owner and name on the Hugging Face hub."
_LICENCE = "Licence of the weights by the hub's name, such as apache-2.0. [none is stated]"
_PICTURE = "PNG or JPEG for the card. [the learning curve, which shows no photograph]"


def push(
    run: Annotated[Path, Argument(metavar="RUN", help=_RUN, autocompletion=completion.checkpoint)],
    name: Annotated[str, Argument(metavar="OWNER/NAME", help=_NAME)],
    private: Annotated[bool, Option("--private", help="Make a new repository that only its owner sees.")] = False,
    licence: Annotated[str | None, Option(metavar="NAME", help=_LICENCE)] = None,
    picture: Annotated[Path | None, Option(metavar="FILE", help=_PICTURE)] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Show card and files; send nothing.")] = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Publish an encoder on the Hugging Face hub with a model card. timm opens it by name, anybody by a script."""
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise BadParameter(f"'{licence}': small letters, digits, dots and dashes", param_hint="--licence")
    from fgssl.handover.upload import check_name, upload

    check_name(name)
    from fgssl.handover.bundle import gather

    with tempfile.TemporaryDirectory(prefix="fgssl-push-") as made, reporting(quiet=quiet):
        folder = Path(made)
        card = gather(run, folder, name, licence=licence, picture=picture)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        address = None if dry_run else upload(folder, name, private=private)
    if json_output:
        print_json({"name": name, "private": private, "address": address, "files": files, "card": card})
        return
    if dry_run:
        for line in card.splitlines():
            say(line)
        say("")
    for file, size in files.items():
        say(f"{'would push' if dry_run else 'pushed'} {file} ({size:,} bytes)")
    if address:
        say(f"model: {address}")


_FORMAT = "onnx: for onnxruntime and others (pip install 'fgssl[export]'); torch-export: for torch.export.load."
_OUT = "File to write: .onnx, or .pt2 of torch-export."
_POOL = "What the embedding is: gap, rationale, concat, zoom (both looks). [zoom with a rationale, else gap]"


def export(
    checkpoint: options.Checkpoint,
    output: Annotated[Path, Option("--output", "-o", metavar="FILE", help=_OUT)],
    format: Annotated[str, Option(metavar="onnx|torch-export", help=_FORMAT)] = "onnx",
    pool: Annotated[str | None, Option(metavar="gap|rationale|concat|zoom", help=_POOL)] = None,
    overwrite: options.Overwrite = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write an encoder as a graph for other runtimes. Images to embedding and map, any batch size, checked."""
    if format not in ("onnx", "torch-export"):
        raise BadParameter(f"'{format}': choose onnx or torch-export", param_hint="--format")
    if pool not in (None, "gap", "rationale", "concat", "zoom"):
        raise BadParameter(f"'{pool}': choose gap, rationale, concat or zoom", param_hint="--pool")
    options.check_paths(checkpoint)
    from fgssl.handover import graph
    from fgssl.runs.encoder_file import load_encoder

    kind: Any = format
    check_output(output, kind=graph.output_kind(kind), inputs=(checkpoint,), overwrite=overwrite)
    with reporting(quiet=quiet):
        encoder = load_encoder(checkpoint)
        chosen: Any = pool or encoder.default_pool()
        found = graph.export(encoder, chosen, kind, output)
    if json_output:
        print_json({"checkpoint": checkpoint, "format": format, "pool": chosen, "output": str(output), **found})
        return
    say(f"{format}: {output}, --pool {chosen}, at most {found['difference']:.1g} from PyTorch")
    for name, shape in (("images (levels 0 to 255, uint8)", found["input"]), *found["outputs"].items()):
        say(f"  {name}: {' x '.join(map(str, shape))}")
