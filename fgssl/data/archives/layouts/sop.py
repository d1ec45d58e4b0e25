"""Stanford Online Products: 22,634 products of 12 kinds; those of train and of test have no class in common."""

from __future__ import annotations

from fgssl.data.archives.layout import Contents, Count, Layout, Split
from fgssl.data.archives.lists import Lists
from fgssl.registry import ARCHIVES

_COLUMN = {"product": "class_id", "kind": "super_class_id"}


def read(lists: Lists, level: str) -> Contents:
    """Ebay_{train,test}.txt: a head, then image_id class_id super_class_id path."""
    found = {split: _rows(lists, f"Ebay_{split}.txt", _COLUMN[level]) for split in ("train", "test")}
    names = sorted({name for rows in found.values() for _, name in rows}, key=int)
    if level == "kind":  # the folders are named after them: bicycle_final
        kinds = {name: path.partition("/")[0].removesuffix("_final") for rows in found.values() for path, name in rows}
    row = {name: place for place, name in enumerate(names)}
    splits = {
        split: Split([path for path, _ in rows], [row[name] for _, name in rows]) for split, rows in found.items()
    }
    return Contents(splits, [kinds[name] for name in names] if level == "kind" else names)


def _rows(lists: Lists, name: str, column: str) -> list[tuple[str, str]]:
    """Path and class of each image."""
    head, *rows = lists.rows(name, 4)
    if column not in head or "path" not in head:
        raise lists.wrong(f"the first line of {name} does not name {column} and path")
    place, path = head.index(column), head.index("path")
    for row in rows:
        lists.number(row[place], name)
    return [(row[path], row[place]) for row in rows]


ARCHIVES.register("sop")(
    Layout(
        title="Stanford Online Products",
        marks=("Ebay_train.txt", "Ebay_test.txt"),
        read=read,
        train="train",
        test="test",
        counts={"train": [Count(59_551, 11_318)], "test": [Count(60_502, 11_316)]},
        citation="Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, 2016",
        address="https://cvgl.stanford.edu/projects/lifted_struct/",
        levels=tuple(_COLUMN),
    )
)
