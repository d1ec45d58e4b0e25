"""fgssl pretrain"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, get_args

from typer import BadParameter, Option

from fgssl.cli import completion, options
from fgssl.cli.console import PlainReporter, print_json, print_table, process_rank, reporting, say
from fgssl.config.defaults import DEMO_PROFILE
from fgssl.config.resolve import Resolved, load_config
from fgssl.config.schema import PretrainConfig
from fgssl.config.values import type_hints
from fgssl.errors import FgsslError
from fgssl.runs import folder as run_folder
from fgssl.runtime.files import derived_name
from fgssl.runtime.processes import Interrupted

if TYPE_CHECKING:
    from fgssl.training.results import RunResult

RUNS = Path("runs")
_SETS = "Any setting, e.g. rationale.projections=16. Repeatable."

_KEYS = """data.source backbone.name objective.name objective.teacher objective.teacher_backbone rationale.enabled
backbone.pretrained backbone.init backbone.freeze
training.epochs training.max_steps training.batch_size optimizer.lr backbone.image_size training.seed training.workers
training.mixed_precision training.device training.save_every training.accumulate training.checkpoint_gradients
training.compile training.cache training.stop_on_collapse training.threads training.track"""
# option -> the setting it sets, whose description in the schema is its help
SETTINGS = {
    section if name in ("source", "name", "enabled") else name: f"{section}.{name}"
    for section, name in (key.split(".") for key in _KEYS.split())
}
METAVARS = {"data": "SOURCE", "backbone": "NAME", "init": "FILE|RUN|NAME", "teacher": "RUN|FILE|NAME",
            "freeze": "none|backbone|N",
            "save_every": "N|TIME", "cache": "auto|off|PATH", "mixed_precision": "auto|no|bf16|fp16",
            "track": "tensorboard,wandb,..."}  # fmt: skip


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "-", True: "on", False: "off"}[value]
    if isinstance(value, dict):
        return ", ".join(f"{key} {len(item) if isinstance(item, list) else item}" for key, item in value.items())
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _option(key: str, hint: Any, metavar: str | None) -> Any:
    section, name = key.split(".")
    knob = getattr(PretrainConfig(), section).__dataclass_fields__[name]
    kind = next((part for part in (hint, *get_args(hint)) if part in (bool, int, float)), str)
    text, _, default = knob.metadata["help"].partition(" (default: ")
    defaults = [default.removesuffix(")") or ("" if knob.default is None else _shown(knob.default))]
    defaults += [f"demo: {_shown(DEMO_PROFILE[key])}"] if key in DEMO_PROFILE else []
    told = f" [{'; '.join(filter(None, defaults))}]" if any(defaults) else ""
    words = [word for part in (hint, *get_args(hint)) for word in get_args(part) if isinstance(word, str)]
    complete = completion.SETTINGS.get(key) or (completion.among(words) if words else None)
    shown = f"{text[0].upper()}{text[1:]}.{told}"
    return Annotated[kind | None, Option(metavar=metavar, help=shown, autocompletion=complete)]


_HINTS = type_hints(PretrainConfig)


@options.takes({name: _option(key, _HINTS[key], METAVARS.get(name)) for name, key in SETTINGS.items()}, before="recipe")
def pretrain(
    recipe: Annotated[Path | None, Option(help="YAML file of settings; flags win over it.")] = None,
    sets: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help=_SETS)] = None,
    output: Annotated[Path | None, Option("--output", "-o", help="Run folder. [runs/DATA-BACKBONE]")] = None,
    processes: Annotated[int | None, Option(help="Processes, one a GPU, that share --batch-size. [1]", min=1)] = None,
    resume: Annotated[Path | None, Option(help="Continue this run folder, with its own settings.")] = None,
    allow_changes: Annotated[bool, Option("--allow-changes", help="Resume with other settings: another run.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the run in the output folder.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Print the resolved plan and stop.")] = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    **settings: Any,
) -> None:
    """Train an encoder without labels. Without options: the built-in demo, offline."""
    if resume is not None and (output or overwrite):
        raise BadParameter("--resume names the run folder itself: leave out --output and --overwrite")
    if allow_changes and resume is None:
        raise BadParameter("--allow-changes goes with --resume")

    flags = {key: settings[name] for name, key in SETTINGS.items()}
    resolved, changes = load_config(recipe, flags=flags, sets=sets or ()), list[str]()
    if resume is not None:
        resolved, found = run_folder.resumed(resume, resolved, allow_changes=allow_changes)
        changes = [str(change) for change in found]
    options.check_device(resolved.config.training.device)
    options.check_paths(data=resolved.config.data.source, cache=settings["cache"], make=not dry_run)
    if dry_run:
        _dry_run(resolved, as_json=json_output, processes=processes or 1, quiet=quiet)
        return
    if output is not None and process_rank() == 0:
        run_folder.check_output(output, overwrite=overwrite)
    options.share_out(processes, remedy="the saved state is whole: go on with --resume")
    with reporting(quiet=quiet) as reporter:
        if changes:
            reporter.note(f"changed for the rest of the run: {', '.join(changes)}")
        again = resume is not None
        result = _run(resolved, resume or output, reporter, overwrite=overwrite, resume=again, allow=allow_changes)
    _print_result(result, as_json=json_output)


def _default_output(source: str, backbone: str) -> Path:
    """runs/DATA-BACKBONE, numbered where that is taken."""
    name = "".join(c if c.isalnum() or c in "._" else "-" for c in f"{Path(source).name}-{backbone}").strip("-.")
    path, number = RUNS / derived_name(name, ""), 2
    while path.exists() and (path.is_file() or any(path.iterdir())):
        path, number = RUNS / derived_name(name, f"-{number}"), number + 1
    return path


def _run(
    resolved: Resolved, folder: Path | None, reporter: PlainReporter, *, overwrite: bool, resume: bool, allow: bool
) -> RunResult:
    """The run, behind a lock on its folder; a stop says how to go on."""
    from fgssl.runs import lock, resume_state
    from fgssl.training.plan import describe, make_plan
    from fgssl.training.pretrain import pretrain as train
    from fgssl.training.results import RunResult
    from fgssl.training.resume import left_of

    first, world = process_rank() == 0, int(os.environ.get("WORLD_SIZE", "1"))
    plan = left_of(folder, resolved, world=world) if resume and folder else make_plan(resolved, world=world)
    if isinstance(plan, RunResult):
        reporter.note(f"{folder} is finished: nothing is left to do; more --epochs (by --allow-changes) go on with it")
        return plan
    target = folder or _default_output(resolved.config.data.source, plan.config.backbone.name)
    for line in plan.warnings():
        reporter.warn(line)
    with lock.hold_run(target, note=reporter.note) if first else nullcontext():
        if first and not resume:
            run_folder.prepare_output(target, overwrite=overwrite)
            # at once: --resume needs it, whenever this process is killed
            run_folder.write_config(target, plan.config, plan.origins)
        reporter.planned(describe(plan), plan.facts())
        reporter.note(f"run folder: {target}")
        try:
            return train(plan, target, reporter=reporter, resume=resume, allow_changes=allow)
        except FgsslError:
            # before the steps: nothing to keep
            if first and not resume and not (target / run_folder.METRICS_FILE).exists():
                run_folder.remove_run(target)
            raise
        except (Interrupted, KeyboardInterrupt, SystemExit) as stop:  # within the steps, before or after them
            reporter.close()
            said = str(stop) if isinstance(stop, Interrupted) else "stopped"
            if first and (isinstance(stop, Interrupted) or resume_state.has_state(target)):
                reporter.warn(f"{said}; go on with: fgssl pretrain --resume {quote(str(target))}")
            if isinstance(stop, Interrupted):
                sys.exit(128 + stop.signal_number)
            raise


def _dry_run(resolved: Any, *, as_json: bool, processes: int, quiet: bool) -> None:
    from fgssl.runtime.offline import WeightsOffline
    from fgssl.training.plan import describe, make_plan

    with reporting(quiet=quiet) as reporter:
        try:
            plan = make_plan(resolved, world=processes)
        except WeightsOffline as error:  # no value of the plan depends on the weights' numbers
            plan = make_plan(resolved, world=processes, load_weights=False)
            reporter.warn(f"{error.problem}: the run would not start; {error.remedy}")
        for line in plan.warnings():
            reporter.warn(line)
    description, facts = describe(plan), plan.facts()
    if as_json:
        print_json({"settings": description, "facts": facts})
        return
    rows = [(key, _shown(item["value"]), item["origin"]) for key, item in description.items()]
    print_table(["setting", "value", "from"], rows, text=range(3))
    print_table(["fact", "value"], [(k, _shown(v)) for k, v in facts.items()], text=(0, 1))


def _print_result(result: RunResult, *, as_json: bool) -> None:
    if as_json:
        print_json({"run": str(result.folder), **result.summary})
        return
    if result.rows:
        columns = ("encoder", "pool", "rank1", "rank5", "mAP")
        title = f"Leave-one-out retrieval, {result.rows[0]['queries']} test images (percent; init: before training)"
        print_table(columns, [[row[c] for c in columns] for row in result.rows], title=title, text=(0, 1))
    if faults := result.summary.get("unreadable"):
        say(f"{len(faults)} unreadable, replaced by others or left out:")
        for reason in faults:
            say(f"  {reason}")
    for label, name in (
        ("encoder", "encoder.safetensors"),
        ("overview", "overview.png"),
        ("views", "views.png"),
        ("curve", "curve.png"),
        ("report", "report.html"),
    ):
        if (result.folder / name).exists():
            say(f"{label + ':':9} {result.folder / name}")
