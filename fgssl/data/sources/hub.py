"""Data sets of the Hugging Face hub, by their id; what goes wrong with one becomes one line with a remedy.

They are downloaded on first use to the cache `datasets` keeps (HF_HOME). Code that one brings along is never run.
"""

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


class Unavailable(FgsslError):
    """The hub answers, and does not give this data set: renamed, gated, a script, of several subsets, empty."""


_OFFLINE_TYPES = frozenset({"ConnectionError", "OfflineModeIsEnabled", "ConnectError", "TimeoutException"})
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_Answer = TypeVar("_Answer")


def split_names(data: DataConfig, hub_id: str) -> tuple[str, ...]:
    """Names of the splits; without downloading images where the data set's card tells them. Raises FgsslError."""
    return _asked(_split_names, data, hub_id)


def load_split(data: DataConfig, hub_id: str, split: str) -> TableImages:
    """Downloads if needed and opens one split. Raises FgsslError as `split_names`."""
    splits = _asked(_all_splits, data, hub_id)
    if split not in splits:
        raise FgsslError(f"{data.source} has no split {split!r}", f"its splits are: {', '.join(splits)}")
    return table_images({name: [table] for name, table in splits.items()}, split, data)


def _asked(question: Callable[[str, str | None, str | None], _Answer], data: DataConfig, hub_id: str) -> _Answer:
    try:
        with quiet_datasets(), hub_or_cache():
            return question(hub_id, data.subset, data.revision)
    except FgsslError:
        raise
    except Exception as error:
        raise _hub_error(error, data, hub_id) from error


# One process asks for train, test and the split names in turn: the hub is asked once. The builder is what
# `load_dataset` makes; kept, because a second call would wait for an unreachable hub a second time.
@functools.lru_cache(maxsize=4)
def _builder(hub_id: str, subset: str | None, revision: str | None) -> datasets.DatasetBuilder:
    builder = datasets.load_dataset_builder(hub_id, subset, revision=revision)
    from_cache = type(builder).__module__.startswith("datasets.packaged_modules.cache")
    if from_cache and revision is not None and not str(builder.hash).startswith(revision):
        problem = f"the hub cannot be reached and the cached copy of {hub_id} is not known to be revision {revision!r}"
        raise FgsslError(problem, f"go online, or give the cached one: --set data.revision={builder.hash}")
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
                problem = f"the class names of the column {column!r} differ between the files of {hub_id}"
                remedy = "ids would be read with the wrong names: download its parquet files and give the folder"
                raise FgsslError(problem, remedy)
    return generators


def _split_names(hub_id: str, subset: str | None, revision: str | None) -> tuple[str, ...]:
    builder = _builder(hub_id, subset, revision)
    known = builder.info.splits or getattr(builder.config, "data_files", None)
    return tuple(str(name) for name in (known or _all_splits(hub_id, subset, revision)))


def _hub_error(error: Exception, data: DataConfig, hub_id: str) -> FgsslError:
    """The one line for an exception of `datasets` or `huggingface_hub`."""
    chain = _chain(error)
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    words = " ".join(str(link) for link in chain)
    named = hub_id if data.source == hub_id else f"{data.source} ({hub_id})"
    known = f"the hub data set {named}"
    if "GatedRepoError" in names or "gated dataset" in words:
        terms = f"accept its terms at https://huggingface.co/datasets/{hub_id}"
        return Unavailable(f"{known} is gated", f"{terms}, then {_LOG_IN}")
    if "RevisionNotFoundError" in names or re.search(r"Revision '.*' doesn't exist", words):
        return FgsslError(f"{known} has no revision {data.revision!r}", "give one its history has")
    if names & {"RepositoryNotFoundError", "HFValidationError"} or "doesn't exist on the Hub" in words:
        advice = f"check the spelling; if it is private, {_LOG_IN}; for a folder give a path that exists"
        return Unavailable(f"no hub data set {named}, and no local path of that name", f"{_near(hub_id)}{advice}")
    if "Dataset scripts are no longer supported" in words or "trust_remote_code" in words:
        advice = "choose a copy stored as parquet, or download the images and give the folder"
        return Unavailable(f"{known} is a script, and code of data sets is never run", advice)
    if subsets := re.search(r"(?:BuilderConfig '.*' not found\. Available|available configs): (\[.*?\])", words):
        lacking = f"has no subset {data.subset!r}" if data.subset else "has several subsets"
        listed = ", ".join(re.findall(r"'([^']*)'", subsets[1]))
        return FgsslError(f"{known} {lacking}", f"--set data.subset=NAME, one of: {listed}")
    if "Couldn't find cache for" in words and data.subset:
        return FgsslError(f"subset {data.subset!r} of {named} is not in the cache, and the hub is offline", "go online")
    if names & {"EmptyDatasetError", "DataFilesNotFoundError"}:
        return Unavailable(f"{known} holds no data files", "choose another data set")
    if names & {"DatasetGenerationError", "ArrowInvalid"}:
        advice = "try another revision, or delete its cached download and try again"
        return FgsslError(f"{known} has a damaged or inconsistent file ({shown(words)[-160:]})", advice)
    if any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in chain):
        return FgsslError(f"the disk is full while downloading {named}", "free some space or set HF_HOME elsewhere")
    if names & _OFFLINE_TYPES:
        advice = "go online once to download it (unset HF_HUB_OFFLINE if set), or give a local folder"
        problem = f"the hub cannot be reached and {named} is not in the cache"
        return FgsslError(problem, f"{advice}; the demo set works offline")
    reason = f"{type(error).__name__}: {shown((str(error).strip().splitlines() or [''])[0])[:200]}"
    return FgsslError(f"cannot load {known} ({reason})", "try again later, or download it and give the folder")


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
    for wanted, known in ((hub_id.lower(), ids), (hub_id.lower().rsplit("/", 1)[-1], tails)):
        if close := difflib.get_close_matches(wanted, known, n=1, cutoff=0.7):
            return f"did you mean {known[close[0]]}? Otherwise "
    return ""
