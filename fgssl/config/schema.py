"""Every knob of a pretraining run, as frozen dataclasses. No torch here, so that `--help` stays quick.

`None` in a field means "derived when the run is planned": `fgssl pretrain --dry-run` shows what it became and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NamedTuple, TypeVar

T = TypeVar("T")


class Range(NamedTuple):
    """What a number may be, ends included but for `above`."""

    least: float | None = None
    most: float | None = None
    above: float | None = None

    def holds(self, number: float) -> bool:
        low = (self.least is None or number >= self.least) and (self.above is None or number > self.above)
        return low and (self.most is None or number <= self.most)

    @property
    def words(self) -> str:
        """As a message has it: at least 1 and at most 1,000."""
        ends = {"at least": self.least, "above": self.above, "at most": self.most}
        return " and ".join(f"{name} {end:,}" for name, end in ends.items() if end is not None)


SHARE = Range(0, 1)
LAID = Range(0.05, 1)
POSITIVE = Range(above=0)
NOT_NEGATIVE = Range(0)
WIDTH = Range(1, 16_384)
STEPS = Range(1, 1_000_000_000)
EPOCHS = Range(0, 1_000_000)
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")


def knob(default: Any, text: str, within: Range | None = None) -> Any:
    """A dataclass field with its one-line description (shown by --dry-run and the docs) and the range of a number."""
    return field(default=default, metadata={"help": text, "range": within})


def filled(value: T | None) -> T:
    """A setting that the plan of a run has filled in."""
    if value is None:
        raise TypeError("a setting was left open")
    return value


@dataclass(frozen=True)
class DataConfig:
    """Where the pictures are. Also stored in the encoder file, so that evaluation finds the same data again."""

    source: str = knob("demo", "preset, hub id owner/name, folder, archive (cub:FOLDER), list of paths, parquet, demo")
    train_split: str | None = knob(None, "split to train on (default: the source's own)")
    test_split: str | None = knob(None, "split to evaluate on (default: the source's own)")
    subset: str | None = knob(None, "hub data set configuration name")
    revision: str | None = knob(None, "hub data set revision")
    image_column: str | None = knob(None, "column with the image (default: found by type)")
    label_column: str | None = knob(None, "column with the class, or level of an archive (default: found by type)")
    masks: str | None = knob(None, "folder of masks that show the objects, named as the pictures")
    shift: Literal["object", "crop"] | None = knob(
        None, "lay each object (by its mask), or each whole picture (crop), off the centre of another, blurred one"
    )
    shift_min: float | None = knob(
        None, "smallest longer side of what a shift lays down, of the picture's (default: object 0.3, crop 0.45)", LAID
    )
    shift_max: float | None = knob(None, "largest likewise (default: object 0.5, crop 0.7)", LAID)
    shift_seed: int = knob(0, "seed of the places and backgrounds of a shift", Range(0, 2**63 - 1))


@dataclass(frozen=True)
class ViewsConfig:
    """The random views of an image. Defaults are MoCo v2's (paper section 4), but keep hue and saturation."""

    preset: Literal["mocov2", "colour", "shape", "geometric"] = knob("colour", "named set of the values below")
    crop_min: float = knob(0.2, "smallest area of a random crop, as a fraction of the image", Range(above=0, most=1))
    crop_max: float = knob(1.0, "largest area of a random crop", SHARE)
    flip: float = knob(0.5, "probability of a horizontal flip", SHARE)
    jitter: float = knob(0.8, "probability of colour jitter", SHARE)
    brightness: float = knob(0.4, "brightness factor drawn from 1 -/+ this", NOT_NEGATIVE)
    contrast: float = knob(0.4, "contrast factor drawn from 1 -/+ this", NOT_NEGATIVE)
    saturation: float = knob(0.1, "saturation factor drawn from 1 -/+ this", NOT_NEGATIVE)
    hue: float = knob(0.0, "hue shift drawn from -/+ this, in turns of the colour circle", Range(0, 0.5))
    grayscale: float = knob(0.0, "probability of dropping the colour", SHARE)
    blur: float = knob(0.5, "probability of Gaussian blur", SHARE)
    blur_sigma_min: float = knob(0.1, "smallest blur, in pixels of a 224-pixel crop", NOT_NEGATIVE)
    blur_sigma_max: float = knob(2.0, "largest blur, in pixels of a 224-pixel crop", POSITIVE)
    solarize: float = knob(0.0, "probability of inverting bright pixels", SHARE)
    local_count: int | None = knob(None, "small views of small parts, beside the two (default: dino 6)", Range(0, 64))
    local_size: int | None = knob(None, "side of the small views (default: 0.43 of the others')", Range(8, 4_096))
    place: Literal["anywhere", "map", "middle", "random"] = knob(
        "anywhere", "where crops lie: anywhere, or a share on what the rationale's map shows; controls: middle, random"
    )
    place_share: float = knob(0.5, "share of the crops that lie on the place", SHARE)
    hide_share: float = knob(0.0, "share of the crops in which what the map shows most is hidden", SHARE)
    place_warmup: int | None = knob(
        None, "epochs before places are found, and before they are anew (default: a fifth of the run)", EPOCHS
    )


@dataclass(frozen=True)
class BackboneConfig:
    """The encoder: any timm model."""

    name: str = knob("resnet50", "any timm model")
    pretrained: bool | None = knob(None, "start from timm's pretrained weights (default: on)")
    init: str | None = knob(None, "start from a run, encoder, weights file, timm folder, name, tag, hf-hub:OWNER/MODEL")
    freeze: str | None = knob(
        None, "what keeps its weights: none, backbone (default on trained weights), or the first N layer groups"
    )
    adapt: Literal["all", "norm", "lora"] = knob(
        "all", "what learns: all, scales and biases alone, or low-rank adapters beside weights that rest"
    )
    lora_rank: int = knob(8, "rank of the adapters of backbone.adapt lora", Range(1, 1_024))
    batch_norm: Literal["batch", "rest"] | None = knob(
        None, "BatchNorm normalises by the batch, or by the statistics it came with (default: rest on trained weights)"
    )
    whitening: bool | None = knob(None, "damp what differs between views in the features (default: on trained weights)")
    stages: int | None = knob(None, "last stages whitening takes: 1 is the last alone (default: up to 4)", Range(1, 4))
    cached_views: int = knob(1, "with a frozen backbone: pairs of views an image whose maps are kept", Range(1, 1_000))
    image_size: int | None = knob(None, "side of the square input (default: the model's own)", Range(8, 4_096))
    output_stride: int | None = knob(None, "stride of a CNN for a finer map (8 or 16, where supported)", Range(1, 64))
    drop_path: float | None = knob(None, "stochastic depth rate (default: 0.1 for trained transformers)", SHARE)


@dataclass(frozen=True)
class ObjectiveConfig:
    """The objective, and what several have (its `uses`); an objective's own settings are declared in its file."""

    name: str = knob("mocov2", "the objective: mocov2, byol, simsiam, simclr, nnclr, stml, distill, dino, a plugin's")
    plugin: str | None = knob(None, "the package or file that it came from (filled in; never loaded by this name)")
    projector_hidden: int | None = knob(None, "hidden width of the projector (default: by objective and map)", WIDTH)
    projector_dim: int | None = knob(None, "width of the projection (default: by objective)", WIDTH)
    anchor: float = knob(0.0, "weight of keeping the start's neighbours beside the objective", NOT_NEGATIVE)
    predictor_hidden: int | None = knob(None, "hidden width of byol's, nnclr's and simsiam's predictor", WIDTH)
    temperature: float | None = knob(
        None, "temperature of mocov2, nnclr, simclr and dino (default: 0.1 from scratch)", POSITIVE
    )
    momentum: float | None = knob(None, "momentum of the key encoder (default: averages a fifth of the run)", SHARE)
    momentum_end: float | None = knob(None, "momentum at the end, risen by half a cosine (byol and dino: 1)", SHARE)
    queue_size: int | None = knob(
        None, "keys mocov2 keeps (default: half an epoch; scratch: a batch), or nnclr (an epoch)", Range(1, 10**6)
    )
    batch_negatives: bool | None = knob(
        None, "mocov2's negatives hold the keys of the same batch, too (default: from scratch; MoCo: older keys alone)"
    )
    key_norm: Literal["batch", "running"] = knob(
        "batch", "BatchNorm of the key encoder: the batch's statistics, or averaged ones (no leak between images)"
    )
    teacher: str | None = knob(None, "whom distill learns from: a run, encoder or weights file, timm folder, timm:NAME")
    teacher_backbone: str | None = knob(None, "architecture of a teacher's weights that do not tell it")
    teacher_pool: Literal["gap", "zoom"] = knob("gap", "how distill's teacher looks: once, or twice as zoom does")


def optional_settings() -> tuple[str, ...]:
    """The names in `ObjectiveConfig` that only some objectives have."""
    return tuple(item.name for item in fields(ObjectiveConfig))[5:]


@dataclass(frozen=True)
class RationaleConfig:
    """GradCAM of the loss fitted by a branch of limited capacity (paper section 3; see `fgssl.rationale`)."""

    enabled: bool = knob(True, "fit the rationale beside the objective")
    preset: Literal["pooled", "normalized", "official"] = knob("pooled", "named set of the values below")
    sign: Literal["raise", "lower"] = knob("raise", "GradCAM of places that raise the loss (+dL/dF) or lower it")
    target: Literal["softmax", "probability"] = knob("probability", "GradCAM map to distribution")
    axis: Literal["all", "row"] = knob("all", "distributions over all places, or one for each row of the map")
    temperature: float = knob(1.0, "temperature of the target (below 1 sharpens)", POSITIVE)
    prediction_temperature: float = knob(1.0, "temperature of the softmax over the branch's map", POSITIVE)
    fit: Literal["kl", "regression"] = knob("kl", "divergence of distributions, or squared distance of the maps")
    detach_target: bool = knob(True, "no gradient through the target")
    stop_gradient: bool = knob(True, "the fit does not train the backbone")
    normalization: Literal["none", "batch"] = knob("none", "map normalisation (a - min) / max before the fit")
    projections: int = knob(32, "K, the number of 1x1 projections", Range(1, 4_096))
    branch_norm: Literal["batch", "none"] = knob("batch", "normalisation after the projections")
    combine: Literal["max", "linear"] = knob("max", "how K maps become one; linear: learned weights, none negative")
    reduction: Literal["mean", "sum"] = knob("mean", "fit loss over images (and rows)")
    weight: float = knob(1.0, "weight of the fit in the total loss", NOT_NEGATIVE)
    warmup_epochs: float = knob(0.0, "epochs over which the weight rises from 0", NOT_NEGATIVE)
    train_pool: Literal["gap", "rationale"] = knob("gap", "pooling in the objective's own loss")
    windows: Literal["branch", "common"] | None = knob(
        None, "where zoom looks: by the branch, or by what all places share (default: on trained weights)"
    )
    pool: Literal["mean", "gem"] = knob("mean", "pooling of the weighted places (gem: generalised mean, exponent 3)")
    stages: int = knob(1, "stages the branch sees, of finer and finer maps: 1 is the last alone", Range(1, 3))


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its schedule: linear warm-up, then cosine to zero."""

    name: Literal["sgd", "adamw", "lars"] | None = knob(None, "default: adamw from scratch, else the paper's")
    lr: float | None = knob(None, "peak learning rate (default: by optimiser and init)", POSITIVE)
    weight_decay: float | None = knob(None, "weight decay, with adamw and lars not of norms and biases", NOT_NEGATIVE)
    momentum: float = knob(0.9, "momentum of sgd and lars", SHARE)
    layer_decay: float | None = knob(None, "a layer's rate relative to the next one's", Range(above=0, most=1))
    warmup_epochs: float | None = knob(None, "epochs of linear warm-up (default: with lars a tenth)", NOT_NEGATIVE)


@dataclass(frozen=True)
class TrainingConfig:
    """Length, batch and machine."""

    epochs: int = knob(100, "passes over the training split", Range(1, 1_000_000))
    head_epochs: float = knob(0.0, "epochs in which the heads learn alone, before the backbone does", NOT_NEGATIVE)
    max_steps: int | None = knob(None, "stop after this many optimiser steps", STEPS)
    batch_size: int | None = knob(None, "images per step over all processes (default: 128 or fewer)", Range(2, 65_536))
    seed: int = knob(0, "seed of everything random", Range(0, 2**63 - 1))
    shuffle: Literal["whole", "local"] = knob(
        "whole", "order of an epoch: any picture after any, or along the disk, shuffled among neighbours (millions)"
    )
    workers: int | None = knob(None, "loader processes per process (default: by machine)", Range(0, 1_000))
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = knob("auto", "autocast precision")
    accumulate: int = knob(1, "parts that a batch is split into to save memory, for BatchNorm, too", Range(1, 65_536))
    checkpoint_gradients: bool = knob(False, "compute the backbone's activations twice instead of keeping them")
    compile: bool = knob(False, "compile the backbone by torch.compile: minutes at first, then faster steps on a GPU")
    cache: str = knob("auto", "decoded pictures: auto (kept where they fit, as JPEG above the budget), off, a folder")
    cache_budget: float | None = knob(None, "gigabytes a cache takes (default: a quarter of free disk)", NOT_NEGATIVE)
    device: str | None = knob(None, "where to compute: cpu, cuda, cuda:1, mps (default: the best at hand)")
    save_every: str = knob("10m", "between saved states: steps (200) or time (90s, 10m, 2h)")
    stall_limit: str = knob("15m", "end a run of several processes when none got on for so long (90s, 2h; 0s: never)")
    stop_on_collapse: bool = knob(False, "stop when the features collapse, instead of only warning")
    keep_states: bool = knob(False, "keep the resume states of a finished run")
    log_every: int | None = knob(
        None, "steps between lines of metrics.jsonl (default: 10, or an epoch where that has fewer)", STEPS
    )
    track: str | None = knob(None, "follow the run in tensorboard, wandb, trackio or mlflow; several with commas")
    threads: int | None = knob(
        None, "threads a process computes with (default: the cores that nobody else is busy on)", Range(1, 1_024)
    )
    signals_every: int | None = knob(
        None, "steps between label-free signals, 0 for none (default: about 1% of the work)", Range(0, 1_000_000_000)
    )
    evaluate: bool = knob(True, "retrieval and overview.png at the end of the run")
    choose: bool | None = knob(
        None, "save of start, trained, averaged and interpolated weights the best by their views (default: on trained)"
    )


@dataclass(frozen=True)
class PretrainConfig:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    rationale: RationaleConfig = field(default_factory=RationaleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def flatten(config: Any) -> dict[str, Any]:
    """A config as flat `section.key` -> value; one of its sections as key -> value."""
    flat: dict[str, Any] = {}
    for name, value in asdict(config).items():
        flat |= {f"{name}.{key}": own for key, own in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat `section.key` -> value as nested dicts (what YAML and JSON files hold)."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        section, _, key = name.partition(".")
        tree.setdefault(section, {})[key] = value
    return tree
