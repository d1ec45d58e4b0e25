"""fgssl from Python: the verbs of the command line as functions of encoders, pictures and embeddings.

Everything here is at hand as `fgssl.NAME`. The examples run in the tests.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from fgssl.config.resolve import load_config
from fgssl.config.schema import DataConfig
from fgssl.data.images import ImageSet
from fgssl.data.sources.open import default_split, load_images
from fgssl.encoder import Encoder, Pool
from fgssl.errors import FgsslError, SettingError
from fgssl.evaluation import compare as comparison
from fgssl.evaluation import embed as embedding
from fgssl.evaluation import explain as maps
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.probing.classifiers import ProbeResult, Sets, linear_probe
from fgssl.evaluation.retrieval.metrics import RetrievalResult, evaluate_retrieval
from fgssl.evaluation.subject import EvaluationOptions
from fgssl.runs import encoder_file, lock
from fgssl.runs import folder as run_folder
from fgssl.training import pretrain as training
from fgssl.training.plan import make_plan
from fgssl.training.results import RunResult
from fgssl.training.resume import left_of

Place = str | os.PathLike[str]


def open_images(source: Place, split: str | None = None) -> ImageSet:
    """The pictures of a data source, as `--data` names it, in their order; nothing is decoded yet.

    Args:
        source: A folder, list or table, a preset, `demo`, or a data set of the hub.
        split: One of its splits, several joined by "+"; by default its test split, else its only one.

    Raises:
        FgsslError: no such source or split, or no picture in it.

    Example:
        >>> import fgssl
        >>> images = fgssl.open_images("photos", "train")
        >>> len(images), images.class_names
        (24, ('class 0', 'class 1', 'class 2'))
        >>> images.load(0).mode
        'RGB'
    """
    data = DataConfig(source=os.fspath(source))
    split = split or default_split(data, "test") or default_split(data, "train")
    if split is None:
        raise FgsslError(f"'{data.source}' has no test split", "name a split")
    return load_images(data, split, tell=False)


def load_encoder(checkpoint: Place, *, backbone: str | None = None, image_size: int | None = None) -> Encoder:
    """The encoder of a run, of an encoder file or of published weights: a module in eval mode, on the CPU.

    Called with upright pictures, or with views (N, 3, S, S) uint8, it gives (N, D) features of length 1.

    Args:
        checkpoint: As the verbs take it: a run folder, a file, `timm:NAME`, `hf-hub:OWNER/NAME`.
        backbone: The architecture of weights that do not tell it.
        image_size: Side in pixels of the pictures that such weights take.

    Raises:
        FgsslError: nothing there, damaged, or of an architecture that nothing tells.

    Example:
        >>> import fgssl, torch
        >>> encoder = fgssl.load_encoder("runs/photos")
        >>> pictures = [fgssl.open_images("photos").load(row) for row in range(3)]
        >>> with torch.inference_mode():
        ...     features = encoder(pictures)
        >>> features.shape
        torch.Size([3, 288])
    """
    return encoder_file.load_encoder(os.fspath(checkpoint), backbone=backbone, image_size=image_size)


def embed(encoder: Encoder, images: ImageSet, *, pool: Pool | None = None, batch_size: int = 64) -> Embeddings:
    """Features of a set's pictures, each once and in their order, with labels and names of those that can be read.

    Args:
        encoder: From `load_encoder`, wherever it computes.
        images: From `open_images`.
        pool: By default zoom where the encoder has a rationale, else gap.
        batch_size: Pictures a forward; the result does not depend on it.

    Raises:
        FgsslError: more than a tenth cannot be read, or the encoder cannot pool so.

    Example:
        >>> import fgssl
        >>> encoder = fgssl.load_encoder("runs/photos")
        >>> found = fgssl.embed(encoder, fgssl.open_images("photos"), pool="gap")
        >>> found.features.shape, found.identifiers[0]
        (torch.Size([12, 288]), 'photos/test/class 0/00.jpg')
    """
    pool = pool or encoder.default_pool()
    encoder.require(pool)
    return embedding.embed(encoder, images, pools=(pool,), batch_size=batch_size)[pool]


def retrieve(queries: Embeddings, gallery: Embeddings | None = None) -> RetrievalResult:
    """How often the nearest neighbours of labelled pictures share their class.

    Args:
        queries: Features (N, D) with labels.
        gallery: What they search; by default each searches all the others.

    Raises:
        FgsslError: no labels, or features of different widths.

    Example:
        >>> import fgssl
        >>> encoder = fgssl.load_encoder("runs/photos")
        >>> test = fgssl.embed(encoder, fgssl.open_images("photos", "test"))
        >>> scores = fgssl.retrieve(test)
        >>> 0 <= scores.to_dict()["rank1"] <= 100
        True
    """
    if gallery is None:
        return evaluate_retrieval(queries.features, queries.known_labels)
    return evaluate_retrieval(
        queries.features, queries.known_labels, gallery=gallery.features, gallery_labels=gallery.known_labels
    )


def probe(train: Embeddings, test: Embeddings, *, seed: int = 0) -> ProbeResult:
    """A linear probe: logistic regression fitted on features of labelled pictures and judged on others.

    Args:
        train: Features (N, D) with labels.
        test: Features (M, D) with labels numbered alike.
        seed: Of the slice of train that the regularisation is chosen on.

    Raises:
        FgsslError: no labels, features that do not fit, or fewer than two classes.

    Example:
        >>> import fgssl
        >>> encoder = fgssl.load_encoder("runs/photos")
        >>> train, test = (fgssl.embed(encoder, fgssl.open_images("photos", name)) for name in ("train", "test"))
        >>> 0 <= fgssl.probe(train, test).top1 <= 100
        True
    """
    sets = Sets(train.features, train.known_labels, test.features, test.known_labels)
    return linear_probe(sets, seed=seed)


def explain(encoder: Encoder, pictures: Sequence[Image]) -> list[maps.Maps]:
    """What an encoder looks at: GradCAM of its training loss and the rationale, over each picture's evaluation view.

    Args:
        encoder: From `load_encoder`; what it has no map of is None.
        pictures: Upright and RGB, of any size.

    Example:
        >>> import fgssl
        >>> encoder = fgssl.load_encoder("runs/photos")
        >>> (found,) = fgssl.explain(encoder, [fgssl.open_images("photos").load(0)])
        >>> found.rationale.shape, round(float(found.rationale.sum()), 3)
        ((2, 2), 1.0)
    """
    return maps.explain(encoder, pictures)


def compare(
    checkpoints: Sequence[Place], data: Place | None = None, *, pools: Sequence[Pool] | None = None, seed: int = 0
) -> comparison.ComparisonTable:
    """Several encoders in one table: retrieval, linear probe and nearest neighbours on the same pictures.

    Args:
        checkpoints: As `load_encoder` takes them, or files of features.
        data: A labelled source; by default what the first was trained on.
        pools: By default those that each encoder has.
        seed: Of the probe's held-out slice.

    Raises:
        FgsslError: what an entry or the data lack, before anything is embedded.

    Example:
        >>> import fgssl
        >>> table = fgssl.compare(["runs/photos"], "photos", pools=["gap", "rationale"])
        >>> [(row.encoder, row.pool) for row in table.rows]
        [('runs/photos', 'gap'), ('runs/photos', 'rationale')]
    """
    options = EvaluationOptions(data=None if data is None else os.fspath(data))
    return comparison.compare([os.fspath(each) for each in checkpoints], options, pools=pools, seed=seed)


def pretrain(
    data: Place | None = None,
    *,
    output: Place,
    recipe: Place | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    allow_changes: bool = False,
) -> RunResult:
    """Train an encoder without labels, in this process, or go on with a run that was stopped.

    Args:
        data: As `open_images` takes it; labels are never looked at. By default the demo set.
        output: The run folder, as `fgssl pretrain` leaves it.
        recipe: YAML of settings.
        settings: "section.name" -> value, over the recipe: "optimizer.lr", "training.epochs".
        overwrite: Replace the run in that folder.
        resume: Continue the run in that folder with its own data and settings; a finished one is given back.
        allow_changes: Continue it with other settings: another run.

    Raises:
        FgsslError: bad data, settings or folder; TrainingFault: the loss is no longer finite; Interrupted: stopped by a
            signal, the state is saved.

    Example:
        >>> import fgssl
        >>> tiny = {"backbone.name": "test_resnet", "backbone.pretrained": False, "backbone.image_size": 64}
        >>> short = {"training.max_steps": 2, "training.batch_size": 8, "training.device": "cpu", "training.workers": 0}
        >>> run = fgssl.pretrain("photos", output="runs/new", settings={**tiny, **short})
        >>> run.summary["steps"], fgssl.load_encoder(run.folder).default_pool()
        (2, 'zoom')
        >>> fgssl.pretrain(output="runs/new", resume=True).summary["steps"]  # nothing was left to do
        2
    """
    if overwrite and resume:
        raise SettingError("resume goes on with the run that overwrite removes", "leave out one of them")
    if allow_changes and not resume:
        raise SettingError("allow_changes goes with resume", "leave it out, or resume the run")
    flags = {**(settings or {}), **({} if data is None else {"data.source": os.fspath(data)})}
    resolved = load_config(None if recipe is None else Path(recipe), flags=flags)
    folder = Path(output)
    if resume:
        plan = left_of(folder, run_folder.resumed(folder, resolved, allow_changes=allow_changes)[0])
        if isinstance(plan, RunResult):
            return plan
    else:
        run_folder.check_output(folder, overwrite=overwrite)
        plan = make_plan(resolved)
    with lock.hold_run(folder):
        if not resume:
            run_folder.prepare_output(folder, overwrite=overwrite)
            run_folder.write_config(folder, plan.config, plan.origins)
        return training.pretrain(plan, folder, resume=resume, allow_changes=allow_changes)
