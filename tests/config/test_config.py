"""Configs: which layer wins, what is refused and how, and that nothing but one clear line ever comes out."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from fgssl.config.defaults import DEMO_PROFILE, RATIONALE_PRESETS, VIEW_PRESETS
from fgssl.config.resolve import MAX_RECIPE_BYTES, build, config_from_flat, load_config
from fgssl.config.schema import PretrainConfig, flatten, nested
from fgssl.config.values import ranges, type_hints
from fgssl.errors import FgsslError, SettingError

KEYS = sorted(flatten(PretrainConfig()))


@pytest.fixture
def recipe(tmp_path: Path):
    """`recipe(text)` or `recipe(dict)`: the path of a recipe file."""

    def write(content: str | dict) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


def value(resolved, key: str):
    return flatten(resolved.config)[key]


# ---- which layer wins

# one key that every layer can set (the demo profile is lent it by the test)
LAYERS = ("demo default", "preset geometric", "recipe recipe.yaml", "flag", "--set")


@pytest.mark.parametrize("present", itertools.product([False, True], repeat=len(LAYERS)))
def test_later_layer_wins(present, recipe, monkeypatch):
    """All 32 subsets of layers, against the order default < demo < preset < recipe < flag < --set."""
    demo, preset, with_recipe, flag, with_set = present
    key = "views.jitter"
    if demo:
        monkeypatch.setitem(DEMO_PROFILE, key, 0.11)
    tree: dict = {"views": {"preset": "geometric" if preset else "mocov2"}}
    if with_recipe:
        tree["views"]["jitter"] = 0.33
    resolved = load_config(recipe(tree), flags={key: 0.44 if flag else None}, sets=[f"{key}=0.55"] if with_set else [])
    expected = [(0.8, "default")]
    for here, number, origin in zip(present, (0.11, 0.0, 0.33, 0.44, 0.55), LAYERS, strict=True):
        if here:
            expected.append((number, origin))
    assert (value(resolved, key), resolved.origins[key]) == expected[-1]


def test_demo_profile_is_for_the_demo_alone():
    assert {k: value(load_config(), k) for k in DEMO_PROFILE} == DEMO_PROFILE
    other = load_config(flags={"data.source": "photos"})
    assert all(value(other, k) == flatten(PretrainConfig())[k] for k in DEMO_PROFILE)
    assert set(other.origins.values()) == {"default", "flag", "preset pooled"}


def test_the_demos_stride_and_views_are_of_its_backbone_and_yield_to_the_user():
    resolved = load_config(flags={"backbone.name": "vit_tiny_patch16_224"}, sets=["views.preset=colour"])
    assert value(resolved, "backbone.output_stride") is None  # a transformer has none to choose
    assert value(resolved, "views.hue") == 0.0 and value(resolved, "backbone.image_size") == 96
    assert load_config().config.views.hue == 0.5  # the profile's preset brings its own values


@pytest.mark.parametrize("section,presets", [("views", VIEW_PRESETS), ("rationale", RATIONALE_PRESETS)])
def test_presets_set_their_keys_and_no_others(section, presets):
    plain = flatten(PretrainConfig())
    other = {"views": "rationale", "rationale": "views"}[section]
    for name, content in presets.items():
        resolved = load_config(flags={"data.source": "photos", f"{section}.preset": name})
        # the other section has its own default preset
        changed = {k for k, v in flatten(resolved.config).items() if v != plain[k] and not k.startswith(f"{other}.")}
        for key, wanted in content.items():
            assert value(resolved, f"{section}.{key}") == wanted
            assert resolved.origins[f"{section}.{key}"] == f"preset {name}"
        assert changed <= {f"{section}.{k}" for k in content} | {f"{section}.preset", "data.source"}


def test_last_set_of_a_key_wins():
    assert value(load_config(sets=["training.epochs=3", "training.epochs=4"]), "training.epochs") == 4


def test_empty_set_opens_a_derived_value_again():
    resolved = load_config(sets=["backbone.image_size="])
    assert (value(resolved, "backbone.image_size"), resolved.origins["backbone.image_size"]) == (None, "--set")


def test_every_key_has_help_and_an_origin():
    assert sorted(load_config().origins) == KEYS
    hints = {f.name: f for f in PretrainConfig.__dataclass_fields__.values()}
    for key in KEYS:
        section, name = key.split(".")
        item = hints[section].default_factory.__dataclass_fields__[name]
        assert len(item.metadata["help"]) > 5


# ---- how values are read


@pytest.mark.parametrize(
    "pair,expected",
    [
        ("optimizer.lr=1e-4", 1e-4),  # YAML 1.1 reads it as a string
        ("optimizer.lr=3", 3.0),
        ("optimizer.lr=.5", 0.5),
        ("training.epochs=1e2", 100),
        ("training.epochs=7.0", 7),
        ("training.seed=9007199254740993", 9007199254740993),  # 2^53 + 1: a float would round it
        ("training.mixed_precision=no", "no"),  # YAML 1.1 reads it as false
        ("training.mixed_precision='no'", "no"),
        ("rationale.enabled=off", False),
        ("rationale.enabled=True", True),
        ("backbone.init=null", None),
        ("data.source=a=b.txt", "a=b.txt"),
        # text stays as written, though YAML 1.1 has numbers, octals, sexagesimals and dates for it
        ("data.revision=1.10", "1.10"),
        ("data.revision=0123456", "0123456"),
        ("data.revision=2024-01-05", "2024-01-05"),
        ("data.subset=1_0", "1_0"),
        ("data.subset=12:30", "12:30"),
        ("data.subset='no'", "no"),
    ],
)
def test_values_are_read_as_the_field_takes_them(pair, expected, recipe):
    key, _, text = pair.partition("=")
    section, name = key.split(".")
    for resolved in (load_config(sets=[pair]), load_config(recipe(f"{section}:\n  {name}: {text}\n"))):
        assert value(resolved, key) == expected
        assert type(value(resolved, key)) is type(expected)


@pytest.mark.parametrize(
    "pair",
    [
        "training.epochs=1.5", "training.epochs=many", "training.epochs=true", "training.epochs=",
        "training.epochs=1e30", "optimizer.lr=nan", "optimizer.lr=.inf", "optimizer.lr=1e400",
        "optimizer.lr=[1]", "optimizer.lr={a: 1}",
        "rationale.enabled=1", "rationale.enabled=maybe", "rationale.sign=up", "rationale.sign=[raise]",
        "data.source=no", "data.source=", "data.source=[a, b]", "training.mixed_precision=yes",
    ],
)  # fmt: skip
def test_wrong_types_name_the_key_and_what_it_takes(pair):
    with pytest.raises(FgsslError) as caught:
        load_config(sets=[pair])
    assert pair.split("=")[0] in caught.value.problem
    assert "type" in caught.value.remedy or "choose one of" in caught.value.remedy


def test_hostile_values_give_short_messages(recipe):
    """Nested aliases expand to 10^8 words when printed; a message must not."""
    rows = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for new, old in itertools.pairwise("abcdefgh"):
        rows.append(f"{old}: &{old} [" + ", ".join([f"*{new}"] * 10) + "]")
    text = "\n".join(["data:"] + [f"  {row}" for row in rows] + ["  source: *h"])
    for content in (text, "data:\n  source: *a\n", f"rationale:\n  sign: {'x' * 9000}\n"):
        with pytest.raises(FgsslError) as caught:
            load_config(recipe(content))
        assert len(str(caught.value)) < 400


# ---- what is refused


@pytest.mark.parametrize(
    "key,meant",
    [
        ("objective.temprature", "objective.temperature"),
        ("training.lr", "optimizer.lr"),
        ("optimizer.epochs", "training.epochs"),
        ("rationale.projection", "rationale.projections"),
        ("backbone.img_size", "backbone.image_size"),
    ],
)
def test_unknown_key_names_the_nearest(key, meant):
    for call in (lambda: load_config(sets=[f"{key}=1"]), lambda: load_config(flags={key: 1})):
        with pytest.raises(FgsslError, match=f"unknown setting '{key}'.*did you mean '{meant}'"):
            call()


def test_unknown_key_without_a_likeness():
    with pytest.raises(FgsslError, match=r"unknown setting 'zz\.qqqq'; see --dry-run"):
        load_config(sets=["zz.qqqq=1"])


@pytest.mark.parametrize("pair", ["epochs=3", "training.epochs", "", "=", "."])
def test_set_needs_section_key_value(pair):
    with pytest.raises(FgsslError, match=r"--set .* is not section.key=value"):
        load_config(sets=[pair])


BAD_VALUES = {
    "training.epochs": (0, -1), "training.batch_size": (1, 0), "training.max_steps": (0,), "training.workers": (-1,),
    "training.seed": (-1,), "training.log_every": (0,), "training.save_every": (-1,), 
    "training.stall_limit": ("200", "soon"), "objective.queue_size": (0,),
    "objective.projector_dim": (0,), "objective.temperature": (0, -1), "objective.momentum": (-0.1, 1.1),
    "optimizer.lr": (0, -1), "optimizer.momentum": (-0.1, 1.5), "optimizer.weight_decay": (-1e-9,),
    "rationale.projections": (0,), "rationale.weight": (-1,), "rationale.temperature": (0,),
    "rationale.prediction_temperature": (0,), "backbone.image_size": (0, 7), "backbone.drop_path": (2, -1),
    "views.crop_min": (0, 1.5, -0.1), "views.crop_max": (0.1, 1.5), "views.flip": (1.1, -0.1), "views.hue": (0.6, -0.1),
    "views.brightness": (-0.1,), "views.blur_sigma_min": (-1, 3), "views.blur_sigma_max": (0, 0.05),
}  # fmt: skip


@pytest.mark.parametrize("key,bad", [(k, v) for k, values in BAD_VALUES.items() for v in values])
def test_impossible_values_are_refused_by_name(key, bad):
    with pytest.raises(FgsslError, match=key):
        load_config(flags={key: bad})


def test_every_whole_number_has_two_ends_which_messages_say():
    config = load_config().config
    hints, ends = type_hints(PretrainConfig), ranges(config)
    whole = [key for key, hint in hints.items() if hint in (int, int | None)]
    assert len(whole) > 10
    for key in whole:
        least, most = ends[key].least, ends[key].most
        assert value(load_config(flags={key: most} | room_for(key)), key) == most
        for bad in (most + 1, least - 1, 10**21, "9" * 5000):
            with pytest.raises(SettingError, match=f"^{key}") as caught:
                load_config(flags={key: bad})
            assert f"at least {least:,} and at most {most:,}" in caught.value.remedy and len(str(caught.value)) < 250


def room_for(key: str) -> dict:
    """What the largest value of a setting needs beside it."""
    dino = {"objective.name": "dino"}
    owners = {"objective.predictor_hidden": {"objective.name": "byol"}, "views.local_count": dino}
    return {**owners, "views.local_size": dino}.get(key, {})


def test_numbers_are_told_in_words():
    with pytest.raises(SettingError, match=r"a whole number, at least 1 and at most 1,000,000"):
        load_config(sets=["training.epochs=999999999999999999999"])
    with pytest.raises(SettingError, match=r"rationale.projections is 100000000; .* at least 1 and at most 4,096"):
        load_config(sets=["rationale.projections=100000000"])
    with pytest.raises(SettingError, match=r"views.crop_min is 0.0; it must be above 0 and at most 1"):
        load_config(sets=["views.crop_min=0"])
    with pytest.raises(SettingError, match=r"optimizer.lr is -1.0; it must be above 0"):
        load_config(sets=["optimizer.lr=-1"])
    with pytest.raises(SettingError, match="--freeze cannot be"):
        load_config(sets=["backbone.freeze=" + "9" * 5000])


def test_contradictions_name_both_sides():
    with pytest.raises(FgsslError, match=r"objective.queue_size 32.*--batch-size 64"):
        load_config(sets=["objective.queue_size=32", "training.batch_size=64"])
    load_config(sets=["objective.queue_size=64", "training.batch_size=64"])
    with pytest.raises(FgsslError, match=r"--pretrained.*--init"):
        load_config(flags={"backbone.pretrained": True, "backbone.init": "x.safetensors"})
    load_config(flags={"backbone.pretrained": False, "backbone.init": "x.safetensors"})


PYTHON_TAGS = [
    "!!python/object/apply:os.system ['touch PLACE']",
    "!!python/object/new:subprocess.Popen [['touch', 'PLACE']]",
    "!!python/name:os.system",
    "!!python/module:antigravity",
    "!!python/tuple [1, 2]",
    "!custom {a: 1}",
]


@pytest.mark.parametrize("tag", PYTHON_TAGS)
def test_python_tags_are_refused(tag, recipe, tmp_path):
    bait = tmp_path / "touched"
    text = tag.replace("PLACE", str(bait))
    with pytest.raises(FgsslError, match=r"not valid YAML \(line 2\)"):
        load_config(recipe(f"data:\n  source: {text}\n"))
    with pytest.raises(FgsslError, match="not valid YAML"):
        load_config(sets=[f"data.source={text}"])
    assert not bait.exists()


@pytest.mark.parametrize(
    "text",
    ["!!bool x", "!!int x", "!!int ''", "!!float ''", "!!timestamp x", "!!int '" + "9" * 5000 + "'", "[" * 900, "'",
     "[1", "*missing", "2001-01-01 00:00:00 +99:00: {", "\x00", "%YAML 9.9"],
)  # fmt: skip
def test_broken_yaml_is_one_line(text, recipe):
    for call in (lambda: load_config(sets=[f"data.source={text}"]), lambda: load_config(recipe(text))):
        with pytest.raises(FgsslError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_unreadable_recipes(tmp_path):
    folder, missing, binary, large = (tmp_path / name for name in ("folder", "missing", "binary", "large"))
    folder.mkdir()
    binary.write_bytes(b"\xff\xfe\x00data")
    large.write_bytes(b"#" * (MAX_RECIPE_BYTES + 1))
    for path in (folder, missing, binary, large, Path("a\0b")):
        with pytest.raises(FgsslError, match="recipe"):
            load_config(path)


@pytest.mark.parametrize(
    "content", ["", "[]", "3", "text", "training: 3", "training: [1]", "{1: {2: 3}}", "? {a: 1}\n: 2"]
)
def test_recipes_without_sections(content, recipe):
    with pytest.raises(FgsslError):
        load_config(recipe(content))


# ---- round trips


def test_flatten_nested_build_are_inverse():
    config = load_config(sets=["training.epochs=3"]).config
    flat = flatten(config)
    assert build(flat) == config
    assert config_from_flat(flat).config == config
    tree = nested(flat)
    assert {f"{s}.{k}": v for s, keys in tree.items() for k, v in keys.items()} == flat


@given(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1), st.floats(0, 1), st.integers(0, 2**63 - 1))
@example("1.10", 1e-5, 2**63 - 1)
@example("no", 5e-324, 0)
@example("~", 1.0, 1)
def test_a_saved_config_is_a_recipe_that_repeats_it(tmp_path_factory, name, fraction, seed):
    flags = {"data.source": name, "data.revision": name, "objective.momentum": fraction, "training.seed": seed}
    config = load_config(flags=flags).config
    path = tmp_path_factory.mktemp("saved") / "config.yaml"
    path.write_text(yaml.safe_dump(nested(flatten(config)), sort_keys=False, allow_unicode=True), encoding="utf-8")
    assert load_config(path).config == config


# ---- anything at all: a config or one line

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["1e-4", "no", "mocov2", "official", "demo", "", "0x10", "-1", "1e999"])
)  # fmt: skip
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
keys = st.sampled_from(KEYS) | st.text(max_size=12) | st.sampled_from(["training", "training.", ".epochs", "a.b.c"])


@given(st.dictionaries(keys, values, max_size=4))
def test_any_flags_give_a_config_or_one_line(flags):
    try:
        resolved = load_config(flags=flags)
    except FgsslError as error:
        assert "\n" not in str(error)
    else:
        assert load_config(flags=flatten(resolved.config)).config == resolved.config


section_names = st.sampled_from(["data", "views", "training", "rationale", "optimizer", "x", 1, None, True])
names = st.sampled_from([k.split(".")[1] for k in KEYS]) | scalars
trees = values | st.dictionaries(section_names, st.dictionaries(names, values, max_size=3) | values, max_size=3)


@given(trees)
def test_any_yaml_recipe_gives_a_config_or_one_line(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    try:
        load_config(path)
    except FgsslError as error:
        assert "\n" not in str(error)


@given(st.text(max_size=30) | st.builds("{}={}".format, st.sampled_from(KEYS), st.text(max_size=15)))
@example("data.source=2024-13-45")
@example("data.source=0b_")
def test_any_set_text_gives_a_config_or_one_line(pair):
    try:
        load_config(sets=[pair])
    except FgsslError as error:
        assert "\n" not in str(error)


@given(st.binary(max_size=60))
def test_any_bytes_as_a_recipe_give_a_config_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    try:
        load_config(path)
    except FgsslError as error:
        assert "\n" not in str(error)


def test_the_config_needs_no_torch():
    heavy = "any(m in sys.modules for m in ('torch', 'numpy', 'PIL'))"
    code = f"import sys, fgssl.config.schema, fgssl.config.resolve; sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
