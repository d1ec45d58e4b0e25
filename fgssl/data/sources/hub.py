"""Data sets of the Hugging Face hub, by their id."""

from __future__ import annotations

import functools

import datasets

from fgssl.config.schema import DataConfig
from fgssl.data.sources.hub_errors import hub_error
from fgssl.data.sources.quiet import quiet_datasets
from fgssl.data.sources.table import TableImages, table_images
from fgssl.errors import FgsslError
from fgssl.runtime.offline import hub_or_cache


class HubSource:
    """One hub data set, downloaded on first use to the cache `datasets` keeps (HF_HOME).

    Code that a data set brings along is never run.

    Args:
        data: Source, subset, revision and column options; columns of a preset already filled in.
        hub_id: "owner/name".
    """

    def __init__(self, data: DataConfig, hub_id: str) -> None:
        self._data = data
        self._key = (hub_id, data.subset, data.revision)

    def splits(self) -> tuple[str, ...]:
        """Names of the splits; without downloading images where the data set's card tells them.

        Raises:
            FgsslError: Missing, gated, unreachable, or otherwise not loadable; one line with the remedy.
        """
        try:
            with quiet_datasets(), hub_or_cache():
                return _split_names(*self._key)
        except Exception as error:
            raise hub_error(error, self._data, self._key[0]) from error

    def load(self, split: str) -> TableImages:
        """Downloads if needed and opens one split. Raises FgsslError as `splits`."""
        try:
            with quiet_datasets(), hub_or_cache():
                splits = _all_splits(*self._key)
        except Exception as error:
            raise hub_error(error, self._data, self._key[0]) from error
        if split not in splits:
            raise FgsslError(f"{self._data.source} has no split {split!r}", f"its splits are: {', '.join(splits)}")
        return table_images(splits, split, self._data)


# One process asks for train, test and the split names in turn: the hub is asked once. The builder is what
# `load_dataset` makes; kept, because a second call would wait for an unreachable hub a second time.
@functools.lru_cache(maxsize=4)
def _builder(hub_id: str, subset: str | None, revision: str | None) -> datasets.DatasetBuilder:
    builder = datasets.load_dataset_builder(hub_id, subset, revision=revision)
    from_cache = type(builder).__module__.startswith("datasets.packaged_modules.cache")
    if from_cache and revision is not None and not str(builder.hash).startswith(revision):
        raise FgsslError(
            f"the hub cannot be reached and the cached copy of {hub_id} is not known to be revision {revision!r}",
            f"go online, or give the cached one: --set data.revision={builder.hash}",
        )
    return builder


@functools.lru_cache(maxsize=4)
def _all_splits(hub_id: str, subset: str | None, revision: str | None) -> dict[str, datasets.Dataset]:
    builder = _builder(hub_id, subset, revision)
    # sizes on cards are often stale; a download that was cut off is found by its own length and hash, not by them
    builder.download_and_prepare(verification_mode="no_checks")
    return dict(builder.as_dataset())


def _split_names(hub_id: str, subset: str | None, revision: str | None) -> tuple[str, ...]:
    builder = _builder(hub_id, subset, revision)
    known = builder.info.splits or getattr(builder.config, "data_files", None)
    return tuple(str(name) for name in (known or _all_splits(hub_id, subset, revision)))
