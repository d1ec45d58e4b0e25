"""The survey as a page: a map to zoom into, and galleries of groups, near copies, outliers and the selection."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fgssl.evaluation.retrieval.ranking import search
from fgssl.explore.layout import LARGEST, Rows
from fgssl.explore.montage import group_title, members_shown, mostly, picture_of
from fgssl.explore.survey import Survey
from fgssl.report import Colouring, Section, embedding_map, facts, gallery, page, table, thumbnails
from fgssl.report.embedding import Neighbourhood
from fgssl.report.sections import Picture

POINTS = 4000  # on the map: the page is to go by mail
GROUPS, OF_GROUP, COPIES, OF_COPIES, OUTLIERS, SELECTED = 40, 7, 25, 7, 21, 63  # pictures in the galleries
MAP_BYTES, GALLERY_BYTES = 2_000_000, 1_400_000  # of thumbnails
_NEAREST = 8
_SEEN = "Each picture is cut to what the encoder sees of it."


def explore_page(survey: Survey, told: dict[str, Any], *, seed: int = 0) -> str:
    """One HTML document, under 5 MB. `told` is what the first lines say: data, encoder, pooling and the like."""
    shown = _Shown(survey)
    groups = survey.group_rows()
    alone = int((survey.groups < 0).sum())
    counts = {
        "groups": f"{len(groups)} of {survey.size} pictures or more; {alone} pictures are in none",
        "near copies": f"{sum(map(len, survey.copies))} pictures in {len(survey.copies)} groups",
        "selected": f"{len(survey.selection.rows)}, none of the others farther than {survey.selection.reach:.3f}",
    }
    sections = [
        facts("What there is", {**told, **counts}, told="A distance is 1 - cosine of two embeddings: 0 is equal."),
        _map(survey, shown.chosen, seed),
        *_group_sections(survey, groups, shown),
        *_copies_section(survey, shown),
        _outliers_section(survey, shown),
        _selection_section(survey, shown),
        *_unreadable(survey),
    ]
    return page(f"{told['pictures']} pictures of {told['data']}", sections, subtitle=f"as {told['encoder']} sees them")


class _Shown:
    """The rows in the galleries, which are on the map as well, and their thumbnails."""

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.groups = [members_shown(survey, rows, OF_GROUP).tolist() for rows in survey.group_rows()[:GROUPS]]
        self.copies = [alike[:OF_COPIES] for alike in sorted(survey.copies, key=len, reverse=True)[:COPIES]]
        self.outliers = survey.outliers(OUTLIERS).tolist()
        self.selected = survey.selection.rows[:SELECTED].tolist()
        parts: Iterable[list[int]] = (*self.groups, *self.copies, self.outliers, self.selected)
        self.chosen = np.unique(np.concatenate([np.array(part, np.int64) for part in parts]))
        pictures = (picture_of(survey.pixels, survey, row) for row in self.chosen.tolist())
        self._small = dict(zip(self.chosen.tolist(), thumbnails(pictures, budget=GALLERY_BYTES), strict=True))

    def row(self, rows: list[int], captions: Iterable[str] = ()) -> list[Picture]:
        """Pictures side by side, with their names unless captions are given."""
        words = [*captions] or [_name(self.survey, row) for row in rows]
        return [Picture(self._small[row], caption) for row, caption in zip(rows, words, strict=True)]


def _name(survey: Survey, row: int) -> str:
    return Path(survey.found.identifiers[row]).name


def _map(survey: Survey, chosen: Rows, seed: int) -> Section:
    """The map of what the galleries show and as many others as there is room for."""
    count = len(survey.groups)
    drawn = np.random.default_rng(seed).permutation(count)
    rows = np.sort(np.unique(np.concatenate([chosen, drawn[: max(0, POINTS - len(chosen))]])))
    called = [(f"Group {number}", mostly(survey, each)) for number, each in enumerate(survey.group_rows(), 1)]
    names = [": ".join(filter(None, each)) for each in called]
    colourings = [Colouring("group", survey.groups[rows], names)] if names else []
    if survey.found.labels is not None:
        labels = survey.found.labels[torch.from_numpy(rows)].numpy()
        classes = survey.found.class_names or tuple(map(str, range(int(labels.max()) + 1)))
        colourings.append(Colouring("label", labels, classes))
    colourings.append(Colouring("distance to the nearest", survey.distance[rows]))
    selected = np.where(np.isin(rows, survey.selection.rows), 0, -1)
    colourings.append(Colouring("selected", selected, ("selected",)))
    neighbours = []
    if len(rows) > 1:
        features = survey.features[torch.from_numpy(rows)]
        near = search(features, top=_NEAREST, normalize=False).indices.numpy()
        neighbours.append(Neighbourhood("nearest", near))
    told = "Near on the map is near for the encoder; what is far apart may be anywhere."
    if len(rows) < count:
        told += f" {len(rows)} of {count} pictures are on it."
    if len(survey.laid_out) < count:
        told += f" The layout was made of {LARGEST} of them, and the others placed among these."
    return embedding_map(
        "Map", survey.points[rows], names=[survey.found.identifiers[row] for row in rows.tolist()],
        thumbnails=thumbnails((picture_of(survey.pixels, survey, row) for row in rows.tolist()), budget=MAP_BYTES),
        colourings=colourings, neighbours=neighbours, told=told,
    )  # fmt: skip


def _group_sections(survey: Survey, groups: list[Rows], shown: _Shown) -> list[Section]:
    if not groups:
        return []
    told = f"Dense places of the map (HDBSCAN), the largest first. From the most typical to the least. {_SEEN}"
    if len(groups) > GROUPS:
        told += f" The first {GROUPS} of {len(groups)} are shown."
    titles = [group_title(survey, number, rows) for number, rows in enumerate(groups)]
    pictures = [
        shown.row(part, [title, *(_name(survey, row) for row in part[1:])])
        for part, title in zip(shown.groups, titles, strict=False)
    ]
    return [gallery("Groups", pictures, told=told)]


def _copies_section(survey: Survey, shown: _Shown) -> list[Section]:
    if not shown.copies:
        return []
    told = "Pictures that show the same, as fgssl data check knows them: copies, edited copies, bursts."
    if len(survey.copies) > COPIES:
        told += f" The largest {COPIES} of {len(survey.copies)} groups are shown."
    return [gallery("Near copies", [shown.row(rows) for rows in shown.copies], told=told)]


def _outliers_section(survey: Survey, shown: _Shown) -> Section:
    told = "Least like any other: the mean distance to the ten nearest. Strays, mistakes, or rare kinds."
    captions = [f"{survey.distance[row]:.3f} · {_name(survey, row)}" for row in shown.outliers]
    return gallery("Outliers", _wrapped(shown.row(shown.outliers, captions)), told=told)


def _selection_section(survey: Survey, shown: _Shown) -> Section:
    count = len(survey.selection.rows)
    told = "The most different pictures (k-centre greedy): what to label first, or to keep of many."
    if count > SELECTED:
        told += f" The first {SELECTED} of {count}; the table has all."
    return gallery("Selection", _wrapped(shown.row(shown.selected)), told=told)


def _wrapped(pictures: list[Picture], across: int = OF_GROUP) -> list[list[Picture]]:
    return [pictures[first : first + across] for first in range(0, len(pictures), across)]


def _unreadable(survey: Survey) -> list[Section]:
    faults = survey.found.faults
    return [table("Unreadable files", ("what",), [(fault.reason,) for fault in faults])] if faults else []
