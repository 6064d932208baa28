"""``bench`` commands after parsing."""

from pathlib import Path

from ..console import Console


def bench_memory(device: str, *, full: bool, as_json: bool) -> None:
    """Measure every row of the memory table, and what became of the goals."""
    from d2nas.train.loop import resolve_device

    from .memory import measure_all
    from .memory_cases import cases
    from .memory_report import (
        COLUMNS,
        GOAL_COLUMNS,
        NOTE,
        goals,
        rows_of,
        table_rows,
        unexpected_worst,
    )

    console = Console()
    wanted = cases(full=full)
    rows = []
    for index, measurement in enumerate(measure_all(wanted, resolve_device(device)), start=1):
        rows += rows_of(measurement)
        peak = rows[-1]["peak_bytes"] / 2**20
        console.say(f"{index}/{len(wanted)} {measurement.case.describe()}: {peak:,.0f} MiB")
    found = goals(rows)
    if as_json:
        console.data(rows)
        for goal in found:
            console.say("  ".join(goal.cells()))
    else:
        console.table("peak memory of a search step", COLUMNS, table_rows(rows), note=NOTE)
        console.table("goals", GOAL_COLUMNS, [goal.cells() for goal in found])
    name = unexpected_worst(rows)
    if name is not None:
        console.warn(f"the worst draw is {name!r}: use --full for the worst of larger networks")


def bench_profile(
    target: str,
    store: Path,
    *,
    batch: int,
    threads: int | None,
    svg: Path | None,
    as_json: bool,
) -> None:
    """Show where a model's time goes, by cell, edge and operation."""
    from ..onnx_io.profile import profile_model
    from ..store import FileSystem
    from .profile import attribution_note, draw, find_model, tables

    name, model = find_model(target, store)
    if svg is not None:
        FileSystem().try_file(svg.absolute())
    profile = profile_model(model, batch=batch, num_threads=threads)
    if svg is not None:
        FileSystem().replace_file(svg.absolute(), draw(profile, name).encode())
    console = Console()
    if as_json:
        console.data({"model": name, **profile.to_dict()})
        return
    for title, columns, rows in tables(profile):
        console.table(title, columns, rows)
    console.note(f"{name} on {profile.device.label}, {attribution_note(profile)}")
