"""Embedding against the bare forward pass, and what bf16 would change.

    python recipes/bench/embed_speed.py runs/photos --data GROCERY

The floor is the backbone's forward on a batch in place, in inference mode and the same memory format. `embed` adds
reading, normalising, pooling and collecting. Both take turns; medians of the rounds. bf16 (autocast) is timed beside,
and its embeddings compared with those in float32: cosine of the same image, and share of images whose nearest neighbour
stays. Retrieval and probe compute in float32 whatever this says. Table on stderr, JSON on stdout.
"""

from __future__ import annotations

import statistics
from functools import partial

import harness
import numpy as np
import torch
from torch import Tensor

from fgssl.config.schema import DataConfig
from fgssl.data.images import Subset
from fgssl.encoder import Encoder
from fgssl.evaluation.embed import embed
from fgssl.evaluation.subject import open_split
from fgssl.runs.encoder_file import load_encoder
from fgssl.runtime.machine import keep_freed_memory, resolve_device, resolve_precision


@torch.inference_mode()
def forward(encoder: Encoder, images: Tensor, repeats: int) -> None:
    """The backbone alone, so many times."""
    for _ in range(repeats):
        encoder.backbone(images)


def nearest(features: Tensor) -> Tensor:
    """The nearest other image of each, (N,)."""
    return (features @ features.T).fill_diagonal_(-1).argmax(1)


def main() -> None:
    """Print the table and the JSON."""
    parser = harness.parser(__doc__, "--data", "--batch-size", "--device", "--threads", "--output")
    parser.add_argument("checkpoint", nargs="?", default="timm:resnet18")
    parser.add_argument("--images", type=int, default=512, help="of the test split, evenly spread")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = harness.begin(parser)
    device = resolve_device(arguments.device)
    if device.type == "cpu":
        keep_freed_memory()
    encoder = load_encoder(arguments.checkpoint).to(device).eval()
    whole = open_split(DataConfig(source=arguments.data), None, "test")
    images = Subset(whole, np.unique(np.linspace(0, len(whole) - 1, arguments.images).round().astype(int)))
    size, batch = encoder.backbone.image_size, min(arguments.batch_size, len(images))
    batches = -(-len(images) // batch)
    bytes_ = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    resident = encoder.normalize(bytes_)
    found: dict[str, Tensor] = {}

    def run(name: str) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
            found[name] = embed(encoder, images, pools=("gap",), batch_size=batch)["gap"].features

    calls = {
        "floor": partial(forward, encoder, resident, batches),
        **{name: partial(run, name) for name in ("fp32", "bf16")},
    }
    seconds = harness.in_turns(calls, arguments.rounds, clock=lambda call: harness.timed(call, device))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    # the floor worked through whole batches
    per_image = {name: value / (batches * batch if name == "floor" else len(images)) for name, value in medians.items()}
    cosines = (found["fp32"] * found["bf16"]).sum(1)
    kept = (nearest(found["fp32"]) == nearest(found["bf16"])).float().mean()
    result = {
        "bf16": resolve_precision("auto", device)[1],
        "images_per_second": {name: 1 / value for name, value in per_image.items()},
        "efficiency": per_image["floor"] / per_image["fp32"],
        "bf16_gain": per_image["fp32"] / per_image["bf16"],
        "bf16_against_fp32": {"least_cosine": float(cosines.min()), "same_nearest_neighbour": float(kept)},
    }
    lines = [f"{name:8}{1 / value:10.1f} images/s" for name, value in per_image.items()]
    lines.append(
        f"efficiency {result['efficiency']:.3f}; bf16 ({result['bf16']}): {result['bf16_gain']:.2f} times fp32's "
        f"speed, least cosine {float(cosines.min()):.5f}, nearest neighbour kept in {float(kept):.1%}"
    )
    harness.report(arguments, result, lines, device=device)


if __name__ == "__main__":
    main()
