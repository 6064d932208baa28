"""``d2nas verify``: versions of the store hashed again, bundles checked from themselves alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from d2nas.errors import ConfigError, DamagedArtifactError, StorageError

from .options import DEFAULT_STORE, DeviceOption, JsonOption, StoreOption


def verify_command(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET",
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
    """Check versions of the store, or bundles; 4 if damaged.

    Every file is hashed again. Bundles are checked from themselves alone.
    """
    from ..bundle.nearby import is_bundle

    named = targets or []
    bundles = [target for target in named if is_bundle(Path(target))]
    for target in named:
        if target not in bundles:
            _refuse_no_bundle(target)
    if digest is not None and (len(bundles) != 1 or len(named) != 1):
        raise ConfigError("--digest is of one bundle", hint="d2nas verify exported/NAME --digest D")
    if not bundles:
        return verify_versions(named, store, as_json=as_json)
    if len(bundles) < len(named):
        raise ConfigError("versions and bundles cannot be verified together")
    verify_bundles([Path(bundle) for bundle in bundles], digest, device, as_json=as_json)
    return 0


def _refuse_no_bundle(target: str) -> None:
    """Raise ``ConfigError`` for what is neither a bundle's folder nor can be a version."""
    from ..bundle.nearby import bundles_near, no_bundle
    from ..stages import KINDS

    _, slash, stage = target.partition("/")
    if slash and KINDS.is_stage(stage.partition("@")[0]):
        return
    if bundles_near(Path(target)):
        raise no_bundle(Path(target))
    if slash:
        raise ConfigError(
            f"{target} is no bundle: it has no SHA256SUMS",
            hint="bundles are folders exported/NAME; versions are RUN/STAGE@vN (d2nas ls)",
        )


def verify_versions(targets: Sequence[str], store: Path, *, as_json: bool) -> int:
    """Hash versions again, and return the exit code: 4 if any is damaged.

    Raises ``ConfigError`` where there is no store: nothing checked is not nothing damaged.
    """
    from ..console import Console
    from ..stages import open_store

    if not store.is_dir():
        raise ConfigError(
            f"there is no store at {store}",
            hint="--store names the folder of all versions; d2nas run quickstart makes one",
        )
    report = open_store(store).verify(targets)
    damaged = [
        {
            "name": entry.name,
            "kind": entry.kind,
            "path": str(entry.path),
            "problem": entry.problem,
        }
        for entry in report.damaged
    ]
    unreadable = sum(entry.is_unreadable for entry in report.damaged)
    really = len(damaged) - unreadable
    console = Console()
    if as_json:
        console.data({"checked": report.checked, "damaged": damaged})
    else:
        rows = [(d["name"], d["problem"]) for d in damaged]
        if rows or not console.on_terminal:
            console.table("damaged", ("name", "problem"), rows)
        console.say(f"{report.checked} checked, {really} damaged")
    if really:
        hint = "d2nas run PRESET --fresh makes the run's versions again"
        console.error(f"{really} damaged among {report.checked} versions and their names", hint)
    if unreadable:
        hint = "check the disk and who may read the store"
        console.error(
            f"{unreadable} unreadable among {report.checked} versions and their names", hint
        )
    if really:
        return DamagedArtifactError.exit_code
    return StorageError.exit_code if unreadable else 0


def verify_bundles(
    folders: Sequence[Path], digest: str | None, device: str, *, as_json: bool
) -> None:
    """Check bundles from themselves alone and show what was checked.

    Raises what is wrong with the first that is not sound.
    """
    from d2nas.files.verified_folder import is_digest

    from ..bundle.reader import open_bundle
    from ..bundle.verification import verify_bundle
    from ..console import Console
    from ..onnx_io.providers import runtime_device

    if digest is not None and not is_digest(digest.lower()):
        raise ConfigError(f"--digest {digest!r} is no SHA-256 in hexadecimal")
    rows = [
        verify_bundle(
            open_bundle(folder, digest), runtime_device(device), published=digest is not None
        )
        for folder in folders
    ]
    console = Console()
    if as_json:
        console.data(rows)
        return
    for row in rows:
        console.facts(f"bundle {row['name']}", _fact_rows(row))


def _fact_rows(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = {**row, **{f"from {role}": id for role, id in row["lineage"].items()}}
    for key in ("lineage", "not_checked"):
        del facts[key]
    facts["checked"] = f"{len(row['checked'])} files"
    told = [(key.replace("_", " "), str(value)) for key, value in facts.items()]
    return told + [("not checked", f"{one['file']}: {one['reason']}") for one in row["not_checked"]]
