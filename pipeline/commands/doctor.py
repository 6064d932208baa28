"""``d2nas doctor``: what this machine can do; with ``--space``, where its operations run."""

from typing import Annotated

import typer

from .options import DEFAULT_STORE, DataRootOption, JsonOption, StoreOption


def doctor_command(
    store: StoreOption = DEFAULT_STORE,
    data_root: DataRootOption = None,
    space: Annotated[
        str | None, typer.Option("--space", help="Try this space's operations instead.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where they must run.")] = "auto",
    opset: Annotated[
        int, typer.Option("--opset", min=1, max=100, help="ONNX opset of the trial.")
    ] = 20,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine can do, and what to do about each gap."""
    from ..console import Console
    from ..preflight.doctor import examine

    if space is not None:
        check_placement(space, device, opset, as_json=as_json)
        return
    findings, console = examine(store, data_root), Console()
    if as_json:
        console.data([finding.to_dict() for finding in findings])
        return
    rows = [(f.subject, f.state, f.detail, f.advice or "") for f in findings]
    console.table("this machine", ("what", "state", "detail", "what to do"), rows)


def check_placement(space: str, device: str, opset: int, *, as_json: bool) -> None:
    """Show where each operation of a space runs; raises if one does not run on ``device``."""
    from d2nas.files.text_files import read_space

    from ..console import Console
    from ..preflight.operator_support import (
        COLUMNS,
        operations_of,
        place_operations,
        require_all_land,
    )

    found, console = [], Console()
    for placement in place_operations(operations_of(read_space(space)), device=device, opset=opset):
        found.append(placement)
        console.say(f"{placement.operation}: {placement.device or placement.problem}")
    if as_json:
        console.data([placement.to_dict() for placement in found])
    else:
        title = f"operations of {space} on {device}, opset {opset}"
        console.table(title, COLUMNS, [placement.cells() for placement in found])
    require_all_land(found, device)
