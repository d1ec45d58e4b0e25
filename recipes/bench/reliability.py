"""The figures of docs/resume.md, each part a command of its own, kept until all are there.

    python recipes/bench/reliability.py --parts kills,processes,leaks --output runs/reliability
    python recipes/bench/reliability.py --parts leaks --steps 2000 --workers 2

kills      kill -9 at random moments of one run until it is finished; weights and metrics against a run left alone
processes  20 steps in one and in two processes: the largest difference of the loss
leaks      memory of the main process and of its loaders over 2,000 steps (Linux)

A part that is in the output's results.json already is not run again (--again does).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness
from reliability_kills import kill_and_compare, make_photos

COMMON = (
    "--no-pretrained", "--mixed-precision", "no", "--device", "cpu", "--quiet", "--set", "training.evaluate=false",
)  # fmt: skip


def kills(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Killed so often, the run must end equal."""
    found = kill_and_compare(work, kills=options.kills, steps=options.kills * 2, seed=0)
    steps = list(range(2, options.kills * 2 + 1, 2))
    return {**found._asdict(), "steps": len(found.steps), "metrics_without_gaps": found.steps == steps}


def processes(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The same run in one and in two processes, with a backbone without BatchNorm."""
    photos = make_photos(work / "photos", 48, size=64)
    settings = ["--set", "training.log_every=1", "--set", "rationale.branch_norm=none", "--workers", "0"]
    losses = []
    for count in ("1", "2"):
        words = ["--backbone", "convnext_zepto_rms", "--image-size", "64", "--batch-size", "8", "--max-steps", "20"]
        words += ["--epochs", "20", "--data", str(photos), "--processes", count, "--output", str(work / count)]
        command = [sys.executable, "-m", "fgssl", "pretrain", *COMMON, *settings, *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = (work / count / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    return {"steps": len(losses[0]), "largest_difference": max(abs(a - b) for a, b in zip(*losses, strict=True))}


def leaks(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Memory that is no file's (RssAnon, MB) after a tenth of the steps and at the end."""
    photos = make_photos(work / "photos", 320, size=64)
    words = ["--backbone", "mobilenetv3_small_050", "--image-size", "64", "--batch-size", "16", "--data", str(photos)]
    words += ["--max-steps", str(options.steps), "--epochs", str(options.steps), "--workers", str(options.workers)]
    words += ["--save-every", str(max(1, options.steps // 10)), "--set", "training.log_every=10"]
    # often: the first signals take memory that later ones take again, and belong to the warm-up
    words += ["--set", f"training.signals_every={max(1, options.steps // 40)}"]
    run = work / "run"
    command = [sys.executable, "-m", "fgssl", "pretrain", *COMMON, *words, "--output", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    samples: list[tuple[int, float, float]] = []  # step, main process, largest loader
    while process.poll() is None:
        memory = {pid: _anonymous(pid) for pid in (process.pid, *_children(process.pid))}
        loaders = [value for pid, value in memory.items() if pid != process.pid]
        samples.append((_last_step(run), memory[process.pid], max(loaders, default=0.0)))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit("the run of the leak test failed")
    warm = [s for s in samples if options.steps // 10 <= s[0] <= options.steps // 5]
    late = [s for s in samples if options.steps * 8 // 10 <= s[0]]
    found = {"steps": options.steps, "workers": options.workers}
    for name, column in (("main", 1), ("loader", 2)):
        found[f"{name}_mb_warm"] = round(statistics.median([s[column] for s in warm]), 1)
        found[f"{name}_mb_end"] = round(statistics.median([s[column] for s in late]), 1)
    return found


def _anonymous(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:")), 0.0)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _last_step(run: Path) -> int:
    try:
        return int(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    except (OSError, ValueError, IndexError):
        return 0


PARTS = {"kills": kills, "processes": processes, "leaks": leaks}


def table(results: dict[str, Any]) -> list[str]:
    """The results as docs/resume.md shows them."""
    rows = []
    if "kills" in results:
        r = results["kills"]
        where = ", ".join(f"{count} {phase}" for phase, count in sorted(r["kills"].items()))
        same = "equal bit for bit" if r["weights_equal"] and r["metrics_equal"] else "DIFFERENT"
        rows.append(("kill -9, then `--resume`", f"{sum(r['kills'].values())} kills ({where}): weights and log {same}"))
    if "processes" in results:
        r = results["processes"]
        difference = f"loss differs by {r['largest_difference']:.1e} at most"
        rows.append((f"one and two processes, {r['steps']} steps", difference))
    if "leaks" in results:
        r = results["leaks"]
        main, loader = (f"{r[f'{n}_mb_warm']:.0f} to {r[f'{n}_mb_end']:.0f} MB" for n in ("main", "loader"))
        rows.append((f"memory over {r['steps']:,} steps, warm to end", f"main process {main}, loader {loader}"))
    return harness.markdown(("what", "measured"), rows)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = harness.parser(__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--output", type=Path, default=Path("runs/reliability"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("FGSSL_CACHE", str(options.output.resolve() / "cache"))
    file = options.output / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for part in options.parts.split(","):
        if part in results and not options.again:
            continue
        work = options.output / f"{part}-{int(time.time())}"
        work.mkdir()
        results[part] = PARTS[part](work.resolve(), options)
        file.write_text(json.dumps(results, indent=2) + "\n")
    print(*table(results), sep="\n")


if __name__ == "__main__":
    main()
