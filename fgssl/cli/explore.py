"""fgssl explore: a folder of photographs looked over by their embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option

from fgssl.cli import options
from fgssl.cli.console import print_json, print_table, say
from fgssl.cli.options import Text
from fgssl.cli.pretrain import RUNS
from fgssl.drawing import PAGE
from fgssl.runs.folder import newest_run
from fgssl.runtime.files import check_output

if TYPE_CHECKING:
    from fgssl.explore.survey import Survey

_SOURCE = "Pictures, labelled or not: a folder, or as --data of pretrain."
_CHECKPOINT = "Run folder, encoder file or weights to see by. [the newest run in runs/]"
_EXPORT = "Table to write, .csv or .parquet: group, place on the map, distance, copies, selected."
_MONTAGES = "Folder for a picture of each group."
_SELECT = "How many of the most different pictures to choose (k-centre)."
_LIST = "Text file (.txt) for the chosen pictures, which --data reads."
_GROUP = "Fewest pictures of a group. [half the root of their number, 3 at least]"
SHOWN = 20  # groups on a terminal; --json and the page have all
TYPICAL = 5  # pictures of a group in --json


@options.takes({name: kind for name, kind in options.ENCODING.items() if name not in ("masks", "shift")})
def explore(
    source: Annotated[str, Argument(metavar="SOURCE", help=_SOURCE, show_default=False)],
    checkpoint: Annotated[Text, Option(help=_CHECKPOINT, show_default=False)] = None,
    split: Annotated[Text, Option(help="Split to look at. [all the source has]")] = None,
    output: Annotated[Path, Option("--output", "-o", help="Page to write (.html).")] = Path("explore.html"),
    export: Annotated[Path | None, Option("--export", metavar="FILE", help=_EXPORT)] = None,
    montages: Annotated[Path | None, Option("--montages", metavar="FOLDER", help=_MONTAGES)] = None,
    select: Annotated[int, Option(help=_SELECT)] = 100,
    select_list: Annotated[Path | None, Option("--select-list", metavar="FILE", help=_LIST)] = None,
    group_size: Annotated[int | None, Option("--group-size", help=_GROUP, show_default=False)] = None,
    seed: Annotated[int, Option(help="Seed of the map's layout.")] = 0,
    overwrite: options.Overwrite = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    **encoding: Any,
) -> None:
    """Look a folder of photographs over. A page with a map, groups, near copies, outliers and a varied selection."""
    if select < 1:
        raise BadParameter(f"{select}: choose 1 picture or more", param_hint="--select")
    if group_size is not None and group_size < 2:
        raise BadParameter(f"{group_size}: a group has 2 pictures or more", param_hint="--group-size")
    chosen = checkpoint or str(newest_run(RUNS))
    options.check_paths(chosen, source, encoding["cache"])
    check_output(output, kind=PAGE, inputs=(source, chosen), overwrite=overwrite)
    from fgssl.evaluation.retrieval.scored import gallery_images
    from fgssl.evaluation.subject import open_subject
    from fgssl.explore.montage import check_montages, save_montages
    from fgssl.explore.page import explore_page
    from fgssl.explore.survey import explore as run
    from fgssl.explore.table import LIST, TABLE, require_files_to_list, save_list, save_table
    from fgssl.report import save_page

    inputs = (source, chosen)
    for path, kind in ((export, TABLE), (select_list, LIST)):
        if path is not None:
            check_output(path, kind=kind, inputs=inputs, overwrite=overwrite)
    if montages is not None:
        check_montages(montages, inputs=inputs, overwrite=overwrite)
    with options.reported(quiet=quiet, data=source, **encoding) as asked:
        if checkpoint is None:
            asked.reporter.note(f"checkpoint: {chosen} (newest in {RUNS}/)")
        subject = open_subject(chosen, asked)
        images = gallery_images(subject.data, split)
        if select_list is not None:
            require_files_to_list(images)
        found = run(subject, images, select=select, size=group_size, seed=seed)
        told = {
            "data": source, "pictures": len(found.groups), "unreadable": len(found.found.faults), "encoder": chosen,
            "pool": subject.pool,
        }  # fmt: skip
        save_page(explore_page(found, told, seed=seed), output)
        if export is not None:
            save_table(export, found)
        if select_list is not None:
            save_list(select_list, found)
        drawn = save_montages(montages, found) if montages is not None else []
    written = {"output": str(output), "export": export and str(export), "montages": [str(path) for path in drawn],
               "select_list": select_list and str(select_list)}  # fmt: skip
    print_json({**told, **_document(found), **written}) if json_output else _print(found, told, written)


def _document(found: Survey) -> dict[str, Any]:
    from fgssl.explore.groups import typical_first

    names = found.found.identifiers
    return {
        "group_size": found.size,
        "groups": [
            {"group": number, "pictures": len(rows),
             "typical": [names[row] for row in typical_first(found.features, rows)[:TYPICAL].tolist()]}
            for number, rows in enumerate(found.group_rows(), 1)
        ],
        "in_no_group": int((found.groups < 0).sum()),
        "near_copies": [[names[row] for row in rows] for rows in found.copies],
        "outliers": [
            {"picture": names[row], "distance": float(found.distance[row])} for row in found.outliers(SHOWN).tolist()
        ],
        "selected": [names[row] for row in found.selection.rows.tolist()],
        "selection_reach": found.selection.reach,
        "laid_out": len(found.laid_out),
    }  # fmt: skip


def _print(found: Survey, told: dict[str, Any], written: dict[str, Any]) -> None:
    from fgssl.explore.groups import typical_first
    from fgssl.explore.montage import mostly

    names, groups = found.found.identifiers, found.group_rows()
    labelled = found.found.labels is not None
    columns = ("group", "pictures", *(["mostly"] if labelled else []), "most typical")
    rows = list[tuple[Any, ...]]()
    for number, members in enumerate(groups[:SHOWN]):
        typical = names[int(typical_first(found.features, members)[0])]
        rows.append((number + 1, len(members), *([mostly(found, members)] if labelled else []), Path(typical).name))
    if rows:
        title = f"{len(groups)} groups of {told['pictures']} pictures of {told['data']}"
        print_table(columns, rows, title=title, text=(-1, -2) if labelled else (-1,))
    if len(groups) > SHOWN:
        say(f"... and {len(groups) - SHOWN} more, in {written['output']}")
    say(f"{int((found.groups < 0).sum())} pictures in no group of {found.size} or more")
    say(f"{sum(map(len, found.copies))} near copies of each other, in {len(found.copies)} groups")
    say(f"{len(found.selection.rows)} selected; no other is farther than {found.selection.reach:.3f} from one of them")
    for word, key in (("page", "output"), ("table", "export"), ("selected", "select_list")):
        if written[key]:
            say(f"{word}: {written[key]}")
    if written["montages"]:
        say(f"{len(written['montages'])} montages: {Path(written['montages'][0]).parent}")
