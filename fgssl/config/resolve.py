"""Recipe YAML + flags + `--set a.b=value` -> PretrainConfig, remembering where every value came from.

Later wins: default < the data source's own < preset < recipe < flag < --set. Unknown keys and impossible values are one
clear line. Values that depend on the data or the machine are derived later, in `fgssl.training.plan`.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

from fgssl.config.schema import (
    DATA_PROFILES,
    DEMO_PROFILE,
    RATIONALE_PRESETS,
    VIEW_PRESETS,
    ObjectiveConfig,
    PretrainConfig,
    flatten,
    interval,
    optional_settings,
)
from fgssl.errors import FgsslError
from fgssl.registry import OBJECTIVES

MAX_RECIPE_BYTES = 1_000_000
AS_BEGUN = "as it began"  # origin of what a resumed run keeps open, although a new one would fill it in
LARGEST_INTEGER = 2**63 - 1  # what torch takes as a seed or a size


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
        flags: `section.key` -> value of the flags the user gave (None = not given); origin is the flag's value.
        sets: `section.key=value` strings; the value is read as YAML.

    Raises:
        FgsslError: unreadable recipe, unknown key, value of the wrong type, contradiction.
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
    objective = _coerce("objective.name", asked, Literal[tuple(OBJECTIVES)])
    settings = ObjectiveConfig
    if any(key.startswith("objective.") for key in given):  # only then, as this imports it, and torch with it
        settings = OBJECTIVES[objective].settings
    hints = {**_hints(PretrainConfig), **_hints(settings, "objective.")}
    defaults = flatten(PretrainConfig(objective=settings()))
    given = {k: value for k, value in given.items() if k not in RETIRED or not _was_default(k, value[0])}
    for key in given:
        if key not in defaults:
            if key.startswith("objective.") and (owners := _owners(key.removeprefix("objective."))):
                raise _no_such_setting(objective, [key], owners)
            near = _nearest(key, defaults)
            raise FgsslError(f"unknown setting '{key}'", f"did you mean '{near}'?" if near else "see --dry-run")
    values = {k: (_coerce(k, v, hints[k]), origin) for k, (v, origin) in given.items()}

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
    _reject_contradictions(config)
    return Resolved(config, {k: origin for k, (_, origin) in flat.items()})


def _was_default(key: str, value: Any) -> bool:
    """Whether a retired setting has the one value that fgssl still computes. Raises FgsslError where it has another."""
    kept = RETIRED[key]
    if value is None or _coerce(key, value, type(kept)) == kept:
        return True
    raise FgsslError(
        f"{key} {_shown(value)} is no longer computed", f"leave it out: it is always {kept} (see recipes/RESULTS.md)"
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
        raise FgsslError(f"recipe '{path}' holds no settings", "write sections such as 'training:' with keys below")
    flat: dict[str, Any] = {}
    for section, values in tree.items():
        if not isinstance(values, dict):
            raise FgsslError(f"recipe '{path}': '{section}' is not a section", "write 'section:' with keys below it")
        flat |= {f"{section}.{key}": value for key, value in values.items()}
    return flat


def _parse_set(pair: str) -> tuple[str, Any]:
    key, equals, text = pair.partition("=")
    if not equals or "." not in key:
        raise FgsslError(f"--set {pair!r} is not section.key=value", "write e.g. --set rationale.projections=16")
    return key.strip(), _parse_yaml(text, f"--set {_shown(pair)}: the value", "quote it") if text.strip() else None


def _parse_yaml(text: str, name: str, remedy: str) -> Any:
    try:
        return yaml.load(text, _TextLoader)  # a SafeLoader
    except Exception as error:  # explicit tags (!!bool x, !!int '') make PyYAML raise nearly anything
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f" (line {mark.line + 1})"
        reason = getattr(error, "problem", None) or " ".join(str(error).split()) or type(error).__name__
        raise FgsslError(f"{name} is not valid YAML{place}: {reason}", remedy) from error


def _hints(cls: type, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        found |= _hints(hint, f"{prefix}{name}.") if is_dataclass(hint) else {f"{prefix}{name}": hint}  # type: ignore[arg-type]
    return found


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """The value as the field's type, or one line saying what the field takes."""
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        hint = next(h for h in get_args(hint) if h is not type(None))
    if get_origin(hint) is Literal:
        value = "no" if value is False and "no" in get_args(hint) else value  # YAML reads a bare `no` as false
        if value not in get_args(hint):
            near = difflib.get_close_matches(str(value)[:80].lower(), list(map(str, get_args(hint))), n=1)
            choices = f"choose one of {', '.join(map(str, get_args(hint)))}"
            remedy = f"did you mean '{near[0]}'? Otherwise {choices}" if near else choices
            raise FgsslError(f"{key} cannot be {_shown(value)}", remedy)
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        if hint is str:
            return str(value)
        number = _number(value, hint) if hint in (int, float) else None
        if number is not None:
            return number
    quotes = ", in quotes" if hint is str and isinstance(value, bool) else ""
    raise FgsslError(f"{key} cannot be {_shown(value)}", f"it takes a value of type {hint.__name__}{quotes}")


def _number(value: str | int | float, kind: type) -> int | float | None:
    """The value as an int or float; None where it is none, not finite, or beyond 64 bits."""
    try:
        if kind is float:
            number = float(value)
            return number if math.isfinite(number) else None
        try:
            whole = int(value) if not isinstance(value, float) else None  # exact, where a float would round
        except ValueError:  # "1e3" is a whole number as well
            whole = None
        if whole is None:
            number = float(value)
            whole = int(number) if number.is_integer() else None
        return whole if whole is not None and abs(whole) <= LARGEST_INTEGER else None
    except (ValueError, OverflowError):
        return None


def _shown(value: Any) -> str:
    """A value for a message: never long, and never the expansion of nested YAML aliases."""
    if isinstance(value, (dict, list, tuple, set)):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_AT_LEAST: dict[str, float] = {
    "training.epochs": 1, "training.accumulate": 1, "training.cache_budget": 0,
    "training.batch_size": 2, "training.max_steps": 1, "training.workers": 0,
    "training.log_every": 1, "training.signals_every": 0, "training.seed": 0, "objective.queue_size": 1,
    "objective.projector_dim": 1, "objective.projector_hidden": 1, "rationale.projections": 1, "rationale.weight": 0,
    "rationale.warmup_epochs": 0, "optimizer.warmup_epochs": 0, "optimizer.weight_decay": 0,
    "objective.predictor_hidden": 1,
    "backbone.image_size": 8, "views.brightness": 0, "views.contrast": 0, "views.saturation": 0,
    "views.blur_sigma_min": 0, "backbone.cached_views": 1,
}  # fmt: skip
_POSITIVE = (
    "optimizer.lr", "objective.temperature", "rationale.temperature", "rationale.prediction_temperature",
    "views.crop_min", "views.blur_sigma_max", "optimizer.layer_decay",
)  # fmt: skip
_FRACTION = (
    "views.crop_max", "views.flip", "views.jitter", "views.grayscale", "views.blur", "views.solarize", "views.crop_min",
    "objective.momentum", "objective.momentum_end", "optimizer.momentum", "backbone.drop_path", "optimizer.layer_decay",
)  # fmt: skip


def _reject_contradictions(config: PretrainConfig) -> None:
    flat = flatten(config)
    for key, least in _AT_LEAST.items():
        if flat[key] is not None and flat[key] < least:
            raise FgsslError(f"{key} is {flat[key]}", f"it must be at least {least:g}")
    for key in _POSITIVE:
        if flat[key] is not None and flat[key] <= 0:
            raise FgsslError(f"{key} is {flat[key]}", "it must be above 0")
    for key in _FRACTION:
        if flat[key] is not None and not 0 <= flat[key] <= 1:
            raise FgsslError(f"{key} is {flat[key]}", "it must lie between 0 and 1")
    if interval(config.training.save_every) is None:
        asked = _shown(config.training.save_every)
        raise FgsslError(f"training.save_every cannot be {asked}", "give steps (200) or time (90s, 10m, 2h)")
    limit = interval(config.training.stall_limit)
    if limit is None or limit.seconds is None:
        raise FgsslError(
            f"training.stall_limit cannot be {_shown(config.training.stall_limit)}", "give a time (90s, 15m)"
        )
    views = config.views
    if views.crop_min > views.crop_max:
        raise FgsslError(f"views.crop_min {views.crop_min} is above views.crop_max {views.crop_max}", "swap them")
    if views.blur_sigma_min > views.blur_sigma_max:
        raise FgsslError(
            f"views.blur_sigma_min {views.blur_sigma_min} is above views.blur_sigma_max {views.blur_sigma_max}",
            "swap them",
        )
    if not 0 <= views.hue <= 0.5:
        raise FgsslError(f"views.hue is {views.hue}", "it must lie between 0 and 0.5")
    _reject_foreign_settings(config.objective)
    queue, batch = config.objective.queue_size, config.training.batch_size
    if queue is not None and batch is not None and queue < batch:
        raise FgsslError(
            f"objective.queue_size {queue} is smaller than --batch-size {batch}",
            "make the queue at least one batch long, or leave it out",
        )
    if config.backbone.init is not None and config.backbone.pretrained:
        raise FgsslError("--pretrained and --init are both given", "choose one")
    freeze = config.backbone.freeze
    if freeze not in ("none", "backbone") and not (freeze.isascii() and freeze.isdigit() and int(freeze) > 0):
        raise FgsslError(f"--freeze cannot be {_shown(freeze)}", "choose none, backbone, or a number of layer groups")
    if freeze == "backbone" and config.training.checkpoint_gradients:
        raise FgsslError("--freeze backbone leaves --checkpoint-gradients nothing to save", "leave one out")
    if freeze == "backbone" and config.optimizer.layer_decay not in (None, 1.0):
        raise FgsslError("--freeze backbone leaves optimizer.layer_decay nothing to slow down", "choose one")


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


def _no_such_setting(objective: str, keys: Sequence[str], owners: Sequence[str]) -> FgsslError:
    return FgsslError(
        f"the objective {objective} has no {', '.join(keys)}",
        f"leave it out, or use --objective {' or '.join(owners)}",
    )
