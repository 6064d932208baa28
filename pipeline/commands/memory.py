"""The peak memory of a search step, for ``d2nas bench memory`` and ``d2nas study table-4``."""


def show_memory(device: str, *, full: bool, as_json: bool) -> None:
    """Measure it method by method, and show it with what the paper's Table 4 prints."""
    from d2nas.train.loop import torch_device

    from ..bench.memory import measure_all
    from ..bench.memory_cases import cases
    from ..bench.memory_report import (
        COLUMNS,
        GOAL_COLUMNS,
        NOTE,
        goals,
        rows_of,
        table_rows,
        unexpected_worst,
    )
    from ..console import Console

    console = Console()
    wanted = cases(full=full)
    rows = []
    for index, measurement in enumerate(measure_all(wanted, torch_device(device)), start=1):
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
