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

import copy
import fnmatch
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import timm
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.utils._pytree import tree_flatten

from fgssl.backbones import Backbone, build_backbone, rebuild_backbone, save_timm
from fgssl.backbones.names import resolve_source
from fgssl.errors import FgsslError

TRAINED_BELOW = 120_000_000  # parameters; above, the map alone is checked
USUAL_SIZE = 224  # pixels; the model's own size where it cannot take this one or is smaller
TIMEOUT = 1800  # seconds a model


def counted(name: str) -> int | None:
    """Number of parameters without the classifier; None where the model cannot be built without memory."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
    except Exception:  # whatever the model raises
        return None
    return int(sum(parameter.numel() for parameter in model.parameters()))


def smallest_of_each_module(only: str) -> dict[str, tuple[str, int]]:
    """Module -> its smallest architecture and that one's number of parameters, for modules matching a pattern."""
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
    started = time.perf_counter()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    own = resolve_source(name).own_size
    try:
        backbone = build_backbone(name, image_size=min(own, USUAL_SIZE))
    except FgsslError:
        backbone = build_backbone(name, image_size=own)
    row: dict[str, Any] = {
        "name": name,
        "parameters": count,
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
            assert list(backbone.eval()(images[:1]).shape[1:]) == row["map"], "the map differs from the plan"
        return row
    train_step(backbone, images)
    check_copies(backbone.eval(), images)
    return {**row, "trained": True, "seconds": round(time.perf_counter() - started, 1)}


def train_step(backbone: Backbone, images: Tensor) -> None:
    """One contrastive step: two images, two noisy views, embedding pooled from the map."""
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.01)
    before = {key: value.clone() for key, value in backbone.model.named_parameters() if value.requires_grad}
    with torch.no_grad():
        keys = normalize(backbone(images + 0.1 * torch.randn_like(images)).mean((2, 3)), dim=1)
    feature_map = backbone.train()(images)
    assert tuple(feature_map.shape[1:]) == (backbone.channels, *backbone.map_size), "the map differs from the plan"
    queries = normalize(feature_map.mean((2, 3)).float(), dim=1)
    loss = cross_entropy(queries @ keys.T / 0.2, torch.arange(2))
    (gradient,) = torch.autograd.grad(loss, feature_map, retain_graph=True)
    assert gradient.isfinite().all(), "GradCAM is not finite"
    assert float(gradient.abs().max()) > 0, "GradCAM is zero"
    loss.backward()
    for key, value in backbone.model.named_parameters():
        if value.requires_grad:
            assert value.grad is not None, f"{key} has no gradient"
            assert value.grad.isfinite().all(), f"the gradient of {key} is not finite"
    optimizer.step()
    after = dict(backbone.model.named_parameters())
    assert any(not torch.equal(after[key], value) for key, value in before.items()), "the step moved nothing"


def check_copies(backbone: Backbone, images: Tensor) -> None:
    """A deep copy, a rebuilt twin and the folder in plain timm all see what the backbone sees."""
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        feature_map, features = backbone(images), backbone.model.forward_features(images)
        assert _equal(copy.deepcopy(backbone)(images), feature_map), "the copy's map differs"
        description = json.loads(json.dumps(backbone.description()))
        twin = rebuild_backbone(description, backbone.model.state_dict()).eval()
        assert _equal(twin(images), feature_map), "the rebuilt map differs"
        save_timm(backbone, folder)
        plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert _equal(plain.forward_features(images), features), "plain timm's features differ"
        finetune = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=200).state_dict()
        for key, value in backbone.model.state_dict().items():
            assert torch.equal(finetune[key], value), f"{key} differs with 200 classes"
        if backbone.has_class_token:
            assert _equal(backbone.forward_with_token(images).feature_map, feature_map), "the token's map differs"


def _equal(left: Any, right: Any) -> bool:
    (ours, form), (theirs, other) = tree_flatten(left), tree_flatten(right)
    return form == other and all(torch.allclose(*pair, rtol=1e-4, atol=1e-5) for pair in zip(ours, theirs, strict=True))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The results as Markdown, summary first."""
    maps = sum("map" in row for row in rows)
    small = [row for row in rows if row.get("parameters", 0) < TRAINED_BELOW]
    trained = sum(row.get("trained", False) for row in small)
    routes = {kind: sum(row.get("route") == kind for row in rows) for kind in ("nchw", "nhwc", "intermediates")}
    summary = (
        f"{maps} of {len(rows)} modules give a map; {trained} of {len(small)} under 120 M parameters train, save and "
        f"reload. Routes: {', '.join(f'{kind} {count}' for kind, count in routes.items())}."
    )
    head = ["module", "architecture", "M parameters", "px", "route", "map", "frozen", "class token", "result"]
    cells = [
        [
            *(row["module"], row.get("name", ""), f"{row.get('parameters', 0) / 1e6:.1f}", row.get("image_size", "")),
            *(row.get("route", ""), "x".join(map(str, row.get("map", ()))), row.get("frozen", "")),
            "yes" if row.get("class_token") else "",
            row.get("error") or ("trains" if row["trained"] else "map"),
        ]
        for row in rows
    ]
    return [summary, "", *harness.markdown(head, cells)]


def main() -> int:
    """Run the sweep; 1 if any row failed."""
    parser = harness.parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("backbones.md"), help="Markdown table to write")
    parser.add_argument("--only", default="*", help="timm modules to sweep, as a shell pattern")
    arguments = harness.begin(parser)
    wanted = smallest_of_each_module(arguments.only)
    rows = harness.sweep(
        wanted, lambda module: harness.apart(check, *wanted[module], timeout=TIMEOUT, start="fork"), arguments.output
    )
    lines = table(list(rows.values()))
    arguments.output.write_text("\n".join(lines) + "\n")
    print(lines[0])
    return int(any("error" in row for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
