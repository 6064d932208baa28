"""``d2nas derive``: the genotype of a search."""

from .options import (
    DEFAULT_STORE,
    FreshOption,
    JsonOption,
    SetOption,
    StoreOption,
    TargetArgument,
)


def derive_command(
    target: TargetArgument,
    settings: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
) -> None:
    """Derive the genotype from a search's logits."""
    from .execution import run_later_stage, show_stage

    result = run_later_stage("derive", target, settings, store, fresh=fresh)
    show_stage(result, "derive", as_json=as_json)
