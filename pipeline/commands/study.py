"""``d2nas study``: methods or given genotypes x data sets x seeds from one file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import DEFAULT_STORE, DataRootOption, FreshOption, JsonOption, StoreOption

if TYPE_CHECKING:
    from ..running.runner import Runner
    from ..study.run import StudyRun


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
    """Compare methods, genotypes and seeds; continues trial by trial.

    Always compared with random cells.
    """
    if plan:
        plan_study(study, store, data_root, as_json=as_json)
        return 0
    return run_study(study, store, data_root, fresh=fresh, as_json=as_json)


def plan_study(name: str, store: Path, data_root: str | None, *, as_json: bool) -> None:
    """Show a study's trials and how far each is; runs nothing."""
    from ..console import Console
    from ..running.runner import Runner
    from ..running.signals import StopFlag
    from ..stages import open_store
    from ..study.grid import read_study
    from ..study.report import method_label
    from ..study.run import StudyRun

    console = Console()
    study = read_study(name, data_root=data_root)
    rows = StudyRun(Runner(open_store(store), console, StopFlag()), study).plan()
    if as_json:
        console.data(rows)
        return
    columns = ("variant", "data", "space", "method", "seed", "state", "run")
    console.table(
        f"study {study.name}",
        columns,
        [tuple(str((row | {"method": method_label(row)})[key]) for key in columns) for row in rows],
    )
    console.say(f"{sum(row['finished'] for row in rows)} of {len(rows)} trials are finished")


def run_study(name: str, store: Path, data_root: str | None, *, fresh: bool, as_json: bool) -> int:
    """Run what is left of a study, show all of it, and return the exit code.

    That is 0, or the code of the first trial that has no result.
    """
    from ..console import Console
    from ..study.grid import read_study
    from ..study.run import StudyRun
    from .execution import reuse_of, with_runner

    study = read_study(name, data_root=data_root)

    def run(runner: "Runner") -> "StudyRun":
        study_run = StudyRun(runner, study)
        study_run.run(reuse_of(fresh))
        return study_run

    finished = with_runner(store, run)
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


def _show_study(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    from ..console import Console
    from ..study.report import (
        COLUMNS,
        correlation_line,
        rank_correlations,
        settings_lines,
        summarise,
        table_rows,
    )

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
