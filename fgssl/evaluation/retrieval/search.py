"""Search by example: pictures and a gallery to the gallery's most similar images, and a sheet that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from fgssl.config.schema import DataConfig
from fgssl.data.decoding import decode_image, require_files
from fgssl.drawing import Map, Neighbour, Part, QueryRow, search_sheet
from fgssl.errors import SettingError
from fgssl.evaluation.explain import shown
from fgssl.evaluation.features import check_same_width
from fgssl.evaluation.looks import decided_by, looks_at, matched, numbered
from fgssl.evaluation.retrieval.galleries import Gallery, find_place, open_gallery
from fgssl.evaluation.retrieval.scored import gallery_images, true_path
from fgssl.evaluation.subject import EvaluationOptions, Subject
from fgssl.evaluation.vector_index import Near

SHEET_QUERIES, SHEET_HITS = 12, 24  # the most a sheet shows: larger ones no viewer opens
PANEL = 200  # pixels of a picture on the sheet


class Hit(NamedTuple):
    """One found image."""

    rank: int  # from 1
    score: float  # cosine of query and image
    path: str  # its file, or its name in a data set
    label: str | None  # its class, where the gallery has classes


class Result(NamedTuple):
    """The hits of one query, best first, and what the gallery knows them by."""

    name: str
    hits: list[Hit]
    found: list[Near]


class Lookup(NamedTuple):
    """What a search found, and what is needed to draw it."""

    searcher: Searcher
    results: list[Result]


class Searcher:
    """An encoder and a gallery, loaded once, that may be asked as often as one likes."""

    def __init__(self, subject: Subject, gallery: Gallery) -> None:
        self.subject, self.gallery = subject, gallery

    def find(self, queries: Sequence[Path], *, top: int) -> list[Result]:
        """The hits of pictures, and of folders of pictures. Raises UnreadableImage or FgsslError."""
        return self.nearest(*embed_queries(self.subject, queries), top=top)

    def nearest(self, names: Sequence[Path], features: Tensor, *, top: int) -> list[Result]:
        """The hits of pictures by their names and embeddings (N, D); no picture is its own hit."""
        called = ("the queries' features", f"those of '{self.gallery.name}'")
        check_same_width(features.shape[1], self.gallery.width, called)
        wanted, found = top + 1, self.gallery.nearest(features, top + 1)
        paths = [true_path(name) for name in names]
        results = [self._others(*each, top) for each in zip(paths, found, strict=True)]
        # one file may be in the gallery through several links
        while any(len(hits) < top for hits in results) and any(len(near) == wanted for near in found):
            wanted *= 2
            found = self.gallery.nearest(features, wanted)
            results = [self._others(*each, top) for each in zip(paths, found, strict=True)]
        return [
            Result(str(name), [Hit(rank, near.score, near.path, near.label) for rank, near in enumerate(hits, 1)], hits)
            for name, hits in zip(names, results, strict=True)
        ]

    def _others(self, query: str, found: Sequence[Near], top: int) -> list[Near]:
        return [near for near in found if true_path(near.path) != query][:top]


def open_searcher(checkpoint: str, asked: EvaluationOptions, *, gallery: str | None, split: str | None) -> Searcher:
    """An encoder with the gallery that it searches; raises as `look_up`."""
    place = find_place(checkpoint, asked, gallery=gallery, split=split)
    return Searcher(place.subject, open_gallery(place))


def look_up(
    checkpoint: str,
    queries: Sequence[Path],
    asked: EvaluationOptions,
    *,
    gallery: str | None,
    split: str | None,
    top: int,
) -> Lookup:
    """The images of a gallery most similar to each picture; a picture that lies in the gallery is not its own hit.

    Args:
        queries: Pictures, and folders of pictures, whose unreadable ones are left out.
        asked: Of their `data` the default gallery.
        gallery: Data source, file of features or vector index, by default the data.
        split: Of the source, by default all of them.
        top: Hits a query; beyond the gallery it takes the whole gallery.

    Raises UnreadableImage, and FgsslError: bad checkpoint or gallery, features of another encoder, or `top` below 1.
    """
    if top < 1:
        raise SettingError(f"--top {top}", "ask for 1 or more")
    require_files([path for path in queries if not path.is_dir()])
    place = find_place(checkpoint, asked, gallery=gallery, split=split)
    # first: a query that is no image is told before the gallery is embedded
    names, features = embed_queries(place.subject, queries)
    searcher = Searcher(place.subject, open_gallery(place))
    if top > searcher.gallery.images:
        asked.reporter.note(f"--top {top}: the gallery holds {searcher.gallery.images} images")
    return Lookup(searcher, searcher.nearest(names, features, top=top))


@torch.inference_mode()
def embed_queries(subject: Subject, queries: Sequence[Path]) -> tuple[list[Path], Tensor]:
    """The pictures asked for, those named before those of folders, and their embeddings (N, D)."""
    encoder, pool, size = subject.encoder.eval(), subject.pool, 2 * subject.encoder.view_size(subject.pool)
    files, parts = [path for path in queries if not path.is_dir()], []
    for first in range(0, len(files), subject.batch_size):
        pictures = [decode_image(path, size) for path in files[first : first + subject.batch_size]]
        parts.append(encoder(encoder.seen(pictures, pool), pool).cpu())
    for folder in (path for path in queries if path.is_dir()):
        found = subject.embed(gallery_images(DataConfig(source=str(folder)), None))
        files += map(Path, found.identifiers)
        parts.append(found.features)
    require_files(files)  # a folder may hold tables, whose pictures are no files
    return files, torch.cat(parts)


def draw_lookup(found: Lookup, *, title: str) -> Image.Image:
    """Queries with their hits, what was looked at again outlined, each above the map that decided where, if one did."""
    rows, (subject, gallery) = [], (found.searcher.subject, found.searcher.gallery)
    for result in found.results[:SHEET_QUERIES]:
        hits, path = result.hits[:SHEET_HITS], Path(result.name)
        pictures = [decode_image(path), *map(gallery.picture, result.found[:SHEET_HITS])]
        query, *others = compared(subject, pictures)
        neighbours = [
            Neighbour(_view(subject, picture), _caption(hit, looks), score=hit.score, map=looks.map, parts=looks.parts)
            for picture, hit, looks in zip(pictures[1:], hits, others, strict=True)
        ]
        rows.append(QueryRow(_view(subject, pictures[0]), path.name, neighbours, map=query.map, parts=query.parts))
    footer = f"Scores are cosines; {subject.pool} pooling. Each picture is cut to what the encoder sees of it."
    if left_out := len(found.results) - len(rows):
        footer += f" {left_out} more queries are not drawn."
    decided = decided_by(subject.encoder, subject.pool)
    return search_sheet(rows, title=title, footer=footer, panel_size=PANEL, pool=subject.pool, decided=decided)


class Compared(NamedTuple):
    """What was seen of a query or of a hit, to be drawn."""

    parts: Sequence[Part] = ()  # what was looked at again, by the number of the query's that it is like
    map: Map | None = None  # that decided where, else the rationale's
    whole: float | None = None  # cosine of the whole pictures, where there are parts beside it


def compared(subject: Subject, pictures: Sequence[Image.Image | None]) -> list[Compared]:
    """A query, which comes first, and its hits: what the pooling looked at, and what is alike. Nothing for None."""
    there = iter(looks_at(subject.encoder, [picture for picture in pictures if picture is not None], subject.pool))
    looks = [None if picture is None else next(there) for picture in pictures]
    query = looks[0]
    assert query is not None  # it was embedded
    found = [Compared(numbered(query), query.map)]
    for other in looks[1:]:
        if other is None:
            found.append(Compared())
            continue
        parts = matched(query, other)
        found.append(Compared(parts, other.map, float(query.whole @ other.whole) if parts else None))
    return found


def _view(subject: Subject, picture: Image.Image | None) -> Image.Image:
    """The part of a picture that the encoder sees; grey where there is no picture."""
    blank = Image.new("RGB", (PANEL, PANEL), (232, 232, 236))
    return blank if picture is None else shown(subject.encoder, picture, size=PANEL)


def _caption(hit: Hit, looks: Compared) -> str:
    name = hit.path.rstrip("/").rsplit("/", 1)[-1]
    told = hit.label is None or name.startswith(hit.label)  # many data sets write the class into the file's name
    called = name if told else f"{hit.label} · {name}"
    return called if looks.whole is None else f"whole {looks.whole:.2f} · {called}"
