"""Started twice by test_memory_saving.py: one step in two parts by two processes, against gradients made by hand.

Each process works through its parts on a copy of the model without DistributedDataParallel; the mean over processes is
what the step must have left. How often each bucket of gradients travels is counted.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed
from tiny_trainer import tiny_trainer


def main() -> None:
    """Prints one JSON line (the first process)."""
    torch.distributed.init_process_group("gloo")
    trainer = tiny_trainer(Path(sys.argv[1]), world=2, **{"training.accumulate": 2})
    travelled: list[int] = []

    def hook(_state, bucket):  # torch refuses annotations that are text
        travelled.append(bucket.index())
        torch.distributed.all_reduce(bucket.buffer().div_(2))
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    trainer.wrapped.register_comm_hook(None, hook)
    by_hand, batch = copy.deepcopy(trainer.model), next(trainer.batches(0))
    with mock.patch.object(trainer.optimizer, "zero_grad"):  # so that the gradients can be looked at
        trainer.step(0, batch)
    images = len(batch.index) // 2
    for part in range(2):
        rows = slice(images * part, images * (part + 1))
        by_hand.objective.update_target = part == 0
        (by_hand(batch.views[:, rows], batch.index[rows], 1.0).total / 2).backward()
    worst = largest = 0.0
    for ours, theirs in zip(trainer.model.parameters(), by_hand.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if theirs.grad is not None and ours.grad is not None:
            torch.distributed.all_reduce(theirs.grad.div_(2))
            largest = max(largest, float(theirs.grad.abs().max()))
            worst = max(worst, float((ours.grad - theirs.grad).abs().max()))
    unequal = [n for n, p in trainer.model.named_parameters() if not _equal_everywhere(p)]
    if torch.distributed.get_rank() == 0:
        print(
            json.dumps(
                {
                    "images": len(batch.index),
                    "travelled": travelled,
                    "worst": worst,
                    "largest": largest,
                    "unequal": unequal,
                }
            )
        )
    torch.distributed.destroy_process_group()


def _equal_everywhere(parameter: torch.Tensor) -> bool:
    both = [torch.empty_like(parameter) for _ in range(2)]
    torch.distributed.all_gather(both, parameter.detach().contiguous())
    return torch.equal(both[0], both[1])


if __name__ == "__main__":
    main()
