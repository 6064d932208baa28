"""Inputs of a stage that runs alone: its run, configuration and parents."""

import re
from collections.abc import Mapping, Sequence

from d2nas.config import Config, DeriveConfig, build_config, parse_override
from d2nas.errors import ConfigError, DamagedArtifactError, shown_value
from d2nas.files.printed_genotype import is_printed
from d2nas.genotype import genotype_name, is_genotype_file, read_genotype

from ..presets import run_name
from ..stages import BY_NAME, STAGES
from ..store import Store, Version, is_id, is_run_name
from .listing import no_run


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
            raise no_run(store, run)
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

    ``genotype`` is a published name, a file or a printed genotype, which goes into the
    configuration, or a run, ``RUN/derive@vN`` or an id, which becomes a parent. Raises
    ``ConfigError``.
    """
    if is_printed(genotype):
        genotype = build_config({"derive": {"genotype": genotype}}).derive.genotype or ""
    if config.derive.genotype not in (None, genotype):
        raise ConfigError(
            f"--genotype {shown_value(genotype)}, "
            f"but derive.genotype={shown_value(config.derive.genotype)}"
        )
    if is_run_name(genotype) and store.references(genotype, "derive"):
        genotype += "/derive"
    elif is_run_name(genotype) and (trained := store.latest(genotype, "retrain")) is not None:
        genotype = trained.manifest.parents["derive"]
    is_reference = not is_printed(genotype) and ("/" in genotype or is_id(genotype))
    if is_reference and not is_genotype_file(genotype):
        version = store.open(genotype)
        if version.stage != "derive":
            raise ConfigError(
                f"--genotype {genotype} is of {version.stage}, a derive version holds a genotype"
            )
        if version.manifest.facts.get("architecture") is not None:
            raise ConfigError(
                f"--genotype {genotype} is a library's network, and has no genotype",
                hint=f"d2nas baseline PRESET --model {version.manifest.facts['architecture']}",
            )
        return config, {"derive": version}
    try:
        read_genotype(genotype)
    except ConfigError as error:
        hint = "a file, a printed Genotype(...), a run, or RUN/derive@vN; " + (error.hint or "")
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
    is_reference = not is_printed(genotype) and not is_genotype_file(genotype)
    name = genotype.partition("/")[0] if is_reference else genotype_name(genotype)
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
