"""The command line: parse, hand to the runner, show the result; the only place that exits.

    d2nas run quickstart

Everything heavy is imported inside the commands, so that ``--help`` answers at once.
"""

import os
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from d2nas.errors import INTERRUPTED, D2NasError, StorageError

from . import streams
from .commands.baseline import baseline_command
from .commands.bench import bench
from .commands.config import config
from .commands.derive import derive_command
from .commands.doctor import doctor_command
from .commands.evaluate import evaluate_command
from .commands.export import export_command
from .commands.gc import gc_command
from .commands.latency import latency
from .commands.ls import ls_command
from .commands.predict import predict_command
from .commands.presets import presets_command
from .commands.push import push_command
from .commands.retrain import retrain_command
from .commands.run import run_command
from .commands.search import search_command
from .commands.serve import serve_command
from .commands.show import show_command
from .commands.study import study_command
from .commands.validate import validate_command
from .commands.verify import verify_command
from .foreign_errors import exit_code_of, explained
from .streams import guarded_streams, lost_output

if TYPE_CHECKING:
    from .console import Console

app = typer.Typer(
    name="d2nas",
    help="Neural architecture search that ends in a deployed model: images in, validated ONNX out.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


COMPLETION_VARIABLE = "_D2NAS_COMPLETE"
"""Set by the scripts of ``--install-completion``."""


def run(arguments: list[str], application: typer.Typer = app) -> int:
    """Run the command line, or another ``application``'s, and return its exit code.

    Output that cannot be written raises nowhere: it is code 7 where the command was asked for it,
    and nothing where it is a message.
    """
    with guarded_streams():
        code = _run(arguments, application)
        lost = lost_output()
        if code == 0 and lost is not None:
            _console().error(
                f"cannot write to stdout: {lost.strerror or lost}",
                "what the command has made is kept; the same command shows it again",
            )
            return StorageError.exit_code
        return code


def _run(arguments: list[str], application: typer.Typer) -> int:
    is_debugging = False
    command = typer.main.get_command(application)
    if COMPLETION_VARIABLE in os.environ:  # the shell asks for what may follow
        command.main([*arguments], prog_name="d2nas")
    try:
        # Not ``main``: it takes every EOFError for an interrupt, and leaves at any broken pipe.
        # ``obj`` is for a command that starts itself again, in several processes.
        with command.make_context(application.info.name, [*arguments], obj=arguments) as context:
            is_debugging = context.params.get("debug", False)
            result = command.invoke(context)
        return result if isinstance(result, int) else 0
    except typer.Exit as exit:
        return int(exit.exit_code)
    except D2NasError as error:
        if is_debugging:
            traceback.print_exc()
        _console().error(str(error), error.hint, error.details)
        return exit_code_of(error)
    except (typer.Abort, KeyboardInterrupt):
        _console().error("stopped", None)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the boundary: what arrives here is a usage error or a bug
        return _usage_or_bug(error, is_debugging=is_debugging)


def _usage_or_bug(error: Exception, *, is_debugging: bool) -> int:
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        context = getattr(error, "ctx", None)
        command = "d2nas" if context is None else context.command_path
        _console().error(format_message(), f"{command} --help shows how")
        return 2
    if is_debugging:
        traceback.print_exc()
    told = explained(error)
    if told is not None:
        _console().error(str(told), told.hint)
        return told.exit_code
    reason = str(error).strip().splitlines() or [""]
    _console().error(
        f"this is a bug in d2nas: {type(error).__name__}: {reason[0][:300]}",
        "d2nas --debug COMMAND shows where; please report it",
    )
    return 1


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.")
    ] = False,
) -> None:
    streams.is_quiet = quiet
    if version:
        from d2nas._version import __version__

        typer.echo(f"d2nas {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


COMMANDS: dict[str, Callable[..., int | None]] = {
    "run": run_command,
    "baseline": baseline_command,
    "search": search_command,
    "derive": derive_command,
    "retrain": retrain_command,
    "export": export_command,
    "validate": validate_command,
    "verify": verify_command,
    "predict": predict_command,
    "evaluate": evaluate_command,
    "push": push_command,
    "study": study_command,
    "presets": presets_command,
    "ls": ls_command,
    "show": show_command,
    "gc": gc_command,
    "doctor": doctor_command,
    "serve": serve_command,
}
"""In the order of ``--help``."""
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(config)
app.add_typer(latency)
app.add_typer(bench)  # groups, which --help puts last


def _console() -> "Console":
    from .console import Console

    return Console()
