"""What an encoder makes of a split: the map of its embedding, and which classes it takes for which."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fgssl.data.cache.pixels import PixelStore, open_pixels
from fgssl.data.decoding import decode_image
from fgssl.data.images import ImageSet
from fgssl.encoder import Encoder, Pool
from fgssl.errors import UnreadableImage
from fgssl.evaluation.embed import Embeddings, evaluation_view
from fgssl.evaluation.probing.scores import Confusion, confusions
from fgssl.evaluation.retrieval.ranking import search
from fgssl.report.embedding import Colouring, Neighbourhood, embedding_map
from fgssl.report.pictures import address, spread, thumbnails
from fgssl.report.sections import Picture, Section, gallery, table

MOST_POINTS = 1200  # pictures on a map: each is loaded, and its thumbnail takes about 1.3 kB
THUMBNAIL_BYTES = 1_600_000
NEIGHBOURS = 6
EXAMPLES, EXAMPLE_SIDE = 8, 136
AFTER, BEFORE = "by this encoder", "by the start"


class SplitView(NamedTuple):
    """A split as an encoder has embedded it, and where its pictures come from."""

    found: Embeddings
    picture: Callable[[int], Image.Image | None]  # of a row, as the encoder sees it; None where it cannot be read
    pool: str | None = None
    start: Tensor | None = None  # (len(sampled(found)), D) features of those rows by the start


def sampled(found: Embeddings) -> list[int]:
    """The rows that a page shows: all, or as many as it holds, evenly spread."""
    return spread(len(found.identifiers), MOST_POINTS)


def reader(encoder: Encoder, images: ImageSet, found: Embeddings, pool: Pool, cache: str) -> SplitView:
    """A split whose pictures come from the cache that embedding it has filled."""
    return SplitView(
        found, partial(_read, open_pixels(images, evaluation_view(encoder, pool), cache=cache), found), pool
    )


def _read(pixels: PixelStore, found: Embeddings, row: int) -> Image.Image | None:
    content = pixels.read(int(found.positions[row]))
    return None if isinstance(content, str) else Image.fromarray(np.array(content))


def from_files(found: Embeddings, pool: str | None) -> SplitView:
    """Features whose names may be files here."""

    def picture(row: int) -> Image.Image | None:
        try:
            return decode_image(found.identifiers[row], 128)
        except UnreadableImage:
            return None

    return SplitView(found, picture, pool)


def map_section(view: SplitView, *, title: str = "Map of the embedding") -> Section:
    """A principal plane of the features, with thumbnails, classes and neighbours."""
    found, rows = view.found, sampled(view.found)
    features = found.features[rows].float()
    positions, share = principal_plane(features)
    told = f"Each point is a picture; the plane keeps {100 * share:.0f} % of the features' variance (PCA)"
    told += "" if view.pool is None else f", {view.pool} pooling"
    if len(rows) < len(found.identifiers):
        told += (
            f". {len(rows):,} of {len(found.identifiers):,} pictures are shown, evenly spread; neighbours are of them"
        )
    near = [] if view.start is None or len(view.start) != len(rows) else [Neighbourhood(BEFORE, _nearest(view.start))]
    near += [Neighbourhood(AFTER, _nearest(features))] if len(rows) > 1 else []
    return embedding_map(
        title,
        positions,
        names=[found.identifiers[row] for row in rows],
        thumbnails=thumbnails(map(view.picture, rows), budget=THUMBNAIL_BYTES),
        colourings=_classes(found, rows),
        neighbours=near if len(rows) > 1 else [],
        told=f"{told}.",
    )


def principal_plane(features: Tensor) -> tuple[NDArray[np.float64], float]:
    """Features (N, D) on their two principal axes, (N, 2), and the share of the variance these keep."""
    centred = (features - features.mean(0)).double()
    wide = centred.shape[1] > centred.shape[0]
    values, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    values, vectors = values[-2:].flip(0).clamp_min(0), vectors[:, -2:].flip(1)
    plane = vectors * values.sqrt() if wide else centred @ vectors  # (N, 2), or (N, 1) of a single one
    plane = torch.nn.functional.pad(plane, (0, 2 - plane.shape[1]))
    # an axis has no direction: the largest value is put to the right and up, so that a page is the same again
    sign = plane.gather(0, plane.abs().argmax(0, keepdim=True)).sign()
    total = float(centred.square().sum())
    return (plane * torch.where(sign == 0, 1.0, sign)).numpy(), float(values.sum()) / total if total > 0 else 1.0


def _nearest(features: Tensor) -> list[list[int]]:
    found: list[list[int]] = search(features, top=NEIGHBOURS).indices.tolist()
    return found


def file_name(path: str) -> str:
    """The last part of a path, or of a name in a data set."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def class_name(found: Embeddings, label: int) -> str:
    """The name of a class, its number where it has none."""
    return str(label) if found.class_names is None or label >= len(found.class_names) else found.class_names[label]


def _classes(found: Embeddings, rows: list[int]) -> list[Colouring]:
    if found.labels is None:
        return []
    present, places = np.unique(found.labels[rows].numpy(), return_inverse=True)
    return [Colouring("class", places, [class_name(found, int(label)) for label in present])]


def nearest_confusions(view: SplitView) -> tuple[list[Confusion], dict[tuple[int, int], list[tuple[int, int]]]]:
    """Classes that sampled pictures have their nearest other one of, and (row, nearest row) of each pair."""
    found, rows = view.found, sampled(view.found)
    labels = found.known_labels
    if len(labels) < 2:
        return [], {}
    best = search(found.features[rows], found.features, top=2).indices
    nearest = torch.where(best[:, 0] == torch.tensor(rows), best[:, 1], best[:, 0])
    asked, given = labels[rows], labels[nearest]
    examples: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, near, pair in zip(rows, nearest.tolist(), zip(asked.tolist(), given.tolist(), strict=True), strict=True):
        if pair[0] != pair[1]:
            examples.setdefault(pair, []).append((row, near))
    return list(confusions(given, asked, int(labels.max()) + 1)), examples


def confusion_sections(view: SplitView) -> list[Section]:
    """The worst confusions of nearest neighbours, with examples; nothing without labels or mistakes."""
    if view.found.labels is None:
        return []
    pairs, examples = nearest_confusions(view)
    shown = len(sampled(view.found))
    told = f"Classes whose pictures have a nearest other picture of another class, among {shown:,} pictures."
    return confusions_of(view, pairs, examples, told=told) if pairs else []


def confusions_of(
    view: SplitView,
    pairs: list[Confusion],
    examples: dict[tuple[int, int], list[tuple[int, int]]],
    *,
    told: str,
    title: str = "Worst confusions",
) -> list[Section]:
    """A table of confusions, and of the first ones a picture beside what it was taken for."""
    name = partial(class_name, view.found)
    rows = [[name(pair.label), name(pair.predicted), pair.images] for pair in pairs]
    found = [table(title, ("class", "taken for", "pictures"), rows, told=told)]
    pictures = []
    for pair in pairs[:EXAMPLES]:
        for row, near in examples.get((pair.label, pair.predicted), [])[:1]:
            pictures.append(
                [_example(view, row, name(pair.label)), _example(view, near, name(pair.predicted), "wrong")]
            )
    if pictures:
        columns = ("a picture", "its nearest")
        found.append(gallery("Confusions in pictures", pictures, columns=columns, told="One example of each pair."))
    return found


def _example(view: SplitView, row: int, label: str, mark: str = "") -> Picture:
    picture = view.picture(row)
    source = None if picture is None else address(picture, side=EXAMPLE_SIDE)
    name = file_name(view.found.identifiers[row])
    return Picture(source, name if name.startswith(label) else f"{label} · {name}", mark)


def unreadable_section(reasons: list[str], *, title: str = "Unreadable files") -> list[Section]:
    """What could not be read, and why; nothing where all could."""
    told = f"{len(reasons):,} pictures could not be read; they were left out, or replaced in training."
    return [table(title, ("why",), [[reason] for reason in reasons], told=told)] if reasons else []
