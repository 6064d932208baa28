"""The manifest: what a version is, and everything its id is computed from.

It holds no clock, host or path, so equal work has an equal id on every machine.
"""

import hashlib
from collections.abc import Container
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from d2nas.errors import DamagedArtifactError
from d2nas.files.strict_json import canonical_json, parse_json
from d2nas.files.verified_folder import MANIFEST_NAME, is_file_name

SCHEMA: Literal[1] = 1

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Role = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Record(BaseModel):
    """Base of what is read from a store: frozen, no unknown keys, no conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class FileEntry(Record):
    """One file of a version."""

    size: Annotated[int, Field(ge=0)]
    """In bytes."""
    sha256: Digest


class Manifest(Record):
    """Schema 1."""

    schema_version: Annotated[Literal[1], Field(alias="schema")] = SCHEMA
    kind: Role
    key: Digest
    """Digest of all that decides whether the stage must run again."""
    files: dict[str, FileEntry]
    parents: dict[Role, Digest]
    """What the version was made from: role to id."""
    config: dict[str, Any]
    seed: int
    code_schema: int
    """Of the code that wrote the files; it grows when their meaning changes."""
    versions: dict[str, str]
    """Library to version."""
    facts: dict[str, Any]
    """Small results, such as an accuracy."""

    @field_validator("files")
    @classmethod
    def _names_are_safe(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            if not is_file_name(name):
                raise ValueError(f"forbidden file name {name!r}")
        if len({name.lower() for name in files}) != len(files):
            raise ValueError("two file names differ in upper and lower case only")
        return files

    def to_bytes(self) -> bytes:
        """Return the content of ``manifest.json``.

        Raises ``ValueError`` or ``TypeError`` for values that JSON does not have, NaN among them.
        """
        return canonical_json(self.model_dump(by_alias=True))

    @property
    def id(self) -> str:
        """The version's id: SHA-256 of ``to_bytes()``."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def parse_manifest(
    values: Any, kinds: Container[str], *, what: str, hint: str | None = None
) -> Manifest:
    """Check a manifest read from a file, of a version of one of these kinds; ``what`` names it.

    Raises ``DamagedArtifactError``; for another schema it names both.
    """
    schema = values.get("schema") if isinstance(values, dict) else None
    if type(schema) is int and schema != SCHEMA:
        raise DamagedArtifactError(
            f"{what}: {MANIFEST_NAME} has schema {schema}, this d2nas reads schema {SCHEMA}",
            hint="use the d2nas that wrote it, or run the stage again",
        )
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        problem = problem_of(error)
    else:
        if manifest.kind in kinds:
            return manifest
        problem = f"kind: {manifest.kind} is not supported"
    raise DamagedArtifactError(f"{what}: {MANIFEST_NAME}: {problem}", hint=hint)


def read_back(manifest: Manifest) -> Manifest:
    """Return ``manifest`` as a later reader will see it (tuples become lists, for example).

    Raises ``ValueError`` or ``TypeError`` if it could not be read again.
    """
    data = manifest.to_bytes()
    try:
        values = parse_json(data, what=MANIFEST_NAME)
        return parse_manifest(values, {manifest.kind}, what="new version")
    except DamagedArtifactError as error:
        raise ValueError(str(error)) from None


def problem_of(error: ValidationError) -> str:
    """Return the first problem in one line: where, and what."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "content"
    return f"{where}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
