"""``d2nas retrain``: the derived network, or a known one, trained from scratch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2nas.errors import ConfigError
from d2nas.torchrun import is_one_of_several

from .options import (
    DEFAULT_STORE,
    DataRootOption,
    FreshOption,
    GenotypeOption,
    ImageSizeOption,
    JsonOption,
    NameOption,
    ProcessesOption,
    SetOption,
    StoreOption,
    with_options,
)

if TYPE_CHECKING:
    from ..running.runner import RunResult

GENOTYPE_PRESET = "cifar10"
"""What ``retrain --genotype`` follows where no preset is named: published cells' own setting."""


def retrain_command(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|PRESET",
            help="A run or RUN/derive@vN; with --genotype a preset (default: cifar10).",
        ),
    ] = None,
    genotype: GenotypeOption = None,
    name: NameOption = None,
    settings: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    data_root: DataRootOption = None,
    image_size: ImageSizeOption = None,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
    nproc: ProcessesOption = 1,
) -> int:
    """Train the derived network from scratch, or a known one.

    A known one, with --genotype, needs no search.
    """
    if nproc > 1 and not is_one_of_several():
        from ..running.launch import launch

        return launch(nproc, context.obj)

    from .execution import run_later_stage, show_stage

    settings = with_options(settings, {"data.image_size": image_size})
    if genotype is not None:
        preset = target or GENOTYPE_PRESET
        result = train_given(preset, genotype, name, settings, store, data_root, fresh=fresh)
    elif target is None or name is not None:
        what = "--name is for --genotype" if target else "retrain needs a RUN or --genotype"
        raise ConfigError(what, hint="d2nas retrain RUN, or retrain PRESET --genotype DARTS_V2")
    else:
        result = run_later_stage(
            "retrain", target, settings, store, fresh=fresh, data_root=data_root
        )
    show_stage(result, "retrain", as_json=as_json)
    return 0


def train_given(
    preset: str,
    genotype: str,
    name: str | None,
    settings: Sequence[str],
    store: Path,
    data_root: str | None,
    *,
    fresh: bool,
) -> "RunResult":
    """Train the network of a given genotype as ``preset`` says."""
    from ..running.inputs import check_takes_genotype, genotype_run_name, given_genotype
    from ..stages import open_store
    from .configuration import configure, tell_unread
    from .execution import execute

    config = configure(preset, settings, data_root)
    # Of what a file says for the search, which does not run, nothing is told.
    tell_unread(config, settings, data_root, preset)
    config, given = given_genotype(open_store(store), genotype, config)
    stages = ("retrain",) if given else ("derive", "retrain")
    run = genotype_run_name(preset, genotype) if name is None else name
    check_takes_genotype(open_store(store), run, config, given)
    return execute(run, config, stages, store, fresh=fresh, given=given)
