"""``d2nas validate``: the gate, and the bundle of what passed."""

from typing import Annotated

import typer

from .options import (
    DEFAULT_EXPORTED,
    DEFAULT_STORE,
    DataRootOption,
    ExportedOption,
    FreshOption,
    GateBatchOption,
    JsonOption,
    MaxP99Option,
    SetOption,
    StoreOption,
    TargetArgument,
    with_options,
)


def validate_command(
    target: TargetArgument,
    device: Annotated[
        str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N (validate.device).")
    ] = None,
    max_p99_ms: MaxP99Option = None,
    batch: GateBatchOption = None,
    settings: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    exported: ExportedOption = DEFAULT_EXPORTED,
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
) -> None:
    """Validate the ONNX model on its runtime, and write the bundle."""
    from .execution import publish, run_later_stage

    short = {
        "validate.device": device,
        "validate.max_p99_ms": max_p99_ms,
        "validate.gate_batch": batch,
    }
    result = run_later_stage(
        "validate",
        target,
        with_options(settings, short),
        store,
        fresh=fresh,
        data_root=data_root,
        exported=exported,
    )
    publish(result, exported, as_json=as_json)
