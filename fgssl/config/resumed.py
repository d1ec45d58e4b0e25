"""The settings of a run that goes on: as it began, and what is to be otherwise, refused where that is another run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from fgssl.config.defaults import RATIONALE_PRESETS, VIEW_PRESETS
from fgssl.config.resolve import PATHS, Resolved, config_from_flat
from fgssl.config.schema import flatten
from fgssl.errors import FgsslError

AS_BEGUN = "as it began"  # origin of what a resumed run keeps open, although a new one would fill it in
# Settings that change how a run is carried out, not what it learns.
FREE = (
    "training.workers", "training.device", "training.save_every", "training.log_every", "training.evaluate",
    "training.signals_every", "training.stall_limit",
    "training.keep_states", "training.stop_on_collapse", "training.cache", "training.cache_budget", "training.compile",
    "training.checkpoint_gradients", "training.track", "training.threads",
)  # fmt: skip
# Settings that later versions brought, as a run without them goes on: it did so before they existed.
BEFORE: dict[str, Any] = {
    "backbone.batch_norm": "batch",
    "backbone.whitening": False,
    "backbone.stages": 1,
    "rationale.windows": "branch",
    "training.choose": False,
    "optimizer.layer_decay": 1.0,
    "training.log_every": 10,
    "training.threads": None,  # as many as torch takes
}


class Change(NamedTuple):
    """One setting asked for with another value than the run has."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        before, after = (f"{v:g}" if isinstance(v, float) else "-" if v is None else v for v in self[1:])
        return f"{self.key} {before} -> {after}"


def as_begun(saved: Resolved) -> Resolved:
    """A run saved before a setting existed goes on as it then did: one rate, no drop path, BatchNorm of the batch."""
    missing = {key: value for key, value in BEFORE.items() if saved.origins[key] == "default"}
    kept = {*missing, *(["backbone.drop_path"] if "optimizer.layer_decay" in missing else [])}
    flat = {**flatten(saved.config), **missing}
    return Resolved(config_from_flat(flat).config, {**saved.origins, **dict.fromkeys(kept, AS_BEGUN)})


def changed(saved: Resolved, asked: Resolved) -> list[Change]:
    """The settings that somebody gave, by recipe, flag, --set or a preset so given, and that the run has otherwise."""
    before, after = flatten(saved.config), flatten(asked.config)
    given = {key for key, origin in asked.origins.items() if origin in ("flag", "--set") or origin.startswith("recipe")}
    for section, presets in (("views", VIEW_PRESETS), ("rationale", RATIONALE_PRESETS)):
        if f"{section}.preset" in given:
            given |= {f"{section}.{key}" for values in presets.values() for key in values}
    return [
        Change(key, before[key], value)
        for key, value in after.items()
        if key in given and value is not None and not _same(key, before[key], value)
    ]


def with_changes(saved: Resolved, changes: Sequence[Change], *, allow: bool, run: str) -> Resolved:
    """The saved settings with the changes; FgsslError names those that make it another run, unless `allow`."""
    refused = [str(change) for change in changes if change.key not in FREE]
    if refused and not allow:
        remedy = "leave them out, start a new run, or go on with them by --allow-changes"
        raise FgsslError(f"'{run}' was begun with other settings: {', '.join(refused)}", remedy)
    origins = {**saved.origins, **{change.key: "changed by --resume" for change in changes}}
    flat = {**flatten(saved.config), **{change.key: change.after for change in changes}}
    return Resolved(config_from_flat(flat).config, origins)


def _same(key: str, before: Any, after: Any) -> bool:
    if key in PATHS and before != after:  # remembered by their absolute path
        return bool(before == os.path.abspath(os.path.expanduser(after)))
    return bool(before == after or (key == "training.mixed_precision" and after == "auto"))
