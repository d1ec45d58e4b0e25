"""A folder to the Hugging Face hub, in one commit: all of it arrives, or nothing."""

from __future__ import annotations

import re
from pathlib import Path

from fgssl.errors import FgsslError, SettingError
from fgssl.runtime.offline import hub_or_cache, is_offline
from fgssl.runtime.text import shown

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_CLIENTS = ("httpx", "httpcore", "requests", "urllib3")  # whose errors mean that no server answered properly


def check_name(name: str) -> None:
    """Raises SettingError unless a name is the hub's OWNER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    problem = f"'{name}' is no name on the hub"
    if not _NAME.fullmatch(name):
        raise SettingError(problem, "write it as OWNER/NAME, such as ada/birds")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise SettingError(problem, str(error).splitlines()[0]) from error


def upload(folder: Path, name: str, *, private: bool) -> str:
    """Push every file of a folder to OWNER/NAME, made where it is not there; the page's address.

    A repository that is there keeps its visibility. Raises FgsslError: no token, no network, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise FgsslError("there is no token for the hub", "log in with: hf auth login, or set HF_TOKEN")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    try:
        with hub_or_cache():
            api = HfApi()
            address = api.create_repo(name, private=private, exist_ok=True)
            added = [CommitOperationAdd(path.name, str(path)) for path in files]
            api.create_commit(name, added, commit_message="Encoder pushed by fgssl")
    except HfHubHTTPError as error:
        raise FgsslError(f"the hub refuses {name}: {_reason(error)}", "may this token write there?") from error
    except Exception as error:  # the client's library differs between versions
        if is_offline(error) or type(error).__module__.partition(".")[0] in _CLIENTS:
            problem = f"the hub does not answer ({_reason(error)})"
            raise FgsslError(problem, "nothing was pushed; try again with a network") from error
        raise
    return str(address)


def _reason(error: Exception) -> str:
    """Status and what the server says, in one line."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    told = getattr(error, "server_message", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
    return shown(f"{status} {told}" if status else told)[:200]
