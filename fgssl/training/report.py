"""report.html of a run: what is at hand at its end, gathered. A report that fails costs one line, never the run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from fgssl.data.images import ImageSet, Subset
from fgssl.encoder import Encoder
from fgssl.errors import FgsslError, UnreadableImage
from fgssl.evaluation.embed import Embeddings, embed
from fgssl.evaluation.explain import explain, shown
from fgssl.evaluation.looks import decided_by
from fgssl.report.maps import SIDE, Explained
from fgssl.report.page import save_page
from fgssl.report.pictures import spread
from fgssl.report.run import RunContent, run_page
from fgssl.report.sections import file_name
from fgssl.report.split import SplitView, reader, sampled
from fgssl.runs.folder import METRICS_FILE, REPORT_FILE
from fgssl.training.choice import start_encoder
from fgssl.training.plan import describe
from fgssl.training.setup import Setup

EXPLAINED = 8  # pictures with maps
ViewPairs = Sequence[tuple[str, Sequence[Image.Image]]]  # name, image and its two views


class Evaluated(NamedTuple):
    """The split that a run is evaluated on, in the default pooling of its encoder."""

    encoder: Encoder
    images: ImageSet
    found: Embeddings
    start: Embeddings | None  # of the same rows by what the run began from, where that was made


def write_report(
    setup: Setup, evaluated: Evaluated | None, summary: Mapping[str, Any], *, pairs: Callable[[], ViewPairs]
) -> None:
    """Write report.html; whatever goes wrong is a warning.

    Args:
        evaluated: None where nothing was embedded.
        summary: As in summary.json.
        pairs: Draws a few training images and their views.
    """
    try:
        split = None if evaluated is None else _split(setup, evaluated)
        explained = [] if evaluated is None else _explained(evaluated)
        decided = None if evaluated is None else decided_by(evaluated.encoder, evaluated.encoder.default_pool())
        content = RunContent(summary, _metrics(setup), describe(setup.plan), pairs(), explained, split, decided)
        save_page(run_page(content), setup.output / REPORT_FILE)
    except Exception as error:  # a full disk, a picture that is gone, a bug: the run is whole without its report
        reason = error.problem if isinstance(error, FgsslError) else f"{type(error).__name__}: {error}"
        setup.reporter.warn(f"no {REPORT_FILE}: {reason.splitlines()[0] if reason else 'unknown'}")


def _metrics(setup: Setup) -> list[dict[str, Any]]:
    rows = []
    for line in (setup.output / METRICS_FILE).read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # cut off by a crash
            rows.append(json.loads(line))
    return rows


def _split(setup: Setup, evaluated: Evaluated) -> SplitView:
    """The split, with what its pictures were like to the start, of which a sample is enough."""
    encoder, images, found, start = evaluated
    view = reader(encoder, images, found, encoder.default_pool(), setup.plan.config.training.cache)
    rows = sampled(found)
    if start is not None:
        return view._replace(start=start.features[rows])
    weights = start_encoder(setup)
    if weights is None:
        return view
    few = Subset(images, found.positions[rows])
    first = embed(weights.to(encoder.device), few, pools=("gap",), cache="off")["gap"]
    return view._replace(start=first.features if len(first.features) == len(rows) else None)


def _explained(evaluated: Evaluated) -> list[Explained]:
    """A few pictures, evenly spread, with the encoder's maps; none where it has none."""
    encoder, images, found, _ = evaluated
    if encoder.rationale is None and not encoder.has_loss_gradcam:
        return []
    pictures: dict[int, Image.Image] = {}
    for row in spread(len(found.identifiers), EXPLAINED):
        with contextlib.suppress(UnreadableImage):  # embedded from the cache; its file may be gone, hours later
            pictures[row] = images.load(int(found.positions[row]))
    told = zip(pictures.items(), explain(encoder, list(pictures.values())), strict=True)
    return [
        Explained(shown(encoder, picture, size=SIDE), file_name(found.identifiers[row]), *maps)
        for (row, picture), maps in told
    ]
