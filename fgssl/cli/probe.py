"""fgssl probe"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import BadParameter, Option

from fgssl.cli import options
from fgssl.cli.console import cell, print_json, print_table, reporting, say
from fgssl.cli.options import Text

if TYPE_CHECKING:
    from fgssl.data.images import ImageSet
    from fgssl.evaluation.feature_file import FeatureTable
    from fgssl.evaluation.probing.run import ProbeOptions
    from fgssl.evaluation.subject import Subject

    Source = Subject | FeatureTable

PROTOCOLS = ("cached", "sgd", "knn", "fewshot")
DEFAULT_LISTS = Path("probe-lists")
_TRAIN = """features.safetensors to fit on, where CHECKPOINT is one to score on. [CHECKPOINT divided 80 to 20 by
class]"""
_PROTOCOLS = """cached: logistic regression on features made once. sgd: the paper's, new crops each epoch. knn: nearest
neighbours. fewshot: nearest class mean."""
_OUTPUT = f"""Folder for probe.json, per_class.csv, confusions.csv and the lists of labelled images. [{DEFAULT_LISTS}
where labels are drawn]"""


@options.takes(options.ENCODING)
def probe(
    checkpoint: options.Checkpoint,
    data: options.Data = None,
    split: options.Split = None,
    train: Annotated[Text, Option(metavar="FILE", help=_TRAIN)] = None,
    protocol: Annotated[str, Option(metavar="|".join(PROTOCOLS), help=_PROTOCOLS)] = "cached",
    labels: Annotated[str, Option(help="Shares of the train labels, drawn by class: 1.0,0.5,0.2")] = "1.0",
    tries: Annotated[int, Option(help="Draws of each share below 1, with seeds --seed, --seed + 1, ...")] = 1,
    epochs: Annotated[int, Option(help="sgd: passes over the labelled images.")] = 100,
    k: Annotated[int, Option("--k", help="knn: neighbours that vote.")] = 20,
    temperature: Annotated[float, Option(help="knn: votes are exp(cosine / temperature).")] = 0.07,
    shots: Annotated[str, Option(help="fewshot: labelled images of each class: 1,5")] = "1,5",
    ways: Annotated[int, Option(help="fewshot: classes in an episode; 0 takes all.")] = 5,
    episodes: Annotated[int, Option(help="fewshot: episodes to average over.")] = 600,
    seed: Annotated[int, Option(help="Seed of everything drawn: labels, held-out slice, crops, episodes.")] = 0,
    output: Annotated[Path | None, Option("--output", "-o", help=_OUTPUT)] = None,
    overwrite: options.Overwrite = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    **encoding: Any,
) -> None:
    """Classify by frozen features. Fitted on the train split, scored on the test split."""
    if protocol not in PROTOCOLS:
        raise BadParameter(f"'{protocol}' is not one of {', '.join(PROTOCOLS)}", param_hint="--protocol")
    shares = options.number_list(labels, "--labels", whole=False)
    shot_counts = tuple(map(int, options.number_list(shots, "--shots", whole=True)))
    if protocol == "fewshot" and (shares != (1.0,) or output is not None):
        raise BadParameter("fewshot draws its own labels and has no lists or tables", param_hint="--labels")
    options.check_paths(checkpoint, data, encoding["cache"])
    from fgssl.config.schema import DataConfig
    from fgssl.evaluation.feature_file import FeatureImages
    from fgssl.evaluation.probing import run
    from fgssl.evaluation.probing.splits import file_splits, probe_splits
    from fgssl.evaluation.subject import Subject, open_split

    asked = run.ProbeOptions(protocol, shares, tries, seed, epochs, k, temperature)
    lists = output or (DEFAULT_LISTS if min(shares) < 1 else None)
    with _source(checkpoint, train, quiet=quiet, data=data, **encoding) as source:
        # the labelled images, where they do not come with the features
        where = source.data if isinstance(source, Subject) else DataConfig(source=data) if data else None
        if protocol == "fewshot":
            images = open_split(where, split, "test") if where else FeatureImages(source.files[0])
            drawing = {"ways": ways or None, "episodes": episodes, "seed": seed}
            found = {"checkpoint": checkpoint, **_few_shot(source, images, shot_counts, **drawing)}
        else:
            if lists is not None:
                run.check_probe_folder(lists, inputs=(*checkpoint.split("+"), train, data), overwrite=overwrite)
            splits = probe_splits(where, split, seed=seed) if where else file_splits(source, train, seed=seed)
            found = _linear(source, splits, asked, lists, checkpoint)
    if json_output:
        print_json(found)
        return
    _print_results(protocol, found)
    if lists is not None:
        say(f"tables and lists: {lists}")


@contextmanager
def _source(checkpoint: str, train: str | None, *, quiet: bool, **encoding: Any) -> Iterator[Any]:
    """The encoder with its data, or files of features in its place."""
    from fgssl.evaluation.feature_file import SEPARATOR, FeatureTable, is_feature_table
    from fgssl.evaluation.subject import open_subject

    if not is_feature_table(checkpoint):
        if train is not None:
            raise BadParameter("belongs to files of features; an encoder has --data", param_hint="--train")
        with options.reported(quiet=quiet, **encoding) as given:
            yield open_subject(checkpoint, given)
        return
    if refused := options.flags({**encoding, "data": None}):
        raise BadParameter("a file of features needs none", param_hint=" ".join(refused))
    with reporting(quiet=quiet, warn=False) as reporter:
        yield FeatureTable(SEPARATOR.join(filter(None, (checkpoint, train))), reporter=reporter)


def _linear(source: Source, splits: Any, asked: ProbeOptions, output: Path | None, checkpoint: str) -> dict[str, Any]:
    from fgssl.evaluation.probing import run

    report = run.run_probe(source, splits, asked)
    document = {"checkpoint": checkpoint, "data": splits.test.source, "pool": source.pool, "seed": asked.seed,
                **run.probe_document(report), "output": None if output is None else str(output)}  # fmt: skip
    if output is not None:
        run.write_probe(output, document, report)
    return document


def _few_shot(source: Source, images: ImageSet, shots: tuple[int, ...], **drawing: Any) -> dict[str, Any]:
    from fgssl.evaluation.probing.run import run_few_shot

    found = run_few_shot(source, images, shots=shots, **drawing)
    rows = [
        {"shots": count, "ways": result.ways, "episodes": drawing["episodes"], "top1": result.accuracy.value,
         "top1_low": result.accuracy.low, "top1_high": result.accuracy.high, "skipped_classes": result.skipped}
        for count, result in zip(shots, found, strict=True)
    ]  # fmt: skip
    more = "".join(f", {count}-shot alike" for count in shots[1:])
    return {
        "data": images.source, "pool": source.pool, "seed": drawing["seed"], "top1": rows[0]["top1"], "top5": None,
        "protocol": f"{found[0].protocol}{more}, drawn from {images.split}",
        "labels": rows[0]["ways"] * rows[0]["shots"], "results": rows,
    }  # fmt: skip


def _print_results(protocol: str, found: dict[str, Any]) -> None:
    rows = [
        {**row, "pool": found["pool"], "test images": found.get("test_images"),
         "95 %": f"{cell(row['top1_low'])} to {cell(row['top1_high'])}"} for row in found["results"]
    ]  # fmt: skip
    columns = dict.fromkeys(("pool", "shots", "ways", "episodes", "top1", "95 %"))  # title -> key, where it differs
    if protocol != "fewshot":
        tries = max(row["tries"] for row in rows)
        spread = {f"± sd of {tries} tries": "top1_spread"} if tries > 1 else {"95 %": None}
        columns = {"pool": None, "share": "fraction", "labels": None, "tries": None, "top1": None, **spread,
                   "top5": None, "mean per class": "mean_per_class", "test images": None}  # fmt: skip
    name = "Few-shot" if protocol == "fewshot" else f"Probe ({protocol})"
    cells = [[row[key or title] for title, key in columns.items()] for row in rows]
    print_table(tuple(columns), cells, title=f"{name} on {found['data']} (percent)")
    say(f"protocol: {found['protocol']}")
