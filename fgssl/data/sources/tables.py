"""Images that are rows of tables, decoded on access: parquet files, and folders written by `save_to_disk`."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import datasets
import pyarrow.parquet as pq

from fgssl.config.schema import DataConfig
from fgssl.data.images import About, ImageSet, Remark
from fgssl.data.sources.columns import find_image_column, find_label_column, read_labels
from fgssl.data.sources.listing import some
from fgssl.errors import FgsslError, UnreadableImage
from fgssl.runtime.reporting import told_bars
from fgssl.runtime.text import shown

Tables = Mapping[str, Sequence[datasets.Dataset]]
"""The tables of each split, in order: several where their columns have different types."""


class TableImages(ImageSet):
    """An `ImageSet` of the rows of memory-mapped tables, one after the other, whose images are in one column."""

    def __init__(
        self, source: str, split: str, about: About, *, tables: Sequence[datasets.Dataset], column: str
    ) -> None:
        super().__init__(source, split, about)
        # undecoded: decoding belongs to the workers, and a corrupt row must be named, not raised by the reader
        kept = [table.select_columns([column]).cast_column(column, datasets.Image(decode=False)) for table in tables]
        self._rows = datasets.concatenate_datasets(kept)
        self._identity = f"{'+'.join(table._fingerprint for table in tables)}:{len(self._rows)}:{column}"
        self._column = column

    def __len__(self) -> int:
        return len(self._rows)

    def content(self, index: int) -> bytes | str:
        named = f"unreadable image {self.identifier(index)}"
        try:
            stored = self._rows[index][self._column]
        except IndexError:
            raise
        except Exception as error:  # the table's file was cut off or has vanished
            reason = f"its row cannot be read ({shown(str(error))})"
            raise UnreadableImage(f"{named}: {reason}", "load the data set anew") from error
        content = None if stored is None else stored["bytes"] if stored["bytes"] is not None else stored["path"]
        if content is None:
            raise UnreadableImage(f"{named}: the row holds no image", "replace or remove it")
        if not isinstance(content, (bytes, str)):
            raise UnreadableImage(f"{named}: the row holds a {type(content).__name__}", "replace it")
        return content

    def fingerprint(self) -> str:
        return hashlib.blake2b(self._identity.encode(), digest_size=16).hexdigest()


def table_images(splits: Tables, split: str, data: DataConfig, *, remarks: Sequence[Remark] = ()) -> TableImages:
    """One split as images, its labels mapped the same way for all splits; `remarks` are those on the source.

    Raises FgsslError where it is empty, has no image column, or its labels cannot be matched with the others'.
    """
    tables = splits[split]
    if not sum(map(len, tables)):
        raise FgsslError(f"the split {split!r} of {data.source} is empty", "choose another split")
    image = find_image_column(tables[0].features, data.image_column, source=data.source)
    for table in tables[1:]:
        find_image_column(table.features, image.name, source=data.source)
    every = {name: kind for name in splits for table in splits[name] for name, kind in table.features.items()}
    label = find_label_column({**every, **tables[0].features}, data.label_column, source=data.source)
    about = About(unlabelled=f"no column is named like one of classes: {', '.join(map(shown, every))}")
    taken = [image.remark]
    if label is not None:
        about = read_labels(splits, label.name, source=data.source)[split]
        taken.append(label.remark)
    heard = (*remarks, *(Remark("note", f"{data.source}: {text}") for text in taken if text))
    return TableImages(data.source, split, about._replace(remarks=heard), tables=tables, column=image.name)


def parquet_images(
    shards: Mapping[str, Sequence[str]], split: str, data: DataConfig, *, strays: Sequence[bytes]
) -> TableImages:
    """One split of shards; pictures that lie beside the files (`strays`) are left out."""
    with quiet_datasets(), _readable(data.source):
        tables = {name: _read_parquet(files) for name, files in shards.items()}
    remarks = []
    if strays:
        text = f"{data.source}: its parquet files are the data; pictures beside them are left out: {some(strays)}"
        remarks.append(Remark("warning", text))
    if len(shards) > 1 and "all" in shards:
        text = f"{data.source}: files named like no split are the split 'all': {some(shards['all'])}"
        remarks.append(Remark("note", text))
    return table_images(tables, split, data, remarks=remarks)


def _read_parquet(files: Sequence[str]) -> list[datasets.Dataset]:
    """A table for each run of files with the same types: `datasets` would give all of them the types of the first."""
    groups = itertools.groupby(files, key=parquet_features)
    # the key is not the split's name: "all" means something else to `datasets`
    return [datasets.load_dataset("parquet", data_files={"part": list(same)}, split="part") for _, same in groups]


def parquet_features(file: str) -> datasets.Features:
    """The types of a parquet file's columns, the names of its classes included."""
    return datasets.Features.from_arrow_schema(pq.read_schema(file))


def saved_tables(path: str, source: str) -> Tables:
    """The splits of a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    with _readable(source):
        saved = datasets.load_from_disk(path)
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"all": saved}
    return {name: [table] for name, table in splits.items()}


@contextmanager
def _readable(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # pyarrow and datasets raise many kinds on a broken table
        cause = error.__cause__ or error
        lines = str(cause).strip().splitlines()
        raise FgsslError(
            f"cannot read the table {source} ({shown(lines[0]) if lines else type(cause).__name__})",
            "check that it is complete parquet, or a folder written by save_to_disk, with one set of columns",
        ) from error


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Bars of downloads and conversions go to the listener; what is logged is routine, or comes again as an error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with told_bars():
            yield
    finally:
        logging.disable(before)
