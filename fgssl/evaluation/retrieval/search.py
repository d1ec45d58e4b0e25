"""Search by example: pictures and a gallery to the gallery's most similar images, and a sheet that shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fgssl.config.schema import DataConfig
from fgssl.data.decoding import decode_image, require_files
from fgssl.data.images import ImageSet
from fgssl.drawing import Map, Neighbour, QueryRow, search_sheet
from fgssl.encoder import Encoder, Pool
from fgssl.errors import FgsslError, SettingError, UnreadableImage
from fgssl.evaluation.embed import Embeddings, evaluation_view
from fgssl.evaluation.explain import explain, shown
from fgssl.evaluation.feature_file import is_feature_file
from fgssl.evaluation.features import check_widths
from fgssl.evaluation.retrieval.gallery import gallery_file, gallery_images, open_beside, true_path
from fgssl.evaluation.retrieval.gallery_cache import kept_embeddings
from fgssl.evaluation.retrieval.ranking import search
from fgssl.evaluation.subject import EvaluationOptions, Subject

SHEET_QUERIES, SHEET_HITS = 12, 24  # the most a sheet shows: larger ones no viewer opens
PANEL = 200  # pixels of a picture on the sheet


class Hit(NamedTuple):
    """One found image."""

    rank: int  # from 1
    score: float  # cosine of query and image
    path: str  # its file, or its name in a data set
    label: str | None  # its class, where the gallery has classes


class Result(NamedTuple):
    """The hits of one query, best first; `rows` are their places in the gallery's embeddings."""

    name: str
    hits: tuple[Hit, ...]
    rows: tuple[int, ...]


class Lookup(NamedTuple):
    """What a search found, and what is needed to draw it."""

    encoder: Encoder
    gallery: str  # in words
    images: int  # searched
    pool: Pool
    queries: tuple[Path, ...]
    results: tuple[Result, ...]
    source: ImageSet | None  # None for a file of features: its paths may or may not be files here
    embeddings: Embeddings


def look_up(
    checkpoint: str,
    queries: Sequence[Path],
    options: EvaluationOptions,
    *,
    gallery: str | None = None,
    gallery_split: str | None = None,
    top: int = 10,
) -> Lookup:
    """The images of a gallery most similar to each picture; a picture that lies in the gallery is not its own hit.

    Args:
        checkpoint: As in `open_subject`.
        queries: Pictures, and folders of pictures, whose unreadable ones are left out.
        options: Of their `data` the default gallery.
        gallery: Data source or file of features, by default the data.
        gallery_split: Split of the source, by default all of them.
        top: Hits a query; beyond the gallery it takes the whole gallery.

    Raises:
        UnreadableImage: A query cannot be read.
        FgsslError: Bad checkpoint or gallery, features of another encoder, or `top` below 1.
    """
    if top < 1:
        raise SettingError(f"--top {top}", "ask for 1 or more")
    if is_feature_file(checkpoint):
        raise FgsslError(
            f"'{checkpoint}' holds features, not an encoder to embed a query with",
            "give the encoder, and the file with --gallery",
        )
    require_files([path for path in queries if not path.is_dir()])
    gallery = gallery or options.data
    file = gallery_file(gallery, gallery_split)
    subject = open_beside(checkpoint, file, replace(options, data=gallery))
    # first: a query that is no image is told before the gallery is embedded
    queries, features = _queries(subject, queries)
    if file is not None:
        source, found, name = None, file.embeddings, file.path
    else:
        source = gallery_images(subject.data, gallery_split)
        found, name = kept_embeddings(subject, source), f"{source.source} [{source.split}]"
    check_widths(features, found.features, ("the queries' features", f"those of '{name}'"))
    subject.name_faults(found)
    if top > len(found.identifiers):
        options.reporter.note(f"--top {top}: the gallery holds {len(found.identifiers)} images")
    results = _results(queries, features, found, top, options.scratch)
    return Lookup(subject.encoder, name, len(found.identifiers), subject.pool, tuple(queries), results, source, found)


def _queries(subject: Subject, queries: Sequence[Path]) -> tuple[list[Path], Tensor]:
    """The pictures asked for, those named before those of folders, and their embeddings (N, D)."""
    files = [path for path in queries if not path.is_dir()]
    parts = [embed_pictures(subject, files)] if files else []
    for folder in (path for path in queries if path.is_dir()):
        found = subject.embed(gallery_images(DataConfig(source=str(folder)), None))
        subject.name_faults(found)
        files += map(Path, found.identifiers)
        parts.append(found.features)
    require_files(files)  # a folder may hold tables, whose pictures are no files
    return files, torch.cat(parts)


@torch.inference_mode()
def embed_pictures(subject: Subject, paths: Sequence[Path]) -> Tensor:
    """Embeddings (N, D) of single files, exactly as `Subject.embed` makes them. Raises UnreadableImage."""
    view, encoder = evaluation_view(subject.encoder, subject.pool), subject.encoder.eval()
    parts = []
    for first in range(0, len(paths), subject.batch_size):
        chunk = paths[first : first + subject.batch_size]
        pixels = np.stack([np.asarray(view(decode_image(path, 2 * view.size))) for path in chunk])  # (n, S, S, 3)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(encoder.device)
        parts.append(encoder(images, subject.pool).cpu())
    return torch.cat(parts)


def _results(
    queries: Sequence[Path], features: Tensor, gallery: Embeddings, top: int, memory_bytes: int
) -> tuple[Result, ...]:
    paths = [true_path(name) for name in gallery.identifiers]
    copies = max(Counter(paths).values())  # one file may be there through several links
    nearest = search(features, gallery.features, top=top + copies, memory_bytes=memory_bytes)
    results = []
    for query, rows, scores in zip(queries, nearest.indices.tolist(), nearest.scores.tolist(), strict=True):
        itself = true_path(query)
        kept = [(row, score) for row, score in zip(rows, scores, strict=True) if paths[row] != itself][:top]
        hits = tuple(
            Hit(rank, score, gallery.identifiers[row], _label(gallery, row))
            for rank, (row, score) in enumerate(kept, 1)
        )
        results.append(Result(str(query), hits, tuple(row for row, _ in kept)))
    return tuple(results)


def _label(gallery: Embeddings, row: int) -> str | None:
    if gallery.labels is None:
        return None
    number = int(gallery.labels[row])
    return str(number) if gallery.class_names is None else gallery.class_names[number]


def draw_lookup(found: Lookup, *, title: str) -> Image.Image:
    """Queries with their hits, each above the rationale over it where the encoder has one."""
    rows = []
    for path, result in list(zip(found.queries, found.results, strict=True))[:SHEET_QUERIES]:
        hits = list(zip(result.hits, result.rows, strict=True))[:SHEET_HITS]
        query, *others = _seen(found.encoder, [decode_image(path), *(_picture(found, row) for _, row in hits)])
        neighbours = [
            Neighbour(view, _caption(hit), score=hit.score, rationale=weights)
            for (view, weights), (hit, _) in zip(others, hits, strict=True)
        ]
        rows.append(QueryRow(query[0], path.name, neighbours, query[1]))
    footer = f"Scores are cosines; {found.pool} pooling. Each picture is cut to what the encoder sees of it."
    left_out = len(found.results) - len(rows)
    return search_sheet(
        rows,
        title=title,
        footer=footer + (f" {left_out} more queries are not drawn." if left_out else ""),
        panel_size=PANEL,
    )


def _seen(encoder: Encoder, pictures: Sequence[Image.Image | None]) -> list[tuple[Image.Image, Map | None]]:
    """The part of each picture that the encoder sees, and its rationale; grey where there is no picture."""
    there = [picture for picture in pictures if picture is not None]
    maps: list[Map | None] = [None] * len(there)
    if encoder.rationale is not None:
        maps = [each.rationale for each in explain(encoder, there, with_gradcam=False)]
    views = iter([(shown(encoder, picture, size=PANEL), each) for picture, each in zip(there, maps, strict=True)])
    blank = Image.new("RGB", (PANEL, PANEL), (232, 232, 236))
    return [(blank, None) if picture is None else next(views) for picture in pictures]


def _picture(found: Lookup, row: int) -> Image.Image | None:
    """The picture of a row of the gallery; None where it is not here (any more)."""
    try:
        if found.source is not None:
            return found.source.load(int(found.embeddings.positions[row]))
        return decode_image(found.embeddings.identifiers[row])
    except UnreadableImage:
        return None


def _caption(hit: Hit) -> str:
    name = hit.path.rstrip("/").rsplit("/", 1)[-1]
    told = hit.label is None or name.startswith(hit.label)  # many data sets write the class into the file's name
    return name if told else f"{hit.label} · {name}"
