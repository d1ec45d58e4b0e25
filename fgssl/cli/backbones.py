"""fgssl backbones: timm's models, searched and measured."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from typer import Argument, Option

from fgssl.cli import options
from fgssl.cli.console import print_json, print_table, reporting, tell
from fgssl.errors import FgsslError

MEASURED_AT_MOST = 24  # models, unless asked: each takes a second or so
_MEASURE = f"Parameters, map and memory, about a second a model. [up to {MEASURED_AT_MOST} models]"
TAGS_SHOWN = 3  # on a terminal, or in a list of many; --json has all


def backbones(
    pattern: Annotated[str, Argument(help="Part of a name or weights tag, or wildcards: dinov2, 'vit*.dino*'")] = "*",
    image_size: Annotated[int | None, Option(help="Measure at this size in pixels. [the model's own]", min=1)] = None,
    batch_size: Annotated[int, Option(help="Images per step of the memory estimate.", min=2)] = 32,
    measure: Annotated[bool | None, Option("--measure/--no-measure", help=_MEASURE, show_default=False)] = None,
    device: options.Device = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Search timm's backbones: parameters, image size, map, weights, and what can be trained on this machine."""
    from fgssl.backbones import list_backbones, suggest_backbones
    from fgssl.runtime.machine import free_memory, resolve_device

    found = list_backbones(pattern)
    if not found:
        near = ", ".join(suggest_backbones(pattern.replace("*", "").partition(".")[0]))
        remedy = f"did you mean {near}?" if near else "fgssl backbones without a pattern lists all"
        raise FgsslError(f"no backbone matches '{pattern}'", remedy)
    memory = free_memory(resolve_device(device))
    measured = len(found) <= MEASURED_AT_MOST if measure is None else measure
    rows: list[dict[str, Any]] = []
    with reporting(quiet=quiet) as reporter:
        if measure is None and not measured:
            reporter.note(f"{len(found)} models: narrow the pattern or add --measure for maps and memory")
        for done, row in enumerate(found, start=1):
            known = {"name": row.name, "tags": list(row.tags), "own_size": row.image_size}
            if measured:
                known |= _measurements(row.name, image_size, batch_size, memory)
                reporter.progress("measuring", done, len(found))
            rows.append(known)
    if json_output:
        print_json({"batch_size": batch_size, "free_memory_bytes": memory, "backbones": rows})
    elif measured:
        _print_measured(rows, batch_size, memory, quiet=quiet)
    else:
        table = [(row["name"], row["own_size"], _tags(row["tags"], TAGS_SHOWN)) for row in rows]
        print_table(("backbone", "own px", "weights"), table, text=(0, -1))


def _measurements(name: str, image_size: int | None, batch_size: int, memory: int) -> dict[str, Any]:
    """What a trial run tells of one model, or why there is none; JSON-able."""
    from fgssl.backbones import batch_that_fits, survey_backbone, training_bytes

    try:
        plan = survey_backbone(name, image_size=image_size)
    except FgsslError as error:
        keys = ("parameters", "image_size", "map", "training_bytes", "largest_batch", "class_token")
        return {**dict.fromkeys(keys), "problem": f"{error.problem}; {error.remedy}"}
    return {
        "parameters": plan.parameters, "image_size": plan.image_size, "map": [plan.channels, *plan.map_size],
        "training_bytes": training_bytes(plan, batch_size), "largest_batch": batch_that_fits(plan, memory),
        "class_token": plan.route.has_class_token, "problem": None,
    }  # fmt: skip


def _print_measured(rows: list[dict[str, Any]], batch_size: int, memory: int, *, quiet: bool) -> None:
    columns = ("backbone", "map", "own px", "px", "M params", f"GB at {batch_size}", "largest batch", "weights")
    table: list[tuple[Any, ...]] = []
    for row in rows:
        sizes: tuple[Any, ...] = (None,) * 4
        if row["problem"] is None:
            scaled = (row["parameters"] / 1e6, row["training_bytes"] / 1e9)
            sizes = (row["image_size"], *scaled, row["largest_batch"] or "none")
        shape = "x".join(map(str, row["map"] or "-"))
        table.append((row["name"], shape, row["own_size"], *sizes, _tags(row["tags"])))
    print_table(columns, table, text=(0, 1, -1))
    for problem in filter(None, (row["problem"] for row in rows)):
        tell(problem)
    if not quiet:
        fitting = sum((row["largest_batch"] or 0) >= batch_size for row in rows)
        share = f"{fitting} of {len(rows)} can be trained at batch {batch_size}"
        tell(f"{share} in the {memory / 1e9:.1f} GB free here (an estimate, in float32)")


def _tags(tags: list[str], most: int | None = None) -> str:
    shown = tags[: TAGS_SHOWN if sys.stdout.isatty() else most]
    more = f" +{len(tags) - len(shown)}" if len(shown) < len(tags) else ""
    return f"{' '.join(shown)}{more}" if tags else "-"
