"""What went wrong with a hub data set, in one line with a remedy."""

from __future__ import annotations

import difflib
import errno
import re

from fgssl.config.schema import DataConfig
from fgssl.data.sources.presets import PRESETS
from fgssl.errors import FgsslError
from fgssl.runtime.text import shown

_OFFLINE_TYPES = frozenset({"ConnectionError", "OfflineModeIsEnabled", "ConnectError", "TimeoutException"})
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def hub_error(error: Exception, data: DataConfig, hub_id: str) -> FgsslError:
    """The one line for an exception of `datasets` or `huggingface_hub`.

    Args:
        error: What was raised.
        data: The source and its options.
        hub_id: The id on the hub.

    Returns:
        The error to raise; an FgsslError is returned as it is.
    """
    if isinstance(error, FgsslError):
        return error
    chain = _chain(error)
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    words = " ".join(str(link) for link in chain)
    named = hub_id if data.source == hub_id else f"{data.source} ({hub_id})"
    return (
        _access(words, names, named, hub_id, data)
        or _content(words, names, named, data)
        or _surroundings(chain, names, named)
        or FgsslError(
            f"cannot load the hub data set {named} ({type(error).__name__}: {_first_line(error)})",
            "try again later, or download it and give the folder",
        )
    )


def _access(words: str, names: set[str], named: str, hub_id: str, data: DataConfig) -> FgsslError | None:
    if "GatedRepoError" in names or "gated dataset" in words:
        return FgsslError(
            f"the hub data set {named} is gated",
            f"accept its terms at https://huggingface.co/datasets/{hub_id}, then {_LOG_IN}",
        )
    if "RevisionNotFoundError" in names or re.search(r"Revision '.*' doesn't exist", words):
        return FgsslError(f"the hub data set {named} has no revision {data.revision!r}", "give one its history has")
    if names & {"RepositoryNotFoundError", "HFValidationError"} or "doesn't exist on the Hub" in words:
        near = _near(hub_id)
        return FgsslError(
            f"no hub data set {named}, and no local path of that name",
            f"{near}check the spelling; if it is private, {_LOG_IN}; for a folder give a path that exists",
        )
    if "Dataset scripts are no longer supported" in words or "trust_remote_code" in words:
        return FgsslError(
            f"the hub data set {named} is a script, and code of data sets is never run",
            "choose a copy stored as parquet, or download the images and give the folder",
        )
    return None


def _content(words: str, names: set[str], named: str, data: DataConfig) -> FgsslError | None:
    subsets = re.search(r"(?:BuilderConfig '.*' not found\. Available|available configs): (\[.*?\])", words)
    if subsets:
        listed = ", ".join(re.findall(r"'([^']*)'", subsets[1]))
        lacking = f"has no subset {data.subset!r}" if data.subset else "has several subsets"
        return FgsslError(f"the hub data set {named} {lacking}", f"--set data.subset=NAME, one of: {listed}")
    if "Couldn't find cache for" in words and data.subset:
        return FgsslError(f"subset {data.subset!r} of {named} is not in the cache, and the hub is offline", "go online")
    if names & {"EmptyDatasetError", "DataFilesNotFoundError"}:
        return FgsslError(f"the hub data set {named} holds no data files", "choose another data set")
    if names & {"DatasetGenerationError", "ArrowInvalid"}:
        return FgsslError(
            f"the hub data set {named} has a damaged or inconsistent file ({shown(words)[-160:]})",
            "try another revision, or delete its cached download and try again",
        )
    return None


def _surroundings(chain: list[BaseException], names: set[str], named: str) -> FgsslError | None:
    if any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in chain):
        return FgsslError(f"the disk is full while downloading {named}", "free some space or set HF_HOME elsewhere")
    if names & _OFFLINE_TYPES:
        return FgsslError(
            f"the hub cannot be reached and {named} is not in the cache",
            "go online once to download it (unset HF_HUB_OFFLINE if set), or give a local folder; "
            "the demo set works offline",
        )
    return None


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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return shown(lines[0])[:200] if lines else ""
