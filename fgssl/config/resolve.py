"""Recipe YAML + flags + `--set a.b=value` -> PretrainConfig, remembering where every value came from.

Later wins: default < the data source's own < preset < recipe < flag < --set. Unknown keys and impossible values are one
clear line. Values that depend on the data or the machine are derived later, in `fgssl.training.plan`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

import yaml

from fgssl.config.interval import interval
from fgssl.config.presets import DATA_PROFILES, DEMO_PROFILE, RATIONALE_PRESETS, VIEW_PRESETS
from fgssl.config.schema import ObjectiveConfig, PretrainConfig, flatten, optional_settings
from fgssl.config.values import coerce, ranges, require_ranges, shown, type_hints
from fgssl.errors import FgsslError, SettingError
from fgssl.registry import OBJECTIVES

MAX_RECIPE_BYTES = 1_000_000
AS_BEGUN = "as it began"  # origin of what a resumed run keeps open, although a new one would fill it in

# Settings of forms of the rationale that lost (recipes/RESULTS.md): files of earlier versions name them.
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
    given: dict[str, tuple[Any, str]] = {}
    if recipe is not None:
        given |= {k: (v, f"recipe {recipe.name}") for k, v in _read_recipe(recipe).items()}
    given |= {k: (v, "flag") for k, v in (flags or {}).items() if v is not None}
    given |= {k: (v, "--set") for k, v in map(_parse_set, sets)}
    return _assemble(given)


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
    given = {k: value for k, value in given.items() if k not in RETIRED or not _was_default(k, value[0])}
    for key in given:
        if key not in defaults:
            if key.startswith("objective.") and (owners := _owners(key.removeprefix("objective."))):
                raise _no_such_setting(objective, [key], owners)
            near = _nearest(key, defaults)
            raise SettingError(f"unknown setting '{key}'", f"did you mean '{near}'?" if near else "see --dry-run")
    values = {k: (coerce(k, v, hints[k], within.get(k)), origin) for k, (v, origin) in given.items()}

    def chosen(key: str) -> Any:
        return values.get(key, (profile.get(key, defaults[key]), ""))[0]

    profile: dict[str, Any] = {}  # (read by `chosen`)
    source = chosen("data.source")
    profile = dict(DATA_PROFILES.get(source, {}))
    if chosen("backbone.name") != DEMO_PROFILE["backbone.name"]:
        profile.pop("backbone.output_stride", None)  # not every backbone offers one
    layers = []
    for section, presets in (("views", VIEW_PRESETS), ("rationale", RATIONALE_PRESETS)):
        preset = chosen(f"{section}.preset")
        layers.append(({f"{section}.{k}": v for k, v in presets[preset].items()}, f"preset {preset}"))
    layers.append((profile, f"{source} default"))
    for layer, origin in layers:
        for key, value in layer.items():
            values.setdefault(key, (value, origin))
    flat = {k: values.get(k, (v, "default")) for k, v in defaults.items()}
    config = build({k: v for k, (v, _) in flat.items()})
    require_ranges(config)
    _reject_contradictions(config)
    return Resolved(config, {k: origin for k, (_, origin) in flat.items()})


def _was_default(key: str, value: Any) -> bool:
    """Whether a retired setting has the one value that fgssl still computes; raises where not."""
    kept = RETIRED[key]
    if value is None or coerce(key, value, type(kept)) == kept:
        return True
    raise SettingError(
        f"{key} {shown(value)} is no longer computed", f"leave it out: it is always {kept} (see recipes/RESULTS.md)"
    )


def _nearest(key: str, known: Mapping[str, Any]) -> str | None:
    """The known setting meant by a key: of that name in another section, else the most alike."""
    name = key.rpartition(".")[2]
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    return next(iter(difflib.get_close_matches(key, elsewhere or known, n=1, cutoff=0.0 if elsewhere else 0.5)), None)


def build(flat: Mapping[str, Any]) -> PretrainConfig:
    """A config from a complete flat mapping."""
    hints = get_type_hints(PretrainConfig)
    sections = {}
    for item in fields(PretrainConfig):
        start = f"{item.name}."
        values = {k[len(start) :]: v for k, v in flat.items() if k.startswith(start)}
        section = hints[item.name]
        if not values.keys() <= section.__dataclass_fields__.keys():  # an objective's own settings
            section = OBJECTIVES[values["name"]].settings
        sections[item.name] = section(**values)
    return PretrainConfig(**sections)


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise FgsslError(f"recipe '{path}' is larger than 1 MB", "is it a recipe?")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FgsslError(f"recipe '{path}' does not exist", "give the path of a YAML file") from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a zero byte in the path
        reason = getattr(error, "strerror", None) or error
        raise FgsslError(f"cannot read recipe '{path}': {reason}", "give the path of a YAML file") from error
    tree = _parse_yaml(text, f"recipe '{path}'", "mend it")
    if not isinstance(tree, dict):
        raise SettingError(f"recipe '{path}' holds no settings", "write sections such as 'training:' with keys below")
    flat: dict[str, Any] = {}
    for section, values in tree.items():
        if not isinstance(values, dict):
            raise SettingError(f"recipe '{path}': '{section}' is not a section", "write 'section:' with keys below it")
        flat |= {f"{section}.{key}": value for key, value in values.items()}
    return flat


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
    if interval(config.training.save_every) is None:
        asked = shown(config.training.save_every)
        raise SettingError(f"training.save_every cannot be {asked}", "give steps (200) or time (90s, 10m, 2h)")
    limit = interval(config.training.stall_limit)
    if limit is None or limit.seconds is None:
        raise SettingError(
            f"training.stall_limit cannot be {shown(config.training.stall_limit)}", "give a time (90s, 15m)"
        )
    for name in ("crop", "blur_sigma"):
        least, most = getattr(config.views, f"{name}_min"), getattr(config.views, f"{name}_max")
        if least > most:
            raise SettingError(f"views.{name}_min {least} is above views.{name}_max {most}", "swap them")
    _reject_foreign_settings(config.objective)
    queue, batch = config.objective.queue_size, config.training.batch_size
    if queue is not None and batch is not None and queue < batch:
        raise SettingError(
            f"objective.queue_size {queue} is smaller than --batch-size {batch}",
            "make the queue at least one batch long, or leave it out",
        )
    if config.backbone.init is not None and config.backbone.pretrained:
        raise SettingError("--pretrained and --init are both given", "choose one")
    freeze = config.backbone.freeze
    if freeze not in ("none", "backbone") and not re.fullmatch("[1-9][0-9]{0,3}", freeze):
        raise SettingError(f"--freeze cannot be {shown(freeze)}", "choose none, backbone, or a number of layer groups")
    if freeze == "backbone" and config.training.checkpoint_gradients:
        raise SettingError("--freeze backbone leaves --checkpoint-gradients nothing to save", "leave one out")
    if freeze == "backbone" and config.optimizer.layer_decay not in (None, 1.0):
        raise SettingError("--freeze backbone leaves optimizer.layer_decay nothing to slow down", "choose one")


def _reject_foreign_settings(config: ObjectiveConfig) -> None:
    """Settings that the chosen objective does not have."""
    plain = ObjectiveConfig()
    asked = [key for key in optional_settings() if getattr(config, key) != getattr(plain, key)]
    foreign = [key for key in asked if key not in OBJECTIVES[config.name].uses]
    if foreign:
        raise _no_such_setting(config.name, [f"objective.{key}" for key in foreign], _owners(foreign[0]))


def _owners(key: str) -> list[str]:
    """The objectives that have a setting."""
    shared = key in ObjectiveConfig.__dataclass_fields__
    has = {name: item.uses if shared else item.settings.__dataclass_fields__ for name, item in OBJECTIVES.items()}
    return [name for name, settings in has.items() if key in settings]


def _no_such_setting(objective: str, keys: Sequence[str], owners: Sequence[str]) -> SettingError:
    return SettingError(
        f"the objective {objective} has no {', '.join(keys)}",
        f"leave it out, or use --objective {' or '.join(owners)}",
    )
