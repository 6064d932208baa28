"""``d2nas push``: a verified bundle to the Hugging Face Hub, or to MLflow's model registry."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d2nas.errors import ConfigError

from .options import DEFAULT_EXPORTED, DeviceOption, JsonOption

if TYPE_CHECKING:
    from ..publishing.target import Target


def push_command(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="hf:OWNER/NAME, or mlflow:NAME.")],
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", help="A bundle's folder; default: exported/NAME."),
    ] = None,
    public: Annotated[
        bool | None,
        typer.Option("--public/--private", help="Who may see it on the Hub. [default: private]"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Verify, show what would be sent, send nothing.")
    ] = False,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Push a bundle to the Hugging Face Hub or MLflow's registry.

    It is verified first, and pushed whole or not at all. Tokens and addresses are of the
    environment: HF_TOKEN, HF_ENDPOINT; MLFLOW_TRACKING_URI.
    """
    from ..bundle.reader import bundle_contents, open_bundle
    from ..bundle.verification import verify_bundle
    from ..console import Console
    from ..onnx_io.providers import runtime_device
    from ..publishing.hub import push_to_hub, repository_files
    from ..publishing.registry import model_files, push_to_registry
    from ..publishing.target import PACKAGES, parse_target

    to = parse_target(target)
    if to.kind == "mlflow" and public is not None:
        raise ConfigError("--public and --private are of hf:, MLflow's server decides that")
    package = PACKAGES[to.kind]
    if not dry_run and importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    opened = open_bundle(bundle or DEFAULT_EXPORTED / to.bundle_name)
    verified = verify_bundle(opened, runtime_device(device), published=False)
    arranged = repository_files if to.kind == "hf" else model_files
    files = arranged(opened, bundle_contents(opened))
    sizes = {path: len(data) for path, data in files.items()}
    console = Console()
    if not as_json:
        for one in verified["not_checked"]:
            console.say(f"not checked: {one['file']}: {one['reason']}")
    if dry_run:
        pushed: dict[str, Any] = {}
    elif to.kind == "hf":
        pushed = push_to_hub(to.name, opened, files, public=bool(public))
    else:
        pushed = push_to_registry(to.name, opened, files)
    told = {"target": str(to), "bundle": opened.name, "digest": opened.digest, **pushed}
    if as_json:
        console.data({**told, "pushed": not dry_run, "files": sizes})
        return
    if dry_run:
        rows = [(path, f"{size:,}") for path, size in sizes.items()]
        console.table(f"would be pushed to {to}", ("file", "bytes"), rows)
    else:
        console.facts(f"pushed to {to}", _rows(told))
    console.say(_next(to, opened.name, opened.digest))


def _rows(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in told.items() if value not in (None, [])]


def _next(to: "Target", name: str, digest: str) -> str:
    got = (
        f"hf download {to.name} --local-dir DIR"
        if to.kind == "hf"
        else f"mlflow artifacts download -u models:/{to.name}/VERSION -d DIR"
    )
    return f"to check a download: {got}; d2nas verify DIR/{name} --digest {digest}"
