"""What the commands on what is stored do once their arguments are parsed (no torch)."""

from collections.abc import Sequence
from pathlib import Path

from d2nas.errors import ConfigError

from .console import Console
from .listing import describe_target, fact_rows, list_rows
from .store import Store


def list_versions(run: str | None, store: Path, *, as_json: bool) -> None:
    """Show the runs' versions, or those of one run."""
    rows = list_rows(Store(store), run)
    if as_json:
        Console().data(rows)
        return
    columns = ("version", "created", "metrics", "id")
    cells = [(row["ref"], row["created"], row["metrics"], row["id"][:12]) for row in rows]
    Console().table("versions", columns, cells)


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
    from .bundle.commands import verify_bundles
    from .bundle.reader import is_bundle

    bundles = [target for target in targets if is_bundle(Path(target))]
    if digest is not None and (len(bundles) != 1 or len(targets) != 1):
        raise ConfigError("--digest is of one bundle", hint="d2nas verify exported/NAME --digest D")
    if not bundles:
        return verify_versions(targets, store, as_json=as_json)
    if len(bundles) < len(targets):
        raise ConfigError("versions and bundles cannot be verified together")
    verify_bundles([Path(bundle) for bundle in bundles], digest, device, as_json=as_json)
    return 0


def verify_versions(targets: Sequence[str], store: Path, *, as_json: bool) -> int:
    """Hash versions again, and return the exit code: 4 if any is damaged."""
    report = Store(store).verify(targets)
    damaged = [
        {"name": entry.name, "path": str(entry.path), "problem": entry.problem}
        for entry in report.damaged
    ]
    console = Console()
    if as_json:
        console.data({"checked": report.checked, "damaged": damaged})
    else:
        console.table("damaged", ("name", "problem"), [(d["name"], d["problem"]) for d in damaged])
        console.say(f"{report.checked} checked, {len(damaged)} damaged")
    if damaged:
        hint = "d2nas run PRESET --fresh makes the run's versions again"
        console.error(f"{len(damaged)} of {report.checked} are damaged", hint)
    return 4 if damaged else 0


def remove_garbage(store: Path, *, dry_run: bool, as_json: bool) -> None:
    """Remove, or only show, what interrupted commands left and what no run refers to."""
    opened = Store(store)
    garbage = opened.find_garbage() if dry_run else opened.collect_garbage()
    rows = [{"path": str(item.path), "reason": item.reason, "bytes": item.size} for item in garbage]
    if as_json:
        Console().data(rows)
    else:
        title = "would be removed" if dry_run else "removed"
        cells = [(str(item.path), item.reason, f"{item.size:,}") for item in garbage]
        Console().table(title, ("path", "reason", "bytes"), cells)
