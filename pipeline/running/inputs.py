"""Rows of ``ls``, descriptions of ``show``, inputs of single stages."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2nas.config import Config, DeriveConfig, build_config, parse_override
from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.files.strict_json import canonical_json
from d2nas.genotype import read_genotype

from ..presets import preset_names, run_name
from ..report.terminal import in_words
from ..stages import ALL, BY_NAME, METRICS_FILE, STAGES
from ..store import Reference, Store, Version, is_id, is_run_name, kind_of
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
            "metrics": in_words(_facts_of(reference)),
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
            raise _no_run(store, run)
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
            version = store.latest(run, stage)
            last = (
                b"" if version is None else version.read(METRICS_FILE).splitlines(keepends=True)[-1]
            )
        except (DamagedArtifactError, IndexError):
            last = b""
        if last != canonical_json(row):
            return {"stage": stage, "row": row}
    return None


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


def inputs_of(
    store: Store, stage: str, target: str, overrides: Sequence[str], data_root: str | None
) -> tuple[str, Config, dict[str, Version]]:
    """Return the run, configuration and parents with which ``stage`` runs on ``target``.

    ``target`` is a run (its newest version is taken) or a version of the stage before. The
    configuration is that version's run's, with ``overrides`` on top, which may not be for earlier
    stages: those ran already. Raises ``ConfigError``.
    """
    _check_overrides(stage, overrides)
    nearest = BY_NAME[stage].parents[-1]
    run = target.partition("/")[0]
    if "/" in target:
        version = store.open(target)
        if version.stage != nearest:
            raise ConfigError(
                f"{stage} starts from a version of {nearest}, {target} is of {version.stage}",
                hint=f"give {run} or {run}/{nearest}@vN",
            )
    else:
        if not store.references(run):
            raise _no_run(store, run)
        found = store.latest(run, nearest) or store.latest(run, stage)
        if found is None:
            begins = not BY_NAME[nearest].parents
            first = f"{nearest} PRESET --name {run}" if begins else f"{nearest} {run}"
            raise ConfigError(f"run {run} has no {nearest} version yet", hint=f"d2nas {first}")
        version = found
    # A stage that was made from another run's version has a configuration of its own.
    config = _config_of(version, overrides, data_root)
    roles = BY_NAME[stage].parents_of(config)
    if not roles:
        return run, config, {}
    if version.stage == stage:
        version = _parent(store, version, nearest)
    parents = {
        role: version if role == nearest else _parent(store, version, role) for role in roles
    }
    return run, config, parents


def _parent(store: Store, version: Version, role: str) -> Version:
    if role not in version.manifest.parents:
        raise ConfigError(
            f"{version.reference} was made without a {role} version",
            hint=f"d2nas {role} makes one, in a run of its own",
        )
    return store.open_id(version.manifest.parents[role])


def given_genotype(
    store: Store, genotype: str, config: Config
) -> tuple[Config, dict[str, Version]]:
    """Return the configuration and the parents with which retraining needs no search.

    ``genotype`` is a published name or a JSON file, which goes into the configuration, or a run,
    ``RUN/derive@vN`` or an id, which becomes a parent. Raises ``ConfigError``.
    """
    if config.derive.genotype not in (None, genotype):
        raise ConfigError(f"--genotype {genotype}, but derive.genotype={config.derive.genotype}")
    if is_run_name(genotype) and store.references(genotype, "derive"):
        genotype += "/derive"
    elif is_run_name(genotype) and (trained := store.latest(genotype, "retrain")) is not None:
        genotype = trained.manifest.parents["derive"]
    is_reference = "/" in genotype or is_id(genotype)
    if is_reference and not genotype.endswith(".json") and not Path(genotype).is_file():
        version = store.open(genotype)
        if version.stage != "derive":
            raise ConfigError(
                f"--genotype {genotype} is of {version.stage}, a derive version holds a genotype"
            )
        return config, {"derive": version}
    try:
        read_genotype(genotype)
    except ConfigError as error:
        hint = "a JSON file, a run, or RUN/derive@vN; " + (error.hint or "")
        raise ConfigError(str(error), hint=hint.removesuffix("; ")) from None
    derive = DeriveConfig(genotype=genotype)
    return config.model_copy(update={"derive": derive}), {}


def check_takes_genotype(
    store: Store, run: str, config: Config, given: Mapping[str, Version]
) -> None:
    """Raise ``ConfigError`` if ``run`` exists and is of another cell that was searched, or of other
    data: what follows in the run would silently be of one or the other.
    """
    held = store.latest(run, "derive")
    if held is None or ("derive" in given and given["derive"].id == held.id):
        return
    data = _config_of(held, (), None).data.name
    if held.manifest.parents:
        what = f"{held.reference} was searched, and stays this run's cell"
    elif data != config.data.name:
        what = f"{held.reference} is of data.name={data}, not {config.data.name}"
    else:
        return
    raise ConfigError(f"run {run}: {what}", hint="--name NEW begins another run")


def genotype_run_name(preset: str, genotype: str) -> str:
    """Return the default run name for a genotype trained by a preset: both names."""
    name = Path(genotype).stem if genotype.endswith(".json") else genotype.partition("/")[0]
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{run_name(preset)}-{words}"[:64].rstrip("-")


def _check_overrides(stage: str, overrides: Sequence[str]) -> None:
    for override in overrides:
        section, field, _ = parse_override(override)
        over = section in STAGES and STAGES.index(section) < STAGES.index(stage)
        if over and not (stage == "derive" and field == "device"):
            raise ConfigError(
                f"--set {override}: {section} ran before {stage} and is not run again",
                hint=f"d2nas {section} or d2nas run takes it",
            )


def _config_of(version: Version, overrides: Sequence[str], data_root: str | None) -> Config:
    values = (version.note or {}).get("config")
    if not isinstance(values, dict):
        raise DamagedArtifactError(f"{version.reference}: its reference holds no configuration")
    if data_root is not None:
        values = {**values, "data": {**values.get("data", {}), "root": data_root}}
    return build_config(values, overrides, what=str(version.reference))


def _no_run(store: Store, run: str) -> ConfigError:
    runs = sorted({reference.run for reference in store.scan_references()[0]})
    hint = "runs: " + ", ".join(runs) if runs else "d2nas run quickstart makes the first one"
    if run in preset_names():
        hint = f"{run} is a preset: d2nas run {run}, or d2nas retrain {run} --genotype DARTS_V2"
    return ConfigError(f"no run {run!r} in the store {store.root}", hint=hint)


def _facts_of(reference: Reference) -> dict[str, Any]:
    facts = reference.note.get("facts")
    return facts if isinstance(facts, dict) else {}
