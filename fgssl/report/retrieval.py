"""Pages of `fgssl retrieve`: scores with their intervals and what was taken for what, or queries with their hits."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from fgssl.data.decoding import decode_image
from fgssl.drawing.figures import MATCH_WORDS, looked_words
from fgssl.drawing.maps import with_parts
from fgssl.encoder import LOOKS
from fgssl.errors import UnreadableImage
from fgssl.evaluation.explain import shown
from fgssl.evaluation.looks import decided_by
from fgssl.evaluation.retrieval.metrics import DEFINITIONS, definition
from fgssl.evaluation.retrieval.scored import Scored, Side
from fgssl.evaluation.retrieval.search import Compared, Hit, Lookup, Result, compared
from fgssl.report.page import page
from fgssl.report.pictures import address
from fgssl.report.sections import Picture, Section, facts, file_name, gallery, table
from fgssl.report.split import SplitView, from_files, map_section, nearest_sections, reader, unreadable_section

QUERIES, HITS, SIDE = 40, 12, 136  # the most that a page shows, and the side of a picture in pixels
METRICS = ("rank1", "rank5", "rank10", "mAP", "mAP_at_R", "r_precision")


def _origin(scored: Scored, name: str) -> str:
    return "of the protocol" if scored.named is not None and name in scored.named.metrics else "of a plugin"


def scored_page(scored: Scored, checkpoint: str) -> str:
    """Metrics, a map of the queries, and the classes whose pictures lie nearest each other."""
    result, values, intervals = scored.result, scored.result.to_dict(), scored.result.intervals()
    names = METRICS if scored.named is None else [name for name in scored.named.metrics if name in values]
    rows = [[name, values[name], _span(intervals[name]), values[f"macro_{name}"], _span(intervals[f"macro_{name}"]),
             definition(name)] for name in names]  # fmt: skip
    rows += [[name, value, None, None, None, _origin(scored, name)] for name, value in scored.added.items()]
    columns = ("metric", "mean", "95 % interval", "class mean", "95 % interval", "what it is")
    sizes = {"queries": result.queries, "gallery": result.gallery, "lone queries": result.lone_queries}
    known = {"encoder": checkpoint, "data": scored.data, "search": scored.protocol, "pooling": scored.pool, **sizes}
    if scored.named is not None:
        known |= {"definition": scored.named.definition, "source": scored.named.source}
    view = _view(scored.queries, scored.pool)
    searched = None if scored.gallery is None else _view(scored.gallery, scored.pool)
    return page(
        "Retrieval",
        [
            facts("Summary", {name: value for name, value in known.items() if value is not None}),
            table("Scores", columns, rows, told="In percent.", after=DEFINITIONS["intervals"]),
            map_section(view, title="Map of the queries"),
            *nearest_sections(view, searched),
            *unreadable_section([fault.reason for fault in scored.queries.embeddings.faults]),
        ],
        subtitle=f"{checkpoint} on {scored.data}",
    )


def lookup_page(found: Lookup, checkpoint: str) -> str:
    """Each query with its hits, best first, and all of them in a table."""
    searched, results, subject = found.searcher.gallery, found.results[:QUERIES], found.searcher.subject
    rows = [_hits_row(found, result) for result in results]
    left_out = len(found.results) - len(results)
    told = f"Each query with its hits, best first. {searched.images:,} pictures were searched by"
    told += f" {subject.pool} pooling; scores are cosines."
    if subject.pool in LOOKS:
        told += f" {looked_words(subject.pool, decided_by(subject.encoder, subject.pool))}. {MATCH_WORDS}."
    told += f" {left_out:,} more queries are in the table alone." if left_out else ""
    cells = [[result.name, *hit] for result in found.results for hit in result.hits]
    sections: list[Section] = [
        gallery("Hits", rows, told=told),
        table("All hits", ("query", "rank", "score", "file", "class"), cells),
        *unreadable_section(searched.faults),
    ]
    return page("Search", sections, subtitle=f"{checkpoint} in {searched.name}")


def _hits_row(found: Lookup, result: Result) -> list[Picture]:
    """A query and its hits; what was looked at again is outlined, and numbered by what is alike."""
    subject, hits = found.searcher.subject, result.hits[:HITS]
    pictures = [_decoded(result.name), *map(found.searcher.gallery.picture, result.found[:HITS])]
    seen: list[Compared] = [Compared()] * len(pictures)
    if subject.pool in LOOKS and pictures[0] is not None:
        seen = compared(subject, pictures)
        pictures = [
            None if picture is None else with_parts(shown(subject.encoder, picture, size=2 * SIDE), each.parts)
            for picture, each in zip(pictures, seen, strict=True)
        ]
    own = Picture(_address(pictures[0]), f"query: {file_name(result.name)}")
    others = zip(pictures[1:], hits, seen[1:], strict=True)
    return [own, *(Picture(_address(picture), _caption(hit, each)) for picture, hit, each in others)]


def _view(side: Side, pool: str | None) -> SplitView:
    if side.images is None or side.subject is None:
        return from_files(side.embeddings, pool)
    subject = side.subject
    return reader(subject.encoder, side.images, side.embeddings, subject.pool, subject.cache)


def _span(interval: tuple[float, float, float]) -> str:
    return f"{interval[1]:.2f} to {interval[2]:.2f}"


def _caption(hit: Hit, seen: Compared) -> str:
    name, whole = file_name(hit.path), "" if seen.whole is None else f"whole {seen.whole:.2f} · "
    return f"{hit.score:.2f} · {whole}" + (
        name if hit.label is None or name.startswith(hit.label) else f"{hit.label} · {name}"
    )


def _decoded(path: str) -> Image.Image | None:
    try:
        return decode_image(Path(path), 4 * SIDE)
    except UnreadableImage:
        return None


def _address(picture: Image.Image | None) -> str | None:
    return None if picture is None else address(picture, side=SIDE)
