"""What a probe found, as one JSON document and as files: tables by class, confused pairs, the labelled images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fgssl.data.sources.files import list_line
from fgssl.evaluation.probing.run import ProbeReport
from fgssl.evaluation.probing.scores import Share, Trial
from fgssl.runtime.files import Inputs, OutputKind, check_folder, check_output, write_text
from fgssl.runtime.text import csv_text, json_text

TABLES = ("probe.json", "per_class.csv", "confusions.csv")
METRICS = ("top1", "top5", "mean_per_class")


def probe_document(report: ProbeReport) -> dict[str, Any]:
    """Everything but the labelled images; the first fraction's numbers are repeated at the top."""
    results = [_share(share, report) for share in report.shares]
    return {
        "protocol": report.protocol,
        **{name: results[0][name] for name in ("labels", *METRICS, "top1_low", "top1_high")},
        "test_images": len(report.test.identifiers),
        "results": results,
    }


def _share(share: Share, report: ProbeReport) -> dict[str, Any]:
    interval, names = share.interval(), class_names(report)
    found: dict[str, Any] = {"fraction": share.fraction, "labels": share.labels, "tries": len(share.trials),
                             "seeds": list(share.seeds), "protocol": share.trials[0].result.protocol}  # fmt: skip
    for name in METRICS:
        found |= {name: share.mean(name), f"{name}_spread": share.spread(name), f"{name}_tries": share.values(name)}
    found |= {"top1_low": interval.low, "top1_high": interval.high}
    # JSON has no NaN
    known = [None if math.isnan(value) else value for value in share.per_class().tolist()]
    found["per_class"] = dict(zip(names, known, strict=True))
    found["confusions"] = [
        {"label": names[pair.label], "predicted": names[pair.predicted], "images": pair.images}
        for pair in share.confusions(report.test.known_labels)
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


def write_probe(folder: Path, document: dict[str, Any], report: ProbeReport) -> None:
    """probe.json, per_class.csv, confusions.csv, and one list of labelled images a try; each file appears whole.

    The lists are what `--data list.txt` reads: a path and its class a line. Raises FgsslError.
    """
    tables = (json_text(document) + "\n", _per_class_table(document, report), _confusion_table(document))
    texts = dict(zip(TABLES, tables, strict=True))
    for share in report.shares:
        for trial in share.trials:
            texts[f"labels-{trial.draw.fraction:g}-seed{trial.draw.seed}.txt"] = _image_list(trial, report)
    for name, text in texts.items():
        write_text(folder / name, text)


def _image_list(trial: Trial, report: ProbeReport) -> str:
    train, names = report.train, class_names(report)
    labels = train.known_labels.tolist()
    return "".join(list_line(train.identifiers[row], names[labels[row]]) for row in trial.draw.rows.tolist())


def _per_class_table(document: dict[str, Any], report: ProbeReport) -> str:
    shares, names = document["results"], class_names(report)
    images = report.test.known_labels.bincount(minlength=len(names)).tolist()
    rows: list[list[Any]] = [["class", "test images", *(f"top1 at {share['fraction']:g}" for share in shares)]]
    for name, count in zip(names, images, strict=True):
        values = [share["per_class"][name] for share in shares]
        rows.append([name, count, *("" if value is None else f"{value:.2f}" for value in values)])
    return csv_text(rows)


def _confusion_table(document: dict[str, Any]) -> str:
    pairs = [(share["fraction"], pair) for share in document["results"] for pair in share["confusions"]]
    rows = [[f"{fraction:g}", pair["label"], pair["predicted"], pair["images"]] for fraction, pair in pairs]
    return csv_text([["fraction", "class", "taken for", "images"], *rows])
