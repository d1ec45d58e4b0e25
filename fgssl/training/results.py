"""The end of a run: retrieval beside the untrained encoder, the overview picture, the timm folder, the summary."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fgssl.backbones import save_timm
from fgssl.config.schema import TrainingConfig
from fgssl.data.feed import ViewDataset, placed_key
from fgssl.data.images import ImageSet
from fgssl.data.order import epoch_order
from fgssl.drawing import Neighbour, QueryRow, Window, curve_sheet, outlined, overview_sheet, save_png, view_pairs_sheet
from fgssl.encoder import Encoder, Pool
from fgssl.errors import FgsslError, UnreadableImage
from fgssl.evaluation.bootstrap import paired_bootstrap
from fgssl.evaluation.embed import Embeddings, embed
from fgssl.evaluation.explain import explain, shown
from fgssl.evaluation.looks import decided_by
from fgssl.evaluation.retrieval.metrics import evaluate_retrieval
from fgssl.evaluation.retrieval.ranking import search
from fgssl.runs.folder import ENCODER_FILE, METRICS_FILE, SUMMARY_FILE, versions
from fgssl.runs.resume_state import has_state, remove_states
from fgssl.runtime.files import write_text
from fgssl.runtime.machine import peak_memory
from fgssl.runtime.reporting import Reporter
from fgssl.training.choice import Choice, start_encoder
from fgssl.training.plan import Plan
from fgssl.training.report import Evaluated, write_report
from fgssl.training.setup import Setup
from fgssl.training.signals import start_and_end

OVERVIEW_ROWS, OVERVIEW_NEIGHBOURS, VIEW_PAIRS = 6, 5, 8


class RunResult(NamedTuple):
    """What a finished run leaves."""

    folder: Path
    summary: dict[str, Any]
    rows: list[dict[str, Any]]  # of the retrieval table

    def total_steps(self, training: TrainingConfig) -> int:
        """Steps that the finished run would have with these settings; `summary["steps"]` are done."""
        return min(training.epochs * int(self.summary["steps_per_epoch"]), training.max_steps or 2**62)


def run_pools(encoder: Encoder) -> tuple[Pool, ...]:
    """The poolings a run reports: what its user could have used, side by side."""
    pools: tuple[Pool, ...] = ("gap", "zoom") if encoder.rationale is None else ("gap", "rationale", "zoom")
    return (*pools, "cls") if encoder.backbone.has_class_token else pools


def retrieval_rows(plan: Plan, encoder: Encoder, name: str, reporter: Reporter) -> list[dict[str, Any]]:
    """Leave-one-out retrieval in the test split, one row a pooling; none where there is no labelled test split."""
    labelled = plan.test is not None and plan.test.labels is not None
    return _rows(_embed(plan, encoder, name, reporter), name) if labelled else []


def _embed(
    plan: Plan, encoder: Encoder, name: str, reporter: Reporter, pools: tuple[Pool, ...] = ()
) -> dict[Pool, Embeddings]:
    images = plan.train if plan.test is None else plan.test
    progress = functools.partial(reporter.progress, f"embedding ({name})")
    decoding = functools.partial(reporter.progress, f"decoding {images.split}")
    where: dict[str, Any] = {"device": plan.device, "cache": plan.config.training.cache}
    return embed(encoder, images, pools=pools or run_pools(encoder), progress=progress, decoding=decoding, **where)


def _rows(found: dict[Pool, Embeddings], name: str) -> list[dict[str, Any]]:
    rows = []
    for pool, embeddings in found.items():
        if embeddings.labels is not None:
            with contextlib.suppress(FgsslError):
                metrics = evaluate_retrieval(embeddings.features, embeddings.labels).to_dict()
                rows.append({"encoder": name, "pool": pool, **metrics})
    return rows


def finish_run(setup: Setup, choice: Choice, progress: dict[str, Any], last: dict[str, float]) -> RunResult:
    """Write timm/, overview.png and summary.json of the run's encoder; nothing is selected on the test split."""
    plan, encoder, output, reporter = setup.plan, choice.encoder, setup.output, setup.reporter
    encoder.eval()
    save_timm(encoder.backbone, output / "timm", head=encoder.whitening if encoder.stages == 1 else None)
    rows, faults, beside = list(progress["initial_rows"]), list(progress["faults"].values()), None
    images, found, first = plan.train if plan.test is None else plan.test, dict[Pool, Embeddings](), None
    if plan.config.training.evaluate:
        try:
            found = _embed(plan, encoder, "trained", reporter)
        except FgsslError as error:  # pictures went away while it trained: the encoder is saved, its table is not all
            reporter.warn(f"no retrieval of the trained encoder and no overview: {error.problem}")
        rows += _rows(found, "trained") if plan.test is not None else []
        first = _by_start(setup, found["gap"]) if rows and found else None
        beside = _against_start(setup, encoder.default_pool(), found, first) if first is not None else None
        for fault in found["gap"].faults if found else ():
            if fault.reason not in faults:
                reporter.warn(f"left out: {fault.reason}")
                faults.append(fault.reason)
        overview = draw_overview(encoder, images, found[encoder.default_pool()]) if found else None
        if overview is not None:
            save_png(overview, output / "overview.png")
    draw_curve(output, f"{encoder.backbone.name} on {plan.train.source}: learning curve")
    summary = {
        "backbone": encoder.backbone.name,
        **plan.facts(),
        "steps": progress["step"],
        "train_seconds": round(progress["seconds"], 1),
        "peak_memory_gb": peak_memory(plan.device),
        "last": last,
        "signals": start_and_end(last),
        "retrieval": rows,
        "choice": choice.to_dict(),
        "against_start": beside,
        "zoom": {"window": decided_by(encoder, "zoom") or "middle", "weight": round(encoder.look_weight, 3)},
        "retrieval_protocol": "leave-one-out in the test split" if rows else None,
        "unreadable": faults,
        "seed": plan.config.training.seed,
        "versions": versions(),
    }
    write_text(output / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    evaluated = Evaluated(encoder, images, found[encoder.default_pool()], first) if found else None
    write_report(setup, evaluated, summary, pairs=functools.partial(_view_pairs, plan, setup.views))
    if not plan.config.training.keep_states:  # last: until then a killed process can be resumed
        remove_states(output)
    return RunResult(output, summary, rows)


def draw_curve(output: Path, title: str) -> None:
    """curve.png of the metrics.jsonl of a run folder; a line that a crash has cut off is passed over."""
    path, rows = output / METRICS_FILE, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    picture = curve_sheet(rows, title=title)
    if picture is not None:
        save_png(picture, output / "curve.png")


def _by_start(setup: Setup, own: Embeddings) -> Embeddings | None:
    """The same images by the frozen start, in gap; None where there is no start or an image went away in between."""
    plan, start = setup.plan, start_encoder(setup)
    if start is None or plan.test is None:
        return None
    first = _embed(plan, start.to(plan.device), "start", setup.reporter, ("gap",))["gap"]
    return first if np.array_equal(first.positions, own.positions) else None


def _against_start(setup: Setup, pool: Pool, found: dict[Pool, Embeddings], first: Embeddings) -> dict[str, float]:
    """Rank-1 of the run's encoder, in its default pooling, beside the frozen start's gap, and whether it is chance."""
    own = found[pool]
    before, after = (100 * evaluate_retrieval(e.features, e.known_labels).per_query()["rank1"] for e in (first, own))
    apart, means = paired_bootstrap(after, before), (float(after.mean()), float(before.mean()))
    chance = "beyond chance" if apart.low > 0 or apart.high < 0 else "not beyond chance"
    told = f"rank-1 {means[0]:.1f} ({pool}) against {means[1]:.1f} of the frozen start (gap)"
    setup.reporter.note(f"{told}: {apart.difference:+.1f}, 95 % from {apart.low:+.1f} to {apart.high:+.1f}, {chance}")
    return {"rank1": means[0], "start_rank1": means[1], **apart._asdict()}


def finished_result(output: Path) -> RunResult | None:
    """What a finished run left whose saved states are gone; None for any other."""
    if has_state(output) or not (output / ENCODER_FILE).exists():
        return None
    try:
        summary = json.loads((output / SUMMARY_FILE).read_text(encoding="utf-8"))
        result = RunResult(output, summary, summary["retrieval"])
        return result if result.total_steps(TrainingConfig()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_view_pairs(
    output: Path, plan: Plan, views: ViewDataset, *, epoch: int = 0, windows: NDArray[np.float64] | None = None
) -> None:
    """views.png: a few training images and two views of each, as an epoch draws them; places.png with windows."""
    drawn, how = _view_pairs(plan, views, epoch, windows), plan.config.views.preset
    told = how if windows is None else f"{how}, views.place {plan.config.views.place} in epoch {epoch + 1}"
    title = f"Two random views of a training image ({told})"
    sheet = view_pairs_sheet([pair for _, pair in drawn], [name for name, _ in drawn], title=title)
    save_png(sheet, output / ("views.png" if windows is None else "places.png"))


def _view_pairs(
    plan: Plan, views: ViewDataset, epoch: int = 0, windows: NDArray[np.float64] | None = None
) -> list[tuple[str, tuple[Image.Image, Image.Image, Image.Image]]]:
    """Names of a few training images, each with the image and its two views."""
    drawn = []
    for index in epoch_order(len(plan.train), plan.config.training.seed, 0).tolist():
        with contextlib.suppress(UnreadableImage):
            pixels, key = views.pixels[index], placed_key(epoch, index, windows)
            made = views.make([pixels], [key])[:, 0].permute(0, 2, 3, 1).numpy()
            whole = Image.fromarray(np.array(pixels))
            if key.place is not None:
                row, column, side = key.place.window
                half = side / 2
                whole = outlined(whole, Window(column - half, row - half, column + half, row + half))
            drawn.append((_name(plan.train, index), (whole, Image.fromarray(made[0]), Image.fromarray(made[1]))))
        if len(drawn) == VIEW_PAIRS:
            break
    return drawn


def draw_overview(encoder: Encoder, images: ImageSet, embeddings: Embeddings) -> Image.Image | None:
    """A few images evenly spread over the split, their maps, and their nearest neighbours in it."""
    total, index = len(embeddings.identifiers), embeddings.positions.tolist()
    if total < 2:
        return None
    asked = np.unique(np.linspace(0, total - 1, OVERVIEW_ROWS + 2)[1:-1].round().astype(int)).tolist()
    features, top = embeddings.features, min(OVERVIEW_NEIGHBOURS, total - 1)
    nearest = search(features[asked], features, top=top + 1).indices.tolist()
    found = {query: [i for i in row if i != query][:top] for query, row in zip(asked, nearest, strict=True)}
    pictures: dict[int, Image.Image] = {}
    for i in {*asked, *itertools.chain(*found.values())}:
        with contextlib.suppress(UnreadableImage):  # embedded from the cache; its file may be gone, hours later
            pictures[i] = images.load(index[i])
    queries, rows = [query for query in asked if query in pictures], []
    for query, own in zip(queries, explain(encoder, [pictures[query] for query in queries]), strict=True):
        neighbours = []
        for i in (i for i in found[query] if i in pictures):
            agrees = None if embeddings.labels is None else bool(embeddings.labels[i] == embeddings.labels[query])
            neighbours.append(Neighbour(shown(encoder, pictures[i], size=224), _name(images, index[i]), agrees))
        view, name = shown(encoder, pictures[query], size=224), _name(images, index[query])
        rows.append(QueryRow(view, name, neighbours, own.rationale, own.gradcam, own.common, own.attention))
    return overview_sheet(rows, title=f"{encoder.backbone.name} on {images.source} [{images.split}]") if rows else None


def _name(images: ImageSet, index: int) -> str:
    if images.labels is not None and images.class_names is not None:
        return images.class_names[int(images.labels[index])]
    return images.identifier(index).rsplit("/", 1)[-1]
