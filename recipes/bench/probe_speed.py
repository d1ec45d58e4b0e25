"""The cached linear probe against scikit-learn's LogisticRegressionCV over the same grid.

    python recipes/bench/probe_speed.py

Hardware: 2 CPU cores; 2 GB. Time: about 5 minutes, nearly all of it scikit-learn's. 3,000 train and 1,000 test features
of 512, 81 classes, length 1; scikit-learn chooses on the very slice that the probe holds out (one split, the default
solver) and refits on all. --tolerance is scikit-learn's; its default of 1e-4 stops short at weak regularisation, with
worse accuracy. Prints lines on stderr, JSON on stdout; `within_half_a_point` compares the top-1 of both.
--images, --width, --classes and --repeats change the size; seconds are medians over the repeats.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

import sklearn
import torch
from sklearn.linear_model import LogisticRegressionCV
from torch import Tensor

from fgssl.evaluation.probing.classifiers import HELD_OUT, linear_probe
from fgssl.evaluation.probing.splits import stratified_split
from fgssl.runtime.machine import available_cores

Result = TypeVar("Result")


def features_like_an_encoders(images: int, width: int, classes: int, *, noise: float) -> tuple[Tensor, Tensor]:
    """Clusters after a ReLU with variances falling over the dimensions, (N, D), and their classes (N,)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (images,), generator=generator)
    scale = torch.logspace(0, -1.5, width)
    centres = torch.randn(classes, width, generator=generator)
    features = (centres[labels] + noise * torch.randn(images, width, generator=generator)) * scale + 0.5
    return torch.nn.functional.normalize(features.relu()), labels


def timed(run: Callable[[], Result], repeats: int) -> tuple[Result, float]:
    """The last result, and the median of the seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--noise", type=float, default=4.0, help="of an image about its class centre")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of scikit-learn")
    parser.add_argument("--images", type=int, default=3000, help="to fit on; a third as many are scored")
    parser.add_argument("--width", type=int, default=512, help="of the features")
    parser.add_argument("--classes", type=int, default=81)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each")
    options = parser.parse_args()
    count = options.images
    features, labels = features_like_an_encoders(
        count + count // 3, options.width, options.classes, noise=options.noise
    )
    train, train_labels, test, test_labels = features[:count], labels[:count], features[count:], labels[count:]
    ours, ours_seconds = timed(lambda: linear_probe(train, train_labels, test, test_labels), options.repeats)

    costs = [cost for cost, _ in ours.tried]
    kept, held = stratified_split(train_labels, HELD_OUT)

    def fit_theirs() -> LogisticRegressionCV:
        model = LogisticRegressionCV(Cs=costs, cv=[(kept.numpy(), held.numpy())], max_iter=5000, tol=options.tolerance)
        return model.fit(train.numpy(), train_labels.numpy())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, theirs_seconds = timed(fit_theirs, options.repeats)
    found = {
        "fgssl": {"top1": ours.top1, "cost": ours.cost, "seconds": ours_seconds, "converged": ours.converged},
        "scikit_learn": {
            "top1": 100 * float(theirs.score(test.numpy(), test_labels.numpy())),
            "cost": float(theirs.C_[0]),
            "seconds": theirs_seconds,
        },
        "times_faster": theirs_seconds / ours_seconds,
    }
    found["within_half_a_point"] = found["fgssl"]["top1"] >= found["scikit_learn"]["top1"] - 0.5
    found["machine"] = {"cores": available_cores(), "threads": torch.get_num_threads(), "torch": torch.__version__,
                        "scikit_learn": sklearn.__version__, "system": platform.platform()}  # fmt: skip
    for name, value in found.items():
        print(name, value, file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
