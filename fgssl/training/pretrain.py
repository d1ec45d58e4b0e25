"""A pretraining run from its plan to its results, to be read top to bottom; the steps are in `fgssl.training.loop`.

plan -> pixels decoded once -> model, optimiser -> steps (views, loss, GradCAM, fit) -> encoder, table, overview
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from fgssl.adaptation import whiten
from fgssl.config.interval import interval
from fgssl.errors import FgsslError
from fgssl.runs.encoder_file import load_encoder, save_encoder
from fgssl.runs.folder import ENCODER_FILE, truncate_metrics, write_config
from fgssl.runs.resume_state import load_state
from fgssl.runtime.hang import HangDetector, HeartbeatReporter
from fgssl.runtime.machine import is_out_of_memory
from fgssl.runtime.reporting import Reporter
from fgssl.runtime.stopping import listen_for_stop
from fgssl.training.loop import Progress, Trainer
from fgssl.training.memory_need import largest_settings
from fgssl.training.model import KEYS_KEPT, PretrainModel, build_model
from fgssl.training.plan import Plan
from fgssl.training.results import RunResult, finish_run, finished_result, retrieval_rows, save_view_pairs
from fgssl.training.setup import Setup, set_up

Build = Callable[[Plan], PretrainModel]


def pretrain(
    plan: Plan,
    output: Path,
    *,
    reporter: Reporter | None = None,
    resume: bool = False,
    allow_changes: bool = False,
    build: Build = build_model,
) -> RunResult:
    """Train an encoder.

    Args:
        plan: From `make_plan`.
        output: The run folder, already checked by the caller.
        reporter: Told how it goes.
        resume: Continue from the state saved in `output`.
        allow_changes: Continue even with other images than the state was saved with.
        build: Makes the trained module; another one may fit more beside the objective.

    Raises:
        FgsslError: bad data; TrainingFault: the loss is no longer finite.
        Interrupted: a signal asked for a stop; the state is saved.
    """
    rank, world = (int(os.environ.get(name, alone)) for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1")))
    limit = interval(plan.config.training.stall_limit)
    detector = HangDetector(rank, world, (limit and limit.seconds) or 0.0, reporter or Reporter())
    with detector.running(), _named_memory(plan):
        trainer = build_trainer(plan, output, HeartbeatReporter(detector), build=build, detector=detector)
        progress = _begin(trainer, resume=resume, allow_changes=allow_changes)
        with listen_for_stop() as stop:
            progress = trainer.train(progress, stop)
        return _finish(trainer, progress)


@contextlib.contextmanager
def _named_memory(plan: Plan) -> Iterator[None]:
    """Memory that runs out anywhere in a run is a matter of its settings: say which."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error) or "none is left").splitlines()[0]
        smaller = ", ".join(filter(None, (largest_settings(plan.needs, plan.device), "--batch-size, --image-size")))
        raise FgsslError(
            f"the memory of {plan.device} is exhausted ({reason})",
            f"use a smaller {smaller} or --backbone, or fewer --workers",
        ) from error


def build_trainer(
    plan: Plan, output: Path, reporter: Reporter, *, build: Build = build_model, detector: HangDetector | None = None
) -> Trainer:
    """Everything a run steps with, on its device."""
    return Trainer(set_up(plan, output, reporter, detector or HangDetector(0, 1, 0.0, reporter), build))


def _begin(trainer: Trainer, *, resume: bool, allow_changes: bool) -> Progress:
    """Where the run starts from: its saved state, a finished run's encoder, or the untrained one, evaluated first."""
    setup = trainer.setup
    plan, output, training = setup.plan, setup.output, setup.plan.config.training
    saved = load_state(output) if resume else None
    finished = finished_result(output) if resume and saved is None else None
    if saved is not None:
        progress = trainer.restore(saved, allow_changes=allow_changes)
    elif finished is not None:
        torch.manual_seed(training.seed)
        progress = trainer.go_on(load_encoder(str(output)), finished.summary)
    else:
        if resume:
            _start_over(output, setup.reporter)
        evaluated = setup.is_main and training.evaluate
        rows = retrieval_rows(plan, setup.model.encoder, "init", setup.reporter) if evaluated else []
        progress = Progress(0, 0.0, rows, {})
        # again: evaluation and building a cache draw random numbers too, and whether they ran must not matter
        torch.manual_seed(training.seed)
    if setup.is_main:
        write_config(output, plan.config, plan.origins)
        truncate_metrics(output, progress.step)
        if progress.step == 0:
            save_view_pairs(output, plan, setup.views)
    return progress


def _start_over(output: Path, reporter: Reporter) -> None:
    """Resume without a saved state: a run stopped early begins again, a finished one is not thrown away."""
    if (output / ENCODER_FILE).exists():
        raise FgsslError(
            f"'{output}' is finished and its saved states are gone",
            f"train on from its encoder by --init {output} and another --output, or anew with --overwrite",
        )
    reporter.note("no state was saved yet: starting from the beginning")


def _whiten(setup: Setup) -> None:
    reporter, seed = setup.reporter, setup.plan.config.training.seed
    show = functools.partial(reporter.progress, "whitening")
    if not whiten(setup.model.encoder, setup.views.pixels, seed=seed, progress=show):
        reporter.warn("the features are not whitened: fewer than two training pictures can be read")


def _finish(trainer: Trainer, progress: Progress) -> RunResult:
    setup, model = trainer.setup, trainer.model
    result = RunResult(setup.output, {}, [])
    if setup.is_main:
        if setup.plan.config.backbone.whitening:
            _whiten(setup)
        model.encoder.keys = model.objective.sample_keys(KEYS_KEPT)
        save_encoder(setup.output / ENCODER_FILE, model.encoder)
        result = finish_run(setup, progress._asdict(), trainer.log.last_means)
    setup.detector.at("writing the results")
    setup.accelerator.wait_for_everyone()
    return result
