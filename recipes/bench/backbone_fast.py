"""Which of timm's modules bf16 autocast and torch.compile leave as good as plain float32, a training step each.

    python recipes/bench/backbone_fast.py --output backbones_fast.md               # all modules
    python recipes/bench/backbone_fast.py --only 'vision*' --backend inductor      # some, with the code generated

Hardware: any CPU; bf16 is emulated where it is not native, which changes the speed and not the numbers. Time: about an
hour on one core. The architectures are those of `docs/tables/backbones.md`. Each runs in a process of its own, and
a sweep that was stopped goes on where it was. Of one batch of noise, in train mode and from one seed, the table gives

- bf16: the cosine between the bf16 and the float32 map, and between their gradients of a contrastive loss (GradCAM's);
- compile: the largest difference of the map, relative to its largest value, and the gradients' cosine over all weights.

`fgssl/backbones/module.py` lists the modules for which both cosines of bf16 are at least 0.95, and those for which the
compiled map differs by at most 1e-3 and the cosine is at least 0.999.
"""

from __future__ import annotations

import copy
import fnmatch
import sys
from pathlib import Path
from typing import Any

import harness
import torch
import torch._dynamo  # here, once: each model is checked in a fork of this process
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from fgssl.backbones import build_backbone
from fgssl.errors import FgsslError

TABLE = Path(__file__).parents[2] / "docs" / "tables" / "backbones.md"
SIDES = (64, 96, 128)  # pixels: the first that gives a map of at least 2x2, else the table's
TIMEOUT = 900  # seconds a model
NUMBERS = ("bf16_map", "bf16_gradcam", "compiled_map", "compiled_gradient")


def architectures(only: list[str]) -> dict[str, tuple[str, int]]:
    """Module -> architecture and side, of the rows of the sweep's table that trained."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.read_text().splitlines()]
    trained = [(row[0], row[1], int(row[3])) for row in rows if len(row) == 9 and row[-1] == "trains"]
    return {row[0]: row[1:] for pattern in only for row in trained if fnmatch.fnmatch(row[0], pattern)}


def check(name: str, side: int, backend: str) -> dict[str, Any]:
    """One model: float32 against bf16, and against the compiled model."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = build(name, side)
    images = torch.rand(4, 3, backbone.image_size, backbone.image_size)
    plain = step(copy.deepcopy(backbone), images)
    with torch.autocast("cpu", torch.bfloat16):
        low = step(copy.deepcopy(backbone), images)
    row: dict[str, Any] = {
        "name": name,
        "side": backbone.image_size,
        "bf16_map": float(cosine_similarity(plain[0], low[0], dim=0)),
        "bf16_gradcam": float(cosine_similarity(plain[1], low[1], dim=0)),
    }
    compiled = copy.deepcopy(backbone)
    compiled.compile(backend=backend)
    built = step(compiled, images)
    row["compiled_map"] = float((plain[0] - built[0]).abs().max() / plain[0].abs().max())
    row["compiled_gradient"] = float(cosine_similarity(plain[2], built[2], dim=0))
    return row


def build(name: str, side: int) -> Any:
    """The backbone at the smallest side that works."""
    for candidate in SIDES:
        try:
            return build_backbone(name, image_size=candidate)
        except FgsslError:
            continue
    return build_backbone(name, image_size=side)


def step(backbone: Any, images: Any) -> tuple[Any, Any, Any]:
    """Map, its gradient of the loss and the gradient of all trained weights, each flat and float32."""
    torch.manual_seed(1)  # of dropout and stochastic depth
    feature_map = backbone.train()(images)
    features = normalize(feature_map.float().mean((2, 3)), dim=1)
    loss = cross_entropy(features @ features.detach().roll(1, 0).T / 0.2, torch.arange(len(images)))
    weights = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    gradcam, *gradients = torch.autograd.grad(loss, [feature_map, *weights])
    flat = torch.cat([gradient.flatten().double() for gradient in gradients])
    return feature_map.detach().double().flatten(), gradcam.double().flatten(), flat


def cells(row: dict[str, Any]) -> list[object]:
    """A row of the Markdown table."""
    numbers = [row["error"]] if "error" in row else [f"{row[name]:.4f}" for name in NUMBERS]
    return [row["module"], row.get("name", ""), row.get("side", ""), *numbers, *[""] * (len(NUMBERS) - len(numbers))]


def main() -> int:
    """Sweep; 1 where a model gave no numbers."""
    parser = harness.parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("backbones-fast.md"), help="Markdown table to write")
    parser.add_argument("--only", nargs="*", default=["*"], help="timm modules to sweep, as shell patterns, in order")
    parser.add_argument("--backend", default="aot_eager", help="of torch.compile; aot_eager generates no code")
    arguments = harness.begin(parser)
    wanted = architectures(arguments.only)
    rows = harness.sweep(
        wanted,
        lambda module: harness.apart(check, *wanted[module], arguments.backend, timeout=TIMEOUT, start="fork"),
        arguments.output,
    )
    head = ["module", "architecture", "px", *(name.replace("_", " ") for name in NUMBERS)]
    arguments.output.write_text("\n".join(harness.markdown(head, [cells(rows[name]) for name in sorted(rows)])) + "\n")
    return int(any("error" in row for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
