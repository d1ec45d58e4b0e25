"""fgssl data: what a data set holds, before anything is trained on it, and what lies in the cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from fgssl.cli import options
from fgssl.cli.console import print_json, print_table, reporting, say
from fgssl.errors import FgsslError, SettingError
from fgssl.runtime.files import refuse_file

if TYPE_CHECKING:
    from fgssl.check import Report

USUAL_SIZE = 224  # what most models train at, where neither the user nor the source says
SHOWN = 10  # rows of a listing; --json has all
_SETS = "A data setting, e.g. data.label_column=species. Repeatable."


def check(
    source: Annotated[str, Argument(metavar="SOURCE", help="As --data of pretrain.", show_default=False)],
    split: Annotated[list[str] | None, Option(help="Look at this split only. Repeatable. [all the source has]")] = None,
    image_size: Annotated[int | None, Option(help="Counts pictures smaller than these views. [224; demo: 96]")] = None,
    workers: Annotated[int | None, Option(help="Processes that decode. [all cores]")] = None,
    sets: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help=_SETS)] = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Report what a data set holds. Counts, sizes, unreadable pictures, duplicates, leakage between splits."""
    options.check_paths(data=source)
    from fgssl.check import check_source
    from fgssl.config.resolve import load_config

    config = load_config(flags={"data.source": source, "backbone.image_size": image_size}, sets=sets or ()).config
    size = config.backbone.image_size or USUAL_SIZE
    with reporting(quiet=quiet) as told:
        report = check_source(config.data, splits=split or (), image_size=size, workers=workers, progress=told.progress)
    print_json(report.to_dict()) if json_output else _print_report(report)
    if report.verdict == "unusable":
        raise FgsslError(f"{source} cannot be used: {report.findings[0].text}")


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
    kind: Annotated[str | None, Option(help="Only this kind: decoded, features or maps.", metavar="KIND")] = None,
    unused_days: Annotated[float, Option(help="Only files unused for so many days.", min=0)] = 0.0,
    folder: Annotated[str | None, Option("--cache", help="Another folder. [FGSSL_CACHE or ~/.cache/fgssl]")] = None,
    json_output: options.Json = False,
) -> None:
    """List or clear the cache. It holds decoded pictures and features; what is needed is made anew."""
    from fgssl.data.cache.folder import KINDS, cache_files, cache_folder, clear_cache

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
