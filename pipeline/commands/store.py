"""The command ``verify`` after parsing."""

from collections.abc import Sequence
from pathlib import Path

from d2nas.errors import ConfigError, DamagedArtifactError, StorageError

from ..console import Console
from ..stages import BY_NAME
from ..store import STATE_STAGES, Store


def verify(
    targets: Sequence[str], store: Path, *, digest: str | None, device: str, as_json: bool
) -> int:
    """Check versions of the store, or bundles, and return the exit code."""
    from ..bundle.nearby import is_bundle
    from .bundle import verify_bundles

    bundles = [target for target in targets if is_bundle(Path(target))]
    for target in targets:
        if target not in bundles:
            _refuse_no_bundle(target)
    if digest is not None and (len(bundles) != 1 or len(targets) != 1):
        raise ConfigError("--digest is of one bundle", hint="d2nas verify exported/NAME --digest D")
    if not bundles:
        return verify_versions(targets, store, as_json=as_json)
    if len(bundles) < len(targets):
        raise ConfigError("versions and bundles cannot be verified together")
    verify_bundles([Path(bundle) for bundle in bundles], digest, device, as_json=as_json)
    return 0


def _refuse_no_bundle(target: str) -> None:
    """Raise ``ConfigError`` for what is neither a bundle's folder nor can be a version."""
    from ..bundle.nearby import bundles_near, no_bundle

    _, slash, stage = target.partition("/")
    if slash and stage.partition("@")[0] in (*BY_NAME, *STATE_STAGES):
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
    if not store.is_dir():
        raise ConfigError(
            f"there is no store at {store}",
            hint="--store names the folder of all versions; d2nas run quickstart makes one",
        )
    report = Store(store).verify(targets)
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
