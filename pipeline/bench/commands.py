"""``bench`` commands after parsing (no torch before they run)."""

from collections.abc import Sequence
from pathlib import Path

from d2nas.config import Config, SearchConfig, build_config, parse_override
from d2nas.errors import ConfigError

from ..console import Console

_TOP_OPERATORS = 20


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


def bench_search(
    settings: Sequence[str], *, pairs: int, threads: int | None, full: bool, as_json: bool
) -> None:
    """Time methods against each other, and compare with the goal."""
    from .pairs import COLUMNS, table_rows
    from .search import compare_methods, passes_goal

    config = _prepare(settings, threads, "search").search
    console = Console()
    rows = []
    for found in compare_methods(config, pairs, full=full):
        rows += found
        for row in found:
            console.say(
                f"{row['case']} / {row['against']}, per {row['unit']}: {row['ratio_median']:.2f}"
            )
    if as_json:
        console.data(rows)
    else:
        console.table("time", COLUMNS, table_rows(rows), note=_setting(config))
    for case, ratio, limit in passes_goal(rows):
        state = "met" if ratio <= limit else "missed"
        console.say(f"goal: {case} per pass {ratio:.2f} <= {limit:.2f}: {state}")


def profile_search(settings: Sequence[str], *, threads: int | None, as_json: bool) -> None:
    """Show where the time of one step goes."""
    from .search import group_shares, profile_step

    config = _prepare(settings, threads, "search").search
    console = Console()
    rows = profile_step(config)
    if as_json:
        console.data(rows)
        return
    cells = [
        (
            row["operator"],
            row["group"],
            str(row["calls"]),
            f"{row['self_ms']:.1f}",
            f"{100 * row['share']:.1f} %",
        )
        for row in rows[:_TOP_OPERATORS]
    ]
    columns = ("operator", "group", "calls", "own ms", "share")
    console.table(f"one step of {config.method}", columns, cells, note=_setting(config))
    groups = [(group, f"{100 * share:.1f} %") for group, share in group_shares(rows).items()]
    console.table("by group", ("group", "share"), groups)


def bench_train(settings: Sequence[str], *, pairs: int, threads: int | None, as_json: bool) -> None:
    """Time retraining against a plain implementation, and estimate what GPUs could do."""
    from .pairs import COLUMNS, table_rows
    from .train import GENOTYPE, GOAL, STEPS, compare_training, estimate

    # 16 images a batch: what two cores do in a second.
    config = _prepare(["retrain.batch_size=16", *settings], threads, "retrain").retrain
    console = Console()
    rows = compare_training(config, pairs, steps=STEPS)
    estimates = estimate(config)
    if as_json:
        console.data(rows)
    else:
        note = (
            f"{GENOTYPE}, {config.num_cells} cells x {config.init_channels} channels, batch "
            f"{config.batch_size}, 32 x 32 pixels, {config.precision}, device {config.device}, "
            f"{_threads()} threads"
        )
        console.table("time", COLUMNS, table_rows(rows), note=note)
        columns = ("GPU", "type", "multiply-adds", "bytes", "images/s at most", "bound by")
        cells = [
            (
                row["gpu"],
                row["precision"],
                f"{row['macs_per_image']:,}",
                f"{row['bytes_per_image']:,}",
                f"{row['images_per_second']:,.0f}",
                row["bound"],
            )
            for row in estimates
        ]
        note = "estimates from data sheets (roofline): nothing was measured on a GPU"
        console.table("estimate, per image", columns, cells, note=note)
    speedup = 1.0 / rows[-1]["ratio_median"]
    state = "met" if speedup >= GOAL else "missed"
    console.say(f"goal: {speedup:.2f}x images/s of plain >= {GOAL}: {state}")


def bench_runtime(settings: Sequence[str], *, batch: int, pairs: int, as_json: bool) -> None:
    """Time ONNX Runtime against PyTorch without a compiler, and compare with the goal."""
    from .pairs import COLUMNS, table_rows
    from .runtime import GENOTYPE, GOAL, compare_runtimes

    config = _prepare(settings, None, "retrain", "export", "validate")
    console = Console()
    rows = [row for found in compare_runtimes(config, batch, pairs) for row in found]
    if as_json:
        console.data(rows)
    else:
        retrain = config.retrain
        note = (
            f"{GENOTYPE}, {retrain.num_cells} cells x {retrain.init_channels} channels, batch "
            f"{batch}, 32 x 32 pixels, {config.export.precision}"
        )
        console.table("time", COLUMNS, table_rows(rows), note=note)
    speedup = 1.0 / rows[0]["ratio_median"]
    state = "met" if speedup >= GOAL else "missed"
    console.say(f"goal: {speedup:.2f}x as fast as contiguous eager >= {GOAL}: {state}")


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


def bench_serve(folder: Path, *, clients: int, requests: int, device: str, as_json: bool) -> None:
    """Time requests over HTTP against direct calls of the same session."""
    from .serve import COLUMNS, compare_serving, table_rows

    console = Console()
    rows = compare_serving(folder, clients=clients, requests=requests, device=device)
    if as_json:
        console.data(rows)
    else:
        note = "one image a request; clients and server share this machine"
        console.table("requests", COLUMNS, table_rows(rows), note=note)


def _prepare(settings: Sequence[str], threads: int | None, *sections: str) -> Config:
    """Return the configuration. Raises ``ConfigError`` for keys that are of no such section."""
    import torch

    for setting in settings:
        if parse_override(setting)[0] not in sections:
            example = "search.draws=3" if "search" in sections else "retrain.batch_size=32"
            known = ", ".join(f"{section}.*" for section in sections)
            raise ConfigError(
                f"--set {setting}: only {known} counts here", hint=f"for example {example}"
            )
    if threads is not None:
        torch.set_num_threads(threads)
    return build_config({}, settings, what="bench")


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _setting(config: SearchConfig) -> str:
    return (
        f"{config.num_cells} cells x {config.init_channels} channels, batch {config.batch_size}, "
        f"32 x 32 pixels, {config.precision}, device {config.device}, "
        f"{_threads()} threads"
    )
