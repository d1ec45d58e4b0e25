"""A trainer as `pretrain` builds it, on pictures without labels."""

from __future__ import annotations

from pathlib import Path

from running import BACKBONE, flat_photos

from fgssl.config.resolve import load_config
from fgssl.runtime.reporting import Reporter
from fgssl.training.loop import Trainer
from fgssl.training.plan import make_plan
from fgssl.training.pretrain import build_trainer


def tiny_trainer(folder: Path, *, world: int = 1, **settings: object) -> Trainer:
    flags = {
        "data.source": str(flat_photos()), "backbone.name": BACKBONE, "backbone.pretrained": False,
        "backbone.image_size": 64, "training.batch_size": 8, "training.workers": 0, "training.device": "cpu",
        "training.mixed_precision": "no", "training.evaluate": False, "optimizer.name": "sgd", "optimizer.lr": 0.1,
        **settings,
    }  # fmt: skip
    trainer = build_trainer(make_plan(load_config(flags=flags), world=world), folder, Reporter())
    trainer.model.train()
    return trainer
