"""The options that verbs share, and the slips in them that are answered at once, before the heavy imports."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Exit, Option
from typer.core import TyperCommand

from fgssl.cli import completion
from fgssl.cli.console import print_error, reporting
from fgssl.data.sources.open import require_source
from fgssl.errors import SettingError
from fgssl.runs.folder import encoder_path
from fgssl.runtime.files import check_folder, refuse_file
from fgssl.runtime.processes import launch

if TYPE_CHECKING:
    from fgssl.evaluation.subject import EvaluationOptions

POOL_NAMES = (
    "gap", "rationale", "concat", "zoom", "cls", "parts", "zoom:again", "zoom:middle", "zoom:random", "zoom:mask",
)  # fmt: skip
Verb = Callable[..., None]
Text = str | None


def check_pools(text: str | None, *, most: int | None = None) -> str | None:
    """Names of poolings, joined by commas where a verb takes several; the first unknown one is a usage error."""
    names = () if text is None else text.split(",")
    if most is not None and len(names) > most:
        raise BadParameter(f"'{text}': one pooling; fgssl compare takes several", param_hint="--pool")
    for name in names:
        if name not in POOL_NAMES:
            raise BadParameter(f"'{name}': choose from {', '.join(POOL_NAMES)}", param_hint="--pool")
    return text


def at_least(least: int, flag: str) -> Callable[[Any], Any]:
    """A callback that refuses smaller numbers, before the heavy imports. Raises SettingError."""

    def checked(value: Any) -> Any:
        if value is not None and value < least:
            raise SettingError(f"{flag} is {value}", f"it must be at least {least}")
        return value

    return checked


def check_device(name: str | None) -> str | None:
    """Refuses what is no device's name on any machine; whether it is on this one is for torch. Raises SettingError."""
    if name is not None and not re.fullmatch(r"auto|cpu|mps(:0)?|cuda(:\d+)?", name):
        raise SettingError(f"unknown device '{name}'", "use cpu, cuda, cuda:1 or mps")
    return name


def check_shift(name: str | None) -> str | None:
    """Refuses what is no shift. Raises SettingError."""
    if name not in (None, "none", "object", "crop"):
        raise SettingError(f"unknown --shift '{name}'", "choose one of none, object, crop")
    return name


_CHECKPOINT = """Run folder, encoder .safetensors, timm:NAME, hf-hub:NAME, timm's folder, or a state dict (.safetensors,
.pth)."""
Checkpoint = Annotated[str, Argument(metavar="CHECKPOINT", help=_CHECKPOINT, autocompletion=completion.checkpoint)]
Data = Annotated[
    Text, Option(help="Data source. [the one the encoder was trained on]", autocompletion=completion.source)
]
Split = Annotated[Text, Option(help="Split to take. [the source's test split]")]
Batch = Annotated[int | None, Option(help="Images per forward. [64]", callback=at_least(1, "--batch-size"))]
_DEVICES = completion.SETTINGS["training.device"]
_DEVICE = "cpu, cuda, cuda:1, mps. [best at hand]"
Device = Annotated[Text, Option(help=_DEVICE, autocompletion=_DEVICES, callback=check_device)]
Cache = Annotated[Text, Option(metavar="auto|off|PATH", help="Decoded pictures and galleries.")]
_POOLS = """Features: gap (mean of the map), rationale (weighted by it), concat (both), zoom (gap, rationale and a
closer look), cls (class token), parts (several looks), zoom:again (a look that finds its place); its
controls zoom:middle, zoom:random, zoom:mask (at the object's mask). [zoom with a rationale, else gap]"""
Pool = Annotated[
    Text, Option(metavar="gap|zoom|...", callback=lambda text: check_pools(text, most=1), help=_POOLS,
                 autocompletion=completion.among(POOL_NAMES))
]  # fmt: skip
_SEVERAL = "[gap, rationale, zoom and cls where it has them]"
Pools = Annotated[Text, Option(metavar="gap,rationale,...", callback=lambda x: check_pools(x), help=_SEVERAL,
                               autocompletion=completion.several(POOL_NAMES))]  # fmt: skip
Masks = Annotated[Text, Option(metavar="FOLDER", help="Masks of the objects, named as the pictures.")]
_SHIFT = "Lay each object (by its mask), or each whole picture (crop), off the centre of another, blurred one."
Shift = Annotated[Text, Option(metavar="none|object|crop", help=_SHIFT, callback=check_shift)]
_ARCHITECTURE = "Architecture of a CHECKPOINT that does not tell it, such as a plain .pth."
Backbone = Annotated[Text, Option(help=_ARCHITECTURE, autocompletion=completion.backbone)]
_SIZE = "Side in pixels for such weights, timm:NAME and hf-hub:NAME. [as they were trained]"
ImageSize = Annotated[int | None, Option(help=_SIZE, callback=at_least(8, "--image-size"))]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace an output that fgssl did not write; never an input.")]
Json = Annotated[bool, Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, Option("--quiet", help="No progress, only warnings and results.")]

Processes = Annotated[int | None, Option(help="Processes, one a GPU, that share the embedding. [1]", min=1)]
AGAIN = "start the same command again: of a large set what was embedded is kept"

_PLUGIN = "Run this Python file, which adds an objective, a data set or a metric. Repeatable."
Plugins = Annotated[list[Path] | None, Option("--plugin", metavar="FILE.py", help=_PLUGIN)]

# how pictures become features: what `takes` gives the verbs that embed
ENCODING: dict[str, Any] = {"backbone": Backbone, "image_size": ImageSize, "pool": Pool, "batch_size": Batch,
                            "device": Device, "cache": Cache, "masks": Masks, "shift": Shift}  # fmt: skip


def takes(options: Mapping[str, Any], *, before: str = "json_output") -> Callable[[Verb], Verb]:
    """A verb's `**keywords` as options of their own (name -> annotated type), None unless given, `before` another."""

    def expand(verb: Verb) -> Verb:
        own = signature(verb, eval_str=True)
        named = [p.replace(kind=p.KEYWORD_ONLY) for p in own.parameters.values() if p.kind != p.VAR_KEYWORD]
        place = [parameter.name for parameter in named].index(before)
        more = (Parameter(key, Parameter.KEYWORD_ONLY, default=None, annotation=kind) for key, kind in options.items())
        parameters = [*named[:place], *more, *named[place:]]
        verb.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return verb

    return expand


def given_flags(given: Mapping[str, Any]) -> list[str]:
    """The flags that were given, as they are typed."""
    return [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]


def number_list(text: str, option: str, *, whole: bool) -> tuple[float, ...]:
    """Numbers with commas between, each once: whole ones from 1, or shares up to 1. Raises BadParameter."""
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    right = all(value >= 1 and value.is_integer() if whole else 0 < value <= 1 for value in values)
    if not values or not right or len(set(values)) != len(values):
        rule = "whole numbers from 1" if whole else "shares above 0 and at most 1 (0.2 for 20 %)"
        raise BadParameter(f"'{text}' is not {rule}, each once, with commas between", param_hint=option)
    return values


def repeat_flag(words: list[str], flag: str) -> list[str]:
    """`--query a b --top 3` as `--query a --query b --top 3`."""
    found: list[str] = []
    values = None  # how many the flag has had so far; None after another option
    for place, word in enumerate(words):
        if word == "--":
            return found + words[place:]
        if word.startswith("-") and word != "-":
            values = 0 if word == flag else None
        elif values is not None:
            found += [flag] if values else []
            values += 1
        found.append(word)
    return found


class QueryCommand(TyperCommand):
    """A command whose `--query` takes every word up to the next option; click's options take a fixed number."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, repeat_flag(args, "--query"))


class DataCommand(TyperCommand):
    """Likewise with `--data`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, repeat_flag(args, "--data"))


def check_paths(checkpoint: Text = None, data: Text = None, cache: Text = None, *, make: bool = True) -> None:
    """Refuses what is not there: a checkpoint (or files of features joined by "+"), or a data source of no known kind.

    Makes the cache folder, or only looks whether it could be made and written. Raises FgsslError.
    """
    if checkpoint is not None and not all(Path(part).is_file() for part in checkpoint.split("+")):
        encoder_path(checkpoint)
    if data is not None:
        require_source(data)
    if cache is not None and not cache.strip():
        raise SettingError("--cache names no folder", "use auto, off or a path")
    if cache not in (None, "auto", "off"):
        folder = Path(cache).expanduser()
        if not make:
            refuse_file(folder, option="--cache")
            folder = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        check_folder(folder, option="--cache")


def share_out(processes: int | None, *, remedy: str) -> None:
    """Run this very command in so many processes and end this one as they end, unless it is one of them.

    What to do where one of them dies without a word is the `remedy`.
    """
    if processes is None or processes < 2 or "RANK" in os.environ:
        return
    end = launch([sys.executable, "-m", "fgssl", *sys.argv[1:]], processes)
    if end.problem:
        print_error(end.problem, remedy)
    raise Exit(end.code)


@contextmanager
def reported(*, quiet: bool, **given: Any) -> Iterator[EvaluationOptions]:
    """The options that the user has given, with progress on the terminal until the block ends."""
    from fgssl.evaluation.subject import EvaluationOptions

    with reporting(quiet=quiet, warn=False) as reporter:
        yield EvaluationOptions(reporter=reporter, **{key: value for key, value in given.items() if value is not None})
