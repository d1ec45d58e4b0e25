"""fgssl probe"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgssl.cli import options
from fgssl.cli.console import cell, print_json, print_table, reporting, say

if TYPE_CHECKING:
    from fgssl.data.images import ImageSet
    from fgssl.evaluation.feature_file import FeatureTable
    from fgssl.evaluation.probing.run import ProbeOptions
    from fgssl.evaluation.subject import Subject

PROTOCOLS = ("cached", "sgd", "knn", "fewshot")
DEFAULT_LISTS = Path("probe-lists")


@options.takes(options.ENCODING)
def probe(
    checkpoint: options.Checkpoint,
    data: options.Data = None,
    split: options.Split = None,
    train: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="features.safetensors to fit on, where CHECKPOINT is one to score on. "
                     "[CHECKPOINT divided 80 to 20 by class]"),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="|".join(PROTOCOLS),
            help="cached: logistic regression on features made once. sgd: the paper's, new crops each epoch. "
            "knn: nearest neighbours. fewshot: nearest class mean.",
        ),
    ] = "cached",
    labels: Annotated[str, typer.Option(help="Shares of the train labels, drawn by class: 1.0,0.5,0.2")] = "1.0",
    tries: Annotated[int, typer.Option(help="Draws of each share below 1, with seeds --seed, --seed + 1, ...")] = 1,
    epochs: Annotated[int, typer.Option(help="sgd: passes over the labelled images.")] = 100,
    k: Annotated[int, typer.Option("--k", help="knn: neighbours that vote.")] = 20,
    temperature: Annotated[float, typer.Option(help="knn: votes are exp(cosine / temperature).")] = 0.07,
    shots: Annotated[str, typer.Option(help="fewshot: labelled images of each class: 1,5")] = "1,5",
    ways: Annotated[int, typer.Option(help="fewshot: classes in an episode; 0 takes all.")] = 5,
    episodes: Annotated[int, typer.Option(help="fewshot: episodes to average over.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn: labels, held-out slice, crops, episodes.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for probe.json, per_class.csv, confusions.csv and the lists of labelled "
            f"images. [{DEFAULT_LISTS} where labels are drawn]"
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    **encoding: Any,
) -> None:  # fmt: skip
    """Classify by frozen features. Fitted on the train split, scored on the test split."""
    if protocol not in PROTOCOLS:
        raise typer.BadParameter(f"'{protocol}' is not one of {', '.join(PROTOCOLS)}", param_hint="--protocol")
    shares = options.number_list(labels, "--labels", whole=False)
    shot_counts = tuple(map(int, options.number_list(shots, "--shots", whole=True)))
    if protocol == "fewshot" and (shares != (1.0,) or output is not None):
        raise typer.BadParameter("fewshot draws its own labels and has no lists or tables", param_hint="--labels")
    options.check_paths(checkpoint, data, encoding["cache"])
    from fgssl.evaluation.probing.files import check_probe_folder
    from fgssl.evaluation.probing.run import ProbeOptions

    asked = ProbeOptions(protocol, shares, tries, seed, epochs, k, temperature)
    lists = output or (DEFAULT_LISTS if min(shares) < 1 else None)
    with _source(checkpoint, train, quiet=quiet, data=data, **encoding) as source:
        if protocol == "fewshot":
            images = _scored(source, data, split)
            found = {"checkpoint": checkpoint, **_few_shot(source, images, shot_counts, ways or None, episodes, seed)}
        else:
            if lists is not None:
                check_probe_folder(lists, inputs=(*checkpoint.split("+"), train or "", data), overwrite=overwrite)
            splits = _splits(source, data, split, train, seed)
            found = _linear(source, splits, asked, lists, checkpoint)
    if json_output:
        print_json(found)
        return
    _print_few_shot(found) if protocol == "fewshot" else _print_linear(protocol, found)
    say(f"protocol: {found['protocol']}")
    if lists is not None:
        say(f"tables and lists: {lists}")


@contextmanager
def _source(checkpoint: str, train: str | None, *, quiet: bool, **encoding: Any) -> Iterator[Subject | FeatureTable]:
    """The encoder with its data, or files of features in its place."""
    from fgssl.evaluation.feature_file import SEPARATOR, FeatureTable, is_feature_table
    from fgssl.evaluation.subject import open_subject

    if not is_feature_table(checkpoint):
        if train is not None:
            raise typer.BadParameter("belongs to files of features; an encoder has --data", param_hint="--train")
        with options.reported(quiet=quiet, **encoding) as given:
            yield open_subject(checkpoint, given)
        return
    refused = [
        f"--{name.replace('_', '-')}" for name, value in encoding.items() if value is not None and name != "data"
    ]
    if refused:
        raise typer.BadParameter("a file of features needs none", param_hint=" ".join(refused))
    with reporting(quiet=quiet, warn=False) as reporter:
        yield FeatureTable(SEPARATOR.join([checkpoint, *([train] if train else [])]), reporter=reporter)


def _splits(source: Subject | FeatureTable, data: str | None, split: str | None, train: str | None, seed: int) -> Any:
    from fgssl.config.schema import DataConfig
    from fgssl.evaluation.probing.splits import file_splits, probe_splits
    from fgssl.evaluation.subject import Subject

    if isinstance(source, Subject):
        return probe_splits(source.data, split, seed=seed)
    if data is not None:
        return probe_splits(DataConfig(source=data), split, seed=seed)
    return file_splits(source, train, seed=seed)


def _scored(source: Subject | FeatureTable, data: str | None, split: str | None) -> ImageSet:
    """The labelled images that few-shot episodes are drawn from."""
    from fgssl.config.schema import DataConfig
    from fgssl.evaluation.feature_file import FeatureImages
    from fgssl.evaluation.subject import Subject, open_split

    if isinstance(source, Subject):
        return open_split(source.data, split, "test")
    return FeatureImages(source.files[0]) if data is None else open_split(DataConfig(source=data), split, "test")


def _linear(
    source: Subject | FeatureTable, splits: Any, asked: ProbeOptions, output: Path | None, checkpoint: str
) -> dict[str, Any]:
    from fgssl.evaluation.probing.files import probe_document, write_probe
    from fgssl.evaluation.probing.run import run_probe

    report = run_probe(source, splits, asked)
    source.name_faults(report.train, report.test)
    head = {"checkpoint": checkpoint, "data": splits.test.source, "pool": source.pool, "seed": asked.seed}
    document = {**head, **probe_document(report)}
    document["output"] = None if output is None else str(output)
    if output is not None:
        write_probe(output, document, report)
    return document


def _print_linear(protocol: str, found: dict[str, Any]) -> None:
    tries = max(share["tries"] for share in found["results"])
    drawn = tries > 1
    uncertainty = f"± sd of {tries} tries" if drawn else "95 %"
    columns = ("pool", "share", "labels", "tries", "top1", uncertainty, "top5", "mean per class", "test images")
    rows = []
    for share in found["results"]:
        spread = share["top1_spread"] if drawn else f"{cell(share['top1_low'])} to {cell(share['top1_high'])}"
        rows.append([found["pool"], share["fraction"], share["labels"], share["tries"], share["top1"], spread,
                     share["top5"], share["mean_per_class"], found["test_images"]])  # fmt: skip
    print_table(columns, rows, title=f"Probe ({protocol}) on {found['data']} (percent)")


def _few_shot(
    source: Subject | FeatureTable, images: ImageSet, shots: tuple[int, ...], ways: int | None, episodes: int, seed: int
) -> dict[str, Any]:
    from fgssl.evaluation.probing.run import run_few_shot

    found = run_few_shot(source, images, shots=shots, ways=ways, episodes=episodes, seed=seed)
    rows = [
        {"shots": count, "ways": result.ways, "episodes": episodes, "top1": result.accuracy.value,
         "top1_low": result.accuracy.low, "top1_high": result.accuracy.high, "skipped_classes": result.skipped}
        for count, result in zip(shots, found, strict=True)
    ]  # fmt: skip
    more = "".join(f", {count}-shot alike" for count in shots[1:])
    return {
        "data": images.source, "pool": source.pool, "seed": seed,
        "top1": rows[0]["top1"], "top5": None,
        "protocol": f"{found[0].protocol}{more}, drawn from {images.split}",
        "labels": rows[0]["ways"] * rows[0]["shots"], "results": rows,
    }  # fmt: skip


def _print_few_shot(found: dict[str, Any]) -> None:
    print_table(
        ("pool", "shots", "ways", "episodes", "top1", "95 %"),
        [[found["pool"], r["shots"], r["ways"], r["episodes"], r["top1"],
          f"{cell(r['top1_low'])} to {cell(r['top1_high'])}"] for r in found["results"]],
        title=f"Few-shot on {found['data']} (percent)",
    )  # fmt: skip
