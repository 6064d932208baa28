"""``d2nas run``: all stages of a run and its bundle, or with ``--plan`` what they would take."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2nas.errors import ConfigError

from .options import (
    DEFAULT_EXPORTED,
    DEFAULT_STORE,
    DataRootOption,
    ExportedOption,
    FreshOption,
    GateBatchOption,
    ImageSizeOption,
    JsonOption,
    MaxP99Option,
    NameOption,
    PresetArgument,
    SetOption,
    StoreOption,
    TimeOption,
    with_options,
)

_SIZES = ("retrain.num_cells", "retrain.init_channels")
MUCH_LONGER = 1.5
"""Times the target that a derived network takes where something else is at work (a choice)."""
_FITTING_SIZE = "fitting-size"

if TYPE_CHECKING:
    from d2nas.config import Config

    from ..preflight.latency_budget import Untrained
    from ..preflight.latency_target import LatencyTarget
    from ..preflight.time_budget import TimeBudget
    from ..running.display import Display
    from ..running.runner import Reuse, Runner, RunResult


def run_command(
    preset: PresetArgument,
    name: NameOption = None,
    max_p99_ms: MaxP99Option = None,
    batch: GateBatchOption = None,
    time: TimeOption = None,
    settings: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    exported: ExportedOption = DEFAULT_EXPORTED,
    data_root: DataRootOption = None,
    image_size: ImageSizeOption = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            metavar="MODEL",
            help="Network to compare with: torchvision:NAME, timm:NAME, cell:NAME; repeatable.",
        ),
    ] = None,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would run, and stop.")] = False,
) -> None:
    """Search, derive, retrain, export and validate.

    Continues where it was interrupted. With --max-p99-ms the search keeps a limit that follows from
    it, in a network as large as the limit allows, unless --set gives its size. With --time it has
    as many epochs as fit.
    """
    budget = budget_of(time, settings, baseline or ())
    from ..presets import run_name
    from .configuration import configure, tell_unread

    short = {
        "data.image_size": image_size,
        "validate.max_p99_ms": max_p99_ms,
        "validate.gate_batch": batch,
    }
    settings = with_options(settings, short)
    config = configure(preset, settings, data_root)
    unread = tell_unread(config, settings, data_root, preset)
    run = run_name(preset) if name is None else name
    fits = max_p99_ms is not None and not gives_size(settings)
    if plan and baseline:
        raise ConfigError(
            "--plan is of the run alone",
            hint="leave --baseline out; --set derive.model=torchvision:NAME plans a baseline",
        )
    if plan:
        show_plan(run, config, store, unread, as_json=as_json, fits=fits, budget=budget)
    else:
        run_all(
            run,
            config,
            store,
            exported,
            fresh=fresh,
            as_json=as_json,
            fits=fits,
            baselines=baseline or (),
            budget=budget,
        )


def budget_of(
    time: str | None, settings: Sequence[str] | None, baselines: Sequence[str] = ()
) -> "TimeBudget | None":
    """Return the budget of wall time, which begins now; None without one. Raises ``ConfigError``
    for one that is none, and for options that it does not go with.
    """
    if time is None:
        return None
    from ..preflight.time_budget import TimeBudget, check_options

    check_options(settings or (), baselines)
    return TimeBudget(time)


def gives_size(settings: Sequence[str]) -> bool:
    """Whether settings say how large the network to be trained is."""
    from d2nas.config import override_key

    return any(override_key(one) in _SIZES for one in settings)


def show_plan(
    run: str,
    config: "Config",
    store: Path,
    unread: Mapping[str, Sequence[str]],
    *,
    as_json: bool,
    fits: bool,
    budget: "TimeBudget | None" = None,
) -> None:
    """Show which stages would run, and what they are estimated to take.

    ``unread``: what ``tell_unread`` has told, which is part of the plan's data; ``fits`` and
    ``budget`` as for ``run_all``.
    """
    from ..console import Console
    from ..preflight.latency_target import no_limit_because
    from ..preflight.plan import COLUMNS, make_plan, plan_rows
    from ..preflight.plan_times import busy_line, shorter_lines
    from ..running.runner import Runner
    from ..running.signals import StopFlag
    from ..stages import open_store
    from .configuration import say_data

    console = Console()
    _say_limit(config, console)
    busy = busy_line()
    console.say("timing a few steps of each stage that would run ...")
    runner = Runner(open_store(store), console, StopFlag())
    estimate = None
    if budget is not None:
        config, estimate = budget.planned(runner, run, config)
    plan = make_plan(runner, run, config, estimate)
    if as_json:
        console.data({**plan, "without_effect": dict(unread)})
    else:
        console.table(f"plan of run {run}", COLUMNS, plan_rows(plan))
        say_data(console, plan["data"])
        for line in shorter_lines(plan, config.data.name):
            console.note(line)
        if fits and no_limit_because(config) is None:
            console.note(
                "before its search the run times random networks and their parts on this machine: "
                "limit and size follow from --max-p99-ms, and the network may be smaller than here"
                + ("" if budget is None else ", with more epochs")
            )
    if busy is not None and any("seconds_range" in row for row in plan["stages"]):
        console.warn(busy)


def run_all(
    run: str,
    config: "Config",
    store: Path,
    exported: Path,
    *,
    fresh: bool,
    as_json: bool,
    fits: bool = False,
    baselines: Sequence[str] = (),
    budget: "TimeBudget | None" = None,
) -> None:
    """Bring every stage of a run up to date, write the bundle and show the result, beside
    ``baselines``.

    ``fits``: whether size and limits are chosen to keep ``validate.max_p99_ms``, else a network
    that is too slow is refused. ``budget``: the wall time by which epochs are chosen, if it is.
    """
    from ..bundle.writing import check_place, write_bundle
    from ..preflight.given_architecture import check_given
    from ..running.baselines import baseline_configs
    from .execution import measured_baselines, publish

    check_place(exported, run)
    others = baseline_configs(run, config, baselines)
    for _, name, other in others:  # before what takes long
        check_given(other)
        check_place(exported, name)
    result = bring_up_to_date(run, config, store, fresh=fresh, fits=fits, budget=budget)
    if others:
        write_bundle(exported, run, result.versions)  # whatever becomes of them
    rows = measured_baselines(others, store, exported, fresh=fresh)
    publish(result, exported, as_json=as_json, baselines=rows)


def bring_up_to_date(
    run: str,
    config: "Config",
    store: Path,
    *,
    fresh: bool,
    fits: bool = False,
    budget: "TimeBudget | None" = None,
) -> "RunResult":
    """Run every stage of a run that is not up to date; return the versions that it stands on.

    ``fits`` and ``budget``: as for ``run_all``.
    """
    from .execution import reuse_of, with_runner

    reuse = reuse_of(fresh)

    def run_and_tell(runner: "Runner") -> "RunResult":
        own, target = _with_choices(runner, run, config, reuse, fits, budget)
        result = _run_within_budget(runner, run, own, target, reuse, fits, budget)
        if budget is not None:
            runner.display.say(budget.closing_line())
        return result

    return with_runner(store, run_and_tell)


def _with_choices(
    runner: "Runner",
    run: str,
    config: "Config",
    reuse: "Reuse",
    fits: bool,
    budget: "TimeBudget | None",
) -> "tuple[Config, LatencyTarget | None]":
    """Return the configuration with the epochs that fit into the time, and what search and
    derivation keep the latency by: the size is chosen first.
    """
    from ..running.runner import Reuse

    known = None if budget is None else budget.known(runner, run, config, reuse)
    own = config if known is None else known.applied(config)
    gated = fits and config.validate_.max_p99_ms is not None
    target = _target_of(runner, run, own, reuse) if gated else None
    if budget is None or known is not None:
        return own, target
    sized = config if target is None else target.applied(config)
    own = budget.choose(runner, run, config, sized).applied(config)
    if target is not None and target.search_ms is None:
        # The search that was made before, and would be kept, is of other epochs.
        target = _target_of(runner, run, own, Reuse.EVERYTHING)
    return own, target


def _run_within_budget(
    runner: "Runner",
    run: str,
    own: "Config",
    target: "LatencyTarget | None",
    reuse: "Reuse",
    fits: bool,
    budget: "TimeBudget | None",
) -> "RunResult":
    from ..running.runner import Reuse, RunResult
    from ..stages import stages_of_run

    stages = stages_of_run(own)
    config = own if target is None else target.applied(own)
    runner.before_first = lambda stage: _check_device(runner, stage, config)
    gated = config.validate_.max_p99_ms is not None and config.derive.model is None
    if budget is None and not gated:
        return runner.run(run, config, stages, reuse)
    split, fresh = stages.index("retrain"), reuse is Reuse.NOTHING
    derived = runner.run(run, config, stages[:split], reuse, then=stages[split:])
    before = None if fresh or not fits else _of_size_before(runner, run, config, derived)
    config = before or config
    if gated and (fresh or not runner.is_current(run, "retrain", config, derived.versions)):
        if target is not None and before is None and not target.was_lowered:
            config, derived = _derive_lower(runner, run, own, target, derived)
        config = _keep_budget(runner, run, config, derived, fits=fits, fresh=fresh)
    if budget is not None:
        config = budget.choose_again(runner, config, derived)
    trained = runner.run(run, config, stages[split:], reuse, given=derived.versions)
    return RunResult(run, trained.versions, [*derived.executed, *trained.executed])


def _check_device(runner: "Runner", stage: str, config: "Config") -> None:
    """Before what takes long: is there the device that validates, does it run the operations, can a
    cell keep the limit on latency or size, and does the teacher suit the images?
    """
    if stage in ("search", "derive"):
        _say_limit(config, runner.display)
        if config.needs_table:
            from ..preflight.latency_limit import drift_warning

            changed = drift_warning(config)
            if changed is not None:
                runner.display.warn(changed)
    if stage in ("search", "derive") and config.retrain.teacher is not None:
        from d2nas.train.loop import torch_device

        from ..teacher.opening import open_teacher

        images, device = runner.images(config), torch_device(config.retrain.device)
        runner.display.say(str(open_teacher(config.retrain, images, device)))
    if stage not in ("export", "validate") and config.validate_.device != "cpu":
        from ..preflight.operator_support import check_device

        check_device(config, runner.display.say)


def _say_limit(config: "Config", console: "Display") -> None:
    """Say what the cheapest cell takes, where there is a limit; raises where none keeps it."""
    from ..preflight.latency_limit import check_limit

    if config.derive_limit is not None:
        console.say(check_limit(config, config.derive_limit))


def _of_size_before(
    runner: "Runner", run: str, config: "Config", derived: "RunResult"
) -> "Config | None":
    """Return the configuration with the size that was trained of this cell before; None where none
    was.
    """
    before = runner.store.latest(run, "retrain")
    if before is None or before.manifest.parents.get("derive") != derived.versions["derive"].id:
        return None
    recorded = before.manifest.config["retrain"]
    sizes = {name: recorded[name] for name in (key.partition(".")[2] for key in _SIZES)}
    return _as_before(runner, config, "trained", **sizes)


def _as_before(runner: "Runner", config: "Config", what: str, **sizes: int) -> "Config":
    resized = _resized(config, **sizes)
    if resized != config:
        runner.display.say(
            f"size: {sizes['num_cells']} cells x {sizes['init_channels']} channels, as it was "
            f"{what} before; --fresh chooses anew"
        )
    return resized


def _resized(config: "Config", **sizes: int) -> "Config":
    return config.model_copy(update={"retrain": config.retrain.model_copy(update=sizes)})


def _target_of(
    runner: "Runner", run: str, config: "Config", reuse: "Reuse"
) -> "LatencyTarget | None":
    """Return what search and derivation keep ``validate.max_p99_ms`` by, where they need it and
    can.
    """
    from ..preflight.latency_target import latency_target, no_limit_because

    reason = no_limit_because(config)
    if reason is None:
        return latency_target(runner, run, config, reuse)
    runner.display.say(f"latency: no limit is set for the search: {reason}")
    return None


def _derive_lower(
    runner: "Runner", run: str, own: "Config", target: "LatencyTarget", derived: "RunResult"
) -> "tuple[Config, RunResult]":
    """Derive again within a lower limit where the network, untrained, takes longer than predicted;
    return the configuration and what it stands on.
    """
    from ..preflight.latency_target import lowered
    from ..running.runner import Reuse, RunResult

    config = target.applied(own)
    network = _untrained(runner, config, derived)
    taken = network.measure(target.num_cells, target.init_channels)
    if taken.milliseconds > MUCH_LONGER * network.limit:
        runner.display.warn(
            f"the derived network takes {taken}, where random networks of its size were measured "
            f"to keep {network.limit:g} ms: is this machine busy? What follows is for how it is now"
        )
    lower = (
        lowered(runner, run, own, target, taken.milliseconds)
        if taken.milliseconds > network.limit
        else None
    )
    if lower is None:
        return config, derived
    runner.display.say(
        f"latency: the derived network takes {taken}: derived again, at most "
        f"{lower.limit_ms:.3g} ms by the table"
    )
    config = lower.applied(own)
    again = runner.run(run, config, ["derive"], Reuse.EVERYTHING, given=derived.versions)
    executed = [*dict.fromkeys([*derived.executed, *again.executed])]
    return config, RunResult(run, again.versions, executed)


def _untrained(runner: "Runner", config: "Config", derived: "RunResult") -> "Untrained":
    """Return the derived network, to be timed."""
    from d2nas.genotype import Genotype

    from ..preflight.latency_budget import Untrained

    data = runner.images(config)
    genotype = Genotype.from_json(derived.versions["derive"].read("genotype.json"))
    return Untrained(config, genotype, data.channels, data.image_size, len(data.class_names))


def _keep_budget(
    runner: "Runner",
    run: str,
    config: "Config",
    derived: "RunResult",
    *,
    fits: bool,
    fresh: bool,
) -> "Config":
    """Time the untrained network, and return the configuration with a size that fits: the one that
    was chosen before, where there is one, so that an interrupted training goes on.
    """
    from ..preflight.latency_budget import check_budget, fit_size, size_line

    network = _untrained(runner, config, derived)
    if not fits:
        taken = check_budget(network)
    else:
        key = {
            "run": run,
            "derive": derived.versions["derive"].id,
            "max_p99_ms": network.limit,
            "batch": config.validate_.gated_batch,
            "device": config.validate_.device,
            "size": [config.retrain.num_cells, config.retrain.init_channels],
        }
        known = None if fresh else runner.store.cached(_FITTING_SIZE, key)
        if known is not None:
            num_cells, init_channels = known
            sizes = {"num_cells": num_cells, "init_channels": init_channels}
            return _as_before(runner, config, "chosen", **sizes)
        fitting = fit_size(network)
        chosen, taken = fitting[0], fitting[0].latency
        line = size_line(config.retrain, fitting)
        if line is not None:
            runner.display.say(line)
        sizes = {"num_cells": chosen.num_cells, "init_channels": chosen.init_channels}
        runner.store.store_cache(_FITTING_SIZE, key, [*sizes.values()])
        config = _resized(config, **sizes)
    runner.display.say(
        f"budget: {taken} of {config.validate_.max_p99_ms:g} ms for batch "
        f"{config.validate_.gated_batch} on {taken.device}, untrained"
    )
    return config
