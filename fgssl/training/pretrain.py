"""A pretraining run from its plan to its results, to be read top to bottom; the steps are in `fgssl.training.loop`.

plan -> pixels decoded once -> model, optimiser -> steps (views, loss, GradCAM, fit) -> encoder, table, overview
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import torch

from fgssl.config.values import interval
from fgssl.errors import FgsslError
from fgssl.runs.encoder_file import load_encoder
from fgssl.runs.folder import ENCODER_FILE, truncate_metrics, write_config
from fgssl.runs.resume_state import load_state
from fgssl.runtime.processes import listen_for_stop
from fgssl.runtime.reporting import HangDetector, Reporter
from fgssl.training.choice import TRAINED, candidate_path, choose_encoder, keep_start
from fgssl.training.diagnosis import memory_named
from fgssl.training.loop import Progress, Trainer
from fgssl.training.model import Build, build_model
from fgssl.training.plan import Plan
from fgssl.training.results import RunResult, finish_run, finished_result, retrieval_rows, save_view_pairs
from fgssl.training.setup import set_up


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
        FgsslError: bad data; TrainingFault: the loss is no longer finite; Interrupted: stopped, the state is saved.
    """
    rank, world = (int(os.environ.get(name, alone)) for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1")))
    limit = interval(plan.config.training.stall_limit)
    detector = HangDetector(rank, world, (limit and limit.seconds) or 0.0, reporter or Reporter())
    with detector.running(), memory_named(plan.needs, plan.device):
        trainer = build_trainer(plan, output, detector, build=build, detector=detector)
        with closing(trainer.log.trackers):
            progress = _begin(trainer, resume=resume, allow_changes=allow_changes)
            with listen_for_stop() as stop:
                progress = trainer.train(progress, stop)
            return _finish(trainer, progress)


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
        trained = candidate_path(output, TRAINED)
        progress = trainer.go_on(load_encoder(str(trained if trained.is_file() else output)), finished.summary)
    else:
        if resume:  # a run stopped early begins again, a finished one is not thrown away
            if (output / ENCODER_FILE).exists():
                remedy = f"train on from its encoder by --init {output} and another --output, or anew with --overwrite"
                raise FgsslError(f"'{output}' is finished and its saved states are gone", remedy)
            setup.reporter.note("no state was saved yet: starting from the beginning")
        evaluated = setup.is_main and training.evaluate
        rows = retrieval_rows(plan, setup.model.encoder, "init", setup.reporter) if evaluated else []
        progress = Progress(0, 0.0, rows, {})
        if setup.is_main:
            trainer.log.signals.begin()
        # again: evaluation and building a cache draw random numbers too, and whether they ran must not matter
        torch.manual_seed(training.seed)
    if setup.is_main:
        write_config(output, plan.config, plan.origins)
        truncate_metrics(output, progress.step)
        if progress.step == 0:
            keep_start(setup)
            save_view_pairs(output, plan, setup.views)
        trainer.log.trackers.begin(progress.step)
        if progress.step == 0:
            trainer.log.trackers.show("views", 0)
    return progress


def _finish(trainer: Trainer, progress: Progress) -> RunResult:
    setup = trainer.setup
    result = RunResult(setup.output, {}, [])
    if setup.is_main:
        result = finish_run(setup, choose_encoder(setup), progress._asdict(), trainer.log.last_means)
        for picture in ("overview", "curve"):
            trainer.log.trackers.show(picture, progress.step)
    setup.detector.at("writing the results")
    setup.accelerator.wait_for_everyone()
    return result
