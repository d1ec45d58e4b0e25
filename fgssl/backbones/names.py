"""timm's model names: checking one, finding near matches, listing them with sizes and tags."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
from typing import Any, NamedTuple

import timm
from timm.models import get_pretrained_cfg, split_model_name_tag

from fgssl.errors import FgsslError
from fgssl.runtime.offline import hub_or_cache, is_offline

# names that timm resolves itself: a folder written by save_timm, a model of the Hugging Face hub
LOCAL_PREFIX, HUB_PREFIXES = "local-dir:", ("hf-hub:", "hf_hub:")
SOURCE_PREFIXES = (*HUB_PREFIXES, LOCAL_PREFIX)


class BackboneRow(NamedTuple):
    """One architecture of timm."""

    name: str  # without a tag
    tags: tuple[str, ...]  # of its published weights, default first
    image_size: int  # side in pixels its (default) weights were trained at


class BackboneSource(NamedTuple):
    """Where a model comes from."""

    name: str  # as the user typed it
    architecture: str  # in timm's registry (with its tag, if typed), which rebuilds the model without a network
    model_args: dict[str, Any]  # that the hub or folder adds to the architecture
    published: dict[str, Any]  # timm's ``pretrained_cfg``: input size, mean, std, where the weights are

    @property
    def own_size(self) -> int:
        """Side in pixels that the (default) weights were trained at; 224 where timm does not say."""
        return int(self.published.get("input_size", (3, 224, 224))[-1])

    @property
    def has_weights(self) -> bool:
        """Whether weights are published anywhere."""
        keys = ("url", "file", "hf_hub_id", "state_dict")
        return self.name.startswith(SOURCE_PREFIXES) or any(self.published.get(key) for key in keys)


def first_line(error: BaseException) -> str:
    """The first line of an error's text and, where it ends in a colon, what follows; at most 120 characters."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0])[:120].rstrip(" .")


def suggest_backbones(name: str, limit: int = 3) -> tuple[str, ...]:
    """At most so many names of timm nearest to an unknown one, best first; of a known architecture its tags."""
    architecture, tag = split_model_name_tag(name.strip().lower())
    if timm.is_model(architecture) and tag:
        tags = timm.list_pretrained(f"{architecture}.*")
        return tuple(difflib.get_close_matches(f"{architecture}.{tag}", tags, n=limit, cutoff=0.0))
    known = timm.list_models()
    near = difflib.get_close_matches(architecture, known, n=limit, cutoff=0.6)
    # "resnet" is nearer in spirit to resnet18 than to resnest14d: names that begin alike come first
    alike = [candidate for candidate in known if candidate.startswith(architecture)] if len(architecture) > 2 else []
    return tuple(dict.fromkeys([*alike[:limit], *near]))[:limit]


def resolve_source(name: str) -> BackboneSource:
    """What ``timm.create_model`` needs for a name (see ``build_backbone``); of the hub it reads config.json.

    FgsslError where timm has no such architecture or tag, or the hub or folder no model.
    """
    if not name.startswith(SOURCE_PREFIXES):
        _check_registered(name)
    try:
        with hub_or_cache() if name.startswith(HUB_PREFIXES) else contextlib.nullcontext():
            resolved = timm.models.resolve_model_input_args(name)
    except Exception as error:  # network, missing folder, config.json of another tool: all kinds of errors
        problem = f"backbone {name!r} cannot be read ({first_line(error)})"
        remedy = "a hub name needs timm's config.json and a network or its cached copy, a folder needs config.json"
        if is_offline(error) and not name.startswith(LOCAL_PREFIX):
            problem = f"backbone {name!r} is not on this machine and the model hub cannot be reached (offline)"
            remedy = "run once with a network (or HF_ENDPOINT set to a mirror), which keeps it"
        raise FgsslError(problem, remedy) from error
    architecture, published = resolved.pop("model_name"), resolved.pop("pretrained_cfg")
    model_args = {key: value for key, value in resolved.items() if key not in ("pretrained_model_args", "num_classes")}
    return BackboneSource(name, architecture if name.startswith(SOURCE_PREFIXES) else name, model_args, published)


def _check_registered(name: str) -> None:
    architecture, tag = split_model_name_tag(name)
    if "/" in name or ":" in name or not timm.is_model(architecture):
        near = ", ".join(suggest_backbones(name))
        search = "search names with timm.list_models('*part*')"
        raise FgsslError(f"unknown backbone {name!r}", f"did you mean {near}?" if near else search)
    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:
        near = ", ".join(suggest_backbones(name))
        remedy = f"its tags: {near}" if near else f"it has no published weights, write {architecture}"
        raise FgsslError(f"backbone {architecture} has no weights tagged {tag!r}", remedy) from error


def list_backbones(pattern: str = "*") -> tuple[BackboneRow, ...]:
    """Architectures whose names match a pattern, in timm's natural order.

    Wildcards are as in ``timm.list_models``; a word without one matches anywhere in the name or in a tag. After a dot
    the pattern is for tags (``resnet*.a1*``): a row then has those that match, otherwise all.
    """
    of_name, dot, of_tag = pattern.lower().partition(".")
    plain = not any(sign in pattern for sign in "*?[")
    name_pattern = of_name if (dot and timm.is_model(of_name)) or not plain else f"*{of_name}*"
    tag_pattern = (f"*{of_tag}*" if plain else of_tag) if dot else "*"
    tags: dict[str, list[str]] = {}
    for full_name in timm.list_pretrained():
        architecture, tag = split_model_name_tag(full_name)
        tags.setdefault(architecture, []).append(tag)
    rows = []
    for name in timm.list_models():
        named = fnmatch.fnmatchcase(name, name_pattern)
        found = fnmatch.filter(tags.get(name, []), tag_pattern if named else name_pattern)
        if not (named and (found or not dot)) and not (found and plain and not dot):
            continue
        published = get_pretrained_cfg(name)
        default, side = (None, 224) if published is None else (published.tag, int(published.input_size[-1]))
        rows.append(BackboneRow(name, tuple(sorted(found, key=lambda tag: (tag != default, tag))), side))
    return tuple(rows)
