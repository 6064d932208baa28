"""Store commands after parsing: ls, show, verify, gc."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from d2nas.errors import ConfigError, DamagedArtifactError, StorageError

from ..console import Console
from ..running.inputs import describe_target, fact_rows, list_rows
from ..stages import PARENTS
from ..store import STATE_STAGES, Store
from ..streams import optional_output


def list_versions(run: str | None, store: Path, *, as_json: bool) -> None:
    """Show the runs' versions, or those of one run."""
    rows, console = list_rows(Store(store), run), Console()
    if not rows:
        console.say(f"no versions in {store}; d2nas run quickstart makes the first ones")
    if as_json:
        console.data(rows)
        return
    columns = ("version", "created", "metrics", "id")
    cells = [
        # To the minute, as written: in UTC.
        (row["ref"], row["created"][:16].replace("T", " "), row["metrics"], row["id"][:12])
        for row in rows
    ]
    console.table("versions, by UTC", columns, cells)


def show_target(target: str, store: Path, *, as_json: bool) -> None:
    """Show a version: metrics, lineage, files, configuration."""
    described = describe_target(Store(store), target)
    if as_json:
        Console().data(described)
    else:
        Console().facts(target, fact_rows(described))


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
    if slash and stage.partition("@")[0] in (*PARENTS, *STATE_STAGES):
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


def remove_garbage(store: Path, *, dry_run: bool, everything_unnamed: bool, as_json: bool) -> None:
    """Remove, or only show, what interrupted commands left and what lost its names.

    Raises as ``Store.collect_garbage``.
    """
    opened = Store(store)
    act = opened.find_garbage if dry_run else opened.collect_garbage
    garbage = act(everything_unnamed=everything_unnamed)
    rows = [{"path": str(item.path), "reason": item.reason, "bytes": item.size} for item in garbage]
    if not rows:
        Console().say(f"nothing to remove in {store}")
    if as_json:
        Console().data(rows)
    elif rows or not Console().on_terminal:
        title = "would be removed" if dry_run else "removed"
        cells = [(str(item.path), item.reason, f"{item.size:,}") for item in garbage]
        with contextlib.nullcontext() if dry_run else optional_output():
            Console().table(title, ("path", "reason", "bytes"), cells)
