"""References: the small files that give versions their human names ``RUN/STAGE@vN``.

What must not decide an id stands here: when and where a version was made, by which command.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from d2nas.errors import DamagedArtifactError, StorageError
from d2nas.files.strict_json import canonical_json, digest, parse_json
from d2nas.files.verified_folder import read_plain_file

from .fsio import is_run_name
from .layout import Layout, names_in
from .manifest import Digest, Record, problem_of

SCHEMA: Literal[1] = 1
_MAX_BYTES = 4 * 1024 * 1024
_FILE_NAME = re.compile(r"v([1-9][0-9]{0,8})\.json")


@dataclass(frozen=True)
class Place:
    """Place of a reference: its name and its file, which may be damaged."""

    run: str
    stage: str
    number: int
    path: Path
    hint: str
    """How a damaged version of this name is made again."""

    @property
    def name(self) -> str:
        """``RUN/STAGE@vN``."""
        return f"{self.run}/{self.stage}@v{self.number}"


@dataclass(frozen=True)
class Reference:
    """One name and the version it stands for."""

    run: str
    stage: str
    number: int
    id: str
    key: str
    note: dict[str, Any]
    """When, where and how the version was made."""

    @property
    def name(self) -> str:
        """``RUN/STAGE@vN``."""
        return f"{self.run}/{self.stage}@v{self.number}"


@dataclass(frozen=True)
class Damage:
    """One damaged thing in a store, or one that cannot be read."""

    name: str
    path: Path
    problem: str
    is_unreadable: bool = False
    """The operating system refused it, which says nothing about the artifact."""

    @classmethod
    def of(cls, name: str, path: Path, error: DamagedArtifactError | StorageError) -> Self:
        """Return what an error says of one thing."""
        return cls(name, path, str(error), isinstance(error, StorageError))

    @property
    def kind(self) -> str:
        """``damaged`` or ``unreadable``."""
        return "unreadable" if self.is_unreadable else "damaged"


class _Body(Record):
    schema_version: Annotated[Literal[1], Field(alias="schema")] = SCHEMA
    run: str
    stage: str
    number: Annotated[int, Field(ge=1)]
    id: Digest
    key: Digest
    note: dict[str, Any]


def encode_reference(reference: Reference) -> bytes:
    """Return the content of a reference's file: the body, and the body's digest.

    Raises ``ValueError`` or ``TypeError`` if the note is not JSON.
    """
    body = _Body(
        run=reference.run,
        stage=reference.stage,
        number=reference.number,
        id=reference.id,
        key=reference.key,
        note=reference.note,
    ).model_dump(by_alias=True)
    return canonical_json({"body": body, "digest": digest(body)})


def read_reference(place: Place) -> Reference:
    """Read a reference and check that it is whole and stands where it belongs.

    Raises ``DamagedArtifactError`` naming the file, or ``StorageError``.
    """
    data = read_plain_file(place.path, max_bytes=_MAX_BYTES, hint=place.hint)
    try:
        values = parse_json(data, what=str(place.path))
    except DamagedArtifactError as error:
        raise DamagedArtifactError(str(error), hint=place.hint) from None
    if not _agrees_with_its_digest(values, data):
        raise _broken(place, "the reference differs from its own digest")
    body = _parse_body(values["body"], place)
    if (body.run, body.stage, body.number) != (place.run, place.stage, place.number):
        raise _broken(place, f"is the reference {body.run}/{body.stage}@v{body.number}")
    return Reference(body.run, body.stage, body.number, body.id, body.key, body.note)


def _agrees_with_its_digest(values: Any, data: bytes) -> bool:
    if not isinstance(values, dict) or values.keys() != {"body", "digest"}:
        return False
    try:
        return digest(values["body"]) == values["digest"] and canonical_json(values) == data
    except ValueError:  # half of a character pair, which has no encoding
        return False


def _parse_body(values: Any, place: Place) -> _Body:
    schema = values.get("schema") if isinstance(values, dict) else None
    if type(schema) is int and schema != SCHEMA:
        raise _broken(
            place,
            f"reference of schema {schema}, this d2nas reads schema {SCHEMA}",
            "use the d2nas that wrote it",
        )
    try:
        return _Body.model_validate(values)
    except ValidationError as error:
        raise _broken(place, problem_of(error)) from None


def _broken(place: Place, problem: str, hint: str | None = None) -> DamagedArtifactError:
    return DamagedArtifactError(f"{place.path}: {problem}", hint=hint or place.hint)


def places(layout: Layout, run: str, stage: str) -> list[Place]:
    """Return where the references of one stage stand, by number; no file is read.

    Raises ``ConfigError`` for a run or stage that is no part of a path.
    """
    folder = layout.reference_file(run, stage, 1).parent
    hint = layout.kinds.rebuild_hint(run, stage)
    found = []
    for file_name in names_in(folder):
        match = _FILE_NAME.fullmatch(file_name)
        if match:
            found.append(Place(run, stage, int(match[1]), folder / file_name, hint))
    return sorted(found, key=lambda place: place.number)


def all_places(layout: Layout, run: str | None = None, stage: str | None = None) -> list[Place]:
    """Return where references stand, by run, stage in the order of a run, and number.

    All of them, or those of one run, one stage or both.
    """
    runs = [name for name in names_in(layout.runs) if is_run_name(name)] if run is None else [run]
    found = []
    for one in runs:
        stages = _stages_of(layout, one) if stage is None else (stage,)
        found += [place for each in stages for place in places(layout, one, each)]
    return found


def _stages_of(layout: Layout, run: str) -> list[str]:
    """Return the stages that a run has a folder for, in the order of a run."""
    return layout.kinds.in_order(names_in(layout.run(run)))


def scan(
    layout: Layout, run: str | None = None, stage: str | None = None
) -> tuple[list[Reference], list[Damage]]:
    """Read references as ``all_places`` finds them; those that cannot be read are told apart."""
    references, damaged = [], []
    for place in all_places(layout, run, stage):
        try:
            references.append(read_reference(place))
        except (DamagedArtifactError, StorageError) as error:
            damaged.append(Damage.of(place.name, place.path, error))
    return references, damaged


def unexpected_entries(layout: Layout) -> list[Damage]:
    """Return what stands among the references and is none; hidden files do not count."""
    found = []
    for run in _visible(layout.runs):
        folder = layout.runs / run
        if not is_run_name(run) or not folder.is_dir():
            found.append(Damage(run, folder, f"{folder}: is not a run"))
            continue
        for stage in _visible(folder):
            if not layout.kinds.is_stage(stage) or not (folder / stage).is_dir():
                path = folder / stage
                found.append(Damage(f"{run}/{stage}", path, f"{path}: is not a stage"))
                continue
            for name in _visible(folder / stage):
                path = folder / stage / name
                if not _FILE_NAME.fullmatch(name):
                    problem = f"{path}: is not a reference"
                    found.append(Damage(f"{run}/{stage}/{name}", path, problem))
    return found


def _visible(folder: Path) -> list[str]:
    return [name for name in names_in(folder) if not name.startswith(".")]
