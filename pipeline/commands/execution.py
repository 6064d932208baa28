"""Execution of stages for a command: the runner of this process, and what came out shown."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from d2nas.config import Config
from d2nas.errors import (
    BusyError,
    ConfigError,
    D2NasError,
    LostRankError,
    StoppedError,
    StorageError,
)
from d2nas.files.strict_json import parse_json
from d2nas.torchrun import is_first_rank, is_one_of_several

from ..bundle.writing import check_place, write_bundle
from ..console import Console
from ..report.baselines import baseline_row, comparison, comparison_notes, failed_row
from ..report.terminal import fact_rows, report_rows
from ..running.inputs import inputs_of
from ..running.launch import exit_without_message, say_at_once
from ..running.listing import describe
from ..running.other_ranks import runner_of
from ..running.runner import Reuse, Runner, RunResult
from ..running.signals import StopFlag, signals_handled
from ..stages import BY_NAME, STAGES, open_store, stages_of_run
from ..store import Version
from ..store.forms import damage_of
from .configuration import tell_unread

Result = TypeVar("Result")


def with_runner(
    store: Path, action: Callable[[Runner], Result], *, parallel: bool = False
) -> Result:
    """Run ``action`` with the runner of this process: in a ``parallel`` training, of its rank."""
    if is_one_of_several():
        if not parallel:
            what = "only d2nas search and d2nas retrain run in several processes"
            raise ConfigError(what, hint="start this command without torchrun")
        return _with_ranks(store, action)
    console = Console()
    try:
        with StopFlag().installed() as stop, _stops_told(stop):
            return action(Runner(open_store(store), console, stop))
    finally:
        console.close()


@contextlib.contextmanager
def _stops_told(stop: StopFlag, *, wait: bool = False) -> Iterator[None]:
    """Report a failure caused by a stop, outside of the stages, as that stop."""
    try:
        yield
    except Exception as error:
        stopped = stop.stop_for(error, wait=wait)
        if stopped is None:
            raise
        raise stopped from error


def _with_ranks(store: Path, action: Callable[[Runner], Result]) -> Result:
    from d2nas.parallel import connected, environment_ranks

    ranks = environment_ranks()
    console = Console()
    try:
        with contextlib.ExitStack() as stack:
            with signals_handled(signal.SIG_DFL):  # at once: nothing is lost while they meet
                say = console.say if ranks.rank == 0 else say_at_once
                stack.enter_context(connected(ranks, say))
            stop = stack.enter_context(StopFlag().installed())
            stack.enter_context(_stops_told(stop, wait=True))
            return action(runner_of(ranks, store, console, stop))
    except LostRankError as error:
        exit_without_message(error)
        raise
    finally:
        console.close()


def run_later_stage(
    stage: str,
    target: str,
    settings: Sequence[str] | None,
    store: Path,
    *,
    fresh: bool,
    data_root: str | None = None,
    exported: Path | None = None,
) -> RunResult:
    """Run a later stage on a run's newest version, or on the version that ``target`` names.

    ``exported`` is where its bundle will be written, if it gets one.
    """
    run, config, parents = inputs_of(open_store(store), stage, target, settings or (), data_root)
    if exported is not None:
        check_place(exported, run)
    tell_unread(config, settings, data_root)
    return execute(run, config, (stage,), store, fresh=fresh, given=parents)


def execute(
    run: str,
    config: Config,
    stages: Sequence[str],
    store: Path,
    *,
    fresh: bool,
    given: Mapping[str, Version] | None = None,
) -> RunResult:
    """Run some stages of a run, the first on the versions that are ``given``."""
    return with_runner(
        store,
        lambda runner: runner.run(run, config, stages, reuse_of(fresh), given=given),
        parallel=BY_NAME[stages[-1]].parallel,
    )


def run_baseline(run: str, config: Config, store: Path, *, fresh: bool) -> RunResult:
    """Bring every stage of a run with a given architecture up to date."""

    def action(runner: Runner) -> RunResult:
        runner.before_first = check_device
        return runner.run(run, config, stages_of_run(config), reuse_of(fresh))

    def check_device(stage: str) -> None:
        if stage in ("derive", "retrain") and config.validate_.device != "cpu":
            from ..preflight.operator_support import check_device

            check_device(config, lambda line: Console().say(line))

    return with_runner(store, action)


def measured_baselines(
    configs: Sequence[tuple[str, str, Config]], store: Path, exported: Path, *, fresh: bool
) -> list[dict[str, Any]]:
    """Train, export and validate what a run is compared with (``baseline_configs``); return their
    rows. One that fails, or that the gate refuses, has a row that says so.
    """
    rows = []
    for model, name, own in configs:
        try:
            result = run_baseline(name, own, store, fresh=fresh)
        except (StoppedError, BusyError, StorageError):
            raise
        except D2NasError as error:
            rows.append(failed_row(name, model, str(error)))
            continue
        write_bundle(exported, name, result.versions)
        validated = result.versions["validate"]
        report = parse_json(validated.read("report.json"), what="report.json")
        with damage_of(f"{validated.path}: report.json", validated.content.hint):
            rows.append(baseline_row(name, report, validated.id))
    return rows


def reuse_of(fresh: bool) -> Reuse:
    """Return what ``--fresh`` means."""
    return Reuse.NOTHING if fresh else Reuse.EVERYTHING


def show_stage(result: RunResult, stage: str, *, as_json: bool) -> None:
    """Show the version of one stage."""
    if not is_first_rank():
        return
    version = result.versions[stage]
    if as_json:
        Console().data({**_references(result), **describe(version)})
    else:
        console = Console()
        console.summary(str(version.reference), fact_rows(describe(version)))
        console.say(f"next: d2nas {STAGES[STAGES.index(stage) + 1]} {result.run}")


def publish(
    result: RunResult,
    exported: Path,
    *,
    as_json: bool,
    baselines: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the bundle of a validated run, and show the closing table or its data, beside rows of
    ``baselines``.
    """
    folder = write_bundle(exported, result.run, result.versions, baselines=baselines)
    validated = result.versions["validate"]
    report = parse_json(validated.read("report.json"), what="report.json")
    keys = ("params", "macs", "identity", "accuracy", "parity", "device", "data")
    classes = ("balanced_accuracy", "ece", "per_class")
    latency = ("latency", "latency_gate", "latency_modes")
    with damage_of(f"{validated.path}: report.json", validated.content.hint):
        rows = report_rows(report, str(folder))
        told = {key: report[key] for key in (*keys, *classes, *latency)}
        told |= {key: report[key] for key in ("genotype", "architecture") if key in report}
        beside = [baseline_row(result.run, report, validated.id), *baselines]
    if as_json:
        told |= {"baselines": beside} if baselines else {}
        Console().data({**_references(result), **told, "bundle": str(folder)})
        return
    console = Console()
    console.summary(f"run {result.run}", rows)
    table = comparison(beside)
    if table is not None:
        lines = [[str(cell) for cell in row] for row in table.rows]
        console.table(table.caption, table.columns, lines)
        for note in comparison_notes(beside):
            console.note(note)
    console.say(f"next: read {folder / 'report.html'}; d2nas verify, predict or serve {folder}")


def _references(result: RunResult) -> dict[str, Any]:
    return {
        "run": result.run,
        "versions": {stage: version.reference for stage, version in result.versions.items()},
        "executed": result.executed,
    }
