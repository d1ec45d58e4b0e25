"""Data sets of the Hugging Face hub, by their id; what goes wrong with one becomes one line with a remedy."""

from __future__ import annotations

import difflib
import errno
import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

import datasets
from datasets.packaged_modules.parquet.parquet import Parquet

from fgssl.config.schema import DataConfig
from fgssl.data.sources.presets import PRESETS
from fgssl.data.sources.tables import TableImages, parquet_features, quiet_datasets, table_images
from fgssl.errors import FgsslError
from fgssl.runtime.offline import hub_or_cache
from fgssl.runtime.text import shown

_OFFLINE_TYPES = frozenset({"ConnectionError", "OfflineModeIsEnabled", "ConnectError", "TimeoutException"})
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_Answer = TypeVar("_Answer")


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
        return self._asked(_split_names)

    def load(self, split: str) -> TableImages:
        """Downloads if needed and opens one split. Raises FgsslError as `splits`."""
        splits = self._asked(_all_splits)
        if split not in splits:
            raise FgsslError(f"{self._data.source} has no split {split!r}", f"its splits are: {', '.join(splits)}")
        return table_images({name: [table] for name, table in splits.items()}, split, self._data)

    def _asked(self, question: Callable[[str, str | None, str | None], _Answer]) -> _Answer:
        try:
            with quiet_datasets(), hub_or_cache():
                return question(*self._key)
        except Exception as error:
            raise hub_error(error, self._data, self._key[0]) from error


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
    if isinstance(builder, Parquet):
        builder._split_generators = functools.partial(_with_one_type, builder, builder._split_generators, hub_id)
    # sizes on cards are often stale; a download that was cut off is found by its own length and hash, not by them
    builder.download_and_prepare(verification_mode="no_checks")
    return dict(builder.as_dataset())


def _with_one_type(builder: Any, make: Callable[[Any], Any], hub_id: str, manager: Any) -> Any:
    """The builder's own list of files, refused where class ids of one file mean other names than the builder's."""
    generators = make(manager)
    for file in (file for generator in generators for file in generator.gen_kwargs["files"]):
        for column, feature in parquet_features(file).items():
            names = getattr(feature, "names", None)
            if names and getattr(builder.info.features.get(column), "names", names) != names:
                raise FgsslError(
                    f"the class names of the column {column!r} differ between the files of {hub_id}",
                    "ids would be read with the wrong names: download its parquet files and give the folder",
                )
    return generators


def _split_names(hub_id: str, subset: str | None, revision: str | None) -> tuple[str, ...]:
    builder = _builder(hub_id, subset, revision)
    known = builder.info.splits or getattr(builder.config, "data_files", None)
    return tuple(str(name) for name in (known or _all_splits(hub_id, subset, revision)))


def hub_error(error: Exception, data: DataConfig, hub_id: str) -> FgsslError:
    """The one line for an exception of `datasets` or `huggingface_hub`; an FgsslError is returned as it is.

    Args:
        error: What was raised.
        data: The source and its options.
        hub_id: The id on the hub.
    """
    if isinstance(error, FgsslError):
        return error
    chain = _chain(error)
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    words = " ".join(str(link) for link in chain)
    named = hub_id if data.source == hub_id else f"{data.source} ({hub_id})"
    subsets = re.search(r"(?:BuilderConfig '.*' not found\. Available|available configs): (\[.*?\])", words)
    lacking = f"has no subset {data.subset!r}" if data.subset else "has several subsets"
    cases = (
        (
            "GatedRepoError" in names or "gated dataset" in words,
            f"the hub data set {named} is gated",
            f"accept its terms at https://huggingface.co/datasets/{hub_id}, then {_LOG_IN}",
        ),
        (
            "RevisionNotFoundError" in names or re.search(r"Revision '.*' doesn't exist", words),
            f"the hub data set {named} has no revision {data.revision!r}",
            "give one its history has",
        ),
        (
            names & {"RepositoryNotFoundError", "HFValidationError"} or "doesn't exist on the Hub" in words,
            f"no hub data set {named}, and no local path of that name",
            f"{_near(hub_id)}check the spelling; if it is private, {_LOG_IN}; for a folder give a path that exists",
        ),
        (
            "Dataset scripts are no longer supported" in words or "trust_remote_code" in words,
            f"the hub data set {named} is a script, and code of data sets is never run",
            "choose a copy stored as parquet, or download the images and give the folder",
        ),
        (
            subsets,
            f"the hub data set {named} {lacking}",
            "--set data.subset=NAME, one of: " + ", ".join(re.findall(r"'([^']*)'", subsets[1] if subsets else "")),
        ),
        (
            "Couldn't find cache for" in words and data.subset,
            f"subset {data.subset!r} of {named} is not in the cache, and the hub is offline",
            "go online",
        ),
        (
            names & {"EmptyDatasetError", "DataFilesNotFoundError"},
            f"the hub data set {named} holds no data files",
            "choose another data set",
        ),
        (
            names & {"DatasetGenerationError", "ArrowInvalid"},
            f"the hub data set {named} has a damaged or inconsistent file ({shown(words)[-160:]})",
            "try another revision, or delete its cached download and try again",
        ),
        (
            any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in chain),
            f"the disk is full while downloading {named}",
            "free some space or set HF_HOME elsewhere",
        ),
        (
            names & _OFFLINE_TYPES,
            f"the hub cannot be reached and {named} is not in the cache",
            "go online once to download it (unset HF_HUB_OFFLINE if set), or give a local folder; "
            "the demo set works offline",
        ),
    )
    reason = f"{type(error).__name__}: {shown((str(error).strip().splitlines() or [''])[0])[:200]}"
    other = (f"cannot load the hub data set {named} ({reason})", "try again later, or download it and give the folder")
    return FgsslError(*next((told for applies, *told in cases if applies), other))


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain and len(chain) < 20:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _near(hub_id: str) -> str:
    ids = {preset.hub_id.lower(): f"{preset.name} ({preset.hub_id})" for preset in PRESETS.values()}
    tails = {key.split("/")[1]: named for key, named in ids.items()} | {name: name for name in PRESETS}
    close = difflib.get_close_matches(hub_id.lower(), ids, n=1, cutoff=0.7)
    if close:
        return f"did you mean {ids[close[0]]}? Otherwise "
    close = difflib.get_close_matches(hub_id.lower().rsplit("/", 1)[-1], tails, n=1, cutoff=0.7)
    return f"did you mean {tails[close[0]]}? Otherwise " if close else ""
