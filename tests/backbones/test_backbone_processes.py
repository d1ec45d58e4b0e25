"""Two processes train one family of each route: no parameter is left without a gradient, and weights stay equal."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fgssl.backbones import survey_backbone

ROOT = Path(__file__).parents[2]
# name, side, how timm hands out the features, whether parameters that the map's gradient misses had to be frozen
ROUTES = [
    ("test_efficientnet", 64, "nchw", False),
    ("test_mambaout", 64, "nhwc", True),
    ("test_vit", 32, "intermediates", False),  # tokens
    ("efficientvim_m1", 128, "intermediates", True),  # a list
]
STEPS = 5
# DDP by hand, as accelerate wraps a model: it stops at the second step where a parameter got no gradient
PROGRAM = f"""
import sys, torch, torch.distributed as dist
from torch.nn.functional import cross_entropy, normalize
from torch.nn.parallel import DistributedDataParallel
from fgssl.backbones import build_backbone
rank, port = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{{port}}", rank=rank, world_size=2)
for name, side in {[row[:2] for row in ROUTES]}:
    torch.manual_seed(rank)  # other weights on each: the wrapper must make them equal
    backbone = build_backbone(name, image_size=side).train()
    model = DistributedDataParallel(backbone, broadcast_buffers=False)
    trained = [p for p in backbone.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    for step in range({STEPS}):
        features = normalize(model(torch.rand(4, 3, side, side)).mean((2, 3)), dim=1)
        cross_entropy(features @ features.detach().roll(1, 0).T / 0.2, torch.arange(4)).backward()
        assert all(p.grad is not None for p in trained), name
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert any(not torch.equal(old, new) for old, new in zip(before, trained)), name
    flat = torch.cat([p.detach().flatten() for p in backbone.parameters()])
    shares = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(shares, flat)
    assert flat.isfinite().all() and torch.equal(*shares), name
    print(name, "equal", flush=True)
dist.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(("name", "side", "route", "frozen"), ROUTES, ids=[row[0] for row in ROUTES])
def test_the_families_are_of_the_routes_they_stand_for(name: str, side: int, route: str, frozen: bool) -> None:
    plan = survey_backbone(name, image_size=side)
    assert plan.route.kind == route and bool(plan.unused_parameters) == frozen


def test_two_processes_keep_equal_weights_on_every_route() -> None:
    port, environment = free_port(), {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            out, err = process.communicate(timeout=400)
            assert process.returncode == 0, err
            assert out.split() == [word for row in ROUTES for word in (row[0], "equal")]
    finally:
        for process in processes:
            process.kill()
