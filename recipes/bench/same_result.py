"""Does the fast path learn what a plain one learns? Loss and retrieval of both, with several seeds.

    python recipes/bench/same_result.py --seeds 8                                 # demo set; two cores: some 15 minutes
    python recipes/bench/same_result.py --data FOLDER --backbone resnet18 --image-size 96

Fast: `fgssl pretrain` as it is (cache, batched views, machine's precision and memory format, fused optimiser, its own
evaluation). Plain: the same model, objective, rationale and schedule in a loop as one would type it: pictures loaded
one by one, torchvision's transforms of PIL images with the same parameters, float32, contiguous tensors, torch's
convolutions and plain optimiser, one evaluation picture at a time. Random numbers differ, so results are compared by
their spread: the difference of the means over its standard error (about 2 and less is what equal paths give; few seeds
scatter more). Table on stderr, JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np
import torch

from fgssl.backbones.products import drop_products
from fgssl.encoder import Encoder
from fgssl.evaluation.embed import embed
from fgssl.evaluation.retrieval.metrics import evaluate_retrieval
from fgssl.runs.encoder_file import load_encoder
from fgssl.runs.folder import METRICS_FILE
from fgssl.training.model import build_model, build_optimizer, fit_weight, learning_rate, set_rate
from fgssl.training.plan import Plan
from fgssl.training.pretrain import pretrain

LAST = 0.2  # of the steps, over which the final loss is averaged


def plan_for(arguments: argparse.Namespace, seed: int, precision: str) -> Plan:
    """The run of one seed."""
    return harness.plan_for(
        arguments,
        **{"training.epochs": arguments.epochs, "training.max_steps": arguments.max_steps, "training.seed": seed,
           "training.mixed_precision": precision, "training.log_every": 1, "training.signals_every": 0},
    )  # fmt: skip


def fast(plan: Plan, folder: Path) -> dict[str, float]:
    """Loss at the end and retrieval of fgssl's own run."""
    pretrain(plan, folder)
    losses = [json.loads(line)["loss"] for line in (folder / METRICS_FILE).read_text().splitlines()]
    assert plan.test is not None
    found = embed(load_encoder(str(folder)).to(plan.device), plan.test, pools=("gap",))["gap"]
    return scores(losses, found.features, found.known_labels)


def plain(plan: Plan) -> dict[str, float]:
    """The same of the loop that one would type."""
    config = plan.config
    torch.manual_seed(config.training.seed)  # both start from the same weights; views and order differ
    plan.backbone.channels_last = False
    model = build_model(plan).to(plan.device).train()
    drop_products(model)
    optimizer = build_optimizer(model, config.optimizer, torch.device("meta"))  # for no device in particular: not fused
    transform = harness.torchvision_views(config.views, plan.backbone.image_size)
    batch = config.training.batch_size
    assert batch is not None and plan.test is not None
    losses: list[float] = []
    while len(losses) < plan.total_steps:
        order = torch.randperm(len(plan.train))
        for index in order.split(batch)[: plan.steps_per_epoch]:
            pictures = [plan.train.load(int(i)) for i in index]
            views = torch.stack([torch.stack([transform(picture) for picture in pictures]) for _ in range(2)])
            steps = {"steps_per_epoch": plan.steps_per_epoch}
            rate = learning_rate(len(losses), config.optimizer, total_steps=plan.total_steps, **steps)
            set_rate(optimizer, rate)
            weight = fit_weight(len(losses), config, **steps)
            output = model(views.to(plan.device), index.to(plan.device), weight)
            output.total.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(output.loss))
            if len(losses) == plan.total_steps:
                break
    features = embed_plainly(model.encoder.eval(), plan)
    assert plan.test.labels is not None
    return scores(losses, features, torch.from_numpy(plan.test.labels))


@torch.no_grad()
def embed_plainly(encoder: Encoder, plan: Plan) -> torch.Tensor:
    """Features of the test split, one picture at a time."""
    assert plan.test is not None
    view, rows = encoder.view(), []
    for index in range(len(plan.test)):
        pixels = torch.from_numpy(np.array(view(plan.test.load(index)))).permute(2, 0, 1)
        rows.append(encoder(pixels[None].to(plan.device), "gap").cpu())
    return torch.cat(rows)


def scores(losses: list[float], features: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """What is compared."""
    found = evaluate_retrieval(features, labels).to_dict()
    return {
        "loss": statistics.fmean(losses[-max(1, round(LAST * len(losses))) :]),
        "rank1": found["rank1"],
        "mAP": found["mAP"],
    }


def main() -> None:
    """Print the table and the JSON."""
    parser = harness.parser(__doc__, "--data", "--backbone", "--image-size", "--device", "--threads", "--output")
    parser.set_defaults(backbone=None, image_size=None)  # the source's own
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--max-steps", type=int)
    arguments = harness.begin(parser)
    runs: dict[str, list[dict[str, float]]] = {"fast": [], "plain": []}
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            runs["fast"].append(fast(plan_for(arguments, seed, "auto"), Path(folder)))
        runs["plain"].append(plain(plan_for(arguments, seed, "no")))
        print(f"seed {seed}: " + ", ".join(f"{name} {rows[-1]}" for name, rows in runs.items()), file=sys.stderr)
    compared, lines = {}, []
    for name in ("loss", "rank1", "mAP"):
        values = {path: [row[name] for row in rows] for path, rows in runs.items()}
        means = {path: statistics.fmean(found) for path, found in values.items()}
        spread = {path: statistics.stdev(found) if len(found) > 1 else 0.0 for path, found in values.items()}
        error = (sum(s**2 for s in spread.values()) / arguments.seeds) ** 0.5
        difference = means["fast"] - means["plain"]
        compared[name] = {"means": means, "spread": spread, "difference": difference,
                          "in_standard_errors": difference / error if error else None}  # fmt: skip
        told = " ".join(f"{path} {means[path]:.3f} +- {spread[path]:.3f}" for path in means)
        errors = f" = {difference / error:+.1f} standard errors" if error else ""
        lines.append(f"{name:6} {told}, difference {difference:+.3f}{errors}")
    precision = plan_for(arguments, 0, "auto").config.training.mixed_precision
    harness.report(arguments, {"fast_precision": precision, "runs": runs, "compared": compared}, lines)


if __name__ == "__main__":
    main()
