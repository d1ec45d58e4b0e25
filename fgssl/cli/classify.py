"""fgssl classify: a classifier from a few labelled pictures, and what it says of new ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option

from fgssl.cli import options
from fgssl.cli.console import print_json, print_table, say
from fgssl.data.decoding import require_files
from fgssl.runtime.files import OutputKind, check_output, write_text
from fgssl.runtime.text import csv_text

if TYPE_CHECKING:
    from fgssl.classify.predict import Prediction, Predictions

_SOURCE = "Labelled pictures: class folders, a CSV with columns path and label, or as --data of pretrain."
_CHECKPOINT = "Run folder, encoder file or weights to classify above."
_HELD_OUT = "Share of each class to measure on; 0 fits on all. [the source's test split, else 0.2]"
_ABSTAIN = "Say nothing where the confidence is below this, from 0 to 1."
_CLASSIFIER = Argument(metavar="CLASSIFIER", help="File that fgssl classify fit wrote.", show_default=False)
_COLUMNS = (
    "path", "class", "confidence", "guess", "second", "second_confidence", "nearest", "nearest_class", "nearest_cosine"
)  # fmt: skip
SHOWN = 50  # pictures on a terminal; --json and --output have all


def _is_own(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline().decode("utf-8", "replace").strip() == ",".join(_COLUMNS)


TABLE = OutputKind("a table of predictions", (".csv",), _is_own)


@options.takes({name: kind for name, kind in options.ENCODING.items() if name not in ("masks", "shift")})
def fit(
    source: Annotated[str, Argument(metavar="SOURCE", help=_SOURCE, show_default=False)],
    checkpoint: Annotated[str, Option(help=_CHECKPOINT, show_default=False)],
    output: Annotated[Path, Option("--output", "-o", help="File to write.")] = Path("classifier.safetensors"),
    overwrite: options.Overwrite = False,
    held_out: Annotated[float | None, Option("--held-out", metavar="SHARE", help=_HELD_OUT, show_default=False)] = None,
    seed: Annotated[int, Option(help="Seed of the pictures held out and of the slice to calibrate on.")] = 0,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    **encoding: Any,
) -> None:
    """Fit a classifier on labelled pictures, and measure it on those held out. One file, encoder included."""
    if held_out is not None and not 0 <= held_out < 1:
        raise BadParameter(f"{held_out:g} is not a share below 1; 0 fits on all", param_hint="--held-out")
    options.check_paths(checkpoint, source, encoding["cache"])
    from fgssl.classify.classifier import CLASSIFIER, save_classifier
    from fgssl.classify.fit import fit_classifier
    from fgssl.evaluation.subject import open_subject

    check_output(output, kind=CLASSIFIER, inputs=(checkpoint, source), overwrite=overwrite)
    with options.reported(quiet=quiet, data=source, **encoding) as asked:
        made = fit_classifier(open_subject(checkpoint, asked), held_out=held_out, seed=seed)
        save_classifier(output, made)
    told = made.told
    if json_output:
        print_json({
            "output": str(output), "checkpoint": checkpoint, "data": source, "pool": told.pool,
            "classes": list(told.classes), "pictures": len(told.paths), "temperature": told.temperature,
            "protocol": told.protocol, "held_out": told.held_out,
        })  # fmt: skip
        return
    if told.held_out is not None:
        _print_held_out(told.held_out, source)
    say(f"{output}: {len(told.classes)} classes from {len(told.paths)} pictures, {told.pool} pooling")
    say(f"protocol: {told.protocol}")


def _print_held_out(found: dict[str, Any], source: str) -> None:
    accuracy = found["accuracy"]
    say(f"{found['images']} held-out pictures of {source}", style="bold")
    say(f"accuracy {accuracy['value']:.2f} % (95 % interval {accuracy['low']:.2f} to {accuracy['high']:.2f})")
    say(f"calibration error (ECE) {found['calibration_error']:.2f} %; {found['uncalibrated']:.2f} % uncalibrated")
    rows = [[f"--abstain {each['confidence']:g}", each["answered"], each["accuracy"]] for each in found["answers"]]
    print_table(("", "answered", "accuracy of these"), rows, title="Where it may abstain (percent)")


@options.takes({name: options.ENCODING[name] for name in ("batch_size", "device", "cache")})
def predict(
    classifier: Annotated[str, _CLASSIFIER],
    pictures: Annotated[list[Path], Argument(metavar="PICTURE...", help="Pictures, or folders of them.")],
    abstain: Annotated[float, Option(metavar="CONFIDENCE", help=_ABSTAIN)] = 0.0,
    examples: Annotated[int, Option(help="Nearest labelled pictures to tell.")] = 3,
    output: Annotated[Path | None, Option("--output", "-o", help="CSV to write, a row a picture.")] = None,
    overwrite: options.Overwrite = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    **encoding: Any,
) -> None:
    """Classify new pictures. Confidence, and the labelled pictures that each is most like."""
    if not 0 <= abstain <= 1:
        raise BadParameter(f"{abstain:g} is no confidence from 0 to 1", param_hint="--abstain")
    if examples < 1:
        raise BadParameter(f"{examples}: ask for 1 or more", param_hint="--examples")
    require_files([path for path in pictures if not path.is_dir()])
    options.check_paths(cache=encoding["cache"])
    if output is not None:
        check_output(output, kind=TABLE, inputs=(classifier, *pictures), overwrite=overwrite)
    from fgssl.classify.predict import predict_pictures

    with options.reported(quiet=quiet, **{**encoding, "cache": encoding["cache"] or "off"}) as asked:
        found = predict_pictures(classifier, pictures, asked, abstain=abstain, examples=examples)
    if output is not None:
        write_text(output, csv_text([_COLUMNS, *map(_row, found)]))
    if json_output:
        print_json({
            "classifier": classifier, "abstain": abstain, "temperature": found.classifier.told.temperature,
            "unreadable": list(found.unreadable), "output": output and str(output),
            "predictions": [_document(each) for each in found],
        })  # fmt: skip
        return
    _print_predictions(found)
    if output is not None:
        say(f"{output}: {len(found)} pictures")


def _row(each: Prediction) -> tuple[Any, ...]:
    first, second, near = each.guesses[0], each.guesses[1], each.examples[0]
    return (
        each.path, each.label or "", round(first.confidence, 4), first.label, second.label, round(second.confidence, 4),
        near.path, near.label, round(near.cosine, 4),
    )  # fmt: skip


def _document(each: Prediction) -> dict[str, Any]:
    return {
        "picture": each.path, "class": each.label, "confidence": each.guesses[0].confidence,
        "guesses": [guess._asdict() for guess in each.guesses],
        "examples": [example._asdict() for example in each.examples],
    }  # fmt: skip


def _print_predictions(found: Predictions) -> None:
    rows = []
    for _, each in zip(range(SHOWN), found, strict=False):
        guess, near = each.guesses[0], each.examples[0]
        named = each.label or f"- ({guess.label}?)"
        rows.append((each.path, named, guess.confidence, f"{near.label}, {Path(near.path).name}", near.cosine))
    print_table(("picture", "class", "confidence", "most like", "cosine"), rows, text=(0, 1, 3))
    unsure = int((found.confidence[:, 0] < found.abstain).sum())
    if len(found) > SHOWN:
        say(f"... and {len(found) - SHOWN} more, in --json and --output")
    if found.abstain > 0:
        say(f"{len(found) - unsure} of {len(found)} answered at a confidence of {found.abstain:g} or more")
