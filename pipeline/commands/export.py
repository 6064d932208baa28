"""``d2nas export``: the trained network as one ONNX file."""

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


def export_command(
    target: TargetArgument,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32, fp16 or int8 (export.precision).")
    ] = None,
    input_type: Annotated[
        str | None,
        typer.Option("--input", help="float32: prepared images; uint8: pixels (export.input)."),
    ] = None,
    settings: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
) -> None:
    """Export the trained network to one ONNX file."""
    from .execution import run_later_stage, show_stage

    settings = with_options(settings, {"export.precision": precision, "export.input": input_type})
    result = run_later_stage("export", target, settings, store, fresh=fresh)
    show_stage(result, "export", as_json=as_json)
