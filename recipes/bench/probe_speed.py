"""The cached linear probe against scikit-learn's LogisticRegressionCV over the same grid.

    python recipes/bench/probe_speed.py

Hardware: 2 CPU cores; 2 GB. Time: about 5 minutes, nearly all of it scikit-learn's. 3,000 train and 1,000 test features
of 512, 81 classes, length 1; scikit-learn chooses on the very slice that the probe holds out (one split, the default
solver) and refits on all. --tolerance is scikit-learn's; its default of 1e-4 stops short at weak regularisation, with
worse accuracy. Prints lines on stderr, JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings

import torch
from sklearn.linear_model import LogisticRegressionCV
from torch import Tensor

from fgssl.classifiers import HELD_OUT, linear_probe, stratified_split


def features_like_an_encoders(images: int, width: int, classes: int, *, noise: float) -> tuple[Tensor, Tensor]:
    """Clusters after a ReLU with variances falling over the dimensions, (N, D), and their classes (N,)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (images,), generator=generator)
    scale = torch.logspace(0, -1.5, width)
    centres = torch.randn(classes, width, generator=generator)
    features = (centres[labels] + noise * torch.randn(images, width, generator=generator)) * scale + 0.5
    return torch.nn.functional.normalize(features.relu()), labels


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--noise", type=float, default=4.0, help="of an image about its class centre")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of scikit-learn")
    options = parser.parse_args()
    features, labels = features_like_an_encoders(4000, 512, 81, noise=options.noise)
    train, train_labels, test, test_labels = features[:3000], labels[:3000], features[3000:], labels[3000:]

    start = time.perf_counter()
    ours = linear_probe(train, train_labels, test, test_labels)
    ours_seconds = time.perf_counter() - start

    costs = [cost for cost, _ in ours.tried]
    kept, held = stratified_split(train_labels, HELD_OUT)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = LogisticRegressionCV(Cs=costs, cv=[(kept.numpy(), held.numpy())], max_iter=5000, tol=options.tolerance)
        theirs.fit(train.numpy(), train_labels.numpy())
    theirs_seconds = time.perf_counter() - start
    found = {
        "fgssl": {"top1": ours.top1, "cost": ours.cost, "seconds": ours_seconds, "converged": ours.converged},
        "scikit_learn": {
            "top1": 100 * float(theirs.score(test.numpy(), test_labels.numpy())),
            "cost": float(theirs.C_[0]),
            "seconds": theirs_seconds,
        },
        "times_faster": theirs_seconds / ours_seconds,
    }
    for name, value in found.items():
        print(name, value, file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
