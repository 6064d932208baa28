"""Checkpoints: states of a training as versions, and what may continue from which.

A checkpoint is looked for by its stage's key, so that none is found after a change of settings,
inputs or code. What the key does not hold, because it decides no setting, is checked here.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from d2nas.config import Config
from d2nas.errors import ConfigError, DamagedArtifactError

from ..report.versions import setting_words
from ..stages import BY_NAME
from ..store import Staging, Store, Version, state_of

if TYPE_CHECKING:
    from d2nas.train.state import TrainState

_LIBRARIES = {"torch": "will", "torchvision": "may", "numpy": "may", "pillow": "may"}
"""What computes or decodes, and whether another version certainly does so in another way."""
_PERHAPS = ("processor", "driver")
"""Facts of a machine that change results only sometimes."""
_BY_THEMSELVES = ("processor", "name")
"""Facts of a machine that say what they are."""


def write_state(work: Staging, state: "TrainState") -> None:
    """Write the files of a checkpoint. Raises ``StorageError``."""
    from d2nas.files.tensors import encode_state

    for name, data in encode_state(state.tensors, state.scalars()).items():
        work.write(name, data)


def read_state(version: Version) -> "TrainState":
    """Return the state that a checkpoint holds. Raises ``DamagedArtifactError``."""
    from d2nas.files.tensors import STATE_SCALARS, decode_state
    from d2nas.train.state import TrainState

    tensors, scalars = decode_state(version.read)
    return TrainState.from_parts(tensors, scalars, what=f"{version.reference}: {STATE_SCALARS}")


def library_warnings(version: Version, now: Mapping[str, str]) -> list[str]:
    """Return what to tell about libraries that changed since a checkpoint.

    Raises ``ConfigError`` where PyTorch's major version did.
    """
    recorded = version.manifest.versions
    was, own = recorded.get("torch", "unknown"), now["torch"]
    if was.partition(".")[0] != own.partition(".")[0]:
        raise ConfigError(
            f"{version.reference} was made with torch {was}, this is torch {own}",
            hint=f"continue with torch {was}, or start over with --fresh",
        )
    return [
        f"{version.reference} was made with {name} {recorded[name]}, this is {name} {now[name]}: "
        f"the result {effect} not equal either's to the last bit"
        for name, effect in _LIBRARIES.items()
        if name in recorded and name in now and recorded[name] != now[name]
    ]


def arithmetic_warnings(version: Version, now: Mapping[str, Any]) -> list[str]:
    """Return what to tell about a machine that now adds in another order than at a checkpoint.

    ``now``: its facts. Of what a checkpoint did not record yet nothing is told.
    """
    return [
        f"{version.reference} was made with {change}: the result "
        f"{'may' if name in _PERHAPS else 'will'} not equal either's to the last bit"
        for name, change in _arithmetic_changes(version.manifest.facts, now)
    ]


def _arithmetic_changes(
    was: Mapping[str, Any], now: Mapping[str, Any], part: str = ""
) -> Iterator[tuple[str, str]]:
    for name, value in now.items():
        before = was.get(name)
        if isinstance(value, Mapping):
            if isinstance(before, Mapping):
                yield from _arithmetic_changes(before, value, name)
        elif value is not None and before not in (None, value):
            # "2 threads", "cudnn 91002", and a processor's or GPU's name by itself
            named = f"{name} {before}" if part == "gpu" else f"{before} {name}"
            yield name, f"{before if name in _BY_THEMSELVES else named}, now {value}"


def given_up(
    store: Store, run: str, stage: str, config: Config, parents: Mapping[str, str]
) -> str | None:
    """Return why a stage's newest checkpoint is not continued from; None where nothing is lost.

    ``parents``: role to id, with which the stage starts over now.
    """
    # What cannot be read is in nobody's way here; ``verify`` names it.
    with suppress(DamagedArtifactError):
        newest = store.latest(run, state_of(stage))
        if newest is None:
            return None
        finished = {reference.key for reference in store.references(run, stage)}
        if newest.manifest.key in finished:
            return None
        changes = "; ".join(_changes(newest, stage, config, parents)) or "other images"
        step = newest.manifest.facts["step"]
        return f"{stage} starts over ({changes}); {newest.reference}, step {step}, is kept"
    return None


def _changes(
    newest: Version, stage: str, config: Config, parents: Mapping[str, str]
) -> Iterator[str]:
    was, now = _flat(newest.manifest.config), _flat(BY_NAME[stage].config(config))
    for name in sorted(was.keys() | now.keys()):
        before, after = was.get(name), now.get(name)
        if before != after:
            listed = isinstance(before, list | dict) or isinstance(after, list | dict)
            values = f"{name} is {setting_words(after)}, was {setting_words(before)}"
            yield f"another {name}" if listed else values
    for role in sorted(parents):
        if newest.manifest.parents.get(role) != parents[role]:
            yield f"another {role}"
    if newest.manifest.code_schema != BY_NAME[stage].code_schema:
        yield f"code schema {BY_NAME[stage].code_schema}, was {newest.manifest.code_schema}"


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``section.field`` to value, and what is in no section, a revision, by its name."""
    found = dict[str, Any]()
    for section, fields in values.items():
        if isinstance(fields, Mapping):
            found |= {f"{section}.{field}": value for field, value in fields.items()}
        else:
            found[section] = fields
    return found
