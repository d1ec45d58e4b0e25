"""Recipe YAML + flags + `--set a.b=value` -> PretrainConfig, remembering where every value came from.

Later wins: default < the data source's own < preset < recipe < flag < --set; what depends on the data or the machine is
derived in `fgssl.training.plan`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

import yaml

from fgssl.config.defaults import DATA_PROFILES, DEMO_PROFILE, RATIONALE_PRESETS, VIEW_PRESETS
from fgssl.config.schema import TRACKERS, ObjectiveConfig, PretrainConfig, flatten, nested, optional_settings
from fgssl.config.values import coerce, interval, ranges, require_ranges, shown, type_hints
from fgssl.errors import FgsslError, SettingError
from fgssl.registry import OBJECTIVES

MAX_RECIPE_BYTES = 1_000_000
PATHS = ("data.source", "data.masks", "backbone.init", "objective.teacher")  # what may name a file
# Settings of forms of the rationale that lost (docs/results.md): files of earlier versions name them.
RETIRED: dict[str, str | float | bool] = {
    "rationale.views": "first",
    "rationale.top_fraction": 0.25,
    "rationale.activation": "relu",
    "rationale.pool_exponent": 3.0,
    "rationale.pool_power": 1.0,
    "rationale.pool_floor": 0.0,
    "rationale.pool_invert": False,
}


class _TextLoader(yaml.SafeLoader):
    """YAML whose plain numbers and dates stay text: a revision 1.10, 0123456 or 2024-01-05 is kept as written."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        start: [(tag, pattern) for tag, pattern in found if tag.rpartition(":")[2] in ("null", "bool", "merge")]
        for start, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class Resolved(NamedTuple):
    """A config and, for each `section.key`, where its value came from."""

    config: PretrainConfig
    origins: dict[str, str]


def load_config(
    recipe: Path | None = None, *, flags: Mapping[str, Any] | None = None, sets: Sequence[str] = ()
) -> Resolved:
    """Merge a recipe, command-line flags and `--set` pairs into a checked config.

    Args:
        recipe: YAML file with sections as in `PretrainConfig`.
        flags: `section.key` -> value of the flags the user gave (None = not given).
        sets: `section.key=value` strings; the value is read as YAML.

    Raises:
        FgsslError: unreadable recipe; SettingError: unknown key, value that cannot be, contradiction.
    """
    told = {} if recipe is None else {k: (v, f"recipe {recipe.name}") for k, v in _read_recipe(recipe).items()}
    told |= {k: (v, "flag") for k, v in (flags or {}).items() if v is not None}
    return _assemble({**told, **{k: (v, "--set") for k, v in map(_parse_set, sets)}})


def config_from_flat(flat: Mapping[str, Any], origin: str = "saved run") -> Resolved:
    """Rebuild a config from saved `section.key` -> value pairs (every key optional)."""
    return _assemble({k: (v, origin) for k, v in flat.items()})


def _assemble(given: dict[str, tuple[Any, str]]) -> Resolved:
    asked, _ = given.get("objective.name", (ObjectiveConfig.name, ""))
    plugin, _ = given.get("objective.plugin", (None, ""))
    if plugin is not None and asked not in OBJECTIVES:
        named = f"the objective {shown(asked)} of {shown(plugin)} is not here"
        raise FgsslError(named, "install that package, or name the file with --plugin")
    objective = coerce("objective.name", asked, Literal[tuple(OBJECTIVES)])
    settings = ObjectiveConfig
    if any(key.startswith("objective.") for key in given):  # only then, as this imports it, and torch with it
        settings = OBJECTIVES[objective].settings
    hints = {**type_hints(PretrainConfig), **type_hints(settings, "objective.")}
    blank = PretrainConfig(objective=settings())
    defaults, within = flatten(blank), ranges(blank)
    for key, (value, _) in given.items():
        kept = RETIRED.get(key)
        if kept is None and key not in defaults:
            raise _unknown(key, objective, defaults)
        if kept is not None and value is not None and coerce(key, value, type(kept)) != kept:
            remedy = f"leave it out: it is always {kept} (see docs/results.md)"
            raise SettingError(f"{key} {shown(value)} is no longer computed", remedy)
    given = {key: value for key, value in given.items() if key in defaults}
    values = {k: (coerce(k, v, hints[k], within.get(k)), origin) for k, (v, origin) in given.items()}
    profile: dict[str, Any] = {}  # (read by `chosen`)

    def chosen(key: str) -> Any:
        return values.get(key, (profile.get(key, defaults[key]), ""))[0]

    source = chosen("data.source")
    # of an archive (cars:FOLDER, aircraft/family:FOLDER) that of the data set's name
    profile = dict(DATA_PROFILES.get(source.partition("/")[0].partition(":")[0] if ":" in source else source, {}))
    if chosen("backbone.name") != DEMO_PROFILE["backbone.name"]:
        profile.pop("backbone.output_stride", None)  # not every backbone offers one
    for section, presets in (("views", VIEW_PRESETS), ("rationale", RATIONALE_PRESETS)):
        preset = chosen(f"{section}.preset")
        origin = f"preset {preset}"
        values = {**{f"{section}.{k}": (v, origin) for k, v in presets[preset].items()}, **values}
    values = {**{k: (v, f"{source} default") for k, v in profile.items()}, **values}
    flat = {k: values.get(k, (v, "default")) for k, v in defaults.items()}
    config = build({k: v for k, (v, _) in flat.items()})
    require_ranges(config)
    _reject_contradictions(config)
    return Resolved(config, {k: origin for k, (_, origin) in flat.items()})


def _unknown(key: str, objective: str, known: Mapping[str, Any]) -> SettingError:
    name = key.rpartition(".")[2]
    if key.startswith("objective.") and (found := _no_such_setting(objective, key.removeprefix("objective."))):
        return found
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    near = difflib.get_close_matches(key, elsewhere or known, n=1, cutoff=0.0 if elsewhere else 0.5)
    return SettingError(f"unknown setting '{key}'", f"did you mean '{near[0]}'?" if near else "see --dry-run")


def build(flat: Mapping[str, Any]) -> PretrainConfig:
    """A config from a complete flat mapping."""
    sections, hints = nested(flat), get_type_hints(PretrainConfig)
    for name, values in sections.items():
        own = values.keys() <= hints[name].__dataclass_fields__.keys()  # or an objective's own settings
        sections[name] = (hints[name] if own else OBJECTIVES[values["name"]].settings)(**values)
    return PretrainConfig(**sections)


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise FgsslError(f"recipe '{path}' is larger than 1 MB", "is it a recipe?")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a zero byte in the path
        problem = f"cannot read recipe '{path}': {getattr(error, 'strerror', None) or error}"
        problem = f"recipe '{path}' does not exist" if isinstance(error, FileNotFoundError) else problem
        raise FgsslError(problem, "give the path of a YAML file") from error
    tree = _parse_yaml(text, f"recipe '{path}'", "mend it")
    if not isinstance(tree, dict):
        raise SettingError(f"recipe '{path}' holds no settings", "write sections such as 'training:' with keys below")
    for section, values in tree.items():
        if not isinstance(values, dict):
            raise SettingError(f"recipe '{path}': '{section}' is not a section", "write 'section:' with keys below it")
    return {f"{section}.{key}": value for section, values in tree.items() for key, value in values.items()}


def _parse_set(pair: str) -> tuple[str, Any]:
    key, equals, text = pair.partition("=")
    if not equals or "." not in key:
        raise SettingError(f"--set {pair!r} is not section.key=value", "write e.g. --set rationale.projections=16")
    return key.strip(), _parse_yaml(text, f"--set {shown(pair)}: the value", "quote it") if text.strip() else None


def _parse_yaml(text: str, name: str, remedy: str) -> Any:
    try:
        return yaml.load(text, _TextLoader)  # a SafeLoader
    except Exception as error:  # explicit tags (!!bool x, !!int '') make PyYAML raise nearly anything
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f" (line {mark.line + 1})"
        reason = getattr(error, "problem", None) or " ".join(str(error).split()) or type(error).__name__
        raise SettingError(f"{name} is not valid YAML{place}: {reason}", remedy) from error


def _reject_contradictions(config: PretrainConfig) -> None:
    training, freeze, objective, plain = config.training, config.backbone.freeze, config.objective, ObjectiveConfig()
    if interval(training.save_every) is None:
        problem = f"training.save_every cannot be {shown(training.save_every)}"
        raise SettingError(problem, "give steps (200) or time (90s, 10m, 2h)")
    limit = interval(training.stall_limit)
    if limit is None or limit.seconds is None:
        problem = f"training.stall_limit cannot be {shown(training.stall_limit)}"
        raise SettingError(problem, "give a time (90s, 15m)")
    unknown = [name for name in (training.track or TRACKERS[0]).split(",") if name not in TRACKERS]
    if unknown:
        raise SettingError(f"--track cannot be {shown(unknown[0])}", f"choose from {', '.join(TRACKERS)}")
    for name in ("crop", "blur_sigma"):
        least, most = getattr(config.views, f"{name}_min"), getattr(config.views, f"{name}_max")
        if least > most:
            raise SettingError(f"views.{name}_min {least} is above views.{name}_max {most}", "swap them")
    asked = [key for key in optional_settings() if getattr(objective, key) != getattr(plain, key)]
    foreign = [key for key in asked if key not in OBJECTIVES[objective.name].uses]
    if foreign and (refused := _no_such_setting(objective.name, *foreign)):
        raise refused
    if training.head_epochs and freeze == "backbone":
        raise SettingError("--freeze backbone leaves the heads alone all the time", "leave out training.head_epochs")
    if training.head_epochs >= training.epochs:
        problem = f"training.head_epochs {training.head_epochs:g} of {training.epochs} leave the backbone none"
        raise SettingError(problem, "lower it, or use --freeze backbone")
    if config.backbone.adapt != "all" and freeze == "backbone":
        raise SettingError("--freeze backbone leaves nothing to backbone.adapt", "choose one")
    if config.backbone.adapt == "lora" and training.checkpoint_gradients:
        raise SettingError("backbone.adapt lora leaves --checkpoint-gradients other weights", "leave one out")
    local = [f"views.local_{key}" for key in ("count", "size") if getattr(config.views, f"local_{key}")]
    if local and freeze == "backbone":
        raise SettingError(f"--freeze backbone has no use for {local[0]}", "leave it out: its maps are of whole views")
    if local and not OBJECTIVES[objective.name].local_views:
        owners = " or ".join(name for name, item in OBJECTIVES.items() if item.local_views)
        raise SettingError(f"{objective.name} has no use for {local[0]}", f"leave it out, or use --objective {owners}")
    place, placed = config.views.place, config.views.place != "anywhere"
    if placed and not config.rationale.enabled:
        raise SettingError(f"--no-rationale leaves views.place {place} no map to be found by", "leave one out")
    if placed and freeze == "backbone":
        remedy = "leave it out: its maps are made before any place is known"
        raise SettingError(f"--freeze backbone has no use for views.place {place}", remedy)
    if placed and not config.views.place_share and not config.views.hide_share:
        raise SettingError(f"views.place {place} has no use", "raise views.place_share or views.hide_share, both are 0")
    if config.views.hide_share and not placed:
        raise SettingError("views.hide_share without views.place", "say where: --set views.place=map")
    queue, batch = objective.queue_size, training.batch_size
    if queue is not None and batch is not None and queue < batch:
        problem = f"objective.queue_size {queue} is smaller than --batch-size {batch}"
        raise SettingError(problem, "make the queue at least one batch long, or leave it out")
    if config.backbone.init is not None and config.backbone.pretrained:
        raise SettingError("--pretrained and --init are both given", "choose one")
    if freeze is not None and not re.fullmatch("none|backbone|[1-9][0-9]{0,3}", freeze):
        raise SettingError(f"--freeze cannot be {shown(freeze)}", "choose none, backbone, or a number of layer groups")
    if freeze == "backbone" and training.checkpoint_gradients:
        raise SettingError("--freeze backbone leaves --checkpoint-gradients nothing to save", "leave one out")
    if freeze == "backbone" and objective.anchor > 0:
        raise SettingError("--freeze backbone leaves objective.anchor nothing to hold", "leave one out")
    if freeze == "backbone" and config.optimizer.layer_decay not in (None, 1.0):
        raise SettingError("--freeze backbone leaves optimizer.layer_decay nothing to slow down", "choose one")


def _no_such_setting(objective: str, *keys: str) -> SettingError | None:
    """Which objectives have what this one lacks; None where none has."""
    shared = keys[0] in ObjectiveConfig.__dataclass_fields__
    has = {name: item.uses if shared else item.settings.__dataclass_fields__ for name, item in OBJECTIVES.items()}
    owners = [name for name, settings in has.items() if keys[0] in settings]
    problem = f"the objective {objective} has no {', '.join(f'objective.{key}' for key in keys)}"
    return SettingError(problem, f"leave it out, or use --objective {' or '.join(owners)}") if owners else None
