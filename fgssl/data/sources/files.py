"""Images that are files on disk: named by a folder's listing, or by a text file of one path a line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from fgssl.data.images import NOTHING, About, ImageSet
from fgssl.errors import FgsslError
from fgssl.runtime.reporting import Told
from fgssl.runtime.text import shown

TELL_EVERY = 1024  # files
# what tables and JSON call the class, in this order, where nothing is typed as one
LABEL_NAMES = ("label", "labels", "target", "variant", "cls", "fine_label", "class", "category")
_EXAMPLE = "write one image path a line, optionally followed by a tab and a label"


class PackedNames:
    """A read-only sequence of byte strings held in one buffer.

    A Python list of a million paths costs some 120 MB and is copied page by page into every forked worker, because
    reading an object writes its reference count. One buffer and its offsets are shared and pickle as two blocks.
    """

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        self._buffer = bytearray()
        ends = array("q", [0])  # 8 bytes each, where a Python int takes 36
        for name in names:
            self._buffer += name
            ends.append(len(self._buffer))
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} outside 0..{len(self) - 1}")
        return bytes(self._buffer[self._ends[index] : self._ends[index + 1]])


class FileImages(ImageSet):
    """An `ImageSet` of files: paths relative to a folder, which is as the user wrote it, or absolute."""

    def __init__(self, source: str, split: str, about: About = NOTHING, *, folder: bytes, names: PackedNames) -> None:
        super().__init__(source, split, about)
        self._shown, self._names = folder, names
        self._root = os.path.abspath(folder)  # a worker or a test may change the current folder
        self._fingerprint = ""

    def __len__(self) -> int:
        return len(self._names)

    def content(self, index: int) -> str:
        return os.fsdecode(os.path.join(self._root, self._names[index]))

    def name(self, index: int) -> str:
        return os.fsdecode(os.path.normpath(os.path.join(self._shown, self._names[index])))

    def fingerprint(self) -> str:
        """Hash of relative paths, sizes and times of change; one `stat` a file the first time."""
        if self._fingerprint:
            return self._fingerprint
        digest, told = hashlib.blake2b(digest_size=16), Told(f"looking at the files of {self.source}", len(self))
        for index in range(len(self)):
            if index % TELL_EVERY == 0:
                told(index)
            name = self._names[index]
            try:
                status = os.stat(os.path.join(self._root, name))
                state = (status.st_size, status.st_mtime_ns)
            except (OSError, ValueError):  # missing, or a name no file system allows
                state = (-1, -1)
            digest.update(b"%d %d %d " % (len(name), *state) + name)
        told.end(len(self))
        self._fingerprint = digest.hexdigest()
        return self._fingerprint


def listed_images(source: str, path: str) -> FileImages:
    """Images named by a text file: a path a line, relative to its folder or absolute, then maybe a tab and a label.

    A path may be a JSON string, for names with line breaks or tabs. Blank lines and those with # first do not count.
    Raises FgsslError where the file is unreadable, no text, names no image, or has labels on some lines only.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise FgsslError(f"cannot read the list {source} ({error.strerror})", "check the file") from error
    if b"\0" in content:
        raise FgsslError(f"the list {source} is not a text file", _EXAMPLE)
    lines = [line for line in map(bytes.strip, content.split(b"\n")) if line and not line.startswith(b"#")]
    if not lines:
        raise FgsslError(f"the list {source} names no image", _EXAMPLE)
    names = PackedNames(map(_path_of, lines))
    folder = os.fsencode(os.path.dirname(path) or ".")
    return FileImages(source, "all", _labels(lines, source), folder=folder, names=names)


def _labels(lines: list[bytes], source: str) -> About:
    bare = [line for line in lines if b"\t" not in line]
    if len(bare) == len(lines):
        return About(unlabelled="no line of the list has a tab and a label")
    if bare:
        problem = f"the list {source} has labels, but none on the line {shown(bare[0])!r}"
        raise FgsslError(problem, "give every line a label (a tab before it) or none")
    return classes_of([shown(line.split(b"\t", 1)[1].strip()) for line in lines])


def classes_of(labels: Sequence[str]) -> About:
    """Labels as they are written, (N,), as numbers of their sorted names."""
    names = sorted_classes(set(labels))
    number = {name: index for index, name in enumerate(names)}
    return About(np.array([number[label] for label in labels], np.int64), names)


def list_line(name: str, label: str | None) -> str:
    """A line of a list: a path as it is, or as a JSON string where it would not be read as it is, and its label."""
    plain = name == name.strip() == shown(name) and not name.startswith(("#", '"'))
    told = "" if label is None else f"\t{shown(label)}"
    return f"{name if plain else json.dumps(name)}{told}\n"


def _path_of(line: bytes) -> bytes:
    name = line.split(b"\t", 1)[0].rstrip()
    if name.startswith(b'"'):
        with contextlib.suppress(ValueError):  # a name that only begins like a JSON string
            name = os.fsencode(str(json.loads(name)))
    return name


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in order: as numbers where all are whole numbers ("2" before "10"), else as text."""
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))
