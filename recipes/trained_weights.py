"""From trained weights: what harms, what helps, and by how much. A table of ways over data sets and seeds.

    python recipes/trained_weights.py --data groceries=FOLDER cars=FOLDER --weights FILE --backbone resnet18 \\
        --image-size 96 --output runs/trained-weights --held-out

Each cell is `fgssl pretrain`, `retrieve` (test pictures searched in the training split, gap and the default pooling)
and `probe`, run one after another; a cell that has its numbers is not run again. `--held-out` chooses on held-out parts
of the training splits (links in the output folder), `--unseen` on classes that no training picture is of: half of them
train, the other half is searched leave-one-out. Without either the test splits are used, which nothing may be chosen
on. `--only` takes names with wildcards.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bench.harness import markdown, report
from scipy.stats import spearmanr

from fgssl.adaptation import Judgement

PLAIN = ("--no-rationale", "--set", "backbone.whitening=false")
FROZEN = ("--freeze", "backbone", "--epochs", "1")
TRAINED = ("--freeze", "none")  # whitened, and the best of its weights by the judgement without labels kept
# Name -> options of `fgssl pretrain`; None is the start itself. In the order of the table of causes.
WAYS: dict[str, Sequence[str] | None] = {
    "start": None,
    "statistics of the batch, weights at rest": (*PLAIN, "--set", "backbone.batch_norm=batch", "--lr", "1e-9"),
    "statistics of the batch": (*PLAIN, "--set", "backbone.batch_norm=batch"),
    "statistics at rest": PLAIN,
    "at rest, a tenth of the rate": (*PLAIN, "--lr", "0.003"),
    "at rest, AdamW 1e-4": (*PLAIN, "--set", "optimizer.name=adamw", "--lr", "1e-4"),
    "at rest, a queue of one batch": (*PLAIN, "--set", "objective.batch_negatives=true"),
    "at rest, no colour in the views": (*PLAIN, "--set", "views.preset=geometric"),
    "at rest, no small crops": (*PLAIN, "--set", "views.crop_min=0.5"),
    "at rest, byol": (*PLAIN, "--objective", "byol"),
    "at rest, simclr": (*PLAIN, "--objective", "simclr"),
    "whitened start, last stage": (*FROZEN, "--no-rationale", "--set", "backbone.stages=1"),
    "whitened start": (*FROZEN, "--no-rationale"),
    "whitened start, rationale": (*FROZEN,),
    "trained": (*TRAINED, "--no-rationale"),
    "trained, rationale": TRAINED,
    "trained, a tenth of the rate": (*TRAINED, "--no-rationale", "--lr", "0.003"),
    "trained, head first": (*TRAINED, "--no-rationale", "--set", "training.head_epochs=2"),
    "trained, norms alone": (*TRAINED, "--no-rationale", "--set", "backbone.adapt=norm"),
    "trained, low-rank adapters": (*TRAINED, "--no-rationale", "--set", "backbone.adapt=lora"),
    "trained, anchored": (*TRAINED, "--no-rationale", "--set", "objective.anchor=1"),
    "trained, byol": (*TRAINED, "--no-rationale", "--objective", "byol"),
    "trained, simclr": (*TRAINED, "--no-rationale", "--objective", "simclr"),
    "trained, stml": (*TRAINED, "--no-rationale", "--objective", "stml"),
    "trained, nnclr": (*TRAINED, "--no-rationale", "--objective", "nnclr"),
    "trained, dino": (*TRAINED, "--no-rationale", "--objective", "dino"),
    "default": (),
}


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", nargs="+", required=True, metavar="NAME=FOLDER", help="with train/ and test/")
    made.add_argument("--weights", required=True, help="as in fgssl pretrain --init")
    made.add_argument("--backbone", required=True)
    made.add_argument("--image-size", type=int, required=True)
    made.add_argument("--epochs", type=int, default=10)
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--only", nargs="+", default=["*"], metavar="NAME")
    made.add_argument("--held-out", action="store_true")
    made.add_argument("--unseen", action="store_true")
    made.add_argument("--output", type=Path, required=True, help="folder of the cells")
    arguments = made.parse_args()
    ways = [name for name in WAYS if any(fnmatch(name, pattern) for pattern in arguments.only)]
    sets = dict(entry.split("=", 1) for entry in arguments.data)
    rows, kept = [], arguments.output
    for name, folder in sets.items():
        data = (
            divided(Path(folder), kept / "data" / name, arguments) if arguments.held_out or arguments.unseen else folder
        )
        judged = []
        for way in ways:
            cells = [cell(arguments, way, seed, Path(data), kept / name) for seed in arguments.seeds]
            rows.append([name, way, *summary(cells)])
            judged += cells
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
        print(name, judgement(judged), sep="  ", file=sys.stderr, flush=True)
    arguments.output = kept / "table.json"
    head = ("data", "way", "last step, gap: rank-1", "mAP", "kept, gap: rank-1", "mAP", "kept, default pooling: rank-1")
    head = (*head, "mAP", "probe", "kept", "minutes")
    report(arguments, {"rows": rows}, markdown(head, rows))


def divided(source: Path, target: Path, arguments: argparse.Namespace) -> Path:
    """A folder of links: of each class of the training split three fifths train; or half of the classes do."""
    classes = sorted(path for path in (source / "train").iterdir() if path.is_dir())
    target = target.with_name(f"{target.name}-{'unseen' if arguments.unseen else 'held-out'}")
    for place, folder in enumerate(classes):
        pictures = sorted(folder.iterdir())
        if arguments.unseen:
            parts = {"train" if place < len(classes) // 2 else "test": pictures}
            if place >= len(classes) // 2:
                parts["test"] = pictures + sorted((source / "test" / folder.name).glob("*"))
        else:
            part = -(-3 * len(pictures) // 5)
            parts = {"train": pictures[:part], "test": pictures[part:]}
        for split, files in parts.items():
            place_of = target / split / folder.name
            place_of.mkdir(parents=True, exist_ok=True)
            for file in files:
                link = place_of / f"{file.parent.parent.name}-{file.name}"
                if not link.is_symlink():
                    link.symlink_to(file.resolve())
    return target


def cell(arguments: argparse.Namespace, way: str, seed: int, data: Path, folder: Path) -> dict[str, Any]:
    """The numbers of one training, or of the start, whose seed does not matter."""
    name = f"{way.replace(' ', '-').replace(',', '')}-{data.name}" + ("" if WAYS[way] is None else f"-seed{seed}")
    run, kept = folder / name, folder / f"{name}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    options, begun = WAYS[way], time.monotonic()
    own = ("--backbone", arguments.backbone, "--image-size", str(arguments.image_size))
    if options is not None:
        again = ("--resume", str(run)) if (run / "resume").exists() else None
        given = (*own, "--init", arguments.weights, "--data", str(data), "--epochs", str(arguments.epochs), *options)
        fixed = ("--seed", str(seed), "--set", "training.evaluate=false", "--output", str(run), "--overwrite")
        fgssl("pretrain", *(again or (*given, *fixed)))
    minutes = (time.monotonic() - begun) / 60
    subject = (arguments.weights, *own, "--data", str(data)) if options is None else (str(run),)
    found: dict[str, Any] = {"minutes": minutes, **scores(subject, arguments)}
    if options is not None:
        choice = json.loads((run / "summary.json").read_text())["choice"]
        found["saved"] = "trained" if choice is None else choice["weights"]
        judged = {} if choice is None else choice["judged"]
        files = {one: (str(run / "candidates" / f"{one}.safetensors"), "--data", str(data)) for one in judged}
        found["candidates"] = {
            one: {**value, **scores(files[one], arguments, gap_alone=True)} for one, value in judged.items()
        }
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, indent=2))
    return found


def scores(subject: Sequence[str], arguments: argparse.Namespace, *, gap_alone: bool = False) -> dict[str, float]:
    """Rank-1 and mAP in gap and in the default pooling (of the start the better of gap and zoom), probe in gap."""
    gallery = () if arguments.unseen else ("--gallery-split", "train")

    def retrieved(*pool: str) -> dict[str, float]:
        return dict(json.loads(fgssl("retrieve", *subject, *gallery, *pool, "--json", "--quiet")))

    gap = retrieved("--pool", "gap")
    result = {"rank1": gap["rank1"], "mAP": gap["mAP"]}
    if gap_alone:
        return result
    own = retrieved("--pool", "zoom") if "--backbone" in subject else retrieved()
    best = max((own, gap), key=lambda one: one["rank1"]) if "--backbone" in subject else own
    result |= {"default_rank1": best["rank1"], "default_mAP": best["mAP"]}
    if not arguments.unseen:
        probe = json.loads(fgssl("probe", *subject, "--pool", "gap", "--json", "--quiet"))
        result["probe"] = probe["top1"]
    return result


def judgement(cells: Sequence[dict[str, Any]]) -> str:
    """How well each sign of the judgement without labels ranks all candidates, the start once, by rank-1."""
    kept = [(name, one) for found in cells for name, one in found.get("candidates", {}).items()]
    distinct = {(name, one["rank1"], one["mAP"]): one for name, one in kept}.values()
    if len(distinct) < 3:
        return ""
    true, lines = [one["rank1"] for one in distinct], [f"{len(distinct)} weights"]
    for sign in Judgement._fields:
        told = [one[sign] for one in distinct]
        lost = max(true) - true[told.index(max(told))]
        lines.append(f"{sign}: Spearman {spearmanr(told, true).statistic:.2f}, {lost:.1f} rank-1 lost by it alone")
    return "; ".join(lines)


def fgssl(*arguments: str) -> str:
    """What the command prints; its messages go on to the terminal."""
    found = subprocess.run([sys.executable, "-m", "fgssl", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return found.stdout


def summary(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Mean over the seeds, with the least and the largest where there are several."""
    last = [found.get("candidates", {}).get("trained", found) for found in cells]
    cells = [
        {**found, "last_rank1": one["rank1"], "last_mAP": one["mAP"]} for found, one in zip(cells, last, strict=True)
    ]
    for key in ("last_rank1", "last_mAP", "rank1", "mAP", "default_rank1", "default_mAP", "probe"):
        values = [float(found[key]) for found in cells if key in found]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        yield f"{statistics.mean(values):.1f}{spread}" if values else "-"
    yield ", ".join(sorted({found.get("saved", "-") for found in cells}))
    yield f"{statistics.mean(found['minutes'] for found in cells):.1f}"


if __name__ == "__main__":
    main()
