"""Whether a backbone can be trained in the memory at hand: an estimate from its trial run, before anything is built.

Training in float32 keeps five times the weights (two encoders, the gradients, AdamW's two averages) and, of every
image, what the backward pass reads again, as the trial counted it. The key encoder, whose pass keeps nothing, and what
a layer needs while it works are taken as a quarter of that. Python and torch themselves take about 0.6 GB. Gradient
checkpointing, accumulation, mixed precision and frozen layers need less.
"""

from __future__ import annotations

from fgssl.backbones.trial import BackbonePlan

WEIGHT_COPIES = 5
PASSING_SHARE = 0.25
PROCESS_BYTES = 600_000_000
FLOAT_BYTES = 4
LARGEST_BATCH = 4096


def training_bytes(plan: BackbonePlan, batch_size: int) -> int:
    """Memory of a training run, in bytes.

    Args:
        plan: From ``survey_backbone``, at the image size of the run.
        batch_size: Images a step, on one process.
    """
    views = 2 * 3 * plan.image_size**2 * FLOAT_BYTES
    image = (1 + PASSING_SHARE) * plan.saved_bytes + views
    return round(PROCESS_BYTES + WEIGHT_COPIES * FLOAT_BYTES * plan.parameters + batch_size * image)


def batch_that_fits(plan: BackbonePlan, memory: int) -> int:
    """The largest power of two, at most 4096, that is a batch size fitting in `memory` bytes; 0 where not even 2 is."""
    batch = LARGEST_BATCH
    while batch >= 2 and training_bytes(plan, batch) > memory:
        batch //= 2
    return batch if batch >= 2 else 0
