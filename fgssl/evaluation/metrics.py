"""Small metrics, each a pure function; accuracies and shares of correct images are percentages."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.errors import FgsslError
from fgssl.evaluation.features import check_features, check_labels, check_widths, unit_rows
from fgssl.evaluation.retrieval.metrics import evaluate_retrieval
from fgssl.evaluation.retrieval.ranking import search
from fgssl.registry import METRICS


def added_metrics(features: Tensor, labels: Tensor) -> dict[str, float]:
    """What the metrics of plugins say of features (N, D) and labels (N,): each is `(features, labels) -> name: value`.

    Raises:
        FgsslError: One fails, or returns something else.
    """
    found: dict[str, float] = {}
    for name, metric in METRICS.items():
        origin = f"the metric {name} of {METRICS.origin(name)}"
        try:
            values = {str(key): float(value) for key, value in metric(features, labels).items()}
        except Exception as error:  # of code that is not ours
            raise FgsslError(f"{origin} fails: {type(error).__name__}: {error}", "mend it, or leave it out") from error
        if found.keys() & values.keys():
            raise FgsslError(f"{origin} and another one both return {min(found.keys() & values.keys())}", "rename one")
        found |= values
    return found


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of predictions (N,) that equal the labels (N,), in percent."""
    return 100 * float((predictions == check_labels(labels, len(predictions))).double().mean())


def topk_accuracy(scores: Tensor, labels: Tensor, *, k: int) -> float:
    """Share of rows whose label (N,) is among the k best (all, beyond C) scores (N, C), in percent.

    A class with the same score as the label's counts as ahead of it unless it has a larger number, so that k = 1
    agrees with argmax and equal scores do not help. A label that scores minus infinity (a class the classifier does
    not know) is never among them.
    """
    labels = check_labels(labels, len(scores))
    own = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    ahead = (scores > own).sum(1) + ((scores == own) & earlier).sum(1)
    return 100 * float(((ahead < k) & (own[:, 0] > float("-inf"))).double().mean())


def per_class_accuracy(predictions: Tensor, labels: Tensor, *, classes: int) -> Tensor:
    """Accuracy within each of C classes: (N,) and (N,) -> (C,) float64 percentages, NaN for a class without images."""
    labels = check_labels(labels, len(predictions))
    hits = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels.cpu(), (predictions == labels).cpu().double())
    return 100 * hits / labels.cpu().bincount(minlength=classes)


def mean_per_class_accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Mean over the classes among the labels of the accuracy within each, in percent."""
    labels = check_labels(labels, len(predictions))
    return float(per_class_accuracy(predictions, labels, classes=int(labels.max()) + 1).nanmean())


def recall_at_k(features: Tensor, labels: Tensor, *, k: int = 1) -> float:
    """Leave-one-out share of images (N, D) with one of their class among the first k, in percent (rank-k)."""
    return evaluate_retrieval(features, labels, ks=(k,)).to_dict()[f"rank{k}"]


def mean_average_precision(features: Tensor, labels: Tensor) -> float:
    """Leave-one-out mAP of images (N, D) over the full ranking, in percent."""
    return evaluate_retrieval(features, labels).to_dict()["mAP"]


def effective_rank(features: Tensor) -> float:
    """RankMe: exp of the entropy of the singular values, scaled to sum 1 (Garrido et al. 2023, equation 1).

    Between 1 (all on one line through the origin: collapse) and min(N, D). The features (N, D) are neither centred nor
    scaled; zero rows are allowed.
    """
    wide = check_features(features).double()
    wide = wide.T if wide.shape[0] < wide.shape[1] else wide
    # squares of the singular values from the smaller product, in float64: far faster than a decomposition
    singular = torch.linalg.eigvalsh(wide.T @ wide).clamp_min(0).sqrt()
    # below this the square roots are rounding noise
    singular = singular[singular > 1e-7 * singular[-1]]
    if len(singular) == 0:
        return 1.0
    share = singular / singular.sum()
    return float(torch.special.entr(share).sum().exp())


def relative_std(features: Tensor) -> float:
    """Spread of length-1 features: the std of each dimension over the images, as a share of 1/sqrt(D).

    Of (N, D), N at least 2, zero rows allowed: 0 where all point the same way (collapse), about 1 where they are spread
    evenly in all directions. Chen and He 2021 (SimSiam), section 4.1, watch it for collapse.
    """
    unit = unit_rows(check_features(features)).double()
    return float(unit.std(0).mean() * math.sqrt(unit.shape[1]))


def alignment(first: Tensor, second: Tensor, *, power: float = 2) -> float:
    """Mean distance^power between the length-1 features (N, D) of two views of each image (Wang and Isola 2020).

    From 0, which is best, to 2^power.
    """
    first, second = check_features(first, "first view"), check_features(second, "second view")
    check_widths(first, second, ("first view", "second view"))
    _check_same_images(first, second)
    distance = torch.linalg.vector_norm(unit_rows(first) - unit_rows(second), dim=1)
    return float(distance.double().pow(power).mean())


def _check_same_images(first: Tensor, second: Tensor) -> None:
    if len(first) != len(second):
        raise FgsslError(f"{len(first)} features against {len(second)}", "give both views of the same images")


def uniformity(features: Tensor, *, scale: float = 2) -> float:
    """Log of the mean of exp(-scale distance^2) over pairs of length-1 features (Wang and Isola 2020); low is spread.

    From 0 for collapsed features (N, D) down to about -2 scale for evenly spread ones in many dimensions.
    """
    features = unit_rows(check_features(features))
    rows = len(features)
    if rows < 2:
        raise FgsslError("uniformity of one image", "give two or more")
    total = 0.0
    for first in range(0, rows, 1024):
        part = features[first : first + 1024]
        squared = (2 - 2 * (part @ features.T)).clamp_min(0).double()
        squared.diagonal(first).fill_(float("inf"))
        total += float((-scale * squared).exp().sum())
    return math.log(total / (rows * (rows - 1)))


def neighbour_overlap(first: Tensor, second: Tensor, *, k: int = 10) -> float:
    """How far two views (N, D) of the same images agree on who is near whom: their kNN graphs compared.

    Each image's k nearest others by cosine are found among the first views and, apart, among the second views; the
    share of images in both lists is averaged: from 0 to 1, k / (N - 1) by chance. Views that differ in pose, light and
    colour but lead to the same neighbours show that the neighbourhoods are of the things shown, which no collapse and
    no trivial cue gives.
    """
    _check_same_images(first, second)
    if not 1 <= k < len(first):
        raise FgsslError(f"{k} neighbours among {len(first)} images", f"use k from 1 to {len(first) - 1}")
    near, other = search(first, top=k).indices, search(second, top=k).indices
    return float((near[:, :, None] == other[:, None, :]).any(2).double().mean())


def entropy_relative_to_uniform(maps: Tensor) -> Tensor:
    """How flat each map is: the entropy of the map scaled to sum 1, over that of the uniform map.

    (N, H, W), not negative -> (N,) float64, from 0 (one place) to 1 (uniform, blank, or of a single place).
    """
    flat = maps.detach().double().flatten(1)
    if not bool(torch.isfinite(flat).all()) or bool((flat < 0).any()):
        raise FgsslError("a map with negative values, NaN or infinity", "give maps after ReLU or softmax")
    if flat.shape[1] == 1:
        return flat.new_ones(len(flat))
    total = flat.sum(1, keepdim=True)
    share = torch.where(total > 0, flat / total, 1 / flat.shape[1])
    entropy: Tensor = torch.special.entr(share).sum(1)
    return entropy / math.log(flat.shape[1])


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of each map's energy that lies inside its mask (Wang et al. 2020, Score-CAM, section 4.3).

    The map is resized to the mask bilinearly (pixel centres aligned), and negative values count as zero.

    Args:
        maps: (H, W) or (N, H, W).
        masks: (h, w) or (N, h, w), boolean or 0 and 1.

    Returns:
        () or (N,) float64 from 0 to 1; a blank map points nowhere and scores as the uniform one: the mask's area.
    """
    resized, inside = _on_masks(maps, masks)
    energy = resized.clamp_min(0)
    total = energy.sum(dim=(1, 2))
    share = (energy * inside).sum(dim=(1, 2)) / total
    return torch.where(total > 0, share, inside.mean(dim=(1, 2))).reshape(maps.shape[:-2])


def pointing_hit(maps: Tensor, masks: Tensor) -> Tensor:
    """Whether the strongest place of each map lies inside its mask (the pointing game, Zhang et al. 2016).

    As `energy_inside`: 1 inside, 0 outside, between for ties across the border; so a flat map scores the mask's area.
    """
    resized, inside = _on_masks(maps, masks)
    strongest = (resized == resized.amax(dim=(1, 2), keepdim=True)).double()
    return ((strongest * inside).sum(dim=(1, 2)) / strongest.sum(dim=(1, 2))).reshape(maps.shape[:-2])


def _on_masks(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Maps resized to the masks, and the masks, both (N, h, w) float64."""
    if maps.ndim not in (2, 3) or maps.shape[:-2] != masks.shape[:-2]:
        raise FgsslError(
            f"maps of shape {tuple(maps.shape)} for masks of shape {tuple(masks.shape)}", "give one map a mask"
        )
    if not bool(torch.isfinite(maps).all()):
        raise FgsslError("a map with NaN or infinity", "look at the encoder's precision")
    inside = masks.detach().double().reshape(-1, *masks.shape[-2:])
    stacked = maps.detach().double().reshape(-1, 1, *maps.shape[-2:])
    return functional.interpolate(stacked, inside.shape[-2:], mode="bilinear")[:, 0], inside
