"""What a resumed run is asked to do otherwise than it began: shown, and refused where it would be another run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from fgssl.config.presets import RATIONALE_PRESETS, VIEW_PRESETS
from fgssl.config.resolve import AS_BEGUN, Resolved, config_from_flat
from fgssl.config.schema import flatten
from fgssl.errors import FgsslError

FREE = (
    "training.workers", "training.device", "training.save_every", "training.log_every", "training.evaluate",
    "training.signals_every", "training.stall_limit",
    "training.keep_states", "training.stop_on_collapse", "training.cache", "training.cache_budget", "training.compile",
    "training.checkpoint_gradients",
)  # fmt: skip
"""Settings that change how a run is carried out, not what it learns."""


class Change(NamedTuple):
    """One setting asked for with another value than the run has."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key} {_shown(self.before)} -> {_shown(self.after)}"


def as_begun(saved: Resolved) -> Resolved:
    """A run saved before a setting existed goes on as it then did: one rate, no drop path, BatchNorm of the batch."""
    flat, origins = flatten(saved.config), dict(saved.origins)
    if origins["backbone.batch_norm"] == "default":
        flat["backbone.batch_norm"], origins["backbone.batch_norm"] = "batch", AS_BEGUN
    if origins["backbone.whitening"] == "default":
        flat["backbone.whitening"], origins["backbone.whitening"] = False, AS_BEGUN
    if origins["optimizer.layer_decay"] == "default":
        flat["optimizer.layer_decay"], origins["optimizer.layer_decay"] = 1.0, AS_BEGUN
        origins["backbone.drop_path"] = AS_BEGUN
    return Resolved(config_from_flat(flat).config, origins)


def asked_settings(asked: Resolved) -> dict[str, Any]:
    """The settings that somebody gave: by recipe, flag or --set, those that a given preset stands for included."""
    flat = flatten(asked.config)
    given = {key for key, origin in asked.origins.items() if origin in ("flag", "--set") or origin.startswith("recipe")}
    for section, presets in (("views", VIEW_PRESETS), ("rationale", RATIONALE_PRESETS)):
        if f"{section}.preset" in given:
            given |= {f"{section}.{key}" for values in presets.values() for key in values}
    return {key: flat[key] for key in flat if key in given and flat[key] is not None}


def changed(saved: Resolved, asked: Resolved) -> list[Change]:
    """The settings asked for that differ from those of the saved run."""
    before = flatten(saved.config)
    return [
        Change(key, before[key], value)
        for key, value in asked_settings(asked).items()
        if not _same(key, before[key], value)
    ]


def with_changes(saved: Resolved, changes: Sequence[Change], *, allow: bool, run: str) -> Resolved:
    """The saved settings with the changes; FgsslError names those that make it another run, unless `allow`."""
    refused = [change for change in changes if change.key not in FREE]
    if refused and not allow:
        raise FgsslError(
            f"'{run}' was begun with other settings: {', '.join(map(str, refused))}",
            "leave them out, start a new run, or go on with them by --allow-changes",
        )
    origins = {**saved.origins, **{change.key: "changed by --resume" for change in changes}}
    flat = {**flatten(saved.config), **{change.key: change.after for change in changes}}
    return Resolved(config_from_flat(flat).config, origins)


def _same(key: str, before: Any, after: Any) -> bool:
    if key in ("data.source", "backbone.init"):  # remembered by their absolute path
        return bool(before == after or before == os.path.abspath(os.path.expanduser(after)))
    return bool(before == after or (key == "training.mixed_precision" and after == "auto"))


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
