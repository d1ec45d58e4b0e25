"""What is left of a run that was stopped, or that is to go on."""

from __future__ import annotations

from pathlib import Path

from fgssl.config.resolve import Resolved
from fgssl.runs.resume_state import has_state
from fgssl.training.plan import Plan, make_plan
from fgssl.training.results import RunResult, finished_result


def left_of(run: Path, resolved: Resolved, *, world: int = 1) -> Plan | RunResult:
    """The plan that goes on with a run, or its result where nothing is left to do."""
    finished = finished_result(run)
    if finished is not None and finished.total_steps(resolved.config.training) <= finished.summary["steps"]:
        return finished
    saved = finished is not None or has_state(run)
    needed = not saved or resolved.config.objective.anchor > 0  # an anchored run goes back to its start
    return make_plan(resolved, world=world, load_weights=needed)
