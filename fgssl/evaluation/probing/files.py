"""What a probe found, as one JSON document and as files: tables by class, confused pairs, the labelled images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.probing.label_shares import Share, Trial
from fgssl.evaluation.probing.run import ProbeReport
from fgssl.evaluation.probing.scores import Confusion
from fgssl.runtime.files import Inputs, OutputKind, check_folder, check_output, write_text
from fgssl.runtime.text import csv_text, json_text

TABLES = ("probe.json", "per_class.csv", "confusions.csv")
METRICS = ("top1", "top5", "mean_per_class")


def probe_document(report: ProbeReport) -> dict[str, Any]:
    """Everything but the labelled images; the first fraction's numbers are repeated at the top."""
    first = report.shares[0]
    interval = first.interval()
    return {
        "protocol": report.protocol,
        "labels": first.labels,
        **{name: first.mean(name) for name in METRICS},
        "top1_low": interval.low,
        "top1_high": interval.high,
        "test_images": len(report.test.identifiers),
        "results": [_share(share, report) for share in report.shares],
    }


def _share(share: Share, report: ProbeReport) -> dict[str, Any]:
    names, interval = class_names(report), share.interval()
    found: dict[str, Any] = {"fraction": share.fraction, "labels": share.labels, "tries": len(share.trials),
                             "seeds": list(share.seeds), "protocol": share.trials[0].result.protocol}  # fmt: skip
    for name in METRICS:
        found |= {name: share.mean(name), f"{name}_spread": share.spread(name), f"{name}_tries": share.values(name)}
    found |= {"top1_low": interval.low, "top1_high": interval.high}
    found["per_class"] = {name: _number(value) for name, value in zip(names, share.per_class().tolist(), strict=True)}
    found["confusions"] = [
        {"label": names[pair.label], "predicted": names[pair.predicted], "images": pair.images}
        for pair in _confusions(share, report)
    ]
    return found


def class_names(report: ProbeReport) -> list[str]:
    """A name for every class, its number where it has none."""
    count = len(report.shares[0].trials[0].result.per_class)
    named = report.train.class_names or ()
    names = [*named, *map(str, range(len(named), count))]
    # names are keys of the document: two of the same name stay apart
    return [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names)]


def _is_own(path: Path) -> bool:
    """All files of a probe are known by the document beside them."""
    try:
        found = json.loads(path.with_name("probe.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"checkpoint", "protocol", "results"} <= found.keys()


_PROBE_FILE = OutputKind("a file of a probe", (".json", ".csv", ".txt"), _is_own)


def check_probe_folder(folder: Path, *, inputs: Inputs = (), overwrite: bool = False) -> None:
    """Makes the folder and refuses, before the work, to lose files in it that no probe wrote. Raises FgsslError."""
    check_folder(folder)
    for path in (*(folder / name for name in TABLES), *folder.glob("labels-*-seed*.txt")):
        check_output(path, kind=_PROBE_FILE, inputs=inputs, overwrite=overwrite)


def write_probe(folder: Path, document: dict[str, Any], report: ProbeReport) -> list[Path]:
    """probe.json, per_class.csv, confusions.csv, and one list of labelled images a try; each file appears whole.

    The lists are what `--data list.txt` reads: a path and its class a line.

    Returns:
        The files written.

    Raises:
        FgsslError: the folder cannot be written.
    """
    tables = (json_text(document) + "\n", _per_class_table(report), _confusion_table(report))
    texts = dict(zip(TABLES, tables, strict=True))
    for share in report.shares:
        for trial in share.trials:
            texts[list_name(trial)] = _image_list(trial, report.train, class_names(report))
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def list_name(trial: Trial) -> str:
    """The file that lists a try's labelled images."""
    return f"labels-{trial.draw.fraction:g}-seed{trial.draw.seed}.txt"


def _image_list(trial: Trial, train: Embeddings, names: list[str]) -> str:
    labels = train.require_labels("train")
    return "".join(f"{train.identifiers[row]}\t{names[int(labels[row])]}\n" for row in trial.draw.rows.tolist())


def _per_class_table(report: ProbeReport) -> str:
    names = class_names(report)
    images = _counts(report.test.require_labels("test"), len(names))
    table: list[list[Any]] = [["class", "test images", *(f"top1 at {s.fraction:g}" for s in report.shares)]]
    for place, name in enumerate(names):
        values = [_number(float(share.per_class()[place])) for share in report.shares]
        table.append([name, images[place], *("" if value is None else f"{value:.2f}" for value in values)])
    return csv_text(table)


def _confusion_table(report: ProbeReport) -> str:
    names = class_names(report)
    table: list[list[Any]] = [["fraction", "class", "taken for", "images"]]
    for share in report.shares:
        pairs = _confusions(share, report)
        table += [[f"{share.fraction:g}", names[pair.label], names[pair.predicted], pair.images] for pair in pairs]
    return csv_text(table)


def _confusions(share: Share, report: ProbeReport) -> tuple[Confusion, ...]:
    return share.confusions(report.test.require_labels("test"))


def _counts(labels: Tensor, classes: int) -> list[int]:
    return [int(count) for count in labels.bincount(minlength=classes)]


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
