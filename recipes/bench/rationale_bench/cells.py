"""One cell: train where it is not trained yet, evaluate where it is not evaluated yet, leave one JSON file."""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import yaml

from fgssl.encoder import Encoder
from fgssl.runs.encoder_file import load_encoder
from fgssl.runs.folder import ENCODER_FILE, METRICS_FILE, prepare_output
from fgssl.runs.lock import hold_run
from fgssl.runs.resume_state import has_state, remove_states
from fgssl.runtime.files import write_text
from fgssl.runtime.reporting import Reporter
from fgssl.training.model import PretrainModel, build_model
from fgssl.training.plan import Plan, Splits, make_plan
from fgssl.training.pretrain import pretrain
from rationale_bench.controls import TRAIN_POOLS
from rationale_bench.evaluate import Judged, judge_encoder
from rationale_bench.grid import INIT, Cell, Grid, Protocol, Slice, open_slice

RESULT_FILE = "evaluation.json"
EVALUATION = 3  # raised where what is judged changes: cells are then judged anew, without training


def evaluation_digest(grid: Grid, protocol: Protocol, judged: Judged) -> str:
    """Identity of an evaluation: another one is made anew, on the encoder that is there."""
    described = [grid.poolings, protocol.select, protocol.final, judged.probe, judged.masks, EVALUATION]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def finished(folder: Path, digest: str) -> dict[str, Any] | None:
    """The results of a cell, where they are there and of this evaluation."""
    try:
        found = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("digest") == digest else None


def run_cell(
    cell: Cell, grid: Grid, protocol: Protocol, root: Path, judged: Judged, reporter: Reporter
) -> dict[str, Any]:
    """Train and judge a cell; what is already there is kept. The results are those of its evaluation.json."""
    folder, digest = root / cell.name, evaluation_digest(grid, protocol, judged)
    found = finished(folder, digest)
    if found is not None:
        return found
    slice_ = open_slice(cell.resolved.config.data, protocol.select, final=protocol.final)
    if cell.variant == INIT:
        folder.mkdir(parents=True, exist_ok=True)
        encoder, cost = Encoder(_plan(cell, slice_).backbone).eval(), {}
    else:
        cost = _train(cell, slice_, folder, reporter)
        encoder = load_encoder(str(folder))
    rows = judge_encoder(encoder, slice_, poolings=grid.poolings, seed=cell.seed, judged=judged, reporter=reporter)
    rows += [{"kind": "cost", **cost}] if cost else []
    rows = [{"variant": cell.variant, "seed": cell.seed, **row} for row in rows]
    result = {"cell": cell.name, "digest": digest, "rows": rows}
    write_text(folder / RESULT_FILE, json.dumps(result, indent=1) + "\n")
    remove_states(folder)
    shutil.rmtree(folder / "timm", ignore_errors=True)  # a second copy of the backbone
    return result


def _plan(cell: Cell, slice_: Slice, *, load_weights: bool = True) -> Plan:
    return make_plan(cell.resolved, load_weights=load_weights, splits=Splits(slice_.train, None))


def _train(cell: Cell, slice_: Slice, folder: Path, reporter: Reporter) -> dict[str, float]:
    """Train from where it stopped; a cell that is trained but was not judged is left as it is."""
    trained = (folder / ENCODER_FILE).exists() and not has_state(folder)
    if not trained:
        resume = has_state(folder)
        plan = _plan(cell, slice_, load_weights=not resume)

        def build(plan: Plan) -> PretrainModel:
            model = build_model(plan)
            if cell.train_map is not None:
                model.objective.pool = TRAIN_POOLS[cell.train_map]
            return model

        with hold_run(folder, note=reporter.note):
            if not resume:
                prepare_output(folder, overwrite=True)
            pretrain(plan, folder, reporter=reporter, resume=resume, build=build)
            remove_states(folder)
    return _cost(folder)


def _cost(folder: Path) -> dict[str, float]:
    """Speed (median over the lines of the log but the first), the last loss and entropy of the target."""
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    speed = statistics.median(line["images_per_second"] for line in lines[1:] or lines)
    cost = {"images_per_second": speed, "seconds": summary["train_seconds"], "steps": summary["steps"]}
    cost["ms_per_step"] = 1000 * int(settings["training"]["batch_size"]) / speed
    return cost | {name: lines[-1][name] for name in ("loss", "target_entropy") if lines[-1].get(name) is not None}
