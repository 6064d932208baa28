"""Source of a teacher: file, bundle or network of timm, and its part of a training's key.

Neither torch nor onnx is loaded.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from d2nas.config import TEACHER_FIELDS, RetrainConfig
from d2nas.errors import ConfigError, DamagedArtifactError

from ..onnx_io.served_model import served_model
from ..store.fsio import storage_error

LABELS_FILE = "labels.txt"
"""Beside a model's file: its classes, one a line, in the order of its outputs."""
MAX_BYTES = 2**31 - 1
"""Of a teacher's file: an ONNX file with its weights inside has no more."""

_TIMM = "timm:"


@dataclass(frozen=True, slots=True)
class Source:
    """Source of a teacher: an ONNX ``file``, or a network of timm by ``name``, whose weights are
    its published ones or, as safetensors, in ``file``.
    """

    kind: Literal["onnx", "timm"]
    name: str
    file: Path | None = None
    digest: str | None = None
    """What the SHA-256 of the file must be, where that is known."""

    @property
    def labels_file(self) -> Path | None:
        """The file that may name the classes; None where the model's own place has none."""
        return None if self.file is None else self.file.parent / LABELS_FILE


def source_of(teacher: str) -> Source:
    """Return what ``retrain.teacher`` names.

    Raises ``ConfigError`` for a file that is not there, or a folder that is no bundle,
    ``DamagedArtifactError``, ``StorageError``.
    """
    if teacher.startswith(_TIMM):
        name, at, file = teacher.removeprefix(_TIMM).partition("@")
        if at and not file.endswith(".safetensors"):  # a revision on the hub
            name, file = f"{name}@{file}", ""
        if not name:
            raise ConfigError(f"retrain.teacher={teacher}: the network's name is missing")
        return Source("timm", name, _existing(file) if file else None)
    if Path(teacher).is_dir():
        file_of_bundle, digest = served_model(Path(teacher))
        return Source("onnx", Path(os.path.abspath(teacher)).name, file_of_bundle, digest)
    return Source("onnx", Path(teacher).name, _existing(teacher))


def _existing(file: str) -> Path:
    if not Path(file).is_file():
        raise ConfigError(
            f"retrain.teacher: {file}: no such file",
            hint="the path of an ONNX file or of a bundle, timm:NAME or timm:NAME@FILE.safetensors",
        )
    return Path(file)


def teacher_key(config: RetrainConfig) -> dict[str, Any]:
    """Return what a training with a teacher depends on besides its other settings: of files what
    they hold, not where they lie. Raises as ``source_of``.
    """
    assert config.teacher is not None
    values = config.model_dump(mode="json")
    key = {field.removeprefix("teacher_"): values[field] for field in TEACHER_FIELDS}
    source = source_of(config.teacher)
    if source.kind == "timm":
        key["timm"] = source.name
    if source.file is not None:
        key["sha256"] = digest_of(source.file)
    labels = source.labels_file
    if labels is not None and labels.is_file():
        key["labels_sha256"] = digest_of(labels)
    return key


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file's content; of an unchanged file it is computed once. Raises
    ``StorageError``.
    """
    try:
        status = file.stat()
        return _digest(file, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    except OSError as error:
        raise storage_error(error, "read", file) from error


@lru_cache(maxsize=8)
def _digest(file: Path, *_state: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_source(source: Source) -> bytes:
    """Return the content of a source's file. Raises ``DamagedArtifactError`` for one that is too
    large, or not the one that its bundle lists, and ``StorageError``.
    """
    assert source.file is not None
    try:
        size = source.file.stat().st_size
        if size > MAX_BYTES:
            raise DamagedArtifactError(f"{source.file}: {size} bytes, at most {MAX_BYTES} are read")
        data = source.file.read_bytes()
    except OSError as error:
        raise storage_error(error, "read", source.file) from error
    if source.digest is not None and hashlib.sha256(data).hexdigest() != source.digest:
        raise DamagedArtifactError(
            f"{source.file}: its SHA-256 is not the one that its bundle lists",
            hint="copy the bundle again from where it was made",
        )
    return data
