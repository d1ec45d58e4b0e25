"""Images in tar shards, as WebDataset lays them out: rows that are read where they lie, in any order.

    birds-train-000000.tar: 0001.jpg 0001.cls 0002.jpg 0002.cls ...     train/000000.tar     any of .cls, .json, .txt

Shard after shard is the order of the set, so that `training.shuffle=local` reads each nearly from end to end.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fgssl.config.schema import DataConfig
from fgssl.data.images import About, ImageSet, Remark
from fgssl.data.sources.files import sorted_classes
from fgssl.data.sources.listing import shards_by_split, some
from fgssl.data.sources.open import Source
from fgssl.data.sources.tar_index import LABEL_KINDS, ShardIndex, Wanted, members_told, shard_index
from fgssl.errors import FgsslError, UnreadableImage
from fgssl.runtime.reporting import Told
from fgssl.runtime.text import shown

MOST_OPEN = 160  # files a process keeps open: more than the shards that a batch of local order is from
CAPTIONS = 64  # texts of a split, of which more than half differ, are no classes

Indices = Mapping[str, Sequence[ShardIndex]]  # by split


class TarImages(ImageSet):
    """An `ImageSet` of members of tar files: some 50 bytes of memory each, and none of their content."""

    def __init__(
        self, source: str, split: str, about: About, *, files: Sequence[str], indices: Sequence[ShardIndex]
    ) -> None:
        super().__init__(source, split, about)
        self._shown, self._files = tuple(files), tuple(map(os.path.abspath, files))
        self._indices, self._ends = tuple(indices), np.cumsum([len(index.ends) for index in indices])
        states = zip(files, map(os.stat, files), strict=True)
        places = [(os.path.basename(name), state.st_size, state.st_mtime_ns) for name, state in states]
        digest = hashlib.blake2b(repr(places).encode("utf-8", "surrogatepass"), digest_size=16)
        for index in indices:  # which picture of a sample was taken depends on the settings
            digest.update(index.offsets.tobytes())
        self._fingerprint = digest.hexdigest()
        self._open: OrderedDict[int, IO[bytes]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        """The path of the shard, and in it the name of the picture."""
        shard, row = self._place(index)
        return os.path.join(self._shown[shard], self._indices[shard].name(row))

    def content(self, index: int) -> bytes:
        shard, row = self._place(index)
        size, offset = int(self._indices[shard].sizes[row]), int(self._indices[shard].offsets[row])
        try:
            content = os.pread(self._file(shard).fileno(), size, offset)  # no position that processes would share
        except OSError as error:
            problem = f"unreadable image {self.identifier(index)}: its shard cannot be read ({error.strerror})"
            raise UnreadableImage(problem, "check the shard") from error
        if len(content) < size:
            problem = f"unreadable image {self.identifier(index)}: its shard was cut off since it was opened"
            raise UnreadableImage(problem, "copy it again")
        return content

    def fingerprint(self) -> str:
        """Of names, sizes and times of change of the shards."""
        return self._fingerprint

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} outside 0..{len(self) - 1}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    def _file(self, shard: int) -> IO[bytes]:
        file = self._open.pop(shard, None) or open(self._files[shard], "rb", buffering=0)  # noqa: SIM115
        self._open[shard] = file
        if len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)  # closed when nobody reads it any more
        return file

    def __getstate__(self) -> dict[str, Any]:  # a spawned worker opens the files again
        return self.__dict__ | {"_open": OrderedDict()}


def open_tars(data: DataConfig, path: str, tars: Sequence[str], *, strays: Sequence[bytes]) -> Source:
    """The splits of a folder of shards (`tars`); pictures beside them (`strays`) and compressed tars are left out.

    `data.image_column` is the ending of the pictures ("left.jpg"), `data.label_column` that of the classes ("cls") or a
    field of their .json. Raises FgsslError where all shards are compressed.
    """
    files = [name for name in tars if name.lower().endswith(".tar")]
    packed = [os.path.relpath(name, path) for name in tars if name not in files]
    if not files:
        problem = f"the tar files of {data.source} are compressed ({some(packed)}): nothing can be read by its place"
        raise FgsslError(problem, "unpack folders of pictures by tar xf, or gunzip WebDataset shards to .tar")
    shards = shards_by_split(path, files, anywhere=True)
    remarks = []
    for what, names in (("pictures beside them", strays), ("compressed ones", packed)):
        if names:
            text = f"{data.source}: its .tar files are the data; {what} are left out: {some(names)}"
            remarks.append(Remark("warning", text))
    if len(shards) > 1 and "all" in shards:
        lost = some([os.path.relpath(name, path) for name in shards["all"]])
        remarks.append(Remark("note", f"{data.source}: shards named like no split are the split 'all': {lost}"))
    return Source(tuple(shards), lambda split: _load(data, shards, split, remarks))


def _load(data: DataConfig, shards: Mapping[str, Sequence[str]], split: str, remarks: Sequence[Remark]) -> TarImages:
    """One split; a class has the same number in all of them. Raises FgsslError where no sample of it has a picture."""
    wanted = Wanted(data.image_column, data.label_column)
    indices = _indices(shards, wanted, data.source)
    mine, named = indices[split], f"{data.source} [{split}]"
    if not sum(len(index.ends) for index in mine):
        told = some([line for index in mine for line in index.skipped]) or "no member is named like a picture"
        like = f"*.{data.image_column}" if data.image_column else "*.jpg, *.png or *.webp"
        raise FgsslError(f"no image in the {len(mine)} shards of {named} ({told})", f"samples need members {like}")
    found = _classes(indices, split, wanted)
    if wanted.label is not None and found.lacking:
        there = ", ".join(members_told(shards[split][0])) or "nothing"
        found = found._replace(about=About(unlabelled=f"{found.about.unlabelled}; beside them there is {there}"))
    counts = sum((Counter(index.counts) for index in mine), Counter[str]())
    skipped = [line for index in mine for line in index.skipped]
    taken = [Remark("note", f"{data.source}: {found.remark}")] if found.remark else []
    for reason, count in counts.items():
        such = next(line.removesuffix(f": {reason}") for line in skipped if line.endswith(reason))
        taken.append(Remark("warning", f"{named}: {count:,} times {reason}, such as {such}"))
    about = found.about._replace(remarks=(*remarks, *taken), skipped=tuple(skipped))
    return TarImages(data.source, split, about, files=shards[split], indices=mine)


def _indices(shards: Mapping[str, Sequence[str]], wanted: Wanted, source: str) -> dict[str, list[ShardIndex]]:
    """Of all shards. Each process begins at another: what one has looked through the others find in the cache."""
    files = [name for names in shards.values() for name in names]
    first = len(files) * int(os.environ.get("RANK", 0)) // int(os.environ.get("WORLD_SIZE", 1))
    told, found = Told(f"looking into the shards of {source}", len(files)), dict[str, ShardIndex]()
    for done, name in enumerate([*files[first:], *files[:first]]):
        told(done)
        try:
            found[name] = shard_index(name, wanted)
        except OSError as error:
            raise FgsslError(f"cannot read the shard {shown(name)} ({error.strerror})", "check it") from error
    told.end(len(files))
    return {split: [found[name] for name in names] for split, names in shards.items()}


class _Found(NamedTuple):
    about: About
    remark: str = ""
    lacking: bool = False  # nothing that may tell the class is there


def _classes(indices: Indices, split: str, wanted: Wanted) -> _Found:
    """The labels of a split, by the first kind of member that tells any class."""
    every = [index for found in indices.values() for index in found]
    kinds = LABEL_KINDS if wanted.label is None else (wanted.label, "json")
    there = [kind for kind in kinds if any(kind in index.codes for index in every)]
    if "txt" in there and wanted.label is None and _are_captions(every):
        there.remove("txt")
    if not there:
        listed = " or ".join(f".{kind}" for kind in kinds)
        return _Found(About(unlabelled=f"no {listed} beside its pictures tells a class"), lacking=True)
    kind, mine = there[0], indices[split]
    total = sum(len(index.ends) for index in mine)
    missing = total - sum(int((index.codes[kind] >= 0).sum()) for index in mine if kind in index.codes)
    if missing:
        return _Found(About(unlabelled=f"the .{kind} that tells the class is missing in {missing} of {total} samples"))
    names = sorted_classes({text for index in every for text in index.classes.get(kind, ())})
    number = {text: place for place, text in enumerate(names)}
    ids = [_numbered(index, kind, number) for index in mine if len(index.ends)]
    words = f"the .{kind} members are taken for the classes, not {', '.join(f'.{other}' for other in there[1:])}"
    remark = f"{words} (--set data.label_column=NAME)" if len(there) > 1 else ""
    return _Found(About(np.concatenate(ids), names), remark)


def _numbered(index: ShardIndex, kind: str, number: Mapping[str, int]) -> NDArray[np.int64]:
    places: NDArray[np.int64] = np.array([number[text] for text in index.classes[kind]], np.int64)[index.codes[kind]]
    return places


def _are_captions(every: Iterable[ShardIndex]) -> bool:
    told = [index for index in every if "txt" in index.codes]
    texts = {text for index in told for text in index.classes["txt"]}
    return len(texts) > max(CAPTIONS, sum(int((index.codes["txt"] >= 0).sum()) for index in told)) / 2
