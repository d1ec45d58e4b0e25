"""Writes the recipes of this folder and tables.yaml: three sets, five objectives, three forms, and the frozen start.

    python recipes/paper/generate.py

What is common to rows is said once here, so that two rows differ in what they are about and in nothing else.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

FOLDER = Path(__file__).parent
BACKBONE, SIZE, EPOCHS, BATCH = "resnet50.tv_in1k", 224, 100, 128
PAPER = "Shu, van den Hengel, Liu, CVPR 2023, section 4"


class DataSet(NamedTuple):
    """A data set, its pictures to train and to test on, and what is to be known of it."""

    title: str
    train: int
    test: int
    note: str = ""


SETS = {
    "cub": DataSet("CUB-200-2011", 5994, 5794),
    "cars": DataSet("Stanford Cars", 8144, 8041),
    "aircraft": DataSet(
        "FGVC-Aircraft", 6667, 3333,
        "The paper trains on train + validation (6,667 images), as the published archive has them "
        "(--data aircraft:FOLDER); the hub set of the preset has 3,334 training images.",
    ),
}  # fmt: skip


class Objective(NamedTuple):
    """An objective in its paper's settings for ResNet-50."""

    title: str
    settings: dict[str, dict[str, Any]]
    memory: int  # GB of a GPU
    source: str


SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
LARS = {"name": "lars", "momentum": 0.9, "lr": 0.15, "warmup_epochs": 10}
OBJECTIVES = {
    "mocov2": Objective("MoCo v2", {
        "objective": {"projector_hidden": 2048, "projector_dim": 256, "temperature": 0.2, "momentum": 0.999,
                      "queue_size": 65536},
        "views": {"preset": "mocov2"},
        "optimizer": {**SGD, "lr": 0.03, "warmup_epochs": 0},
    }, 16, PAPER),
    "byol": Objective("BYOL", {
        "objective": {"projector_hidden": 4096, "projector_dim": 256, "predictor_hidden": 4096, "momentum": 0.996,
                      "momentum_end": 1.0},
        "views": {"preset": "mocov2", "crop_min": 0.08},
        "optimizer": {**LARS, "weight_decay": 1.5e-6},
    }, 24, f"{PAPER}. Corrected here: LARS has its momentum buffer and leaves norms and biases unadapted, and the "
           "target's momentum rises to 1 by half a cosine (objective.momentum_end: 0.996 keeps it fixed)"),
    "simsiam": Objective("SimSiam", {
        "objective": {"projector_hidden": 2048, "projector_dim": 2048, "predictor_hidden": 512},
        "views": {"preset": "mocov2"},
        "optimizer": {**SGD, "lr": 0.025, "warmup_epochs": 0},
    }, 24, "Chen and He, CVPR 2021, section 4 (lr 0.05 x batch / 256; one rate for all layers)"),
    "simclr": Objective("SimCLR", {
        "objective": {"projector_hidden": 2048, "projector_dim": 128, "temperature": 0.1},
        "views": {"preset": "mocov2", "crop_min": 0.08, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8,
                  "hue": 0.2},
        "optimizer": {**LARS, "weight_decay": 1e-6},
    }, 24, "Chen et al., ICML 2020, section 2 and appendix A (lr 0.3 x batch / 256)"),
    "dino": Objective("DINO", {
        "objective": {"projector_hidden": 2048, "projector_dim": 256, "temperature": 0.1, "momentum": 0.996,
                      "momentum_end": 1.0},
        "views": {"preset": "mocov2", "crop_min": 0.14},
        "optimizer": {**SGD, "lr": 0.015, "warmup_epochs": 10},
    }, 32, "Caron et al., ICCV 2021, and the ResNet-50 line of the authors' README (lr 0.03 x batch / 256, large crops "
           "from 0.14); as many prototypes as images, at most 4,096, for the 65,536 of ImageNet"),
}  # fmt: skip
# What makes trained weights learn as the papers had them learn: without these lines BatchNorm keeps the statistics of
# the weights, and the finished features are whitened.
AS_PAPERS = {"batch_norm": "batch", "whitening": False}
OFFICIAL: dict[str, Any] = {"preset": "official", "projections": 32}
FLATTENED = {"axis": "all", "temperature": 0.4, "prediction_temperature": 0.4, "detach_target": True}
# Linear probe with all labels, as quoted from the paper; nothing else could be verified.
PUBLISHED = {("cub", "start"): 68.17, ("cub", "mocov2-plain"): 68.30, ("cub", "mocov2-official"): 71.31}
COLUMN = "probe 100 %"
NOTES = {
    "cub": [
        "Published: linear probe with all labels, quoted from the paper (Shu, van den Hengel, Liu, CVPR 2023) in the "
        "issue tracker of the authors' code. Users who ran that code report 63.8 for the ImageNet weights, 59.9 for "
        "MoCo v2, 64.7 and 66.9 with the rationale; none reports 71.31.",
    ],
    "*": ["Not published: the paper has tables of this set, none of whose numbers could be verified."],
    "": ["The authors' code keeps the epoch that is best on the test split; here the last epoch is measured, and "
         "nothing is chosen on the test split. SimSiam, SimCLR and DINO are not in the paper."],
}  # fmt: skip
FORMS = {"plain": "without a rationale", "official": "with the rationale as the authors' code computes it",
         "default": "as fgssl does it unless told otherwise"}  # fmt: skip


class Recipe(NamedTuple):
    """One file."""

    data: str
    objective: str
    form: str

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.data}-{self.objective}-{self.form}.yaml"

    @property
    def row(self) -> str:
        """Of the table."""
        if self.objective == "frozen":
            return "frozen and whitened, fgssl's default"
        title = OBJECTIVES[self.objective].title
        return {"plain": title, "official": f"{title} + rationale", "default": f"{title}, fgssl's default"}[self.form]

    @property
    def pool(self) -> str | None:
        """What is measured: the mean, the paper's weighting by the rationale, or the encoder's own."""
        return {"plain": "gap", "official": "rationale", "default": None}[self.form]

    def settings(self) -> dict[str, dict[str, Any]]:
        """What the file says."""
        backbone: dict[str, Any] = {"name": BACKBONE, "pretrained": True, "image_size": SIZE}
        head = {"data": {"source": self.data}, "backbone": backbone}
        length = {"training": {"epochs": EPOCHS, "batch_size": BATCH}}
        if self.objective == "frozen":
            backbone["freeze"] = "backbone"
            return head | length
        if self.form == "default":
            return head | {"objective": {"name": self.objective}} | length
        own = OBJECTIVES[self.objective].settings
        backbone |= AS_PAPERS
        rationale = {"enabled": False}
        if self.form == "official":
            rationale = OFFICIAL if self.objective == "mocov2" else {**OFFICIAL, **FLATTENED}
        objective = {"name": self.objective, **own["objective"]}
        more = {"objective": objective, "views": own["views"], "rationale": rationale, "optimizer": own["optimizer"]}
        return head | more | length

    def header(self) -> Iterator[str]:
        """The lines above the settings."""
        about = SETS[self.data]
        frozen = self.objective == "frozen"
        what = (
            "frozen, whitened, with a rationale" if frozen else f"{OBJECTIVES[self.objective].title} {FORMS[self.form]}"
        )
        yield f"{about.title} ({about.train:,} training images), ResNet-50, {what}."
        yield ""
        yield f"Command:   fgssl pretrain --recipe recipes/paper/{self.name}"
        pool = "" if self.pool is None else f" --pool {self.pool}"
        yield f"           then: fgssl probe RUN{pool} --protocol sgd    and    fgssl retrieve RUN{pool}"
        yield f"           or, with all rows and seeds: fgssl reproduce recipes/paper --table {self.data}"
        memory = 8 if frozen else OBJECTIVES[self.objective].memory
        yield f"Hardware:  one GPU with {memory} GB or more, or less with --accumulate 2."
        steps = about.train // BATCH * EPOCHS
        more = "; the maps of the frozen network are computed once" if frozen else ""
        yield f"Time:      not measured; {steps:,} steps of {BATCH} images at {SIZE} px{more}."
        number = PUBLISHED.get((self.data, f"{self.objective}-{self.form}"))
        told = "nothing published that could be verified" if number is None else f"published: linear probe {number:.2f}"
        yield f"Numbers:   not run by us; {told} (tables.yaml says more)."
        yield f"Source:    {self.origin()}."
        yield from filter(None, [about.note and f"Data:      {about.note}"])

    def origin(self) -> str:
        """Where the settings are from."""
        if self.form == "default":
            return "fgssl's own settings (docs/trained-weights.md), at the paper's size, length and batch"
        source = OBJECTIVES[self.objective].source
        if self.form == "official":
            told = "the rationale as the authors' code computes it for MoCo"
            if self.objective != "mocov2":
                told = ("the rationale in the paper's form for BYOL (GradCAM of the first view alone, maps divided by "
                        "0.4 before a softmax over all places), its target without gradient")  # fmt: skip
            source += f"; {told}; maps are normalised per image at test time"
        keys = "; keys of the query's own image are no negatives" if self.objective == "mocov2" else ""
        return f"{source}{keys}; the last epoch is reported"


def recipes() -> list[Recipe]:
    """Every file, set by set."""
    trained = [(objective, form) for objective in OBJECTIVES for form in FORMS]
    return [Recipe(data, *row) for data in SETS for row in (("frozen", "default"), *trained)]


def text(recipe: Recipe) -> str:
    """A file as it should be."""
    head = "".join(f"# {line}".rstrip() + "\n" for wrapped in map(_wrapped, recipe.header()) for line in wrapped)
    return head + yaml.safe_dump(recipe.settings(), sort_keys=False)


def _wrapped(line: str) -> list[str]:
    indent = " " * 11
    return textwrap.wrap(line, 116, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False) or [""]


def tables() -> dict[str, Any]:
    """What tables.yaml says."""
    found = {}
    for name, about in SETS.items():
        rows: dict[str, Any] = {"ImageNet weights, frozen": _row(name, "start", None, "gap")}
        for recipe in recipes():
            if recipe.data == name:
                rows[recipe.row] = _row(name, f"{recipe.objective}-{recipe.form}", recipe.name, recipe.pool)
        notes = [*NOTES.get(name, NOTES["*"]), *NOTES[""], *filter(None, [about.note])]
        found[name] = {
            "title": f"{about.title}, ResNet-50", "data": name, "weights": f"timm:{BACKBONE}",
            "images": [about.train, about.test], "layout": name, "seeds": 3, "measures": ["retrieve", "probe-sgd"],
            "notes": notes, "rows": rows,
        }  # fmt: skip
    return found


def _row(data: str, key: str, recipe: str | None, pool: str | None) -> dict[str, Any]:
    number = PUBLISHED.get((data, key))
    row = {"recipe": recipe, "pool": pool, "published": None if number is None else {COLUMN: number}}
    return {name: value for name, value in row.items() if value is not None}


def outputs() -> dict[Path, str]:
    """Every file of this folder that is generated, as it should be."""
    found = {FOLDER / recipe.name: text(recipe) for recipe in recipes()}
    head = "# The tables of fgssl reproduce recipes/paper. Written by generate.py, as the recipes are.\n"
    found[FOLDER / "tables.yaml"] = head + yaml.safe_dump(tables(), sort_keys=False, width=115, allow_unicode=True)
    return found


def main() -> None:
    """Write what differs, and remove recipes that are no more."""
    made = outputs()
    for path in set(FOLDER.glob("*.yaml")) - made.keys():
        path.unlink()
    for path, content in made.items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
