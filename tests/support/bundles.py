"""Bundles for tests: another model of the same run, and a process that stops before its last file.

``python tests/bundles.py MODE STORE EXPORTED MARKERS`` writes the toy's bundle, but before its list
of checksums it makes the file ``written`` in MARKERS and waits for ``go``.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import safetensors.numpy
from toy import Place

from pipeline.bundle import writing
from pipeline.bundle.checksums import CHECKSUMS
from pipeline.stages import open_store
from pipeline.store import FileSystem

STAGES = ("search", "derive", "retrain", "export", "validate")


class OtherModel:
    """An export version whose model has other bytes and does the same."""

    def __init__(self, version: Any, name: str = "another") -> None:
        self._version = version
        model = onnx.ModelProto.FromString(version.read("model.onnx"))
        model.doc_string = name
        self._model = model.SerializeToString()

    def read(self, name: str) -> bytes:
        assert name == "model.onnx"
        return self._model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._version, name)


def versions_in(root: Path) -> dict[str, Any]:
    """The newest versions of the toy's stages."""
    store = open_store(root)
    return {stage: store.open(f"toy/{stage}") for stage in STAGES}


def without_lock(*_: object) -> contextlib.AbstractContextManager[None]:
    """What takes the place of the lock in controls."""
    return contextlib.nullcontext()


class _Waiting(FileSystem):
    def __init__(self, markers: Path) -> None:
        super().__init__()
        self._markers = markers

    def replace_file(self, path: Path, data: bytes) -> None:
        if path.name == CHECKSUMS:
            (self._markers / "written").touch()
            while not (self._markers / "go").exists():
                time.sleep(0.01)
        super().replace_file(path, data)


if __name__ == "__main__":
    mode, root, exported, markers = sys.argv[1], *map(Path, sys.argv[2:])
    if mode == "unlocked":
        writing.bundle_lock = without_lock
    writing.write_bundle(exported, "toy", versions_in(root), _Waiting(markers))


def bundle_of(place: Place) -> Path:
    return place.exported / "toy"


def other_golden(**changes: Any) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        path = bundle / "golden.safetensors"
        values = safetensors.numpy.load_file(path)
        path.write_bytes(safetensors.numpy.save(values | changes))

    return change
