"""Several processes of one run: can they talk to each other, and do they mean the same run?"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from fgssl.config.schema import flatten
from fgssl.errors import FgsslError
from fgssl.runtime.reporting import Reporter
from fgssl.training.plan import Plan

START_SECONDS = 300.0  # for all processes to be there and answer
OWN = ("training.device", "training.workers", "data.source")  # may differ between machines


@contextlib.contextmanager
def time_limit(reporter: Reporter, seconds: float | None = None) -> Iterator[None]:
    """End this process with one line where the block, which may hang inside a collective, takes too long."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    limit = seconds or float(os.environ.get("FGSSL_START_SECONDS", START_SECONDS))

    def give_up() -> None:
        reporter.fatal(
            f"process {os.environ.get('RANK')} of {os.environ['WORLD_SIZE']}: the others did not answer in {limit:g} s",
            "check that all are started and reach MASTER_ADDR:MASTER_PORT; FGSSL_START_SECONDS waits longer",
        )
        os._exit(1)

    timer = threading.Timer(limit, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def check_processes(plan: Plan, accelerator: Accelerator) -> None:
    """Let every process speak once, and compare what each is about to do.

    Raises:
        FgsslError: a collective gives a wrong sum, or a process has other settings or images.
    """
    count = accelerator.num_processes
    if count == 1:
        return
    total = torch.tensor([accelerator.process_index + 1], device=plan.device)
    torch.distributed.all_reduce(total)
    if int(total) != count * (count + 1) // 2:
        raise FgsslError("the processes add up numbers wrongly", "check the network and the versions of torch")
    own = {"training images": len(plan.train), **flatten(plan.config)}
    hosts, accounts = zip(*gather_object([(socket.gethostname(), own)]), strict=True)
    for number, account in enumerate(accounts):
        for key, value in accounts[0].items():
            if key not in OWN and account[key] != value:
                raise FgsslError(
                    f"process {number} on {hosts[number]} has {key} {account[key]}, process 0 has {value}",
                    "start all with the same command and the same images",
                )
