"""What an encoder makes of a split: the map of its embedding, and which classes it takes for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from fgssl.drawing import Window
from fgssl.encoder import Encoder, Pool
from fgssl.errors import UnreadableImage
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.looks import decided_by, windows_in
from fgssl.evaluation.retrieval.ranking import search
from fgssl.report.embedding import Colouring, Neighbourhood, embedding_map
from fgssl.report.pictures import address, spread, thumbnails
from fgssl.report.sections import Picture, Section, file_name, gallery, table
from fgssl.runtime.reporting import Told

MOST_POINTS = 1200  # pictures on a map: each is loaded, and its thumbnail takes about 1.3 kB
THUMBNAIL_BYTES = 1_600_000
NEIGHBOURS = 6
MISTAKES, EXAMPLES, EXAMPLE_SIDE = 20, 8, 136
AFTER, BEFORE = "by this encoder", "by the start"


class SplitView(NamedTuple):
    """A split as an encoder has embedded it, and where its pictures come from."""

    found: Embeddings
    picture: Callable[[int], Image.Image | None]  # of a row, as the encoder sees it; None where it cannot be read
    pool: str | None = None
    start: Tensor | None = None  # (len(sampled(found)), D) features of those rows by the start
    windows: Callable[[Sequence[int]], Sequence[Sequence[Window]]] | None = None  # that were seen enlarged, of rows


def sampled(found: Embeddings) -> list[int]:
    """The rows that a page shows: all, or as many as it holds, evenly spread."""
    return spread(len(found.identifiers), MOST_POINTS)


def reader(encoder: Encoder, images: ImageSet, found: Embeddings, pool: Pool, cache: str) -> SplitView:
    """A split whose pictures come from the cache that embedding it has filled."""
    picture = partial(_read, open_pixels(images, encoder.view(pool), cache=cache), found)
    if decided_by(encoder, pool) is None:
        return SplitView(found, picture, pool)
    return SplitView(found, picture, pool, windows=lambda rows: windows_in(encoder, map(picture, rows), pool))


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
    windows = () if view.windows is None else view.windows(rows)
    told += "; outlined is what it sees enlarged" if any(windows) else ""
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
        thumbnails=thumbnails(_told_pictures(view, rows), budget=THUMBNAIL_BYTES),
        colourings=_classes(found, rows),
        neighbours=near if len(rows) > 1 else [],
        windows=windows,
        told=f"{told}.",
    )


def _told_pictures(view: SplitView, rows: list[int]) -> Iterator[Image.Image | None]:
    """The pictures of the rows; whoever waits is told how far this is."""
    told = Told("drawing the page", len(rows))
    for done, row in enumerate(rows, 1):
        yield view.picture(row)
        told(done)
    told.end(len(rows))


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


def class_name(found: Embeddings, label: int) -> str:
    """The name of a class, its number where it has none."""
    return str(label) if found.class_names is None or label >= len(found.class_names) else found.class_names[label]


def _classes(found: Embeddings, rows: list[int]) -> list[Colouring]:
    if found.labels is None:
        return []
    present, places = np.unique(found.labels[rows].numpy(), return_inverse=True)
    return [Colouring("class", places, [class_name(found, int(label)) for label in present])]


class Mistake(NamedTuple):
    """A class taken for another, how often, and an example: a row, and the row of another split it was taken for."""

    label: str
    taken: str
    images: int
    row: int
    other: int


def mistakes_of(pairs: Iterable[tuple[str, str, int, int]]) -> list[Mistake]:
    """From (class, taken for, row, other row) of every picture: the most frequent first."""
    counts, examples = Counter[tuple[str, str]](), dict[tuple[str, str], tuple[int, int]]()
    for label, taken, row, other in pairs:
        if label != taken:
            counts[label, taken] += 1
            examples.setdefault((label, taken), (row, other))
    return [Mistake(*pair, count, *examples[pair]) for pair, count in counts.most_common(MISTAKES)]


def nearest_mistakes(view: SplitView, others: SplitView | None = None) -> list[Mistake]:
    """Of the sampled pictures, whose nearest (other) one is of another class; nothing without labels."""
    found, rows, among = view.found, sampled(view.found), view.found if others is None else others.found
    if found.labels is None or among.labels is None or (others is None and len(rows) < 2):
        return []
    best = search(found.features[rows], among.features, top=2).indices
    itself = (best[:, 0] == torch.tensor(rows)) & (others is None)
    near = torch.where(itself, best[:, -1], best[:, 0]).tolist()
    own, other = found.labels.tolist(), among.labels.tolist()
    return mistakes_of(
        (class_name(found, own[row]), class_name(among, other[place]), row, place)
        for row, place in zip(rows, near, strict=True)
    )


def nearest_sections(view: SplitView, among: SplitView | None = None) -> list[Section]:
    """The worst confusions of nearest neighbours, with examples; nothing without labels or mistakes."""
    told = f"Pictures whose nearest one is of another class, among {len(sampled(view.found)):,} pictures."
    return mistake_sections(view, among or view, nearest_mistakes(view, among), told=told, other="its nearest")


def mistake_sections(
    view: SplitView, others: SplitView, mistakes: Sequence[Mistake], *, told: str, other: str
) -> list[Section]:
    """A table of confusions, and of the first ones a picture beside what it was taken for."""
    if not mistakes:
        return []
    rows = [[each.label, each.taken, each.images] for each in mistakes]
    pictures = [
        [_example(view, each.row, each.label), _example(others, each.other, each.taken, "wrong")]
        for each in mistakes[:EXAMPLES]
    ]
    return [
        table("Worst confusions", ("class", "taken for", "pictures"), rows, told=told),
        gallery("Confusions in pictures", pictures, columns=("a picture", other), told="One example of each pair."),
    ]


def _example(view: SplitView, row: int, label: str, mark: str = "") -> Picture:
    picture, name = view.picture(row), file_name(view.found.identifiers[row])
    source = None if picture is None else address(picture, side=EXAMPLE_SIDE)
    return Picture(source, name if name.startswith(label) else f"{label} · {name}", mark)


def unreadable_section(reasons: list[str], *, title: str = "Unreadable files") -> list[Section]:
    """What could not be read, and why; nothing where all could."""
    told = f"{len(reasons):,} pictures could not be read; they were left out, or replaced in training."
    return [table(title, ("why",), [[reason] for reason in reasons], told=told)] if reasons else []
