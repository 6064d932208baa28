"""The command line: parse, hand to the runner, show the result; the only place that exits.

    d2nas run quickstart

Everything heavy is imported inside the commands, so that ``--help`` answers at once.
"""

import traceback
from typing import TYPE_CHECKING, Annotated

import typer

from d2nas.errors import D2NasError, StorageError

from .commands import deploy as cli_deploy
from .commands.bench import bench
from .commands.doctor import doctor_command
from .commands.gc import gc_command
from .commands.ls import ls_command
from .commands.options import (
    DEFAULT_EXPORTED,
    DEFAULT_STORE,
    DataRootOption,
    ExportedOption,
    FreshOption,
    GateBatchOption,
    GenotypeOption,
    ImageSizeOption,
    JsonOption,
    MaxP99Option,
    NameOption,
    PresetArgument,
    ProcessesOption,
    SetOption,
    StoreOption,
    TargetArgument,
    reuse_of,
    with_options,
)
from .commands.serve import serve_command
from .commands.show import show_command
from .foreign_errors import exit_code_of, explained
from .streams import guarded_streams, lost_output

if TYPE_CHECKING:
    from .console import Console

app = typer.Typer(
    name="d2nas",
    help="Neural architecture search that ends in a deployed model: images in, validated ONNX out.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130
_debug = False
_arguments: list[str] = []


def run(arguments: list[str], application: typer.Typer = app) -> int:
    """Run the command line, or another ``application``'s, and return its exit code.

    Output that cannot be written raises nowhere: it is code 7 where the command was asked for it,
    and nothing where it is talk.
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
    global _arguments, _debug
    _arguments, _debug = arguments, False
    command = typer.main.get_command(application)
    try:
        # Not ``main``: it takes every EOFError for an interrupt, and leaves at any broken pipe.
        with command.make_context(application.info.name, [*arguments]) as context:
            result = command.invoke(context)
        return result if isinstance(result, int) else 0
    except typer.Exit as exit:
        return int(exit.exit_code)
    except D2NasError as error:
        if _debug:
            traceback.print_exc()
        _console().error(str(error), error.hint, error.details)
        return exit_code_of(error)
    except (typer.Abort, KeyboardInterrupt):
        _console().error("stopped", None)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the boundary: what arrives here is a usage error or a bug
        return _usage_or_bug(error)


def _usage_or_bug(error: Exception) -> int:
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        context = getattr(error, "ctx", None)
        command = "d2nas" if context is None else context.command_path
        _console().error(format_message(), f"{command} --help shows how")
        return 2
    if _debug:
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
) -> None:
    global _debug
    _debug = debug
    if version:
        from d2nas._version import __version__

        typer.echo(f"d2nas {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("run")
def run_command(
    preset: PresetArgument,
    name: NameOption = None,
    max_p99_ms: MaxP99Option = None,
    batch: GateBatchOption = None,
    settings: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    exported: ExportedOption = DEFAULT_EXPORTED,
    data_root: DataRootOption = None,
    image_size: ImageSizeOption = None,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would run, and stop.")] = False,
) -> None:
    """Search, derive, retrain, export and validate; continues where it was interrupted."""
    from .commands.configuration import configure, tell_unread
    from .commands.run import run_all, show_plan
    from .presets import run_name

    short = {
        "data.image_size": image_size,
        "validate.max_p99_ms": max_p99_ms,
        "validate.gate_batch": batch,
    }
    settings = with_options(settings, short)
    config = configure(preset, settings, data_root)
    unread = tell_unread(config, settings, data_root, preset)
    run_title = run_name(preset) if name is None else name
    if plan:
        show_plan(run_title, config, store, as_json=as_json, unread=unread)
    else:
        run_all(run_title, config, store, exported, reuse=reuse_of(fresh), as_json=as_json)


@app.command("search")
def search_command(
    preset: PresetArgument,
    method: Annotated[
        str | None, typer.Option("--method", help="d2nas, darts, gdas, ... (search.method).")
    ] = None,
    name: NameOption = None,
    settings: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    data_root: DataRootOption = None,
    image_size: ImageSizeOption = None,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
    nproc: ProcessesOption = 1,
) -> int:
    """Search an architecture: writes architecture logits."""
    if nproc > 1:
        return _launch(nproc)
    from .commands.configuration import configure, tell_unread
    from .commands.run import run_search
    from .presets import run_name

    short = {"data.image_size": image_size, "search.method": method}
    settings = with_options(settings, short)
    config = configure(preset, settings, data_root)
    tell_unread(config, settings, data_root, preset)
    run_search(
        run_name(preset) if name is None else name,
        config,
        store,
        reuse=reuse_of(fresh),
        as_json=as_json,
    )
    return 0


@app.command("derive")
def derive_command(
    target: TargetArgument,
    settings: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
) -> None:
    """Derive the genotype from a search's logits."""
    from .commands.run import run_stage_on, show_stage

    result = run_stage_on("derive", target, settings, store, reuse=reuse_of(fresh))
    show_stage(result, "derive", as_json=as_json)


@app.command("retrain")
def retrain_command(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|PRESET]",
            help="A run or RUN/derive@vN; with --genotype a preset (default: cifar10).",
        ),
    ] = None,
    genotype: GenotypeOption = None,
    name: NameOption = None,
    settings: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    data_root: DataRootOption = None,
    image_size: ImageSizeOption = None,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
    nproc: ProcessesOption = 1,
) -> int:
    """Train the derived network from scratch, or with --genotype a known one without a search."""
    if nproc > 1:
        return _launch(nproc)
    from .commands.run import retrain

    retrain(
        target,
        genotype,
        name,
        with_options(settings, {"data.image_size": image_size}),
        store,
        reuse=reuse_of(fresh),
        data_root=data_root,
        as_json=as_json,
    )
    return 0


cli_deploy.add_to(app)


@app.command("study")
def study_command(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="table-1, -2, -3, -5, or a TOML file's path.")
    ],
    store: StoreOption = DEFAULT_STORE,
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show the trials, and stop.")] = False,
) -> int:
    """Compare methods, spaces and seeds, with random cells beside; continues trial by trial."""
    from .commands.run import plan_study, run_study

    if plan:
        plan_study(study, store, data_root, as_json=as_json)
        return 0
    return run_study(study, store, data_root, reuse=reuse_of(fresh), as_json=as_json)


app.command("ls")(ls_command)
app.command("show")(show_command)
app.command("gc")(gc_command)
app.command("doctor")(doctor_command)
app.command("serve")(serve_command)
# Declared last in --help, as what a user needs least.
app.add_typer(bench)


def _launch(count: int) -> int:
    from .running.launch import launch, without_nproc

    return launch(count, without_nproc(_arguments))


def _console() -> "Console":
    from .console import Console

    return Console()
