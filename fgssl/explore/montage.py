"""A sheet of pictures for each group, from the most typical to the least."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from fgssl.data.cache.pixels import PixelStore
from fgssl.drawing import PICTURE, save_png
from fgssl.drawing.sheets import Panel, sheet
from fgssl.explore.groups import typical_first
from fgssl.explore.layout import Rows
from fgssl.explore.survey import Survey
from fgssl.runtime.files import Inputs, check_folder, check_output

PATTERN = "group-*.png"
ACROSS, DOWN, SIDE = 6, 4, 144


def picture_of(pixels: PixelStore, survey: Survey, row: int) -> Image.Image:
    """A picture as the encoder sees it."""
    return Image.fromarray(pixels[int(survey.found.positions[row])])


def members_shown(survey: Survey, rows: Rows, most: int) -> Rows:
    """At most so many of a group, spread evenly from the most typical to the least."""
    ordered = typical_first(survey.features, rows)
    places = np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(np.int64)
    shown: Rows = ordered[np.unique(places)]
    return shown


def mostly(survey: Survey, rows: Rows) -> str:
    """Of what class most of a group is; "" without labels."""
    (name, many), *_ = Counter(survey.found.class_of(row) for row in rows.tolist()).most_common(1)
    return "" if name is None else f"{round(100 * many / len(rows))} % {name}"


def group_title(survey: Survey, number: int, rows: Rows) -> str:
    """What a group is called."""
    return ", ".join(filter(None, (f"Group {number + 1}: {len(rows)} pictures", mostly(survey, rows))))


def montage(survey: Survey, number: int, rows: Rows) -> Image.Image:
    """One group on one sheet."""
    chosen = members_shown(survey, rows, ACROSS * DOWN).tolist()
    panels = [Panel(picture_of(survey.pixels, survey, row), Path(survey.found.identifiers[row]).name) for row in chosen]
    footer = f"{len(chosen)} of {len(rows)}, from the most typical to the least; each as the encoder sees it."
    return sheet(
        [panels[first : first + ACROSS] for first in range(0, len(panels), ACROSS)],
        title=group_title(survey, number, rows), footer=footer, panel_size=SIDE, caption_lines=1,
    )  # fmt: skip


def check_montages(folder: Path, *, inputs: Inputs = (), overwrite: bool = False) -> None:
    """Make the folder, and refuse, before the work, to lose pictures that fgssl did not draw. Raises FgsslError."""
    check_folder(folder, option="--montages")
    for path in folder.glob(PATTERN):
        check_output(path, kind=PICTURE, inputs=inputs, overwrite=overwrite)


def save_montages(folder: Path, survey: Survey) -> list[Path]:
    """Write group-001.png and so on, and remove those of a former survey that had more groups."""
    written = []
    for number, rows in enumerate(survey.group_rows()):
        written.append(save_png(montage(survey, number, rows), folder / f"group-{number + 1:03d}.png"))
    for former in set(folder.glob(PATTERN)) - set(written):
        if PICTURE.is_own(former):
            former.unlink()
    return written
