"""Labelled pictures -> a calibrated classifier, measured on labels that it has not seen."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch

from fgssl.classify.calibration import fit_temperature, measure
from fgssl.classify.classifier import Classifier, Told, class_names, numbered
from fgssl.config.schema import DataConfig
from fgssl.data import default_split
from fgssl.data.images import ImageSet, Subset
from fgssl.errors import SettingError
from fgssl.evaluation.feature_file import lasting_names
from fgssl.evaluation.features import unit_rows
from fgssl.evaluation.probing.classifiers import fit_chosen
from fgssl.evaluation.probing.splits import stratified_split
from fgssl.evaluation.retrieval.scored import gallery_images
from fgssl.evaluation.subject import Subject, labels_of, open_split

HELD_OUT = 0.2  # of the labelled pictures of each class, where the source has no test split
_WHY = "a classifier is fitted on them"


class Splits(NamedTuple):
    """Labelled pictures to fit on, and to measure on."""

    train: ImageSet
    test: ImageSet | None
    protocol: str  # in words


def labelled_splits(data: DataConfig, *, held_out: float | None, seed: int = 0) -> Splits:
    """The source's own train and test split; or all its pictures, of which a share of each class is held out.

    A class with one picture is fitted on. Raises FgsslError without labels, SettingError for no share below 1.
    """
    if held_out is not None and not 0 <= held_out < 1:
        raise SettingError(f"--held-out is {held_out:g}", "use a share below 1, or 0 to fit on all labels")
    test = default_split(data, "test")
    train = default_split(data, "train")
    if held_out is None and test is not None and train is not None and test != train:
        both = open_split(data, train, "train"), open_split(data, test, "test")
        for images in both:
            labels_of(images, _WHY)
        return Splits(*both, f"measured on {test}")
    images, share = gallery_images(data, None), HELD_OUT if held_out is None else held_out
    labels = labels_of(images, _WHY)
    if share == 0:
        return Splits(images, None, "not measured: fitted on all labels")
    kept, held = stratified_split(labels, share, seed=seed)
    if not len(held):
        return Splits(images, None, "not measured: no class has two pictures")
    words = f"measured on {len(held)} of {len(images)} pictures, drawn by class (seed {seed})"
    return Splits(Subset(images, kept.numpy()), Subset(images, held.numpy()), words)


def fit_classifier(subject: Subject, *, held_out: float | None = None, seed: int = 0) -> Classifier:
    """Fit on the subject's data, calibrate on a slice of what is fitted on, measure on what is held out.

    The classifier is that of `fgssl probe`. The temperature is fitted on the slice that its regularisation is chosen
    on, by scores of a fit without the slice; the held-out pictures take part in neither.

    Raises FgsslError without labels, with one class, or where more than a tenth of the pictures cannot be read.
    """
    splits = labelled_splits(subject.data, held_out=held_out, seed=seed)
    train, test = subject.embed(splits.train), None if splits.test is None else subject.embed(splits.test)
    features, (present, targets) = unit_rows(train.features), torch.unique(train.known_labels, return_inverse=True)
    show = partial(subject.reporter.progress, "fitting the classifier")
    fitted = fit_chosen(features, train.known_labels, seed=seed, progress=show)
    temperature = fit_temperature(fitted.held_scores, targets[fitted.held])
    tempered = f"temperature {temperature:.3g} from that slice" if len(fitted.held) else "temperature 1, not fitted"
    found = None
    if test is not None:
        places = numbered(test.known_labels, present)
        if strange := int((places < 0).sum()):
            text = f"{strange} held-out pictures are of classes without a picture to fit on: they count as wrong"
            subject.reporter.warn(text)
        known = fitted.scores(unit_rows(test.features), int(present[-1]) + 1)[:, present]
        found = measure(known, places, temperature=temperature)
    told = Told(
        classes=class_names(train.class_names, present),
        paths=tuple(lasting_names(train)),
        pool=subject.pool,
        temperature=temperature,
        protocol=f"logistic regression, C = {fitted.cost:.3g} {fitted.choice}; {tempered}; {splits.protocol}",
        held_out=None if found is None else found.to_dict(),
        checkpoint=subject.checkpoint,
        data=subject.data.source,
    )
    weight, bias = fitted.model.weight[0], fitted.model.bias[0]
    return Classifier(subject.encoder, weight, bias, features, targets, told)
