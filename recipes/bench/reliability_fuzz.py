"""Thousands of damaged and hostile files of every kind fgssl reads: how many end in anything but a result or one error.

    python recipes/bench/reliability_fuzz.py --cases 6000

Encoders, recipes, settings, features, weights, pickles, resume states, metrics, pictures, lists and pixel caches are
damaged at random (bytes, safetensors headers, JSON and YAML trees with hostile values) and read as the commands read
them. A case counts as uncaught when it raises anything but FgsslError, takes over 20 seconds, starts a program, opens a
pickle with Python's own loader, or writes a file. Needs the repository with its tests and the dev extras.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from fuzz_targets import TARGETS
from fuzzing import run_case


def main() -> int:
    """Prints a row a kind of file; exit code 1 where anything was uncaught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=6000, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="first seed; other seeds are other cases")
    parser.add_argument("--only", help="one kind of file")
    options = parser.parse_args()
    chosen = [target for target in TARGETS if options.only in (None, target.name)]
    each, uncaught, total = -(-options.cases // len(chosen)), 0, 0
    for target in chosen:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = [
                finding
                for seed in range(options.seed, options.seed + each)
                if (finding := run_case(target, seed, Path(folder))) is not None
            ]
        print(f"{target.name:10} {each} cases, {len(found)} uncaught, {time.monotonic() - started:.0f} s", flush=True)
        for finding in found[:10]:
            print(f"  seed {finding.seed}: {finding.problem}")
        uncaught, total = uncaught + len(found), total + each
    print(f"all        {total} cases, {uncaught} uncaught")
    return 1 if uncaught else 0


if __name__ == "__main__":
    sys.exit(main())
