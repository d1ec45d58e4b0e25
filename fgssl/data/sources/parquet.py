"""Tables on disk: a parquet file, a folder of parquet shards, a folder written by `save_to_disk`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import datasets

from fgssl.config.schema import DataConfig
from fgssl.data.sources.quiet import quiet_datasets
from fgssl.data.sources.shards import shards_by_split
from fgssl.data.sources.table import TableImages, table_images
from fgssl.errors import FgsslError
from fgssl.runtime.text import shown

_Result = TypeVar("_Result")


class ParquetSource:
    """Parquet files; the split of each is read from its name ("train-00000-of-00002.parquet").

    A file whose name (or folder below the source) starts with no split's name belongs to "all".

    Args:
        data: The source and its column options.
        path: A parquet file, or a folder of them.
    """

    def __init__(self, data: DataConfig, path: str) -> None:
        self._data = data
        self._files = shards_by_split(path)

    def splits(self) -> tuple[str, ...]:
        return tuple(self._files)

    def load(self, split: str) -> TableImages:
        """Opens one split. Raises FgsslError where a file is no parquet or holds no images."""

        def read() -> dict[str, datasets.Dataset]:
            # keys are not the split names: "all" means something else to `datasets`
            files = {f"part{number}": names for number, names in enumerate(self._files.values())}
            return dict(datasets.load_dataset("parquet", data_files=files))

        with quiet_datasets():
            parts = _readable(read, self._data.source)
        splits = dict(zip(self._files, parts.values(), strict=True))
        return table_images(splits, split, self._data)


class SavedSource:
    """A folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`.

    Args:
        data: The source and its column options.
        path: The folder.
    """

    def __init__(self, data: DataConfig, path: str) -> None:
        self._data = data
        saved = _readable(lambda: datasets.load_from_disk(path), data.source)
        self._splits = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"all": saved}

    def splits(self) -> tuple[str, ...]:
        return tuple(self._splits)

    def load(self, split: str) -> TableImages:
        return table_images(self._splits, split, self._data)


def _readable(read: Callable[[], _Result], source: str) -> _Result:
    try:
        return read()
    except Exception as error:  # pyarrow and datasets raise many kinds on a broken table
        cause = error.__cause__ or error
        lines = str(cause).strip().splitlines()
        raise FgsslError(
            f"cannot read the table {source} ({shown(lines[0]) if lines else type(cause).__name__})",
            "check that it is complete parquet, or a folder written by save_to_disk, with one set of columns",
        ) from error
