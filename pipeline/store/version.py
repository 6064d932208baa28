"""One opened version: verified when it was opened, and again at every read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2nas.errors import DamagedArtifactError
from d2nas.files.verified_folder import VerifiedFolder, read_verified

from .kinds import kind_of
from .layout import Layout
from .manifest import Manifest, parse_manifest
from .references import Reference


@dataclass(frozen=True)
class Version:
    """A whole version, by name or by id alone (then without run, stage, number and note)."""

    manifest: Manifest
    content: VerifiedFolder
    run: str | None = None
    stage: str | None = None
    number: int | None = None
    note: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        """SHA-256 of the manifest."""
        return self.content.id

    @property
    def path(self) -> Path:
        """The version's folder."""
        return self.content.folder

    @property
    def reference(self) -> str | None:
        """``RUN/STAGE@vN``."""
        return None if self.run is None else f"{self.run}/{self.stage}@v{self.number}"

    def read(self, name: str) -> bytes:
        """Return the content of a file, hashed as it is read.

        Raises ``DamagedArtifactError`` or ``StorageError``.
        """
        return self.content.read(name)


def hint_for(layout: Layout, reference: Reference | None) -> str:
    """Return the line that says how the version is made again."""
    if reference is None:
        return "d2nas verify lists what is damaged; d2nas run RUN makes it again"
    return layout.kinds.rebuild_hint(reference.run, reference.stage)


def open_version(layout: Layout, version_id: str, reference: Reference | None) -> Version:
    """Open and verify a version, and that ``reference`` stands for it.

    Raises ``DamagedArtifactError``, with the command that rebuilds it as hint, or ``StorageError``.
    """
    folder = layout.version(version_id)
    try:
        content = read_verified(folder, expected_id=version_id, hint=hint_for(layout, reference))
        return as_version(layout, content, reference)
    except DamagedArtifactError as error:
        if reference is None:
            raise
        raise DamagedArtifactError(f"{reference.name}: {error}", hint=error.hint) from None


def as_version(layout: Layout, content: VerifiedFolder, reference: Reference | None) -> Version:
    """Return the version whose folder was verified. Raises ``DamagedArtifactError``."""
    what = str(content.folder)
    manifest = parse_manifest(content.manifest, layout.kinds, what=what, hint=content.hint)
    if reference is None:
        return Version(manifest, content)
    if manifest.kind != kind_of(reference.stage) or manifest.key != reference.key:
        raise DamagedArtifactError(
            f"{content.folder}: is another {manifest.kind} than its reference says",
            hint=content.hint,
        )
    return Version(
        manifest, content, reference.run, reference.stage, reference.number, reference.note
    )
