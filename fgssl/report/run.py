"""The page of a run: what it gained over its start, how it learned, what it looks at, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml
from PIL import Image

from fgssl.config.schema import PretrainConfig, flatten
from fgssl.evaluation.metrics import MEANINGS
from fgssl.report.curves import Line, Panel, curves
from fgssl.report.maps import TOLD, Explained, maps
from fgssl.report.page import page
from fgssl.report.pictures import address
from fgssl.report.sections import Picture, Section, facts, gallery, render, table
from fgssl.report.split import SplitView, map_section, nearest_sections, unreadable_section

VIEW_SIDE = 136
ASKED = ("recipe", "flag", "--set")  # how the origin of a value begins that somebody asked for
_SIGNALS = ("effective_rank", "alignment", "uniformity", "neighbour_overlap")


class RunContent(NamedTuple):
    """What the page of a run is made of; what is empty is left out."""

    summary: Mapping[str, Any]  # as in summary.json
    metrics: Sequence[Mapping[str, Any]]  # lines of metrics.jsonl
    settings: Mapping[str, Mapping[str, Any]]  # key -> value and origin, as `describe` has them
    pairs: Sequence[tuple[str, Sequence[Image.Image]]] = ()  # name, image and its two views
    explained: Sequence[Explained] = ()
    split: SplitView | None = None
    decided: str | None = None  # the map, by its field in `Explained`, that says where the encoder looks again


def run_page(content: RunContent) -> str:
    """The page as HTML."""
    summary, settings = content.summary, content.settings
    told = f"{settings['objective.name']['value']} on {settings['data.source']['value']}, {summary['steps']} steps"
    sections = [*_summary(summary), _curves(content.metrics)]
    if content.split is not None:
        sections += [map_section(content.split), *nearest_sections(content.split)]
    if content.explained:
        sections.append(maps("Where the encoder looks", content.explained, told=TOLD, decided=content.decided))
    if content.pairs:
        sections.append(_views(content.pairs, settings))
    sections += [*unreadable_section(list(summary["unreadable"])), *_settings(settings, summary)]
    return page(f"{summary['backbone']}: a pretraining run", sections, subtitle=told)


def _summary(summary: Mapping[str, Any]) -> list[Section]:
    """In a sentence what the run gained, its sizes, and its retrieval beside the start's."""
    values = {
        "training images": summary["train_images"],
        "test images": summary["test_images"],
        "steps": summary["steps"],
        "time": duration(summary["train_seconds"]),
        "feature map": " x ".join(map(str, summary["map_size"])),
        "parameters trained": summary["parameters_trained"],
        "seed": summary["seed"],
        "weights kept": (summary.get("choice") or {}).get("weights"),
    }
    known = {key: value for key, value in values.items() if value is not None}
    found = [facts("Summary", known, told=against_start(summary))]
    if rows := summary["retrieval"]:
        names = ("rank1", "rank5", "mAP")
        cells = [["before" if row["encoder"] == "init" else row["encoder"], row["pool"], *(row[n] for n in names)]
                 for row in rows]  # fmt: skip
        asked = f"{rows[0]['queries']:,} test pictures, leave-one-out, in percent; before: untouched by training."
        found.append(table("Retrieval", ("encoder", "pool", "rank-1", "rank-5", "mAP"), cells, told=asked))
    if signals := summary.get("signals"):
        start, end = signals["start"], signals["end"]
        cells = [[name.replace("_", " "), start.get(name), end.get(name), MEANINGS[name]] for name in _SIGNALS]
        found.append(table("Signals without labels", ("signal", "start", "end", "what it is"), cells))
    return found


def against_start(summary: Mapping[str, Any]) -> str:
    """What the run gained over the weights it began from, in a sentence; empty where that is not known."""
    beside = summary.get("against_start")
    if beside:
        chance = "beyond chance" if beside["low"] > 0 or beside["high"] < 0 else "not beyond chance"
        return (
            f"Rank-1 is {beside['rank1']:.1f} %, {beside['difference']:+.1f} points against the start's "
            f"{beside['start_rank1']:.1f} % (95 % interval {beside['low']:+.1f} to {beside['high']:+.1f}, {chance})."
        )
    rows = {(row["encoder"], row["pool"]): row["rank1"] for row in summary["retrieval"]}
    trained = [(pool, value) for (encoder, pool), value in rows.items() if encoder == "trained"]
    if trained and ("init", "gap") in rows:
        pool, best = max(trained, key=lambda each: each[1])
        return f"Rank-1 is {best:.1f} % ({pool}); before the first step it was {rows['init', 'gap']:.1f} % (gap)."
    signals = summary.get("signals")
    if signals:
        start, end = (100 * signals[side]["neighbour_overlap"] for side in ("start", "end"))
        told = f"Two views of a picture share {start:.1f} % of its neighbours before the first step, {end:.1f} % after"
        return f"{told} the last; this takes no labels."
    return ""


def _curves(metrics: Sequence[Mapping[str, Any]]) -> Section:
    steps = [int(row["step"]) for row in metrics]

    def line(key: str, name: str = "") -> Line:
        return Line(name, steps, [row.get(key) for row in metrics])

    def level(key: str, name: str) -> dict[str, float]:
        value = next((row[key] for row in metrics if row.get(key) is not None), None)
        return {} if value is None else {name: float(value)}

    ranks = [line("effective_rank", "a batch"), line("sample_effective_rank", "a training sample")]
    neighbours = {**level("start_neighbour_overlap", "start"), **level("sample_neighbour_chance", "chance")}
    entropy = "Low: the loss points at few places."
    panels = [
        Panel("Loss", [line("loss")], level("chance", "chance"), "Lower is better; chance: knowing nothing."),
        Panel("Fit of the rationale", [line("fit")], {}, "Distance of the branch from the GradCAM of the loss."),
        Panel("Entropy of the GradCAM", [line("target_entropy")], {"uniform": 1.0}, entropy),
        Panel("Effective rank", ranks, level("start_effective_rank", "start"), "Dimensions in use; 1 is a collapse."),
        Panel("Same neighbours", [line("sample_neighbour_overlap")], neighbours, "In two views; 1 is best."),
        Panel("Learning rate", [line("lr")], {}),
    ]  # fmt: skip
    return curves("Learning curves", panels)


def _views(pairs: Sequence[tuple[str, Sequence[Image.Image]]], settings: Mapping[str, Mapping[str, Any]]) -> Section:
    rows = [
        [Picture(address(image, side=VIEW_SIDE), name if place == 0 else "") for place, image in enumerate(images)]
        for name, images in pairs
    ]
    preset = settings["views.preset"]["value"]
    told = f"Training compares two random views of a picture ({preset}): both must show what tells it from others."
    return gallery("Views", rows, columns=("picture", "view 1", "view 2"), told=told)


def _settings(settings: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]) -> list[Section]:
    rows = [[key, written(each["value"]), each["origin"]] for key, each in settings.items()]
    body = render("command.html", command=command(settings), versions=summary["versions"])
    return [Section("Repeat it", body), table("Settings", ("setting", "value", "from"), rows, folded=True)]


def command(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The command that repeats a run: every setting that somebody asked for and that is not the default."""
    defaults = flatten(PretrainConfig())
    asked = [
        f"{key}={written(each['value'])}"
        for key, each in settings.items()
        if each["origin"].startswith(ASKED) and (key not in defaults or each["value"] != defaults[key])
    ]
    return " ".join(["fgssl pretrain", *(f"--set {shlex.quote(each)}" for each in asked)])


def written(value: Any) -> str:
    """A value as --set takes it."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
