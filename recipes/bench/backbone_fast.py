"""Which of timm's modules bf16 autocast and torch.compile leave as good as plain float32, a training step each.

    python recipes/bench/backbone_fast.py --output backbones_fast.md               # all modules
    python recipes/bench/backbone_fast.py --only 'vision*' --backend inductor      # some, with the code generated

Hardware: any CPU; bf16 is emulated where it is not native, which changes the speed and not the numbers. Time: about an
hour on one core. The architectures are those of `docs/tables/backbones.md`. Each runs in a process of its own, and
a sweep that was stopped goes on where it was. Of one batch of noise, in train mode and from one seed, the table gives

- bf16: the cosine between the bf16 and the float32 map, and between their gradients of a contrastive loss (GradCAM's);
- compile: the largest difference of the map, relative to its largest value, and the gradients' cosine over all weights.

`fgssl/backbones/fast.py` lists the modules for which both cosines of bf16 are at least 0.95, and those for which the
compiled map differs by at most 1e-3 and the cosine is at least 0.999.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[2] / "docs" / "tables" / "backbones.md"
SIDES = (64, 96, 128)  # pixels: the first that gives a map of at least 2x2, else the table's
TIMEOUT = 900  # seconds a model
NUMBERS = ("bf16_map", "bf16_gradcam", "compiled_map", "compiled_gradient")


def architectures(only: list[str]) -> list[tuple[str, str, int]]:
    """Module, architecture and side of the rows of the sweep's table that trained."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.read_text().splitlines()]
    trained = [(row[0], row[1], int(row[3])) for row in rows if len(row) == 9 and row[-1] == "trains"]
    return [row for pattern in only for row in trained if fnmatch.fnmatch(row[0], pattern)]


def check(name: str, side: int, backend: str) -> dict[str, float | int]:
    """One model: float32 against bf16, and against the compiled model."""
    import torch
    from torch.nn.functional import cosine_similarity

    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = build(name, side)
    images = torch.rand(4, 3, backbone.image_size, backbone.image_size)
    plain = step(copy.deepcopy(backbone), images)
    with torch.autocast("cpu", torch.bfloat16):
        low = step(copy.deepcopy(backbone), images)
    row = {
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
    from fgssl.backbones import build_backbone
    from fgssl.errors import FgsslError

    for candidate in SIDES:
        try:
            return build_backbone(name, image_size=candidate)
        except FgsslError:
            continue
    return build_backbone(name, image_size=side)


def step(backbone: Any, images: Any) -> tuple[Any, Any, Any]:
    """Map, its gradient of the loss and the gradient of all trained weights, each flat and float32."""
    import torch
    from torch.nn.functional import cross_entropy, normalize

    torch.manual_seed(1)  # of dropout and stochastic depth
    feature_map = backbone.train()(images)
    features = normalize(feature_map.float().mean((2, 3)), dim=1)
    loss = cross_entropy(features @ features.detach().roll(1, 0).T / 0.2, torch.arange(len(images)))
    weights = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    gradcam, *gradients = torch.autograd.grad(loss, [feature_map, *weights])
    flat = torch.cat([gradient.flatten().double() for gradient in gradients])
    return feature_map.detach().double().flatten(), gradcam.double().flatten(), flat


def run_alone(name: str, side: int, backend: str) -> dict[str, Any]:
    """Check one model in a process of its own, forked from one that has imported what is large."""
    import torch._dynamo  # noqa: F401

    import fgssl.backbones  # noqa: F401

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, name, side, backend))
    process.start()
    sender.close()
    result: dict[str, Any] = {"error": f"no result in {TIMEOUT} s"}
    if receiver.poll(TIMEOUT):
        try:
            result = receiver.recv()
        except EOFError:
            process.join()
            result = {"error": f"exit status {process.exitcode}"}
    process.kill()
    process.join()
    return result


def _work(sender: Any, name: str, side: int, backend: str) -> None:
    try:
        sender.send(check(name, side, backend))
    except Exception as error:  # whatever it is becomes the row's result
        sender.send({"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]})


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a row a module."""
    lines = ["| module | architecture | px | " + " | ".join(name.replace("_", " ") for name in NUMBERS) + " |"]
    lines += ["|---" * (3 + len(NUMBERS)) + "|"]
    for row in rows:
        cells = (
            [row["error"], *[""] * (len(NUMBERS) - 1)] if "error" in row else [f"{row[name]:.4f}" for name in NUMBERS]
        )
        lines.append(f"| {row['module']} | {row['name']} | {row.get('side', '')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Sweep; 1 where a model gave no numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("backbones_fast.md"), help="Markdown table to write")
    parser.add_argument("--only", nargs="*", default=["*"], help="timm modules to sweep, as shell patterns, in order")
    parser.add_argument("--backend", default="aot_eager", help="of torch.compile; aot_eager generates no code")
    arguments = parser.parse_args()
    kept = arguments.output.with_suffix(".jsonl")
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {row["module"]: row for row in rows}
    for module, name, side in architectures(arguments.only):
        if module not in done:
            done[module] = {"module": module, "name": name, **run_alone(name, side, arguments.backend)}
            with kept.open("a") as file:
                file.write(json.dumps(done[module]) + "\n")
        print(done[module], flush=True)
    arguments.output.write_text(table([done[module] for module in sorted(done)]))
    return int(any("error" in row for row in done.values()))


if __name__ == "__main__":
    sys.exit(main())
