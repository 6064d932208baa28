"""Rows of ``ls`` and descriptions of ``show``: the versions of a store, in words."""

from typing import Any

from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.files.strict_json import canonical_json

from ..presets import preset_names
from ..report.versions import version_line
from ..stages import ALL, METRICS_FILE, STAGES
from ..store import Reference, Store, Version, is_run_name, kind_of
from .events import read_last_row


def list_rows(store: Store, run: str | None) -> list[dict[str, Any]]:
    """Return a row per version, checkpoints too, read from the references alone.

    A damaged reference is a row that says so; ``verify`` looks at the versions themselves. Raises
    ``ConfigError`` for an unknown run.
    """
    references, damaged = store.scan_references()
    rows: list[dict[str, Any]] = [
        {
            "ref": reference.name,
            "id": reference.id,
            "path": str(store.root / "versions" / reference.id),
            "kind": kind_of(reference.stage),
            "created": str(reference.note.get("created", "")),
            "facts": _facts_of(reference),
            "metrics": version_line(_facts_of(reference)),
        }
        for reference in references
    ]
    rows += [
        {
            "ref": damage.name,
            "id": "",
            "path": str(damage.path),
            "kind": damage.kind,
            "created": "",
            "facts": {},
            "metrics": damage.problem,
        }
        for damage in damaged
    ]
    if run is not None:
        rows = [row for row in rows if row["ref"].partition("/")[0] == run]
        if not rows:
            raise no_run(store, run)
    return rows


def describe_target(store: Store, target: str) -> dict[str, Any]:
    """Describe a version by reference or id, or, for a run's name, its newest stage and what is
    known of a training of this run that has not finished: its last epoch, its cell so far.
    """
    unfinished = None
    if is_run_name(target):
        newest = [stage for stage in STAGES if store.references(target, stage)]
        unfinished = _unfinished(store, target)
        if unfinished is not None and not newest:
            return {"run": target, "unfinished": unfinished}
        if newest:
            target = f"{target}/{newest[-1]}"
    version = store.open(target)
    described = {**describe(version), "lineage": _lineage(store, version)}
    return described if unfinished is None else {**described, "unfinished": unfinished}


def _unfinished(store: Store, run: str) -> dict[str, Any] | None:
    """Return the stage and the last row of a run's training that is no version yet, if any: it
    runs, or was interrupted.
    """
    for stage in reversed([stage.name for stage in ALL if stage.checkpoints]):
        row = read_last_row(store.root, run, stage)
        if row is None:
            continue
        try:
            last = _last_row(store, run, stage)
        except (DamagedArtifactError, IndexError):
            last = b""
        if last != canonical_json(row):
            return {"stage": stage, "row": row}
    return None


def _last_row(store: Store, run: str, stage: str) -> bytes:
    """Return the last row of the newest version with metrics: a derivation may have none."""
    for reference in reversed(store.references(run, stage)):
        version = store.open(reference.name)
        if METRICS_FILE in version.manifest.files:
            return version.read(METRICS_FILE).splitlines(keepends=True)[-1]
    return b""


def describe(version: Version) -> dict[str, Any]:
    """Return everything a version says of itself, as JSON values."""
    manifest = version.manifest
    return {
        "ref": version.reference,
        "id": version.id,
        "path": str(version.path),
        "kind": manifest.kind,
        "facts": dict(manifest.facts),
        "parents": dict(manifest.parents),
        "files": {name: entry.size for name, entry in manifest.files.items()},
        "config": manifest.config,
        "seed": manifest.seed,
        "libraries": dict(manifest.versions),
        "note": {
            key: value
            for key, value in (version.note or {}).items()
            if key not in ("config", "facts")
        },
    }


def _lineage(store: Store, version: Version) -> list[dict[str, str]]:
    """Return all ancestors, nearest first, each once."""
    found: dict[str, dict[str, str]] = {}
    waiting = [version]
    while waiting:
        for role, parent_id in waiting.pop(0).manifest.parents.items():
            if parent_id not in found:
                parent = store.open_id(parent_id)
                found[parent_id] = {
                    "role": role,
                    "ref": parent.reference or "",
                    "id": parent_id,
                }
                waiting.append(parent)
    return list(found.values())


def no_run(store: Store, run: str) -> ConfigError:
    """Return the error of a run that a store has not."""
    runs = sorted({reference.run for reference in store.scan_references()[0]})
    hint = "runs: " + ", ".join(runs) if runs else "d2nas run quickstart makes the first one"
    if run in preset_names():
        hint = f"{run} is a preset: d2nas run {run}, or d2nas retrain {run} --genotype DARTS_V2"
    return ConfigError(f"no run {run!r} in the store {store.root}", hint=hint)


def _facts_of(reference: Reference) -> dict[str, Any]:
    facts = reference.note.get("facts")
    return facts if isinstance(facts, dict) else {}
