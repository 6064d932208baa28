"""``d2nas baseline``: an ordinary network by the same training, gate and bundle."""

from typing import Annotated

import typer

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
    PresetArgument,
    SetOption,
    StoreOption,
    with_options,
)


def baseline_command(
    preset: PresetArgument,
    model: Annotated[
        str,
        typer.Option("--model", help="torchvision:NAME, timm:NAME or cell:GENOTYPE."),
    ],
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Begin with the library's published weights.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run; default: PRESET-MODEL.")
    ] = None,
    max_p99_ms: MaxP99Option = None,
    batch: GateBatchOption = None,
    settings: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    exported: ExportedOption = DEFAULT_EXPORTED,
    data_root: DataRootOption = None,
    image_size: ImageSizeOption = None,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
) -> None:
    """Train, export and validate an ordinary network.

    By the same data, splits, recipe, gate and bundle as a run of the preset, without a search.
    """
    from ..bundle.writing import check_place
    from ..preflight.given_architecture import check_given
    from ..presets import run_name
    from ..running.baselines import baseline_name, with_architecture
    from .configuration import configure, tell_unread
    from .execution import publish, run_baseline

    short = {
        "data.image_size": image_size,
        "validate.max_p99_ms": max_p99_ms,
        "validate.gate_batch": batch,
    }
    settings = with_options(settings, short)
    config = configure(preset, settings, data_root)
    config = with_architecture(config, model, pretrained=pretrained)
    # Of what a preset says for cells and their search nothing is told.
    tell_unread(config, settings, data_root)
    own = baseline_name(run_name(preset), model, pretrained=pretrained)
    run = own if name is None else name
    check_given(config)
    check_place(exported, run)
    publish(run_baseline(run, config, store, fresh=fresh), exported, as_json=as_json)
