"""Where the pictures of a tar shard lie in it, and the classes beside them: WebDataset's layout, looked through once.

Members of one name up to the first dot are a sample ("0001.jpg", "0001.cls"); what follows the dot says what each is.
Nothing is unpacked. What was found is kept in the cache: to look at a million headers takes a minute or more.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fgssl.data.cache.folder import cache_folder
from fgssl.data.sources.files import LABEL_NAMES
from fgssl.data.sources.listing import EXTENSIONS
from fgssl.errors import FgsslError
from fgssl.runtime.files import atomic_path
from fgssl.runtime.text import shown

FORMAT = "fgssl-shard-1"
LABEL_KINDS = ("cls", "json", "txt")  # endings that may tell the class, the first that does counts
LONGEST_CLASS = 100  # characters; longer texts are captions
LARGEST_LABEL = 1 << 16  # bytes of a member that is read for the class
MOST_SKIPPED = 100  # that are named
FIRST_MEMBERS = 64  # that tell what there is beside the pictures
_IMAGES = frozenset(ending.decode()[1:] for ending in EXTENSIONS)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Wanted(NamedTuple):
    """What the user says of the samples; None is found."""

    image: str | None = None  # ending of the pictures
    label: str | None = None  # ending of the classes, or a field of their .json


class ShardIndex(NamedTuple):
    """The samples of a shard that have a picture, in the order of the pictures."""

    names: NDArray[np.uint8]  # the pictures' names in the shard, one after the other
    ends: NDArray[np.int64]  # (N,) of each name in them
    offsets: NDArray[np.int64]  # (N,) bytes before each picture
    sizes: NDArray[np.int64]  # (N,) bytes
    classes: dict[str, list[str]]  # by kind of label: the distinct classes
    codes: dict[str, NDArray[np.int32]]  # (N,) places in them; -1 where a sample does not tell
    counts: dict[str, int]  # of what was passed over, by reason
    skipped: list[str]  # "name: reason", the first hundred

    def name(self, row: int) -> str:
        """The name of a picture in its shard."""
        first = int(self.ends[row - 1]) if row else 0
        return os.fsdecode(self.names[first : self.ends[row]].tobytes())


class _Sample:
    """What was met of a sample."""

    def __init__(self) -> None:
        self.endings: set[str] = set()
        self.pictures: list[tuple[bool, str, int, int]] = []  # of several parts, name, offset, size
        self.classes: dict[str, str] = {}


class _Passed:
    """What is not read, or not as it stands."""

    def __init__(self) -> None:
        self.counts, self.named = Counter[str](), list[str]()

    def over(self, name: str, reason: str) -> None:
        self.counts[reason] += 1
        if len(self.named) < MOST_SKIPPED:
            self.named.append(f"{shown(name)}: {reason}")


def shard_index(path: str, wanted: Wanted) -> ShardIndex:
    """What a shard holds, as the cache or the shard itself tells. Raises FgsslError: broken, cut off or compressed."""
    state = os.stat(path)
    told = repr((FORMAT, os.path.abspath(path), state.st_size, state.st_mtime_ns, wanted))
    digest = hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    kept = cache_folder() / "shards" / f"{digest}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not there, or damaged by somebody
        return _loaded(kept.read_bytes())
    index = _looked_through(path, wanted)
    with contextlib.suppress(FgsslError, OSError), atomic_path(kept) as temporary:
        told = json.dumps([index.classes, index.counts, index.skipped])
        arrays: dict[str, Any] = {f"codes-{kind}": code for kind, code in index.codes.items()}
        arrays |= {"told": np.frombuffer(told.encode(), np.uint8), "names": index.names, "ends": index.ends}
        np.savez(temporary, offsets=index.offsets, sizes=index.sizes, **arrays)
    return index


def _loaded(content: bytes) -> ShardIndex:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            classes, counts, skipped = json.loads(file["told"].tobytes())
            codes = {kind: file[f"codes-{kind}"] for kind in classes}
            index = ShardIndex(
                file["names"], file["ends"], file["offsets"], file["sizes"], classes, codes, counts, skipped
            )
    except Exception as error:  # zipfile and numpy raise many kinds on a damaged file
        raise ValueError("not an index") from error
    if not len(index.ends) == len(index.offsets) == len(index.sizes):
        raise ValueError("not an index")
    return index


def _looked_through(path: str, wanted: Wanted) -> ShardIndex:
    samples, passed = dict[str, _Sample](), _Passed()
    for member, file in _members(path, passed):
        if reason := _refused(member):
            passed.over(member.name, reason)
            continue
        folder, slash, name = member.name.rpartition("/")
        stem, dot, ending = name.partition(".")
        if not (member.isreg() and stem and dot):  # a folder, a hidden file, or no sample's
            continue
        sample, ending = samples.setdefault(f"{folder}{slash}{stem}", _Sample()), ending.lower()
        if ending in sample.endings:
            passed.over(member.name, "occurs twice, the first one counts")
            continue
        sample.endings.add(ending)
        if ending == wanted.image or (wanted.image is None and ending.rpartition(".")[2] in _IMAGES):
            sample.pictures.append(("." in ending, member.name, member.offset_data, member.size))
        elif ending in (*LABEL_KINDS, wanted.label) and member.size <= LARGEST_LABEL:
            text = _class_of(ending, os.pread(file, member.size, member.offset_data), wanted.label)
            sample.classes |= {} if text is None else {ending: text}
    for key, sample in samples.items():
        if not sample.pictures:
            passed.over(key, "a sample without a picture")
        elif sum(not parts for parts, *_ in sample.pictures) > 1:
            passed.over(key, "several pictures, the first one counts")
    return _packed([sample for sample in samples.values() if sample.pictures], passed)


def members_told(path: str) -> list[str]:
    """What lies beside the first pictures of a shard, by its ending, and the fields of their .json."""
    found = dict[str, None]()
    for member, file in islice(_members(path, _Passed()), FIRST_MEMBERS):
        ending = member.name.rpartition("/")[2].partition(".")[2].lower()
        if not member.isreg() or not ending or ending.rpartition(".")[2] in _IMAGES:
            continue
        found[f".{shown(ending)}"] = None
        if ending == "json" and member.size <= LARGEST_LABEL:
            with contextlib.suppress(ValueError, RecursionError):
                fields = json.loads(os.pread(file, member.size, member.offset_data))
                found |= dict.fromkeys(map(shown, fields if isinstance(fields, dict) else ()))
    return [*found]


def _packed(samples: list[_Sample], passed: _Passed) -> ShardIndex:
    # "0001.jpg" before "0001.seg.png", which is no photograph; of equals the first
    pictures = [min(sample.pictures, key=lambda picture: picture[0]) for sample in samples]
    names = [os.fsencode(name) for _, name, _, _ in pictures]
    kinds = sorted({kind for sample in samples for kind in sample.classes})
    classes = {kind: sorted({s.classes[kind] for s in samples if kind in s.classes}) for kind in kinds}
    codes = {}
    for kind in kinds:
        place = {text: number for number, text in enumerate(classes[kind])}
        codes[kind] = np.array([place.get(sample.classes.get(kind, ""), -1) for sample in samples], np.int32)
    return ShardIndex(
        np.frombuffer(b"".join(names), np.uint8),
        np.cumsum([len(name) for name in names], dtype=np.int64),
        np.array([offset for _, _, offset, _ in pictures], np.int64),
        np.array([size for *_, size in pictures], np.int64),
        classes, codes, dict(passed.counts), passed.named,
    )  # fmt: skip


def _members(path: str, passed: _Passed) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """The members of a tar in their order, and the open file. Raises FgsslError where it is none, or is cut off."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            packed = next((how for magic, how in _COMPRESSED.items() if start.startswith(magic)), "")
            if packed:
                problem = f"the shard {shown(path)} is compressed ({packed}): its pictures cannot be read one by one"
                raise FgsslError(problem, "decompress it (gunzip, bunzip2, unxz or unzstd) and give the folder")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # which it would keep
                    if member.size < 0:  # it would lead back to an earlier member
                        raise tarfile.ReadError("a negative size")
                    yield member, file.fileno()
                file.seek(tar.offset)  # tarfile takes any broken header for the end
                end = file.read(tarfile.BLOCKSIZE)
                if not end:
                    passed.over(os.path.basename(path), "without a mark of its end, maybe cut off")
                if end.strip(b"\0"):
                    raise tarfile.ReadError(f"no header at byte {tar.offset}")
    except FgsslError:
        raise
    except Exception as error:  # on broken headers tarfile raises many kinds
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        problem = f"the shard {shown(path)} is broken or cut off ({shown(str(reason))})"
        raise FgsslError(problem, "copy it again, or move it out of the folder") from error


def _refused(member: tarfile.TarInfo) -> str:
    """Why a member is not read; "" where it is, or is no file and nothing is lost."""
    if member.isdir():
        return ""
    if not member.isreg() or member.issparse():
        return "no regular file"
    path = PurePosixPath(member.name)
    return "a name that leads out of the shard" if path.is_absolute() or ".." in path.parts else ""


def _class_of(ending: str, content: bytes, wanted: str | None) -> str | None:
    """The class that a member tells of; None where it tells of none."""
    value: Any = content.decode("utf-8", "replace").strip()
    if ending == "json":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
        if isinstance(value, dict):
            fields = LABEL_NAMES if wanted in (None, "json") else (wanted,)
            value = next((value[name] for name in fields if name in value), None)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = shown(str(value).strip())
    return text if text not in ("", "-1") and len(text) <= LONGEST_CLASS else None
