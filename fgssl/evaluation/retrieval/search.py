"""Search by example: pictures and a gallery to the gallery's most similar images, and a sheet that shows them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fgssl.config.schema import DataConfig
from fgssl.data.cache.folder import cache_folder, cache_label
from fgssl.data.cache.pixels import RETRIED_FAULTS, Fault, PixelStore
from fgssl.data.decoding import decode_image, require_files
from fgssl.data.images import ImageSet
from fgssl.drawing import Map, Neighbour, QueryRow, search_sheet
from fgssl.encoder import Encoder, Pool
from fgssl.errors import FgsslError, SettingError, UnreadableImage
from fgssl.evaluation.embed import Embeddings, evaluation_view, rows_of, seen
from fgssl.evaluation.explain import explain, shown
from fgssl.evaluation.feature_file import is_feature_file
from fgssl.evaluation.features import check_widths
from fgssl.evaluation.retrieval.ranking import search
from fgssl.evaluation.retrieval.scored import gallery_file, gallery_images, open_beside, true_path
from fgssl.evaluation.subject import EvaluationOptions, Subject
from fgssl.runs.encoder_file import identity
from fgssl.runtime.files import atomic_path

SHEET_QUERIES, SHEET_HITS = 12, 24  # the most a sheet shows: larger ones no viewer opens
PANEL = 200  # pixels of a picture on the sheet
FORMAT = "fgssl-kept-features-1"


class Hit(NamedTuple):
    """One found image."""

    rank: int  # from 1
    score: float  # cosine of query and image
    path: str  # its file, or its name in a data set
    label: str | None  # its class, where the gallery has classes


class Result(NamedTuple):
    """The hits of one query, best first; `rows` are their places in the gallery's embeddings."""

    name: str
    hits: list[Hit]
    rows: list[int]


class Lookup(NamedTuple):
    """What a search found, and what is needed to draw it."""

    encoder: Encoder
    gallery: str  # in words
    pool: Pool
    results: list[Result]
    source: ImageSet | None  # None for a file of features: its paths may or may not be files here
    embeddings: Embeddings


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
        gallery: Data source or file of features, by default the data.
        split: Of the source, by default all of them.
        top: Hits a query; beyond the gallery it takes the whole gallery.

    Raises UnreadableImage, and FgsslError: bad checkpoint or gallery, features of another encoder, or `top` below 1.
    """
    if top < 1:
        raise SettingError(f"--top {top}", "ask for 1 or more")
    if is_feature_file(checkpoint):
        problem = f"'{checkpoint}' holds features, not an encoder to embed a query with"
        raise FgsslError(problem, "give the encoder, and the file with --gallery")
    require_files([path for path in queries if not path.is_dir()])
    gallery = gallery or asked.data
    file = gallery_file(gallery, split)
    subject = open_beside(checkpoint, file, replace(asked, data=gallery))
    # first: a query that is no image is told before the gallery is embedded
    queries, features = _queries(subject, queries)
    if file is not None:
        source, found, name = None, file.embeddings, file.path
    else:
        source = gallery_images(subject.data, split)
        found, name = _kept(subject, source), f"{source.source} [{source.split}]"
    check_widths(features, found.features, ("the queries' features", f"those of '{name}'"))
    if top > len(found.identifiers):
        asked.reporter.note(f"--top {top}: the gallery holds {len(found.identifiers)} images")
    results = _results(queries, features, found, top, asked)
    return Lookup(subject.encoder, name, subject.pool, results, source, found)


@torch.inference_mode()
def _queries(subject: Subject, queries: Sequence[Path]) -> tuple[list[Path], Tensor]:
    """The pictures asked for, those named before those of folders, and their embeddings (N, D)."""
    encoder, pool, size = subject.encoder.eval(), subject.pool, 2 * subject.encoder.view_size(subject.pool)
    files, parts = [path for path in queries if not path.is_dir()], []
    for first in range(0, len(files), subject.batch_size):
        pictures = [decode_image(path, size) for path in files[first : first + subject.batch_size]]
        parts.append(encoder(seen(encoder, pictures, pool), pool).cpu())
    for folder in (path for path in queries if path.is_dir()):
        found = subject.embed(gallery_images(DataConfig(source=str(folder)), None))
        files += map(Path, found.identifiers)
        parts.append(found.features)
    require_files(files)  # a folder may hold tables, whose pictures are no files
    return files, torch.cat(parts)


def _results(
    queries: Sequence[Path], features: Tensor, gallery: Embeddings, top: int, asked: EvaluationOptions
) -> list[Result]:
    paths = [true_path(name) for name in gallery.identifiers]
    copies = max(Counter(paths).values())  # one file may be there through several links
    nearest = search(features, gallery.features, top=top + copies, memory_bytes=asked.scratch)
    labels: list[str | None] = [None] * len(paths)
    if gallery.labels is not None:
        names = gallery.class_names
        labels = [str(number) if names is None else names[number] for number in gallery.labels.tolist()]
    results = []
    for query, near, cosines in zip(queries, nearest.indices.tolist(), nearest.scores.tolist(), strict=True):
        itself = true_path(query)
        score = {row: cosine for row, cosine in zip(near, cosines, strict=True) if paths[row] != itself}
        rows = list(score)[:top]
        hits = [Hit(rank, score[row], gallery.identifiers[row], labels[row]) for rank, row in enumerate(rows, 1)]
        results.append(Result(str(query), hits, rows))
    return results


def _kept(subject: Subject, images: ImageSet) -> Embeddings:
    """Embeddings of a gallery from the cache, computed and kept first where they are not there.

    One file a gallery below `features/`, named after where it comes from and what it was made of: when either changes,
    it is made anew, and the old one goes. A disk that cannot be written only costs the time of the next search.
    """
    if subject.cache == "off":
        return subject.embed(images)
    path = _path(subject, images)
    kept = _read(path, images)
    # tried again: `chmod` changes neither size nor time of a file
    fresh = PixelStore(images, evaluation_view(subject.encoder, subject.pool))
    if kept is not None and all(isinstance(fresh.read(fault.index), str) for fault in kept.faults[:RETRIED_FAULTS]):
        subject.name_faults(kept)
        return kept
    found = subject.embed(images)
    tensors = {"features": found.features.contiguous(), "positions": torch.from_numpy(found.positions)}
    faults = json.dumps([asdict(fault) for fault in found.faults])
    with contextlib.suppress(FgsslError):
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"format": FORMAT, "faults": faults})
        for former in path.parent.glob(f"*-{path.name.split('-')[-2]}-*"):
            if former != path:
                former.unlink(missing_ok=True)
    return found


def _path(subject: Subject, images: ImageSet) -> Path:
    """LABEL-PLACE-CONTENT.safetensors: where images and encoder are, and what they are by files, weights and view."""
    place = (os.path.abspath(images.source), images.split, subject.pool, os.path.abspath(subject.checkpoint))
    view = evaluation_view(subject.encoder, subject.pool)
    content = (images.fingerprint(), identity(subject.encoder), repr(view), FORMAT)
    names = [hashlib.blake2b(repr(part).encode(), digest_size=12).hexdigest() for part in (place, content)]
    folder = cache_folder() if subject.cache == "auto" else Path(subject.cache).expanduser()
    return folder / "features" / f"{'-'.join((cache_label(images.source, images.split), *names))}.safetensors"


def _read(path: Path, images: ImageSet) -> Embeddings | None:
    try:
        with safe_open(path, framework="pt") as file:
            features, index = file.get_tensor("features"), file.get_tensor("positions").numpy()
            faults = tuple(Fault(**fault) for fault in json.loads(file.metadata()["faults"]))
        fits = len(features) == len(index) and len(index) + len(faults) == len(images)
        return rows_of(images, features, index, faults) if fits else None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError):  # not there, or damaged by somebody
        return None


def draw_lookup(found: Lookup, *, title: str) -> Image.Image:
    """Queries with their hits, each above the rationale over it where the encoder has one."""
    rows = []
    for result in found.results[:SHEET_QUERIES]:
        hits, path = result.hits[:SHEET_HITS], Path(result.name)
        query, *others = _seen(
            found.encoder, [decode_image(path), *(picture_of(found, row) for row in result.rows[:SHEET_HITS])]
        )
        neighbours = [
            Neighbour(view, _caption(hit), score=hit.score, rationale=weights)
            for (view, weights), hit in zip(others, hits, strict=True)
        ]
        rows.append(QueryRow(query[0], path.name, neighbours, query[1]))
    footer = f"Scores are cosines; {found.pool} pooling. Each picture is cut to what the encoder sees of it."
    if left_out := len(found.results) - len(rows):
        footer += f" {left_out} more queries are not drawn."
    return search_sheet(rows, title=title, footer=footer, panel_size=PANEL)


def _seen(encoder: Encoder, pictures: Sequence[Image.Image | None]) -> list[tuple[Image.Image, Map | None]]:
    """The part of each picture that the encoder sees, and its rationale; grey where there is no picture."""
    there = [picture for picture in pictures if picture is not None]
    maps = iter(explain(encoder, there, with_gradcam=False))  # without rationale None
    blank = Image.new("RGB", (PANEL, PANEL), (232, 232, 236))
    return [
        (blank, None) if picture is None else (shown(encoder, picture, size=PANEL), next(maps).rationale)
        for picture in pictures
    ]


def picture_of(found: Lookup, row: int) -> Image.Image | None:
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
