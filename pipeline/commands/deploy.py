"""The commands from the trained network to its answers: export ... evaluate."""

from typing import Annotated

import typer

from .options import (
    DEFAULT_EXPORTED,
    DEFAULT_STORE,
    BundleArgument,
    DataRootOption,
    ExportedOption,
    FreshOption,
    GateBatchOption,
    JsonOption,
    MaxP99Option,
    SetOption,
    StoreOption,
    TargetArgument,
    reuse_of,
    with_options,
)

DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]


def add_to(app: typer.Typer) -> None:
    """Declare the commands."""
    app.command("export")(export_command)
    app.command("validate")(validate_command)
    app.command("verify")(verify_command)
    app.command("predict")(predict_command)
    app.command("evaluate")(evaluate_command)


def export_command(
    target: TargetArgument,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32 or fp16 (export.precision).")
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
    from .run import run_stage_on, show_stage

    settings = with_options(settings, {"export.precision": precision, "export.input": input_type})
    result = run_stage_on("export", target, settings, store, reuse=reuse_of(fresh))
    show_stage(result, "export", as_json=as_json)


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
    from .run import run_stage_on, show_run

    settings = with_options(
        settings,
        {
            "validate.device": device,
            "validate.max_p99_ms": max_p99_ms,
            "validate.gate_batch": batch,
        },
    )
    result = run_stage_on(
        "validate",
        target,
        settings,
        store,
        reuse=reuse_of(fresh),
        data_root=data_root,
        exported=exported,
    )
    show_run(result, exported, as_json=as_json)


def verify_command(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET]...",
            help="Versions and all they were made from; or bundles: exported/NAME.",
        ),
    ] = None,
    digest: Annotated[
        str | None, typer.Option("--digest", help="What the digest of the one bundle must be.")
    ] = None,
    device: DeviceOption = "cpu",
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> int:
    """Hash every file of the store again, or check bundles from themselves alone; 4 if damaged."""
    from .store import verify

    return verify(targets or [], store, digest=digest, device=device, as_json=as_json)


def predict_command(
    bundle: BundleArgument,
    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Picture files, folders of them (with all inside), or - for one on stdin.",
        ),
    ],
    top: Annotated[
        int, typer.Option("--top", min=1, max=100_000, help="Classes shown for each.")
    ] = 5,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> int:
    """Answer pictures with a bundle's model: class names and probabilities.

    Pictures without an answer are named, the others answered; the exit code is that of the first
    that has none.
    """
    from .bundle import predict_images

    return predict_images(bundle, pictures, top=top, device=device, as_json=as_json)


def evaluate_command(
    bundle: BundleArgument,
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="Pictures in folders named as the classes.")
    ],
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> int:
    """Evaluate a bundle on labelled pictures, DIR/<class>/*: accuracy with interval, per class.

    Pictures without an answer are named and not counted; the exit code is that of the first.
    """
    from .bundle import evaluate_folder

    return evaluate_folder(bundle, folder, device=device, as_json=as_json)
