"""``d2nas study``: methods or given genotypes x data sets x seeds from one file."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .memory import show_memory
from .options import DEFAULT_STORE, DataRootOption, FreshOption, JsonOption, StoreOption

if TYPE_CHECKING:
    from ..running.runner import Runner
    from ..study.grid import Study
    from ..study.run import StudyRun

MEMORY_TABLE = "table-4"
"""The paper's table that is no study: memory of a search step."""


def study_command(
    study: Annotated[
        str,
        typer.Argument(metavar="STUDY", help="table-1 to table-5, or a TOML file's path."),
    ],
    store: StoreOption = DEFAULT_STORE,
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show the trials, and stop.")] = False,
    scale: Annotated[
        str,
        typer.Option(help="paper: as the file says; the same rows in minutes: smoke, hours: cpu."),
    ] = "paper",
) -> int:
    """Compare methods, genotypes and seeds; continues trial by trial.

    Always compared with random cells. A scale below the paper's is a reduced protocol.
    """
    if study == MEMORY_TABLE:
        return _show_memory(plan=plan, as_json=as_json)
    from ..study.grid import read_study

    found = read_study(study, data_root=data_root, scale=scale)
    if plan:
        plan_study(found, store, as_json=as_json)
        return 0
    return run_study(found, store, fresh=fresh, as_json=as_json)


def _show_memory(*, plan: bool, as_json: bool) -> int:
    """Show the paper's table of memory, which no scale changes: it is counted, not computed."""
    if plan:
        from ..console import Console

        Console().say(f"{MEMORY_TABLE} is what d2nas bench memory measures, in a minute or two")
    else:
        show_memory("auto", full=False, as_json=as_json)
    return 0


def plan_study(study: "Study", store: Path, *, as_json: bool) -> None:
    """Show a study's trials and how far each is; runs nothing."""
    from ..console import Console
    from ..running.runner import Runner
    from ..running.signals import StopFlag
    from ..stages import open_store
    from ..study.report import data_label, method_label, reduced_line
    from ..study.run import StudyRun

    console = Console()
    rows = StudyRun(Runner(open_store(store), console, StopFlag()), study).plan()
    if as_json:
        console.data(rows)
        return
    columns = ("variant", "data", "space", "method", "seed", "state", "run")
    console.table(
        f"study {study.name}",
        columns,
        [
            tuple(
                str((row | {"method": method_label(row), "data": data_label(row)})[key])
                for key in columns
            )
            for row in rows
        ],
    )
    if study.is_reduced:
        console.note(reduced_line(study))
    console.say(f"{sum(row['finished'] for row in rows)} of {len(rows)} trials are finished")


def run_study(study: "Study", store: Path, *, fresh: bool, as_json: bool) -> int:
    """Run what is left of a study, show all of it, and return the exit code.

    That is 0, or the code of the first trial that has no result.
    """
    from ..console import Console
    from ..study.report import reduced_line
    from ..study.run import StudyRun
    from .execution import reuse_of, with_runner

    if study.is_reduced:
        Console().say(reduced_line(study))

    def run(runner: "Runner") -> "StudyRun":
        study_run = StudyRun(runner, study)
        with _one_thread() if study.is_reduced else contextlib.nullcontext():
            study_run.run(reuse_of(fresh))
        return study_run

    finished = with_runner(store, run)
    rows = finished.rows()
    if as_json:
        Console().data(rows)
    else:
        _show_study(study, rows)
    failure = finished.first_failure()
    if failure is None:
        return 0
    failed = sum(row["error"] is not None for row in rows)
    Console().error(
        f"{failed} of {len(rows)} trials have no result; the first: {failure.message}",
        failure.hint or "the same command runs them again",
    )
    return failure.exit_code


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let PyTorch compute in one thread: networks this small gain nothing by more, and on a busy
    machine threads that wait for each other take several times as long.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _show_study(study: "Study", rows: Sequence[Mapping[str, Any]]) -> None:
    from ..console import Console
    from ..study.report import (
        BEST_NOTE,
        COLUMNS,
        COPIED_COLUMNS,
        MACS_NOTE,
        copied_rows,
        correlation_line,
        data_label,
        rank_correlations,
        reduced_line,
        settings_lines,
        summarise,
        table_rows,
    )

    def block_of(row: Mapping[str, Any]) -> tuple[str, str]:
        return data_label(row), row["variant"]

    console = Console()
    summaries = summarise(rows)
    for block in dict.fromkeys(map(block_of, summaries)):
        lines = [line for line in summaries if block_of(line) == block]
        console.table(f"study {study.name}: {', '.join(block)}", COLUMNS, table_rows(lines))
        for text in settings_lines([row for row in rows if block_of(row) == block]):
            console.note(text)
    for found in () if study.is_reduced else rank_correlations(rows):
        console.note(correlation_line(found))
    console.note(MACS_NOTE)
    if any(line["best"] for line in summaries):
        console.note(BEST_NOTE)
    if study.is_reduced:
        console.note(reduced_line(study))
    elif study.copied:
        console.table(
            "copied from the sources named, not measured here",
            COPIED_COLUMNS,
            copied_rows(study.copied, rows[0]["data"]),
        )
