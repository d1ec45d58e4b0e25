"""Images that are rows of a table (hub data sets, parquet, save_to_disk folders), decoded on access."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import datasets
import numpy as np
from numpy.typing import NDArray

from fgssl.config.schema import DataConfig
from fgssl.data.decoding.decode import Examined, decode_image, examine_image
from fgssl.data.sources.columns import find_image_column, find_label_column, read_labels
from fgssl.errors import FgsslError, UnreadableImage
from fgssl.runtime.text import shown

if TYPE_CHECKING:
    from PIL.Image import Image


class TableImages:
    """An `ImageSet` of the rows of a memory-mapped table.

    Args:
        source: The source as the user wrote it.
        split: The split's name.
        rows: The table; only the image column is kept, undecoded.
        image_column: The column of the images.
        labels: Class ids (N,), or None.
        class_names: Name of every class id, or None.
    """

    def __init__(
        self,
        source: str,
        split: str,
        *,
        rows: datasets.Dataset,
        image_column: str,
        labels: NDArray[np.int64] | None = None,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        self.source = source
        self.split = split
        self.labels = labels
        self.class_names = class_names
        self._identity = f"{rows._fingerprint}:{len(rows)}:{image_column}"
        # undecoded: decoding belongs to the workers, and a corrupt row must be named, not raised by the reader
        self._rows = rows.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
        self._column = image_column

    def __len__(self) -> int:
        return len(self._rows)

    def identifier(self, index: int) -> str:
        return f"{self.source}[{self.split}]#{index}"

    def load(self, index: int, min_side: int | None = None) -> Image:
        return decode_image(self._content(index), min_side, name=self.identifier(index))

    def examine(self, index: int, min_side: int | None = None) -> Examined:
        return examine_image(self._content(index), min_side, name=self.identifier(index))

    def _content(self, index: int) -> bytes | str:
        """The encoded picture, or the path of its file."""
        name = self.identifier(index)
        try:
            stored = self._rows[index][self._column]
        except IndexError:
            raise
        except Exception as error:  # the table's file was cut off or has vanished
            reason = f"its row cannot be read ({shown(str(error))})"
            raise UnreadableImage(f"unreadable image {name}: {reason}", "load the data set anew") from error
        content = None if stored is None else stored["bytes"] if stored["bytes"] is not None else stored["path"]
        if content is None:
            raise UnreadableImage(f"unreadable image {name}: the row holds no image", "replace or remove it")
        if not isinstance(content, (bytes, str)):
            raise UnreadableImage(f"unreadable image {name}: the row holds a {type(content).__name__}", "replace it")
        return content

    def fingerprint(self) -> str:
        """Hash of the table's own fingerprint, its length and the column's name."""
        return hashlib.blake2b(self._identity.encode(), digest_size=16).hexdigest()


def table_images(splits: dict[str, datasets.Dataset], split: str, data: DataConfig) -> TableImages:
    """One split as images, its labels mapped the same way for all splits.

    Args:
        splits: All splits of the source.
        split: The one wanted.
        data: Source and column options.

    Raises:
        FgsslError: The split is empty, or has no image column.
    """
    rows = splits[split]
    if not len(rows):
        raise FgsslError(f"the split {split!r} of {data.source} is empty", "choose another split")
    image_column = find_image_column(rows.features, data.image_column, source=data.source)
    label_column = find_label_column(rows.features, data.label_column, source=data.source)
    if label_column is None:
        return TableImages(data.source, split, rows=rows, image_column=image_column)
    found = read_labels(splits, label_column)
    labels = found.ids[split]
    return TableImages(
        data.source,
        split,
        rows=rows,
        image_column=image_column,
        labels=labels,
        class_names=None if labels is None else found.class_names,
    )
