"""``d2nas derive``: the genotype of a search."""

from typing import Annotated

import typer

from .options import (
    DEFAULT_STORE,
    FreshOption,
    JsonOption,
    SetOption,
    StoreOption,
    TargetArgument,
    with_options,
)


def derive_command(
    target: TargetArgument,
    pareto: Annotated[
        int | None,
        typer.Option("--pareto", min=2, max=100, help="Show so many cells by latency and loss."),
    ] = None,
    settings: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
) -> None:
    """Derive the genotype from a search's logits."""
    from .execution import run_later_stage, show_stage

    settings = with_options(settings, {"derive.pareto": pareto})
    result = run_later_stage("derive", target, settings, store, fresh=fresh)
    show_stage(result, "derive", as_json=as_json)
