"""Faster ways to compute are taken only where they are known good: memory format, bf16, torch.compile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import timm
import torch
from running import TINY, fgssl, photos

from fgssl.backbones import module as fast
from fgssl.backbones.module import safe_in_channels_last

# Trains fastvit as a run does, at a size and on as many threads as made channels_last end in a corrupted heap.
FASTVIT = """
import torch
from fgssl.backbones import build_backbone
torch.set_num_threads(2)
backbone = build_backbone("fastvit_t8", image_size=96).train()
if backbone.channels_last:
    backbone.to(memory_format=torch.channels_last)
images = torch.rand(4, 3, 96, 96).contiguous(memory_format=torch.channels_last)
for _ in range(3):
    backbone(images).square().mean().backward()
print("trained")
"""


def test_lists_name_modules_of_timm_and_the_known_bad_are_on_none_for_channels_last() -> None:
    modules = set(timm.list_modules())
    assert modules >= fast.CHANNELS_LAST_MODULES | fast.BF16_MODULES | fast.COMPILE_MODULES
    assert fast.CHANNELS_LAST_MODULES.isdisjoint({"fastvit", "byobnet", "swin_transformer", "vision_transformer"})


@pytest.mark.parametrize("name", ["fastvit_t8", "fastvit_sa12", "mobileone_s0", "repvgg_a0", "fastvit_mci1"])
def test_models_that_corrupt_memory_are_refused_even_were_their_module_listed(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    assert not safe_in_channels_last(model)
    with mock.patch.object(fast, "CHANNELS_LAST_MODULES", frozenset(timm.list_modules())):
        assert not safe_in_channels_last(model)


def test_fastvit_trains_with_every_block_of_memory_checked() -> None:
    """glibc's checking malloc, where there is one, ends a process whose heap was written beyond a block."""
    checked = {"LD_PRELOAD": "libc_malloc_debug.so.0", "GLIBC_TUNABLES": "glibc.malloc.check=3"}
    environment = {**os.environ, **(checked if sys.platform == "linux" else {})}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", FASTVIT], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr


def dry_run(*options: str) -> tuple[Any, str]:
    """What a dry run says of the precision, and its warnings, on a machine that has bf16."""
    tiny = TINY[: TINY.index("--mixed-precision")] + TINY[TINY.index("--mixed-precision") + 2 :]
    with mock.patch("torch.cpu._is_amx_tile_supported", return_value=True, create=True):
        outcome = fgssl("pretrain", "--data", photos(), *tiny, *options, "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    return outcome.json()["settings"]["training.mixed_precision"], outcome.err


@pytest.mark.parametrize("good", [True, False])
def test_bf16_and_compile_are_for_backbones_known_good(good: bool) -> None:
    name = "mobilenetv3_small_050"
    with (
        mock.patch("fgssl.backbones.module.BF16_MODULES", frozenset(["mobilenetv3"] if good else [])),
        mock.patch("fgssl.backbones.module.COMPILE_MODULES", frozenset(["mobilenetv3"] if good else [])),
    ):
        found, _ = dry_run()
        reason = "this CPU has AMX" if good else f"{name} is not known to be good in bf16"
        assert found == {"value": "bf16" if good else "no", "origin": f"derived: {reason}"}
        found, warnings = dry_run("--mixed-precision", "bf16", "--compile")
        assert found["value"] == "bf16"
        lines = [line for line in warnings.splitlines() if "not known to be good" in line]
        assert len(lines) == (0 if good else 2) and all(line.startswith(f"warning: {name} is") for line in lines)
