"""Does every timm model work as a backbone? The smallest architecture of each of timm's modules, measured.

    python recipes/bench/backbone_sweep.py --output backbones.md        # all modules
    python recipes/bench/backbone_sweep.py --only 'vision*'             # some

Hardware: any CPU with 8 GB. Time: about 15 minutes on one core. Each model runs in a process of its own, so that one
crash is one row. Results are kept beside the table as JSON lines; started again, the sweep goes on where it stopped.

A row passes if the model builds and gives a map of at least 2x2; and, under 120 M parameters, if a training step in
train mode has a finite, non-zero GradCAM gradient and gives every trained parameter a finite gradient, its copy and its
rebuilt twin give equal maps, and the saved folder opens in plain timm with equal features, with 200 classes too.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

TRAINED_BELOW = 120_000_000  # parameters; above, the map alone is checked
USUAL_SIZE = 224  # pixels; the model's own size where it cannot take this one or is smaller
TIMEOUT = 1800  # seconds a model


def smallest_of_each_module(only: str) -> dict[str, tuple[str, int]]:
    """Module -> its smallest architecture and that one's number of parameters, for modules matching a pattern."""
    import timm

    from fgssl.backbones.names import counted

    smallest = {}
    for module in fnmatch.filter(sorted(timm.list_modules()), only):
        counts = [(counted(name), name) for name in timm.list_models(module=module)]
        known = [(count, name) for count, name in counts if count is not None]
        if known:
            count, name = min(known)
            smallest[module] = (name, count)
    return smallest


def check(name: str, count: int) -> dict[str, Any]:
    """Build one model, take a training step, save and reload it; raises where it fails."""
    import torch

    from fgssl.backbones import build_backbone
    from fgssl.errors import FgsslError

    torch.manual_seed(0)
    torch.set_num_threads(1)
    own = build_size(name)
    try:
        backbone = build_backbone(name, image_size=min(own, USUAL_SIZE))
    except FgsslError:
        backbone = build_backbone(name, image_size=own)
    row: dict[str, Any] = {
        "image_size": backbone.image_size,
        "route": backbone.route,
        "map": [backbone.channels, *backbone.map_size],
        "frozen": len(backbone.unused_parameters),
        "class_token": backbone.has_class_token,
        "trained": False,
    }
    side = backbone.image_size
    images = torch.rand(2, 3, side, side)
    if count >= TRAINED_BELOW:
        with torch.no_grad():
            _require(list(backbone.eval()(images[:1]).shape[1:]) == row["map"], "the map differs from the plan")
        return row
    train_step(backbone, images)
    check_copies(backbone.eval(), images)
    row["trained"] = True
    return row


def build_size(name: str) -> int:
    """The model's own image size in pixels."""
    from fgssl.backbones.names import resolve_source

    return resolve_source(name).own_size


def train_step(backbone: Any, images: Any) -> None:
    """One contrastive step: two images, two noisy views, embedding pooled from the map."""
    import torch
    from torch.nn.functional import cross_entropy, normalize

    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.01)
    before = {key: value.clone() for key, value in backbone.model.named_parameters() if value.requires_grad}
    with torch.no_grad():
        keys = normalize(backbone(images + 0.1 * torch.randn_like(images)).mean((2, 3)), dim=1)
    feature_map = backbone.train()(images)
    _require(tuple(feature_map.shape[1:]) == (backbone.channels, *backbone.map_size), "the map differs from the plan")
    queries = normalize(feature_map.mean((2, 3)).float(), dim=1)
    loss = cross_entropy(queries @ keys.T / 0.2, torch.arange(2))
    (gradient,) = torch.autograd.grad(loss, feature_map, retain_graph=True)
    _require(bool(gradient.isfinite().all()), "GradCAM is not finite")
    _require(float(gradient.abs().max()) > 0, "GradCAM is zero")
    loss.backward()
    for key, value in backbone.model.named_parameters():
        if value.requires_grad:
            _require(value.grad is not None, f"{key} has no gradient")
            _require(bool(value.grad.isfinite().all()), f"the gradient of {key} is not finite")
    optimizer.step()
    moved = sum(
        not torch.equal(value, before[key]) for key, value in backbone.model.named_parameters() if key in before
    )
    _require(moved > 0, "the step moved nothing")


def check_copies(backbone: Any, images: Any) -> None:
    """A deep copy, a rebuilt twin and the folder in plain timm all see what the backbone sees."""
    import timm
    import torch

    from fgssl.backbones import rebuild_backbone, save_timm

    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        feature_map, features = backbone(images), backbone.model.forward_features(images)
        _require(_equal(copy.deepcopy(backbone)(images), feature_map), "the copy's map differs")
        description = json.loads(json.dumps(backbone.description()))
        twin = rebuild_backbone(description, backbone.model.state_dict()).eval()
        _require(_equal(twin(images), feature_map), "the rebuilt map differs")
        save_timm(backbone, folder)
        plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        _require(_equal(plain.forward_features(images), features), "plain timm's features differ")
        finetune = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=200).state_dict()
        for key, value in backbone.model.state_dict().items():
            _require(torch.equal(finetune[key], value), f"{key} differs with 200 classes")
        if backbone.has_class_token:
            _require(_equal(backbone.forward_with_token(images).feature_map, feature_map), "the token's map differs")


def _equal(left: Any, right: Any) -> bool:
    import torch

    if isinstance(left, torch.Tensor):
        return torch.allclose(left, right, rtol=1e-4, atol=1e-5)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    return len(left) == len(right) and all(_equal(one, other) for one, other in zip(left, right, strict=True))


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise RuntimeError(problem)


def run_worker(name: str, count: int) -> dict[str, Any]:
    """Check one model in a process of its own."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--worker", name, str(count)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {TIMEOUT} s", "seconds": TIMEOUT}
    lines = done.stdout.strip().splitlines()
    if lines and lines[-1].startswith("{"):
        row: dict[str, Any] = json.loads(lines[-1])
    else:
        row = {"error": f"the process died with code {done.returncode}: {done.stderr[-200:].strip()}"}
    return {**row, "seconds": round(time.perf_counter() - started, 1)}


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown, summary first."""
    maps = sum("map" in row for row in rows)
    small = [row for row in rows if row["parameters"] < TRAINED_BELOW]
    trained = sum(row.get("trained", False) for row in small)
    routes = {kind: sum(row.get("route") == kind for row in rows) for kind in ("nchw", "nhwc", "intermediates")}
    lines = [
        f"{maps} of {len(rows)} modules give a map; {trained} of {len(small)} under 120 M parameters train, save and "
        f"reload. Routes: {', '.join(f'{kind} {count}' for kind, count in routes.items())}.",
        "",
        "| module | architecture | M parameters | px | route | map | frozen | class token | result |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shape = "x".join(map(str, row["map"])) if "map" in row else ""
        result = row.get("error") or ("trains" if row["trained"] else "map")
        token = "yes" if row.get("class_token") else ""
        cells = [row["module"], row["name"], f"{row['parameters'] / 1e6:.1f}", row.get("image_size", "")]
        cells += [row.get("route", ""), shape, row.get("frozen", ""), token, result.replace("|", "/")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the sweep; 1 if any row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("backbone_sweep.md"), help="Markdown table to write")
    parser.add_argument("--only", default="*", help="timm modules to sweep, as a shell pattern")
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, count = arguments.worker
        try:
            print(json.dumps(check(name, int(count))))
        except Exception as error:  # whatever it is becomes the row's result
            traceback.print_exc()
            print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}))
        return 0
    kept = arguments.output.with_suffix(".jsonl")
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {row["name"]: row for row in rows if "error" not in row}  # failures are tried again
    wanted = smallest_of_each_module(arguments.only)
    results = []
    for position, (module, (name, count)) in enumerate(wanted.items(), start=1):
        if name not in done:
            done[name] = {"module": module, "name": name, "parameters": count, **run_worker(name, count)}
            with kept.open("a") as file:
                file.write(json.dumps(done[name]) + "\n")
        results.append(done[name])
        problem = done[name].get("error", "ok")
        print(f"{position}/{len(wanted)} {module} {name}: {problem} ({done[name]['seconds']} s)", flush=True)
    arguments.output.write_text(table(results))
    print(table(results).splitlines()[0])
    return int(any("error" in row for row in results))


if __name__ == "__main__":
    sys.exit(main())
