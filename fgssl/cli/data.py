"""fgssl data check: what a data set holds, before anything is trained on it."""

from __future__ import annotations

from typing import Annotated

import typer

from fgssl.cli.console import print_json, print_table

data_app = typer.Typer(help="Look after data sets.", no_args_is_help=True, rich_markup_mode=None)

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A data setting, e.g. data.label_column=species. Repeatable."),
]


def check(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="As --data of pretrain.", show_default=False)],
    sets: Sets = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Report what a data set holds: counts, sizes, unreadable pictures, duplicates, leakage between splits."""
    from fgssl.data import available_splits, load_images
    from fgssl.resolve import load_config

    data = load_config(flags={"data.source": source}, sets=sets or ()).config.data
    parts = [load_images(data, split) for split in available_splits(data)]
    if json_output:
        print_json({"source": source, "splits": [{"name": part.split, "images": len(part)} for part in parts]})
    else:
        print_table(("split", "images"), [(part.split, len(part)) for part in parts], title=source)
