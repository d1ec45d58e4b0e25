"""Reading an archive's lists; what is missing or does not fit becomes one line that names the file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from fgssl.data.archives.matlab import read_mat
from fgssl.errors import FgsslError
from fgssl.runtime.text import shown


class Lists:
    """The files of one unpacked archive, by their paths in its folder."""

    def __init__(self, title: str, folder: str) -> None:
        self.title, self.folder = title, folder

    def path(self, name: str) -> str:
        """Where a file is, or would be."""
        return os.path.join(self.folder, name)

    def has(self, name: str) -> bool:
        """Whether a file or folder is there."""
        return os.path.exists(self.path(name))

    def names(self, folder: str = "") -> list[str]:
        """The names in the archive's folder, or in one in it; none where that is a file."""
        path = self.path(folder)
        return sorted(os.listdir(path)) if os.path.isdir(path) else []

    def first(self, *names: str) -> str:
        """The first of several places of one file that is there; else the first place, to be named as missing."""
        return next((name for name in names if self.has(name)), names[0])

    def lines(self, name: str) -> list[str]:
        """The lines of a text that are not blank. Raises FgsslError: it is missing or no text."""
        try:
            with open(self.path(name), encoding="utf-8-sig", errors="surrogateescape") as stream:
                return [line for line in (line.strip() for line in stream) if line]
        except OSError as error:
            raise self._unreadable(name, error) from error

    def rows(self, name: str, fields: int) -> list[list[str]]:
        """Lines of so many fields, of which the last takes all that is left. Raises FgsslError."""
        found = [line.split(None, fields - 1) for line in self.lines(name)]
        for number, row in enumerate(found, start=1):
            if len(row) < fields:
                raise self.wrong(f"line {number} of {name} has {len(row)} of {fields} fields")
        return found

    def by_id(self, name: str) -> dict[str, str]:
        """A list of ids with what belongs to each. Raises FgsslError: an id twice."""
        rows = self.rows(name, 2)
        found = {key: value for key, value in rows}
        if len(found) < len(rows):
            raise self.wrong(f"{name} names an id twice ({len(rows)} lines, {len(found)} ids)")
        return found

    def json(self, name: str) -> Any:
        """A JSON file. Raises FgsslError."""
        try:
            with open(self.path(name), "rb") as stream:
                return json.load(stream)
        except OSError as error:
            raise self._unreadable(name, error) from error
        except (ValueError, RecursionError) as error:
            raise self.wrong(f"{name} is no JSON ({shown(str(error))[:80]})") from error

    def mat(self, name: str, *variables: str) -> list[Any]:
        """Variables of a MATLAB file of any version (see `read_mat`). Raises FgsslError."""
        if not self.has(name):
            raise self.missing(name)
        found = read_mat(self.path(name), name=name)
        if lacking := [each for each in variables if each not in found]:
            listed = ", ".join(map(shown, found)) or "none"
            raise self.wrong(f"{name} has no variable {lacking[0]} (it has {listed})")
        return [found[each] for each in variables]

    def number(self, text: Any, name: str) -> int:
        """A whole number. Raises FgsslError, naming the file it stands in."""
        try:
            return int(text)
        except (TypeError, ValueError) as error:
            raise self.wrong(f"{name} has '{shown(str(text))[:40]}' where a whole number belongs") from error

    def floats(self, values: Iterable[Any], name: str) -> list[float]:
        """Numbers. Raises FgsslError, naming the file they stand in."""
        texts = list(values)
        try:
            return [float(text) for text in texts]
        except (TypeError, ValueError) as error:
            raise self.wrong(f"{name} has '{shown(' '.join(map(str, texts)))[:40]}' where numbers belong") from error

    def require_keys(self, wanted: Iterable[str], found: Mapping[str, Any], name: str, *, of: str) -> None:
        """Raises FgsslError where a list says nothing of an id of another: they are of different copies."""
        lacking = [key for key in wanted if key not in found]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise self.wrong(f"{name} says nothing of {shown(lacking[0])}{more} of {of}")

    def missing(self, name: str) -> FgsslError:
        """The one line for a file that is not there."""
        problem = f"{self.title} in {shown(self.folder)}: {name} is missing"
        return FgsslError(problem, "unpack the whole archive there, or give the folder that holds it")

    def wrong(self, what: str) -> FgsslError:
        """The one line for lists that do not fit."""
        problem = f"{self.title} in {shown(self.folder)}: {what}"
        return FgsslError(problem, "its lists are damaged or of different copies: unpack the archive again")

    def _unreadable(self, name: str, error: OSError) -> FgsslError:
        if not self.has(name):
            return self.missing(name)
        return FgsslError(f"{self.title}: cannot read {shown(self.path(name))} ({error.strerror})", "check the file")
