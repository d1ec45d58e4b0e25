"""fgssl embed, fgssl probe: what one encoder makes of pictures, written and classified by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import BadParameter, Option

from fgssl.cli import completion, options
from fgssl.cli.console import cell, print_json, print_table, process_rank, reporting, say
from fgssl.cli.options import Text
from fgssl.cli.pages import ReportFile, check_page, write_page
from fgssl.evaluation.protocols import PAPER_SHARES, PROBE

if TYPE_CHECKING:
    from fgssl.data.images import ImageSet
    from fgssl.evaluation.feature_file import FeatureTable
    from fgssl.evaluation.probing.run import ProbeOptions, ProbeReport
    from fgssl.evaluation.subject import Subject

    Source = Subject | FeatureTable

_OUTPUT = """File to write: path, split, label, class name and vector of each picture, as its suffix says: .safetensors,
.parquet, .csv or .npy. [features.safetensors; none with --index or --stats]"""
_INDEX = """Add the vectors to this index, made where there is none: NAME.lance (LanceDB) or NAME.faiss (FAISS). A
picture that is embedded again replaces its row."""
_HALF = "Write numbers of 16 bits: half the size, and a search reads them where they lie."
_STATS = """Print signals that need no labels: effective rank, uniformity, alignment, whether two views have the same
neighbours. Of a features.safetensors in place of CHECKPOINT: the first two."""
PROTOCOLS = ("cached", "sgd", "knn", "fewshot", "paper")
_SHELL = completion.among(PROTOCOLS)
DEFAULT_LISTS = Path("probe-lists")
_TRAIN = """features.safetensors to fit on, where CHECKPOINT is one to score on. [CHECKPOINT divided 80 to 20 by
class]"""
_PROTOCOLS = """cached: logistic regression on features made once. sgd: the paper's, new crops each epoch. knn: nearest
neighbours. fewshot: nearest class mean. paper: sgd on 100, 50 and 20 % of the labels."""
_TRIES = "Draws of each share below 1, with seeds --seed, --seed + 1, ..."
_EPOCHS = "sgd: passes over the labelled images."
_EPISODES = "fewshot: episodes to average over."
_FOLDER = f"""Folder for probe.json, per_class.csv, confusions.csv and the lists of labelled images. [{DEFAULT_LISTS}
where labels are drawn]"""


@options.takes(options.ENCODING)
def embed(
    checkpoint: options.Checkpoint,
    data: options.Data = None,
    split: options.Split = None,
    output: Annotated[Path | None, Option("--output", "-o", help=_OUTPUT)] = None,
    index: Annotated[Path | None, Option(metavar="NAME.lance|.faiss", help=_INDEX)] = None,
    half: Annotated[bool, Option("--half", help=_HALF)] = False,
    overwrite: options.Overwrite = False,
    stats: Annotated[bool, Option("--stats", help=_STATS)] = False,
    processes: options.Processes = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    **encoding: Any,
) -> None:
    """Write the features of a split or folder to one file. In the format of its suffix, or into a vector index."""
    options.check_paths(checkpoint, data, encoding["cache"])
    from fgssl.evaluation.export import Export, check_export, halved, save_export
    from fgssl.evaluation.feature_file import is_feature_file, read_features
    from fgssl.evaluation.metrics import feature_stats, view_stats
    from fgssl.evaluation.subject import open_split, open_subject
    from fgssl.evaluation.vector_index import add_to_index, check_index
    from fgssl.runs.encoder_file import identity

    if stats and is_feature_file(checkpoint):
        signals = feature_stats(read_features(checkpoint).embeddings.features)
        with reporting(quiet=quiet) as reporter:
            reporter.note("alignment and neighbours under two views need the encoder and the pictures")
        document = {"features": checkpoint, "stats": signals}
        print_json(document) if json_output else _print_stats(signals, checkpoint)
        return
    target = output or (None if stats or index else Path("features.safetensors"))
    if target is not None:
        check_export(target, inputs=(*checkpoint.split("+"), data), overwrite=overwrite)
    options.share_out(processes, remedy=options.AGAIN)
    with options.reported(quiet=quiet, data=data, **encoding) as given:
        subject = open_subject(checkpoint, given)
        images = open_split(subject.data, split, "test")
        about = {"source": images.source, "split": images.split, "pool": subject.pool, "checkpoint": checkpoint,
                 "encoder": identity(subject.encoder)}  # fmt: skip
        if index is not None:
            check_index(index, about)
        found = subject.embed(images)
        told: dict[str, Any] = {}
        if stats:
            views = view_stats(subject.encoder, images, pool=subject.pool, batch_size=subject.batch_size)
            told["stats"] = {**feature_stats(found.features), **views}
        splits = tuple(images.split_of(row) for row in found.positions.tolist())
        export = Export(halved(found) if half else found, splits, about)
        if target is not None and process_rank() == 0:
            save_export(target, export)
        if index is not None and process_rank() == 0:
            told["index"] = {"path": str(index), "rows": add_to_index(index, export)}
    count, width = found.features.shape
    if json_output:
        print_json({"output": target and str(target), "images": count, "width": width, "pool": subject.pool,
                    "labels": found.labels is not None, "unreadable": len(found.faults), **told})  # fmt: skip
        return
    if stats:
        _print_stats(told["stats"], f"{images.source} [{images.split}] by {checkpoint} ({subject.pool})")
    if target is not None:
        say(f"{target}: {count} x {width} features ({subject.pool})")
    if "index" in told:
        say(f"{index}: {told['index']['rows']} rows, {count} of them written now")


def _print_stats(signals: dict[str, Any], title: str) -> None:
    from fgssl.evaluation.metrics import MEANINGS

    of = {name: signals["images"] for name in ("effective_rank", "uniformity")}
    rows = [
        [name, meaning, f"{signals[name]:.3f}", of.get(name, signals.get("view_images"))]
        for name, meaning in MEANINGS.items()
        if name in signals
    ]
    print_table(("signal", "meaning", "value", "images"), rows, title=title, text=(0, 1))


@options.takes(options.ENCODING)
def probe(
    checkpoint: options.Checkpoint,
    data: options.Data = None,
    split: options.Split = None,
    train: Annotated[Text, Option(metavar="FILE", help=_TRAIN)] = None,
    protocol: Annotated[str, Option(metavar="|".join(PROTOCOLS), help=_PROTOCOLS, autocompletion=_SHELL)] = "cached",
    labels: Annotated[str, Option(help="Shares of the train labels, drawn by class: 1.0,0.5,0.2")] = "1.0",
    tries: Annotated[int, Option(help=_TRIES, callback=options.at_least(1, "--tries"))] = 1,
    epochs: Annotated[int, Option(help=_EPOCHS, callback=options.at_least(1, "--epochs"))] = 100,
    k: Annotated[int, Option("--k", help="knn: neighbours that vote.", callback=options.at_least(1, "--k"))] = 20,
    temperature: Annotated[float, Option(help="knn: votes are exp(cosine / temperature).")] = 0.07,
    shots: Annotated[str, Option(help="fewshot: labelled images of each class: 1,5")] = "1,5",
    ways: Annotated[int, Option(help="fewshot: classes in an episode; 0 takes all.")] = 5,
    episodes: Annotated[int, Option(help=_EPISODES, callback=options.at_least(1, "--episodes"))] = 600,
    seed: Annotated[int, Option(help="Seed of everything drawn: labels, held-out slice, crops, episodes.")] = 0,
    output: Annotated[Path | None, Option("--output", "-o", help=_FOLDER)] = None,
    report: ReportFile = None,
    overwrite: options.Overwrite = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    **encoding: Any,
) -> None:
    """Classify by frozen features. Fitted on the train split, scored on the test split."""
    if protocol not in PROTOCOLS:
        raise BadParameter(f"'{protocol}' is not one of {', '.join(PROTOCOLS)}", param_hint="--protocol")
    named = PROBE.get(protocol)
    shares = options.number_list(labels, "--labels", whole=False)
    if named is not None:
        protocol, shares = "sgd", PAPER_SHARES if shares == (1.0,) else shares
    shot_counts = tuple(map(int, options.number_list(shots, "--shots", whole=True)))
    if protocol == "fewshot" and (shares != (1.0,) or output is not None):
        raise BadParameter("fewshot draws its own labels and has no lists or tables", param_hint="--labels")
    options.check_paths(checkpoint, data, encoding["cache"])
    check_page(report, inputs=(*checkpoint.split("+"), train, data), overwrite=overwrite)
    from fgssl.config.schema import DataConfig
    from fgssl.evaluation.feature_file import FeatureImages
    from fgssl.evaluation.probing import run
    from fgssl.evaluation.probing.splits import file_splits, probe_splits
    from fgssl.evaluation.subject import Subject, open_split

    asked = run.ProbeOptions(protocol, shares, tries, seed, epochs, k, temperature)
    lists = output or (DEFAULT_LISTS if min(shares) < 1 else None)
    classified: tuple[Any, Any, Any] | None = None
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
            result = run.run_probe(source, splits, asked)
            found = _linear(source, splits, result, asked, lists, checkpoint)
            classified = (result, source, splits)
    if named is not None:
        found |= {"definition": named.definition, "source": named.source}
    if json_output:
        print_json(found)
    else:
        _print_results(protocol, found)
        if lists is not None:
            say(f"tables and lists: {lists}")
    write_page(report, lambda: _page(found, classified), told=not json_output, quiet=quiet)


def _page(document: dict[str, Any], classified: Any) -> str:
    from fgssl.report.probe import probe_page

    return probe_page(document, classified)


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
    if refused := options.given_flags({**encoding, "data": None}):
        raise BadParameter("a file of features needs none", param_hint=" ".join(refused))
    with reporting(quiet=quiet, warn=False) as reporter:
        yield FeatureTable(SEPARATOR.join(filter(None, (checkpoint, train))), reporter=reporter)


def _linear(
    source: Source, splits: Any, report: ProbeReport, asked: ProbeOptions, output: Path | None, checkpoint: str
) -> dict[str, Any]:
    from fgssl.evaluation.probing import run

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
    for stated in ("definition", "source"):
        if stated in found:
            say(f"{stated}: {found[stated]}")
