"""The one exception a user sees, as one line: what is wrong, and what to do about it."""

from __future__ import annotations


class FgsslError(Exception):
    """A problem the user can act on.

    Args:
        problem: What is wrong, naming the culprit (a file, an option, a name).
        remedy: What to do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        # newlines would break the promise of one line, and file names may contain them
        super().__init__(" ".join((f"{problem}; {remedy}" if remedy else problem).split("\n")))

    def __reduce__(self) -> tuple[type[FgsslError], tuple[str, str]]:
        return type(self), (self.problem, self.remedy)


class SettingError(FgsslError):
    """A setting that cannot be so, wherever it was given: wrong usage."""


class UnreadableImage(FgsslError):
    """One image could not be decoded; a run names it, counts it and goes on."""


class TrainingFault(FgsslError):
    """Training cannot go on (NaN loss, too many unreadable images); the last good state is kept."""
