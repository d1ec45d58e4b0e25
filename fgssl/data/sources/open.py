"""From the string after `--data` to the splits it has and the images of each."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from fgssl.data.archives.names import Named, found_in, parse_named, require_folder
from fgssl.data.sources.listing import files_ending, first_images, is_saved_table, shards_by_split, split_of
from fgssl.data.sources.presets import DRAWN, PRESETS, DatasetPreset
from fgssl.errors import FgsslError, SettingError
from fgssl.registry import ARCHIVES
from fgssl.runtime.reporting import remark
from fgssl.runtime.text import shown

if TYPE_CHECKING:
    from fgssl.config.schema import DataConfig
    from fgssl.data.images import ImageSet, Remark

_NAMES = {"train": ("train", "training"), "test": ("test", "testing", "validation", "val", "valid", "dev")}
FIRST_CLASSES, LAST_CLASSES = "first-classes", "last-classes"  # splits that every labelled source has besides its own
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*$")
MOST_STRAYS = 32  # pictures beside parquet files (a cover, an example): with more they are the data
SHARDS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_LISTS = (".txt", ".lst")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")


class Source(NamedTuple):
    """Something with splits of images."""

    splits: tuple[str, ...]  # ("all",) where there are none; no image is in two
    load: Callable[[str], ImageSet]  # the images of one of them
    remarks: tuple[Remark, ...] = ()  # on how the splits were found
    roles: Mapping[str, str | None] | None = None  # split (or several joined by +) of "train" and "test", where known
    unions: Mapping[str, str] = MappingProxyType({})  # other names of several splits joined by +


def load_images(data: DataConfig, split: str, *, tell: bool = True) -> ImageSet:
    """Opens one split of a source; class ids mean the same in every split of it.

    Args:
        data: Where the images are.
        split: A split of the source, or several joined by "+" ("train+validation"); see `halves` for two more.
        tell: Tell the listener the images' remarks, which are what the source was taken for and what was left out.

    Raises:
        FgsslError: No such source or split, no image in it, or the hub cannot give it; one line with the remedy.
    """
    from fgssl.data.images import Concatenated
    from fgssl.data.sources.halves import half_of_classes

    source = open_source(data)
    known = source.splits
    if split in (FIRST_CLASSES, LAST_CLASSES) and split not in known:
        return half_of_classes([source.load(name) for name in known], split, first=split == FIRST_CLASSES)
    split = source.unions.get(split, split)
    names = [split] if split in known else split.split("+")
    by_lower = {name.lower(): name for name in reversed(known)}
    for name in names:
        if name.lower() not in by_lower:
            listed = ", ".join((*known, *source.unions))
            raise FgsslError(f"{data.source} has no split {name!r}", f"its splits are: {listed}")
    parts = [source.load(name if name in known else by_lower[name.lower()]) for name in names]
    images = _dressed(parts[0] if len(parts) == 1 else Concatenated(parts), data)
    for level, text in images.remarks if tell else ():
        remark(level, text)
    return images


def _dressed(images: ImageSet, data: DataConfig) -> ImageSet:
    """With the masks of a folder, and laid off the centre, where that is asked."""
    if data.masks is not None:
        from fgssl.data.masks import Masked

        images = Masked(images, data.masks)
    if data.shift is not None:
        from fgssl.data.shift import Shifted

        images = Shifted(images, data.shift, share=(data.shift_min, data.shift_max), seed=data.shift_seed)
    return images


def available_splits(data: DataConfig) -> tuple[str, ...]:
    """Names of the splits of a source; ("all",) where it has none. Raises FgsslError as `load_images`."""
    return open_source(data).splits


def default_split(data: DataConfig, role: Literal["train", "test"]) -> str | None:
    """The split to train on, or to evaluate on, where the user names none; None where there is none for that role.

    In this order: what `data` says; the preset's or the archive's; train or training, respectively test or testing,
    then a validation split; "all" for training where the source has no splits. Raises FgsslError as `load_images`.
    """
    asked = data.train_split if role == "train" else data.test_split
    if asked is not None:
        return asked
    if data.source in PRESETS:
        preset = PRESETS[data.source]
        return preset.train_split if role == "train" else preset.test_split
    source = open_source(data)
    if source.roles is not None:
        return source.roles[role]
    known = sorted(source.splits, key=len)  # "train" before "train2"
    found = [split for name in _NAMES[role] for split in known if split_of(split) == name]
    if found:
        return found[0]
    # a single split of another name ("all", "full", "images") is all there is to train on; a lone test split is not
    alone = len(known) == 1 and split_of(known[0]) not in _NAMES["test"]
    return known[0] if role == "train" and alone else None


def no_split(data: DataConfig, role: str, *, option: str) -> FgsslError:
    """The one line for a source without a split for training or test, and why; `option` names one."""
    source = open_source(data)
    why = "".join(f" ({text})" for _, text in source.remarks)
    problem = f"'{data.source}' has no {role} split{why}"
    return FgsslError(problem, f"name one with {option}: {', '.join(source.splits)}")


def open_source(data: DataConfig) -> Source:
    """Finds what `data.source` names: a preset (or demo), an archive NAME:FOLDER, else an existing path, else a hub id.

    Raises FgsslError where it is none of them; the line names near matches.
    """
    source = data.source
    if source in DRAWN:
        from fgssl.data.demo.demo_set import SPLITS, DemoSet

        _refuse_columns(data, "drawn, with its classes")
        return Source(SPLITS, functools.partial(DemoSet, wild=source == "demo:wild"))
    if source in PRESETS:
        preset = PRESETS[source]
        image, label = data.image_column or preset.image_column, data.label_column or preset.label_column
        filled = dataclasses.replace(data, image_column=image, label_column=label)
        if os.path.isabs(preset.hub_id):
            return open_source(dataclasses.replace(filled, source=preset.hub_id))
        return _open_preset(filled, preset)
    if (named := parse_named(source)) is not None:
        return _open_archive(data, named)
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        return _open_folder(data, path)
    if os.path.lexists(path) and source:
        return _open_file(data, path)
    if _is_hub_id(source):
        return _open_hub(data, source)
    raise _unknown(source)


def require_source(source: str) -> None:
    """Refuses what `open_source` would refuse for its name alone; nothing is opened. Raises FgsslError."""
    if (named := parse_named(source)) is not None:
        require_folder(named)
        return
    there = bool(source) and os.path.lexists(os.path.expanduser(source))
    if not (there or source in (*DRAWN, *PRESETS) or _is_hub_id(source)):
        raise _unknown(source)


def _is_hub_id(source: str) -> bool:
    return bool(_HUB_ID.match(source)) and not source.lower().endswith((*_LISTS, *_ARCHIVES, ".csv", ".parquet"))


def _open_hub(data: DataConfig, hub_id: str) -> Source:
    from fgssl.data.sources.hub import load_split, split_names

    return Source(split_names(data, hub_id), lambda split: load_split(data, hub_id, split))


def _open_preset(data: DataConfig, preset: DatasetPreset) -> Source:
    """The first of a preset's hub ids that can be had; counts are held against the published ones."""
    from fgssl.data.images import Remark
    from fgssl.data.sources.hub import Unavailable

    # a revision is one of the first id, and so may be the names of its columns
    others = () if data.revision else preset.others
    found = dataclasses.replace(data, image_column=None, label_column=None) if others else data
    refused: list[Unavailable] = []
    for hub_id in (preset.hub_id, *others):
        try:
            source = _open_hub(found if refused else data, hub_id)
        except Unavailable as error:
            refused.append(error)
            continue
        lacking = {preset.train_split, preset.test_split} - set(source.splits)
        if not (refused and lacking):
            break
        refused.append(Unavailable(f"{hub_id} has no split {min(lacking)}"))
    else:
        more = "".join(f"; nor {error.problem}" for error in refused[1:])
        archive = f"; or unpack the published archive and write {preset.name}:FOLDER" if preset.name in ARCHIVES else ""
        raise FgsslError(refused[0].problem + more, refused[0].remedy + archive) from refused[0]
    text = "".join(f"{error.problem}; " for error in refused)
    instead = (Remark("warning", f"{text}{hub_id} is taken in its place"),) if refused else ()

    def load(split: str) -> ImageSet:
        images, wanted = source.load(split), preset.counts.get(split)
        if wanted not in (None, len(images)):
            words = f"{hub_id} has {len(images):,} images in {split}, as published there are {wanted:,}"
            images.remarks += (Remark("warning", f"{words}: its numbers do not compare with those of papers"),)
        images.remarks = (*instead, *images.remarks)
        return images

    return source._replace(load=load)


def _open_archive(data: DataConfig, named: Named, *, remarks: tuple[Remark, ...] = ()) -> Source:
    from fgssl.data.archives.source import ArchiveSource

    require_folder(named)
    level = named.level or data.label_column
    found = ArchiveSource(data.source, named.archive, os.path.expanduser(named.folder), level=level)
    roles = {"train": found.role(found.layout.train), "test": found.role(found.layout.test)}

    def load(split: str) -> ImageSet:
        images = found.load(split)
        images.remarks = (*remarks, *images.remarks)
        return images

    return Source(found.splits, load, remarks, roles, found.layout.unions)


def _open_folder(data: DataConfig, path: str) -> Source:
    if (name := found_in(path)) is not None:
        from fgssl.data.images import Remark

        pictures = ARCHIVES[name].pictures
        hint = f"; for its class folders give {shown(os.path.join(path, pictures))}" if pictures else ""
        text = f"{shown(data.source)} is taken for {ARCHIVES[name].title} by its lists, as {name}:FOLDER would be{hint}"
        return _open_archive(data, Named(name, "", path), remarks=(Remark("note", text),))
    if is_saved_table(path):
        from fgssl.data.sources.tables import saved_tables, table_images

        tables = saved_tables(path, data.source)
        return Source(tuple(tables), lambda split: table_images(tables, split, data))
    pictures = first_images(os.fsencode(path), MOST_STRAYS)
    if len(pictures) < MOST_STRAYS:
        if (parquet := files_ending(path, ".parquet")) and len(pictures) <= len(parquet):
            return _open_parquet(data, shards_by_split(path, parquet), pictures)
        tars = files_ending(path, *SHARDS)
        if tars and len(pictures) <= sum(name.lower().endswith(".tar") for name in tars):
            from fgssl.data.sources.tar_shards import open_tars

            return open_tars(data, path, tars, strays=pictures)
    from fgssl.data.sources.folder import FolderSource

    _refuse_columns(data, "a folder of pictures, whose classes are its folders")
    folder = FolderSource(data.source, os.fsencode(path))
    return Source(folder.splits, folder.load, folder.remarks)


def _open_parquet(data: DataConfig, shards: Mapping[str, Sequence[str]], strays: list[bytes]) -> Source:
    from fgssl.data.sources.tables import parquet_images

    return Source(tuple(shards), lambda split: parquet_images(shards, split, data, strays=strays))


def _open_file(data: DataConfig, path: str) -> Source:
    kind = os.path.splitext(path)[1].lower()
    if kind in _LISTS:
        from fgssl.data.sources.files import listed_images

        _refuse_columns(data, "a list of paths, with classes behind tabs if at all")
        return Source(("all",), lambda _: listed_images(data.source, path))
    if kind == ".csv":
        from fgssl.data.sources.csv_list import csv_images

        return Source(("all",), lambda _: csv_images(data, path))
    if kind == ".parquet":
        return _open_parquet(data, {"all": [path]}, [])
    named = shown(data.source)
    if not os.path.exists(path):
        raise FgsslError(f"{named} is a link to something that does not exist", "repair the link")
    if kind in _ARCHIVES:
        shard = "; of a WebDataset shard give the folder it lies in" if kind == ".tar" else ""
        raise FgsslError(f"{named} is an archive", f"unpack it and give the folder{shard}")
    remedy = "give a folder, a .txt or .csv list of paths, a .parquet file, a preset or a hub id"
    raise FgsslError(f"{named} is a file, not a set of images", remedy)


def _refuse_columns(data: DataConfig, kind: str) -> None:
    """Raises SettingError where columns are named of a source without any."""
    for name in ("image_column", "label_column"):
        if (column := getattr(data, name)) is not None:
            problem = f"data.{name} {shown(column)} names nothing: {shown(data.source)} is {kind}"
            raise SettingError(problem, "leave it out")


def _unknown(source: str) -> FgsslError:
    named, presets = shown(source), ", ".join((*DRAWN, *PRESETS))
    if not source:
        return FgsslError("the data source is empty", f"give a folder, a hub id or a preset: {presets}")
    folder, name = os.path.split(source.rstrip("/"))
    try:
        beside = os.listdir(os.path.expanduser(folder) or ".")
    except OSError:
        beside = []
    near = difflib.get_close_matches(source.lower(), (*DRAWN, *PRESETS), n=1)
    near += [shown(os.path.join(folder, other)) for other in difflib.get_close_matches(name, beside, n=2)]
    hint = f"did you mean {' or '.join(near)}? Otherwise give" if near else "give"
    return FgsslError(
        f"no such folder or file: {named}, and it is not a preset or a hub id",
        f"{hint} a path, a hub id owner/name, or a preset: {presets}; a plugin's needs its package or --plugin",
    )
