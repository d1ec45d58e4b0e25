"""The command line: verbs parse, call one function, print. Only this package prints.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 a problem said in one line, 2 wrong usage,
130, 143, 138 and 129 stopped by Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from fgssl import __version__
from fgssl.cli.classify import fit, predict
from fgssl.cli.compare import compare
from fgssl.cli.console import print_error
from fgssl.cli.experiments import reproduce, runs, sweep
from fgssl.cli.explore import explore
from fgssl.cli.features import embed, probe
from fgssl.cli.handover import export, push
from fgssl.cli.options import DataCommand, Plugins, QueryCommand, takes
from fgssl.cli.pretrain import pretrain
from fgssl.cli.retrieve import retrieve
from fgssl.cli.survey import backbones, cache, check
from fgssl.cli.visualize import visualize
from fgssl.errors import FgsslError, SettingError
from fgssl.registry import load_plugin
from fgssl.runtime.processes import SPOKEN, heeded_signals, may_speak
from fgssl.runtime.text import shown

# how torch's collectives say that another process is gone
_LOST = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe", "c10d")


def _shielded(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with --plugin, without the exceptions that Typer answers by itself, an EOFError with "Aborted!"."""

    @functools.wraps(verb)
    def run(*args: Any, plugin: list[Path] | None, **options: Any) -> None:
        try:
            for file in plugin or ():
                load_plugin(file)
            verb(*args, **options)
        except KeyboardInterrupt:
            print_error("interrupted")
            raise typer.Exit(130) from None
        except EOFError as error:
            raise RuntimeError("DataLoader worker closed its end of the pipe") from error

    return takes({"plugin": Plugins})(run)


app = typer.Typer(
    name="fgssl",
    epilog="Start with: fgssl pretrain (the built-in demo, offline, minutes). Manual: README.md",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look after data sets.", no_args_is_help=True, rich_markup_mode=None)
# with options that take several words
several: dict[Callable[..., None], Any] = {retrieve: QueryCommand, reproduce: DataCommand}
verbs = (pretrain, probe, retrieve, compare, embed, explore, visualize, push, export, runs, sweep, reproduce, backbones)
for verb in verbs:
    app.command(cls=several.get(verb))(_shielded(verb))
classify_app = typer.Typer(help="Name classes by a few labelled pictures.", no_args_is_help=True, rich_markup_mode=None)
for group, name, group_verbs in ((data_app, "data", (check, cache)), (classify_app, "classify", (fit, predict))):
    for verb in group_verbs:
        group.command()(_shielded(verb))
    app.add_typer(group, name=name)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fgssl {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    """Learn representations of fine-grained images without labels, and see what they look at."""


class LastingStream:
    """A text stream that never stops the work: closed, full, without a reader, or unable to encode a character.

    What comes after the first failed write is dropped. `failure` is why; a reader that has gone is none.
    """

    def __init__(self, stream: Any) -> None:
        # a process may be started with a closed stream, which Python shows as None
        self._stream: Any = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        self.failure: OSError | None = None
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, act: Any, *arguments: str) -> None:
        try:
            act(*arguments)
        except (OSError, ValueError) as error:  # ValueError: closed by someone in this process
            if isinstance(error, OSError) and error.errno != errno.EPIPE:
                self.failure = error
            try:  # what is still buffered must not fail once more when Python ends
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
            except (OSError, ValueError):
                self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def main() -> None:
    """Entry point: every known problem is one line on stderr."""
    if not os.environ.get("FGSSL_DEBUG"):
        warnings.simplefilter("ignore")  # other libraries' notes to developers are not for users
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # nor stack traces of connections of a run that ends
    if sys.platform == "darwin":  # what MPS lacks in some release of torch is computed on the CPU
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    if threading.current_thread() is threading.main_thread():
        for number in set(heeded_signals()) - {signal.SIGINT}:
            # a stop outside the training steps, which catch signals themselves: temporary files go, as by Ctrl-C
            signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    # no file of ours may get the number of a closed stream, where libraries write their warnings
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(number)
    results = LastingStream(sys.stdout)
    sys.stdout, sys.stderr = results, LastingStream(sys.stderr)
    code = answered()
    results.flush()
    if results.failure is not None:
        print_error(f"the results could not be written: {results.failure.strerror}", "look at where stdout goes")
        code = code or 1
    sys.exit(code)


def answered(words: list[str] | None = None) -> int:
    """The exit code of a command line, by default this process's own, whose error has been told in one line."""
    try:
        return app(words, standalone_mode=False) or 0
    except Exception as error:
        return _told(error)


def _told(error: Any) -> int:
    """The exit code of an error, told in one line; a bug is shown whole when debugging."""
    if isinstance(error, FgsslError):
        if may_speak():
            print_error(error.problem, error.remedy)
        return 2 if isinstance(error, SettingError) else 1
    if hasattr(error, "format_message"):  # wrong usage: as Typer tells it, with what was typed made safe to show
        if not error.message.startswith("Usage:"):  # else it is the help of a group without a verb
            error.message = shown(error.message)
        error.show()
        return int(error.exit_code)
    if hasattr(error, "signal_number"):
        print_error(str(error))
        return 128 + int(error.signal_number)
    if os.environ.get("FGSSL_DEBUG"):
        raise error
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and any(word in str(error) for word in _LOST):
        if SPOKEN not in os.environ:  # else the launching process knows which one, and says it
            print_error(f"lost another process of the run: {str(error).splitlines()[0]}", "go on with --resume")
    elif may_speak():
        print_error(*_misfortune(error))
    return 1


def _misfortune(error: Exception) -> tuple[str, str]:
    from fgssl.runtime.machine import is_out_of_memory

    reason = (str(error) or type(error).__name__).strip().splitlines()[0]
    if is_out_of_memory(error):
        return "out of memory", "use a smaller --batch-size or --image-size"
    if reason.startswith("DataLoader worker"):
        return "a loader process died", "mostly for lack of memory: use fewer --workers, or --workers 0"
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return reason, "free the disk, or write elsewhere"
    if "No usable temporary directory" in reason:
        return "no folder for temporary files can be written", "set TMPDIR to one"
    if number in (errno.EMFILE, errno.ENFILE):
        return reason, "allow more open files (ulimit -n), or use fewer --workers"
    if isinstance(error, OSError) and error.filename is not None:
        return reason, "look at that file, its folder and their permissions"
    if isinstance(error, ImportError):
        return f"the installation is damaged: {reason}", "install fgssl anew: pip install --force-reinstall fgssl"
    return f"{type(error).__name__}: {reason}", "set FGSSL_DEBUG=1 to see where, and please report it"
