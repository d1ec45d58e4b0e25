"""The cached linear probe against scikit-learn's LogisticRegressionCV over the same grid.

    python recipes/bench/probe_speed.py

Hardware: 2 CPU cores; 2 GB. Time: about 5 minutes, nearly all of it scikit-learn's. 3,000 train and 1,000 test features
of 512, 81 classes, length 1; scikit-learn chooses on the very slice that the probe holds out (one split, the default
solver) and refits on all. --tolerance is scikit-learn's; its default of 1e-4 stops short at weak regularisation, with
worse accuracy. `within_half_a_point` compares the top-1 of both; seconds are medians over --repeats.
"""

from __future__ import annotations

import statistics
import warnings

import harness
import sklearn
import torch
from sklearn.linear_model import LogisticRegressionCV
from torch import Tensor

from fgssl.evaluation.probing.classifiers import HELD_OUT, Sets, linear_probe
from fgssl.evaluation.probing.splits import stratified_split

TRAIN, TEST = 3000, 1000  # images to fit on and to score
NOISE = 4.0  # of an image about its class centre


def features_like_an_encoders(images: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Clusters after a ReLU with variances falling over the dimensions, (N, D), and their classes (N,)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (images,), generator=generator)
    scale = torch.logspace(0, -1.5, width)
    centres = torch.randn(classes, width, generator=generator)
    features = (centres[labels] + NOISE * torch.randn(images, width, generator=generator)) * scale + 0.5
    return torch.nn.functional.normalize(features.relu()), labels


def main() -> None:
    """Run and print."""
    parser = harness.parser(__doc__, "--threads", "--output")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of scikit-learn")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each")
    options = harness.begin(parser)
    features, labels = features_like_an_encoders(TRAIN + TEST, 512, 81)
    train, train_labels, test, test_labels = features[:TRAIN], labels[:TRAIN], features[TRAIN:], labels[TRAIN:]
    kept, held = stratified_split(train_labels, HELD_OUT)
    fitted = {}

    def fit_ours() -> None:
        fitted["ours"] = linear_probe(Sets(train, train_labels, test, test_labels))

    def fit_theirs() -> None:
        costs = [cost for cost, _ in fitted["ours"].tried]
        model = LogisticRegressionCV(Cs=costs, cv=[(kept.numpy(), held.numpy())], max_iter=5000, tol=options.tolerance)
        fitted["theirs"] = model.fit(train.numpy(), train_labels.numpy())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = harness.in_turns({"ours": fit_ours, "theirs": fit_theirs}, options.repeats, warm=0)
    taken = {name: statistics.median(values) for name, values in seconds.items()}
    ours, theirs = fitted["ours"], fitted["theirs"]
    top1 = 100 * float(theirs.score(test.numpy(), test_labels.numpy()))
    found = {
        "fgssl": {"top1": ours.top1, "cost": ours.cost, "seconds": taken["ours"], "converged": ours.converged},
        "scikit_learn": {"top1": top1, "cost": float(theirs.C_[0]), "seconds": taken["theirs"]},
        "times_faster": taken["theirs"] / taken["ours"],
        "within_half_a_point": ours.top1 >= top1 - 0.5,
    }
    lines = [f"{name} {value}" for name, value in found.items()]
    harness.report(options, found, lines, libraries={"scikit-learn": sklearn.__version__})


if __name__ == "__main__":
    main()
