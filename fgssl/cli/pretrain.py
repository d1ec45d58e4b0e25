"""fgssl pretrain"""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgssl.cli.console import PlainReporter, make_reporter, out, print_error, print_json, print_table, process_rank
from fgssl.cli.early import check_cache, check_data
from fgssl.errors import FgsslError
from fgssl.runtime.launch import launch

if TYPE_CHECKING:
    from fgssl.config.resolve import Resolved
    from fgssl.training.plan import Plan
    from fgssl.training.results import RunResult

RUNS = Path("runs")


def pretrain(
    data: Annotated[
        str | None,
        typer.Option(help="Preset (cub, cars, ...), hub id, folder, text file of paths, parquet, or demo. [demo]"),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Any timm model name. [resnet50; demo: test_resnet]")] = None,
    objective: Annotated[
        str | None, typer.Option(help="Self-supervised objective: mocov2, byol, simsiam or simclr. [mocov2]")
    ] = None,
    rationale: Annotated[
        bool | None, typer.Option("--rationale/--no-rationale", help="Fit the common rationale. [on]")
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option("--pretrained/--no-pretrained", help="Start from timm's weights. [on; demo: off]"),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|RUN|NAME",
            help="Start from a run, an encoder or weights file, a timm folder, name or tag, hf-hub:OWNER/MODEL.",
        ),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(
            metavar="none|backbone|N",
            help="Keep the weights of the backbone (only the heads train, on cached features) or of its first N layer "
            "groups. [none]",
        ),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML file of settings; flags win over it.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. rationale.projections=16. Repeatable."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images. [100; demo: fewer]")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many steps.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step over all processes. [128, less for few images]")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate. [by optimiser and init]")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the input in pixels. [the model's own]")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run folder. [runs/DATA-BACKBONE]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random. [0]")] = None,
    workers: Annotated[int | None, typer.Option(help="Loader processes. [by machine]")] = None,
    mixed_precision: Annotated[
        str | None, typer.Option(help="auto, no, bf16 or fp16. [auto]", metavar="auto|no|bf16|fp16")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. [best at hand]")] = None,
    save_every: Annotated[
        str | None, typer.Option(metavar="N|TIME", help="Save the state every 200 steps, 90s, 10m or 2h. [10m]")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Work through a batch in this many parts, to save memory. [1]")
    ] = None,
    checkpoint_gradients: Annotated[
        bool | None,
        typer.Option("--checkpoint-gradients", help="Compute activations twice instead of keeping them."),
    ] = None,
    compile_backbone: Annotated[
        bool | None, typer.Option("--compile", help="torch.compile the backbone: pays in long runs on a GPU.")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="Decoded pictures: auto, off, or a folder.", metavar="auto|off|PATH")
    ] = None,
    stop_on_collapse: Annotated[
        bool | None, typer.Option("--stop-on-collapse", help="Stop when the features collapse, not only warn.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes on this machine, one a GPU; --batch-size is their total. [1]", min=1)
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run folder, with its own settings.")] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume with other settings, although that is another run.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the output folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and stop.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only warnings and results.")] = False,
) -> None:
    """Train an encoder without labels. Without options: the built-in demo, offline."""
    flags = {
        "data.source": data,
        "backbone.name": backbone,
        "objective.name": objective,
        "rationale.enabled": rationale,
        "backbone.pretrained": pretrained,
        "backbone.init": init,
        "backbone.freeze": freeze,
        "training.epochs": epochs,
        "training.max_steps": max_steps,
        "training.batch_size": batch_size,
        "optimizer.lr": lr,
        "backbone.image_size": image_size,
        "training.seed": seed,
        "training.workers": workers,
        "training.mixed_precision": mixed_precision,
        "training.device": device,
        "training.save_every": save_every,
        "training.accumulate": accumulate,
        "training.checkpoint_gradients": checkpoint_gradients,
        "training.compile": compile_backbone,
        "training.cache": cache,
        "training.stop_on_collapse": stop_on_collapse,
    }
    if resume is not None and (output or overwrite):
        raise typer.BadParameter("--resume names the run folder itself: leave out --output and --overwrite")
    if allow_changes and resume is None:
        raise typer.BadParameter("--allow-changes goes with --resume")

    from fgssl.config.resolve import load_config
    from fgssl.runs.folder import check_free

    changes: list[str] = []
    if resume is None:
        resolved = load_config(recipe, flags=flags, sets=sets or ())
    else:
        resolved, changes = _resumed(resume, load_config(recipe, flags=flags, sets=sets or ()), allow=allow_changes)
    check_data(resolved.config.data.source)
    check_cache(cache)
    if dry_run:
        _dry_run(resolved, as_json=json_output, processes=processes or 1)
        return
    if output is not None and not overwrite and process_rank() == 0:
        check_free(output)
    if processes is not None and processes > 1 and "RANK" not in os.environ:
        _launch(processes)
    reporter = make_reporter(quiet=quiet)
    if changes:
        reporter.note(f"changed for the rest of the run: {', '.join(changes)}")
    try:
        target = resume or output
        result = _run(resolved, target, reporter, resume=resume is not None, overwrite=overwrite, allow=allow_changes)
    finally:
        reporter.close()
    if process_rank() == 0:
        _print_result(result, as_json=json_output)


def default_output(source: str, backbone: str) -> Path:
    """runs/DATA-BACKBONE, numbered where that is taken."""
    name = "".join(c if c.isalnum() or c in "._" else "-" for c in f"{Path(source).name}-{backbone}").strip("-.")
    path, number = RUNS / name, 2
    while path.exists() and (path.is_file() or any(path.iterdir())):
        path, number = RUNS / f"{name}-{number}", number + 1
    return path


def _launch(count: int) -> None:
    """This very command in several processes; ends with their exit code."""
    end = launch([sys.executable, "-m", "fgssl", *sys.argv[1:]], count)
    if end.problem:
        print_error(end.problem, "the saved state is whole: go on with --resume")
    raise typer.Exit(end.code)


def _resumed(run: Path, asked: Resolved, *, allow: bool) -> tuple[Resolved, list[str]]:
    """The settings of a run to continue, and in words what is to change in them."""
    from fgssl.config.resolve import load_config
    from fgssl.config.resumed import as_begun, changed, with_changes

    config = run / "config.yaml"
    if not config.is_file():
        raise FgsslError(f"'{run}' is not a run folder (no config.yaml)", "give the folder of an unfinished run")
    saved = as_begun(load_config(config))
    changes = changed(saved, asked)
    return with_changes(saved, changes, allow=allow, run=str(run)), [str(change) for change in changes]


def _run(
    resolved: Resolved, folder: Path | None, reporter: PlainReporter, *, resume: bool, overwrite: bool, allow: bool
) -> RunResult:
    """The run, behind a lock on its folder."""
    from fgssl.runs.folder import CONFIG_FILE, METRICS_FILE, prepare_output, write_config
    from fgssl.runs.lock import hold_run
    from fgssl.runs.resume_state import has_state
    from fgssl.training.plan import make_plan
    from fgssl.training.results import finished_result

    finished = finished_result(folder) if resume and folder is not None else None
    if finished is not None:
        reporter.note(f"{folder} is finished: nothing is left to do")
        return finished
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), process_rank()
    plan = make_plan(resolved, world=world, load_weights=not (resume and folder is not None and has_state(folder)))
    target = folder or default_output(resolved.config.data.source, plan.config.backbone.name)
    for line in plan.warnings():
        reporter.warn(line)
    with hold_run(target, note=reporter.note) if rank == 0 else nullcontext():
        if rank == 0 and not resume:
            prepare_output(target, overwrite=overwrite)
            write_config(
                target, plan.config, plan.origins
            )  # at once: --resume needs it, whenever this process is killed
        try:
            return _train(plan, target, reporter, resume=resume, allow=allow)
        except FgsslError:
            if rank == 0 and not (target / METRICS_FILE).exists():  # before the first step: nothing worth keeping
                (target / CONFIG_FILE).unlink(missing_ok=True)
            raise


def _train(plan: Plan, target: Path, reporter: PlainReporter, *, resume: bool, allow: bool) -> RunResult:
    """The run itself; a stop says how to go on."""
    from fgssl.runs.resume_state import has_state
    from fgssl.runtime.stopping import Interrupted
    from fgssl.training.plan import describe
    from fgssl.training.pretrain import pretrain as train

    rank = process_rank()
    reporter.planned(describe(plan), plan.facts())
    reporter.note(f"run folder: {target}")
    try:
        return train(plan, target, reporter=reporter, resume=resume, allow_changes=allow)
    except Interrupted as stop:
        reporter.close()
        if rank == 0:
            reporter.warn(f"{stop}; go on with: {_resume_command(target)}")
        sys.exit(128 + stop.signal_number)
    except (KeyboardInterrupt, SystemExit):  # before or after the steps
        reporter.close()
        if rank == 0 and has_state(target):
            reporter.warn(f"stopped; go on with: {_resume_command(target)}")
        raise


def _resume_command(target: Path) -> str:
    return f"fgssl pretrain --resume {shlex.quote(str(target))}"


def _dry_run(resolved: Any, *, as_json: bool, processes: int) -> None:
    from fgssl.runtime.offline import WeightsOffline
    from fgssl.training.plan import describe, make_plan

    reporter, missing = make_reporter(quiet=False), []
    try:
        plan = make_plan(resolved, world=processes)
    except WeightsOffline as error:  # no value of the plan depends on the weights' numbers
        plan = make_plan(resolved, world=processes, load_weights=False)
        missing = [f"{error.problem}: the run would not start; {error.remedy}"]
    finally:
        reporter.close()
    for line in [*missing, *plan.warnings()]:
        reporter.warn(line)
    description, facts = describe(plan), plan.facts()
    if as_json:
        print_json({"settings": description, "facts": facts})
        return
    rows = [(key, _shown(item["value"]), item["origin"]) for key, item in description.items()]
    print_table(["setting", "value", "from"], rows, text_columns=3)
    print_table(["fact", "value"], [(k, _shown(v)) for k, v in facts.items()], text_columns=2)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {len(item) if isinstance(item, list) else item}" for key, item in value.items())
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _print_result(result: Any, *, as_json: bool) -> None:
    folder: Path = result.folder
    if as_json:
        print_json({"run": str(folder), **result.summary})
        return
    if result.rows:
        columns = ("encoder", "pool", "rank1", "rank5", "mAP")
        rows = [[row[c] for c in columns] for row in result.rows]
        queries = result.rows[0]["queries"]
        print_table(columns, rows, title=f"Leave-one-out retrieval, {queries} test images (percent)", text_columns=2)
    faults = result.summary.get("unreadable", [])
    if faults:
        out.print(f"{len(faults)} unreadable, replaced by others or left out:", markup=False, soft_wrap=True)
    for reason in faults:
        out.print(f"  {reason}", markup=False, soft_wrap=True)
    for label, name in (("encoder", "encoder.safetensors"), ("overview", "overview.png"), ("views", "views.png")):
        if (folder / name).exists():
            out.print(f"{label + ':':9} {folder / name}", markup=False, soft_wrap=True)
