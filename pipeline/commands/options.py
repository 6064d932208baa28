"""The arguments and options that several commands share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_STORE = Path(".d2nas")
STORE_VARIABLE = "D2NAS_STORE"
DEFAULT_EXPORTED = Path("exported")

StoreOption = Annotated[
    Path,
    typer.Option(
        "--store", envvar=STORE_VARIABLE, show_envvar=False, help="All versions (D2NAS_STORE)."
    ),
]
ExportedOption = Annotated[
    Path, typer.Option("--exported", help="Model repository that bundles go to.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Override a config key; repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Data on stdout, messages on stderr.")]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Start over: reuse no version and no checkpoint.")
]
DataRootOption = Annotated[
    str | None, typer.Option("--data-root", help="Images: folder, manifest or hf:NAME (data.root).")
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option("--image-size", help="Height and width of the images (data.image_size)."),
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name of the run; default: the preset's.")
]
PresetArgument = Annotated[
    str, typer.Argument(metavar="PRESET", help="A preset, or the path of a TOML file.")
]
TargetArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run, or RUN/STAGE@vN of the stage to start from.")
]
BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder: exported/NAME.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads; default: PyTorch's.")
]
ProcessesOption = Annotated[
    int,
    typer.Option(
        "--nproc", min=1, max=1024, help="Processes on this machine that share every batch."
    ),
]
FullOption = Annotated[bool, typer.Option("--full", help="Everything; takes longer.")]
GenotypeOption = Annotated[
    str | None,
    typer.Option(
        "--genotype", help="DARTS_V2, a file, a printed Genotype(...), a run, RUN/derive@vN."
    ),
]
MaxP99Option = Annotated[
    float | None,
    typer.Option("--max-p99-ms", help="Gate: longest p99 from host to host (validate.max_p99_ms)."),
]
TimeOption = Annotated[
    str | None,
    typer.Option(
        "--time",
        metavar="TIME",
        help="Wall time for the whole run, 90s, 30m, 2h or 1h30m: chooses the epochs.",
    ),
]
GateBatchOption = Annotated[
    int | None,
    typer.Option("--batch", help="Batch size of that gate (validate.gate_batch; default 1)."),
]


def with_options(
    settings: list[str] | None, options: Mapping[str, str | float | None]
) -> list[str]:
    """Return ``settings`` with the options that were given, which are short for keys."""
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    return [*(settings or []), *given]
