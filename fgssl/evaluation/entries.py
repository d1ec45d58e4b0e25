"""What makes the rows of a comparison: the starts of the runs, and what was named, opened before any is embedded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from fgssl.encoder import POOLS, Pool
from fgssl.errors import FgsslError
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.feature_file import FeatureTable, is_feature_table
from fgssl.evaluation.probing.splits import ProbeSplits
from fgssl.evaluation.subject import EvaluationOptions, Subject, open_subject, processes
from fgssl.evaluation.two_views import TwoViews
from fgssl.runs.encoder_file import saved_config
from fgssl.runs.start import Start, same_weights, start_of

USUAL_POOLS: tuple[Pool, ...] = ("gap", "rationale", "zoom", "cls")  # of those that an encoder has
Compared = ProbeSplits | TwoViews  # what is embedded: the second where there are no labels


class Pooled(NamedTuple):
    """Embeddings of all that is compared, by one pooling."""

    pool: str | None  # None where a file of features does not tell
    train: Embeddings  # or of first views
    test: Embeddings  # or of second views
    gallery: Embeddings | None = None  # what the test split searches, where that was asked


class Entry(NamedTuple):
    """An encoder of the table."""

    name: str  # in the table
    checkpoint: str
    options: EvaluationOptions
    began: str = ""  # name of the entry that it is told against, its own where it is a start; "" for none
    added: bool = False  # nobody named it: the table can go on without it


def plain(checkpoints: Sequence[str], options: EvaluationOptions) -> tuple[list[Entry], list[str]]:
    """What was named, and nothing that is missing."""
    return [Entry(name, name, options) for name in checkpoints], []


def with_starts(checkpoints: Sequence[str], options: EvaluationOptions) -> tuple[list[Entry], list[str]]:
    """The starts of the runs, then what was named, each with where it began; and why there is no start.

    A start that was named as well stays where it is, opened as the run opened it unless the options say otherwise.
    """
    starts, began, missing, scratch = dict[str, Start](), dict[str, str](), list[str](), list[str]()
    for run in checkpoints:
        config = None if is_feature_table(run) else saved_config(run)
        if config is None:
            continue
        try:
            start = start_of(run, config)
        except FgsslError as error:
            missing.append(error.problem)
            options.reporter.warn(f"the start is no row: {error.problem}; {error.remedy}")
            continue
        if start is None:
            scratch.append(f"'{run}' was trained from scratch")
            continue
        named = next((name for name in checkpoints if same_weights(name, start.checkpoint)), "")
        began[run] = named or f"start: {start.checkpoint}"
        starts.setdefault(began[run], start)
    if scratch and not starts and not missing:
        missing.append("; ".join(scratch))
        options.reporter.note(f"no row is a start: {missing[0]}")
    added = [name for name in starts if name not in checkpoints]
    entries = [Entry(name, starts[name].checkpoint, _as_begun(options, starts[name]), name, True) for name in added]
    for name in checkpoints:
        own = _as_begun(options, starts[name]) if name in starts else options
        entries.append(Entry(name, name, own, name if name in starts else began.get(name, "")))
    return entries, missing


def _as_begun(options: EvaluationOptions, start: Start) -> EvaluationOptions:
    """The options for opening a start: at the run's image size, and of its architecture."""
    size = options.image_size or start.image_size
    return replace(options, backbone=options.backbone or start.backbone, image_size=size)


def openable(
    entries: Sequence[Entry], splits: Compared, pools: Sequence[Pool] | None, missing: list[str]
) -> list[Entry]:
    """The entries but for added ones that cannot be opened, which are told and noted as missing; raises for others.

    Each begins where one of these begins: one whose own start is not known where the first does.
    """
    names = list[str]()
    for entry in entries:  # opened and let go: together they may not fit into memory
        try:
            opened(entry, splits, pools)
            names.append(entry.name)
        except FgsslError as error:
            if not entry.added:
                raise
            missing.append(f"{entry.name} cannot be had ({error.problem})")
            entry.options.reporter.warn(f"the start is no row: {missing[-1]}; {error.remedy}")
    if processes():  # what one of them lacks is left out by all
        from accelerate.utils import gather_object

        parts = gather_object([names])
        names = [name for name in names if all(name in part for part in parts)]
    kept = [entry for entry in entries if entry.name in names]
    starts = [entry.name for entry in kept if entry.began == entry.name]
    first = starts[0] if starts else ""
    return [entry._replace(began=entry.began if entry.began in starts else first) for entry in kept]


def opened(entry: Entry, splits: Compared, pools: Sequence[Pool] | None) -> Callable[[], list[Pooled]]:
    """What embeds the splits, after a look at all that it could lack: one of the wanted poolings is there at least."""
    name = entry.checkpoint
    if is_feature_table(name):
        table = FeatureTable(name)
        train = table.embed(splits.train)
        if isinstance(splits, TwoViews):
            found = Pooled(table.pool, train, train)
        else:
            searched = None if splits.gallery is None else table.embed(splits.gallery)
            found = Pooled(table.pool, train, table.embed(splits.test), searched)
        return lambda: [found]
    subject, has = open_subject(name, entry.options), list[Pool]()
    for pool in POOLS:
        with contextlib.suppress(FgsslError):
            subject.encoder.require(pool)
            has.append(pool)
    chosen = [pool for pool in (pools or USUAL_POOLS) if pool in has]
    if entry.added:  # of another make than what was named: in all its ways where it has none of the wanted
        return partial(_embedded, subject, splits, chosen or [pool for pool in USUAL_POOLS if pool in has], ())
    if not chosen:
        raise FgsslError(f"'{name}' cannot pool by {', '.join(pools or ())}", f"it has {', '.join(has)}")
    return partial(_embedded, subject, splits, chosen, [pool for pool in pools or () if pool not in chosen])


def _embedded(subject: Subject, splits: Compared, pools: Sequence[Pool], lacking: Sequence[Pool]) -> list[Pooled]:
    if lacking:
        subject.reporter.warn(f"'{subject.checkpoint}' has no {', '.join(lacking)} pooling: left out of its rows")
    if isinstance(splits, TwoViews):
        return [Pooled(*sides) for sides in splits.embed(subject, pools)]
    train, test = (subject.embed_all(images, pools) for images in (splits.train, splits.test))
    if splits.gallery is None:
        return [Pooled(pool, train[pool], test[pool]) for pool in pools]
    searched = train if splits.gallery is splits.train else subject.embed_all(splits.gallery, pools)
    return [Pooled(pool, train[pool], test[pool], searched[pool]) for pool in pools]
