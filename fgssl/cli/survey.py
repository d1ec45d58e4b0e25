"""fgssl data check, fgssl data cache, fgssl backbones: what there is, looked at before anything is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from fgssl.check import Report, check_source
from fgssl.cli import completion, options
from fgssl.cli.console import print_json, print_table, reporting, say, tell
from fgssl.cli.pages import ReportFile, check_page, write_page
from fgssl.config.resolve import load_config
from fgssl.data.cache.folder import KINDS, cache_files, cache_folder, clear_cache
from fgssl.errors import FgsslError, SettingError
from fgssl.runtime.files import refuse_file

USUAL_SIZE = 224  # what most models train at, where neither the user nor the source says
SHOWN = 10  # rows of a listing; --json has all
_SETS = "A data setting, e.g. data.label_column=species. Repeatable."
MEASURED_AT_MOST = 24  # models, unless asked: each takes a second or so
_PATTERN = "Part of a name or weights tag, or wildcards: dinov2, 'vit*.dino*'"
_MEASURE = f"Parameters, map and memory, about a second a model. [up to {MEASURED_AT_MOST} models]"
TAGS_SHOWN = 3  # on a terminal, or in a list of many; --json has all


def check(
    source: Annotated[
        str,
        Argument(metavar="SOURCE", help="As --data of pretrain.", show_default=False, autocompletion=completion.source),
    ],
    split: Annotated[list[str] | None, Option(help="Look at this split only. Repeatable. [all the source has]")] = None,
    image_size: Annotated[int | None, Option(help="Counts pictures smaller than these views. [224; demo: 96]")] = None,
    workers: Annotated[int | None, Option(help="Processes that decode. [all cores]")] = None,
    sets: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help=_SETS)] = None,
    page: ReportFile = None,
    overwrite: options.Overwrite = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Report what a data set holds. Counts, sizes, unreadable pictures, duplicates, leakage between splits."""
    options.check_paths(data=source)
    check_page(page, inputs=(source,), overwrite=overwrite)
    config = load_config(flags={"data.source": source, "backbone.image_size": image_size}, sets=sets or ()).config
    size = config.backbone.image_size or USUAL_SIZE
    with reporting(quiet=quiet) as told:
        report = check_source(config.data, splits=split or (), image_size=size, workers=workers, progress=told.progress)
    print_json(report.to_dict()) if json_output else _print_report(report)
    write_page(page, lambda: _page(report), told=not json_output, quiet=quiet)
    if report.verdict == "unusable":
        raise FgsslError(f"{source} cannot be used: {report.findings[0].text}")


def _page(report: Report) -> str:
    from fgssl.report.check import check_page as made

    return made(report)


def _print_report(report: Report) -> None:
    columns = ("split", "pictures", "unreadable", "classes", "width", "height", "aspect", "modes", "formats")
    rows = [
        (
            split.name, split.images, split.unreadable, split.classes,
            *(" ".join(f"{value:g}" for value in spread.values()) for spread in (split.width, split.height)),
            " ".join(f"{value:.2f}" for value in split.aspect.values()),
            *(" ".join(f"{key}:{n}" for key, n in counts.items()) or "-" for counts in (split.modes, split.formats)),
        )
        for split in report.splits
    ]  # fmt: skip
    print_table(columns, rows, title=f"{report.source} (sizes: least, median, largest)")
    # every class where they are few, else the smallest and the largest
    names = sorted(report.classes, key=lambda name: sum(report.classes[name].values()), reverse=True)
    classes: list[tuple[Any, ...]] = [(name, *report.classes[name].values()) for name in names]
    half = SHOWN // 2
    if len(names) > 3 * half:
        classes[half:-half] = [(f"... {len(names) - 2 * half} between", *("" for _ in report.splits))]
    if names:
        print_table(("class", *(each.name for each in report.splits)), classes, title=f"{len(names)} classes, by size")
    for title, lines in _listings(report).items():
        if lines:
            say(f"{title} ({len(lines)}):")
        for line in lines[:SHOWN]:
            say(f"  {line}")
        if len(lines) > SHOWN:
            say(f"  ... and {len(lines) - SHOWN} more, in --json")
    say("")
    for finding in report.findings:
        say(f"{finding.level}: {finding.text}")
    say(f"verdict: {report.verdict}")


def _listings(report: Report) -> dict[str, list[str]]:
    """Title -> lines; pictures without the part of their paths that the user gave."""

    def short(path: str) -> str:
        return path.removeprefix(f"{report.source.rstrip('/')}/")

    def same(group: list[str], sign: str) -> str:
        more = f" ... ({len(group)} in all)" if len(group) > 4 else ""
        return f" {sign} ".join(map(short, group[:4])) + more

    conflicts = ([f"{short(x['image'])} ({x['class']})" for x in group] for group in report.label_conflicts)
    near = sorted(report.near_duplicates, key=len, reverse=True)
    return {
        "unreadable": [f"{row['image']}: {row['reason']}" for row in report.unreadable],
        "passed over": report.passed_over,
        "in two splits": [same([x["image"], x["original"]], "=~"[x["kind"] == "near"]) for x in report.leaks],
        "under two classes": [" = ".join(group) for group in conflicts],
        "exact copies": [same(group, "=") for group in report.exact_duplicates],
        "near copies": [same(group, "~") for group in near],
    }


def cache(
    clear: Annotated[bool, Option("--clear", help="Delete the files instead of listing them.")] = False,
    kind: Annotated[str | None, Option(help="Only decoded, features, maps or targets.", metavar="KIND")] = None,
    unused_days: Annotated[float, Option(help="Only files unused for so many days.", min=0)] = 0.0,
    folder: Annotated[str | None, Option("--cache", help="Another folder. [FGSSL_CACHE or ~/.cache/fgssl]")] = None,
    json_output: options.Json = False,
) -> None:
    """List or clear the cache. It holds decoded pictures and features; what is needed is made anew."""
    if kind is not None and kind not in KINDS:
        raise SettingError(f"unknown --kind '{kind}'", f"choose one of {', '.join(KINDS)}")
    where = cache_folder() if folder is None else Path(folder).expanduser()
    refuse_file(where, option="--cache")
    files = [f for f in cache_files(where) if kind in (None, f.kind) and f.age_days >= unused_days]
    if clear:
        files = clear_cache(files)
    total = sum(file.size for file in files)
    if json_output:
        rows = [{**file._asdict(), "path": str(file.path)} for file in files]
        print_json({"folder": str(where), "cleared": clear, "bytes": total, "files": rows})
        return
    if files:
        cells = [(KINDS[f.kind][0], str(f.path.relative_to(where)), f.size / 1e6, f.age_days) for f in files]
        print_table(("kind", "file", "MB", "unused days"), cells, text=(0, 1))
    say(f"{'freed' if clear else 'in'} {where}: {len(files)} files, {total / 1e6:.1f} MB")


def backbones(
    pattern: Annotated[str, Argument(help=_PATTERN, autocompletion=completion.backbone)] = "*",
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
