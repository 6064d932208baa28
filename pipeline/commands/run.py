"""Commands after parsing: configure, run, show.

``cli`` declares the arguments and exits; here a command finds its inputs, runs, and shows what came
out.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from d2nas.config import Config
from d2nas.errors import ConfigError, LostRankError, StoppedError
from d2nas.files.strict_json import parse_json
from d2nas.genotype import Genotype
from d2nas.torchrun import is_first_rank

from ..bundle.writing import check_place, write_bundle
from ..console import Console
from ..report.terminal import fact_rows, report_rows
from ..running.inputs import (
    check_takes_genotype,
    describe,
    genotype_run_name,
    given_genotype,
    inputs_of,
)
from ..running.launch import leave_to_the_launcher, say_at_once
from ..running.other_ranks import runner_of
from ..running.runner import Reuse, Runner, RunResult
from ..running.signals import StopFlag, signals_handled
from ..stages import run_stages
from ..store import Store
from ..store.forms import damage_of
from ..study.grid import read_study
from ..study.report import (
    COLUMNS,
    correlation_line,
    rank_correlations,
    settings_lines,
    summarise,
    table_rows,
)
from ..study.run import StudyRun
from .configuration import configure, say_data, tell_unread

GENOTYPE_PRESET = "cifar10"
"""What ``retrain --genotype`` follows where no preset is named: published cells' own setting."""

FOLLOWING = {"search": "derive", "derive": "retrain", "retrain": "export", "export": "validate"}
"""What comes after each stage that is run alone."""

Result = TypeVar("Result")


def run_all(
    run: str, config: Config, store: Path, exported: Path, *, reuse: Reuse, as_json: bool
) -> None:
    """Bring every stage of a run up to date, write the bundle and show the result."""
    check_place(exported, run)
    show_run(bring_up_to_date(run, config, store, reuse), exported, as_json=as_json)


def bring_up_to_date(run: str, config: Config, store: Path, reuse: Reuse) -> RunResult:
    """Run every stage of a run that is not up to date; return the versions that it stands on."""
    return _with_runner(store, lambda runner: _run_stages(runner, run, config, reuse))


def _run_stages(runner: Runner, run: str, config: Config, reuse: Reuse) -> RunResult:
    stages = run_stages(config)
    runner.before_first = lambda stage: _check_device(runner, stage, config)
    if config.validate_.max_p99_ms is None:
        return runner.run(run, config, stages, reuse)
    split = stages.index("retrain")
    derived = runner.run(run, config, stages[:split], reuse, then=stages[split:])
    if reuse is Reuse.NOTHING or not runner.is_current(run, "retrain", config, derived.versions):
        _keep_budget(runner, config, derived)
    trained = runner.run(run, config, stages[split:], reuse, given=derived.versions)
    return RunResult(run, trained.versions, [*derived.executed, *trained.executed])


def _check_device(runner: Runner, stage: str, config: Config) -> None:
    """Before what takes long: is there the device that validates, does it run the operations?"""
    if stage not in ("export", "validate") and config.validate_.device != "cpu":
        from ..preflight.operator_support import check_device

        check_device(config, runner.display.say)


def _keep_budget(runner: Runner, config: Config, derived: RunResult) -> None:
    from ..preflight.latency_budget import check_budget

    data = runner.images(config)
    genotype = Genotype.from_json(derived.versions["derive"].read("genotype.json"))
    taken = check_budget(
        config,
        genotype,
        channels=data.channels,
        image_size=data.image_size,
        num_classes=len(data.class_names),
    )
    runner.display.say(
        f"budget: {taken} of {config.validate_.max_p99_ms:g} ms for batch "
        f"{config.validate_.gated_batch} on {taken.device}, untrained"
    )


def run_search(run: str, config: Config, store: Path, *, reuse: Reuse, as_json: bool) -> None:
    """Run the search alone and show its version."""
    result = _with_runner(
        store, lambda runner: runner.run(run, config, ("search",), reuse), parallel=True
    )
    show_stage(result, "search", as_json=as_json)


def run_stage_on(
    stage: str,
    target: str,
    settings: Sequence[str] | None,
    store: Path,
    *,
    reuse: Reuse,
    data_root: str | None = None,
    exported: Path | None = None,
) -> RunResult:
    """Run a later stage on a run's newest version, or on the version that ``target`` names.

    ``exported`` is where its bundle will be written, if it gets one.
    """
    run, config, parents = inputs_of(Store(store), stage, target, settings or (), data_root)
    if exported is not None:
        check_place(exported, run)
    tell_unread(config, settings, data_root)
    return _with_runner(
        store,
        lambda runner: runner.run(run, config, (stage,), reuse, given=parents),
        parallel=stage == "retrain",
    )


def retrain(
    target: str | None,
    genotype: str | None,
    name: str | None,
    settings: Sequence[str] | None,
    store: Path,
    *,
    reuse: Reuse,
    data_root: str | None,
    as_json: bool,
) -> None:
    """Retrain a run's genotype, or with ``genotype`` a given one as the preset ``target`` says."""
    if genotype is None:
        if target is None or name is not None:
            what = "--name is for --genotype" if target else "retrain needs a RUN or --genotype"
            raise ConfigError(what, hint="d2nas retrain RUN, or retrain PRESET --genotype DARTS_V2")
        result = run_stage_on("retrain", target, settings, store, reuse=reuse, data_root=data_root)
    else:
        preset = target or GENOTYPE_PRESET
        config = configure(preset, settings, data_root)
        # Of what a file says for the search, which does not run, nothing is told.
        tell_unread(config, settings, data_root, preset)
        config, given = given_genotype(Store(store), genotype, config)
        stages = ("retrain",) if given else ("derive", "retrain")
        run = genotype_run_name(preset, genotype) if name is None else name
        check_takes_genotype(Store(store), run, config, given)
        result = _with_runner(
            store,
            lambda runner: runner.run(run, config, stages, reuse, given=given),
            parallel=True,
        )
    show_stage(result, "retrain", as_json=as_json)


def show_run(result: RunResult, exported: Path, *, as_json: bool) -> None:
    """Write the bundle of a validated run, and show the closing table or its data."""
    folder = write_bundle(exported, result.run, result.versions)
    validated = result.versions["validate"]
    report = parse_json(validated.read("report.json"), what="report.json")
    keys = ("genotype", "params", "macs", "identity", "accuracy", "parity", "device", "data")
    latency = ("latency", "latency_gate", "latency_modes")
    with damage_of(f"{validated.path}: report.json", validated.content.hint):
        rows = report_rows(report, str(folder))
        told = {key: report[key] for key in (*keys, *latency)}
    if as_json:
        Console().data({**_references(result), **told, "bundle": str(folder)})
        return
    console = Console()
    console.summary(f"run {result.run}", rows)
    console.say(f"next: read {folder / 'report.html'}; d2nas verify, predict or serve {folder}")


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
        console.say(f"next: d2nas {FOLLOWING[stage]} {result.run}")


def show_plan(
    run: str,
    config: Config,
    store: Path,
    *,
    as_json: bool,
    unread: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Show which stages would run, and what they are estimated to take.

    ``unread``: what ``tell_unread`` has told, which is part of the plan's data.
    """
    from ..preflight.plan import COLUMNS, make_plan, plan_rows
    from ..preflight.plan_times import busy_line, shorter_lines

    console = Console()
    busy = busy_line()
    console.say("timing a few steps of each stage that would run ...")
    plan = make_plan(Runner(Store(store), console, StopFlag()), run, config)
    if as_json:
        console.data({**plan, "without_effect": dict(unread or {})})
    else:
        console.table(f"plan of run {run}", COLUMNS, plan_rows(plan))
        say_data(console, plan["data"])
        for line in shorter_lines(plan, config.data.name):
            console.note(line)
    if busy is not None and any("seconds_range" in row for row in plan["stages"]):
        console.warn(busy)


def run_study(name: str, store: Path, data_root: str | None, *, reuse: Reuse, as_json: bool) -> int:
    """Run what is left of a study, show all of it, and return the exit code.

    That is 0, or the code of the first trial that has no result.
    """
    study = read_study(name, data_root=data_root)

    def run(runner: Runner) -> StudyRun:
        study_run = StudyRun(runner, study)
        study_run.run(reuse)
        return study_run

    finished = _with_runner(store, run)
    rows = finished.rows()
    if as_json:
        Console().data(rows)
    else:
        _show_study(study.name, rows)
    failure = finished.first_failure()
    if failure is None:
        return 0
    failed = sum(row["error"] is not None for row in rows)
    Console().error(
        f"{failed} of {len(rows)} trials have no result; the first: {failure.message}",
        failure.hint or "the same command runs them again",
    )
    return failure.exit_code


def plan_study(name: str, store: Path, data_root: str | None, *, as_json: bool) -> None:
    """Show a study's trials and how far each is; runs nothing."""
    console = Console()
    study = read_study(name, data_root=data_root)
    rows = StudyRun(Runner(Store(store), console, StopFlag()), study).plan()
    if as_json:
        console.data(rows)
        return
    columns = ("variant", "data", "space", "method", "seed", "state", "run")
    console.table(
        f"study {study.name}", columns, [tuple(str(row[name]) for name in columns) for row in rows]
    )
    console.say(f"{sum(row['finished'] for row in rows)} of {len(rows)} trials are finished")


def _show_study(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    console = Console()
    summaries = summarise(rows)
    for data, variant in dict.fromkeys((line["data"], line["variant"]) for line in summaries):
        block = [line for line in summaries if (line["data"], line["variant"]) == (data, variant)]
        console.table(f"study {name}: {data}, {variant}", COLUMNS, table_rows(block))
        for line in settings_lines(
            [row for row in rows if (row["data"], row["variant"]) == (data, variant)]
        ):
            console.note(line)
    for found in rank_correlations(rows):
        console.note(correlation_line(found))


def _references(result: RunResult) -> dict[str, Any]:
    return {
        "run": result.run,
        "versions": {stage: version.reference for stage, version in result.versions.items()},
        "executed": result.executed,
    }


def _with_runner(
    store: Path, action: Callable[[Runner], Result], *, parallel: bool = False
) -> Result:
    """Run ``action`` with the runner of this process: in a ``parallel`` training, of its rank."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        if not parallel:
            what = "only d2nas search and d2nas retrain run in several processes"
            raise ConfigError(what, hint="start this command without torchrun")
        return _with_ranks(store, action)
    console = Console()
    try:
        with StopFlag().installed() as stop, _stops_told(stop):
            return action(Runner(Store(store), console, stop))
    finally:
        console.close()


@contextlib.contextmanager
def _stops_told(stop: StopFlag, *, wait: bool = False) -> Iterator[None]:
    """Tell a failure that a stop made outside of the stages as the stop."""
    try:
        yield
    except Exception as error:
        if not stop.explains(error, wait=wait):
            raise
        assert stop.signal_number is not None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StoppedError(stop.signal_number, f"stopped ({reason[:200]})") from error


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
        leave_to_the_launcher(error)
        raise
    finally:
        console.close()
