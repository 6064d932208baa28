"""Writing a bundle may fail anywhere: it is refused or whole, and the next run ends it."""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from bundles import OtherModel, versions_in
from faults import FAULTS, Crash, FaultyFileSystem, Vanishing
from toy import Place

from d2nas.errors import ConfigError, DamagedArtifactError, StorageError
from pipeline.bundle import reader as bundle_reader
from pipeline.bundle import writing as bundle
from pipeline.bundle.reader import open_bundle
from pipeline.bundle.writing import write_bundle
from pipeline.store import FileSystem


def content_of(exported: Path) -> str | None:
    """Return a digest of all that the bundle holds; None if it is refused."""
    folder = exported / "toy"
    try:
        open_bundle(folder)
    except (ConfigError, DamagedArtifactError):
        return None
    content = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return content.hexdigest()


def made_once(make: Callable[..., Any], position: int) -> Callable[..., Any]:
    """Remember what was made for the argument at this position: a few are met very often."""
    known: dict[Any, Any] = {}

    def remembered(*arguments: Any, **named: Any) -> Any:
        key = arguments[position]
        if key not in known:
            known[key] = make(*arguments, **named)
        return known[key]

    return remembered


@pytest.fixture
def versions(finished: Place, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A finished run's versions; what a bundle says of them is put together only once."""
    for name in ("_documents", "_page"):
        monkeypatch.setattr(bundle, name, made_once(getattr(bundle, name), 1))
    monkeypatch.setattr(bundle_reader, "check_model", made_once(bundle_reader.check_model, 0))
    return versions_in(finished.store)


class Campaign:
    """A bundle to be written over what was there before, and its content before and after."""

    def __init__(self, folder: Path, versions: dict[str, Any], before: str) -> None:
        self.folder, self.versions, self.before = folder, versions, before
        self.first_model = versions["export"].read("model.onnx")
        prepared = folder / "prepared"
        prepared.mkdir()
        if before != "nothing":
            write_bundle(prepared, "toy", versions, FaultyFileSystem())
        if before == "a damaged file":
            (prepared / "toy" / "report.json").write_bytes(b"{}")
        if before == "an older model":
            self.versions = versions | {"export": OtherModel(versions["export"])}
        self.old = content_of(prepared)
        clean = FaultyFileSystem()
        self.new = content_of(self.write("clean", clean))
        self.num_operations = len(clean.log)

    def write(self, name: str, file_system: FileSystem) -> Path:
        """Write the bundle in a folder of this name, a copy of what was prepared."""
        exported = self.folder / name
        if not exported.exists():
            shutil.copytree(self.folder / "prepared", exported)
        write_bundle(exported, "toy", self.versions, file_system)
        return exported

    def problems(self, fault: str, position: int) -> list[str]:
        """Return what is wrong when this operation fails, and after the next run."""
        with suppress(StorageError, Crash):
            self.write("faulty", FaultyFileSystem(position, fault))
        exported, found = self.folder / "faulty", []
        if content_of(exported) not in (None, self.old, self.new):
            found.append(f"{fault} {position}: neither refused, nor old, nor new")
        with suppress(DamagedArtifactError):  # what a reader would refuse, which is told below
            self.write("faulty", FaultyFileSystem())
        if content_of(exported) != self.new:
            found.append(f"{fault} {position}: not ended by the next run")
        if self.before == "an older model":
            model = (exported / "toy" / "1" / "model.onnx").read_bytes()
            found += [f"{fault} {position}: the first model is gone"] * (model != self.first_model)
        shutil.rmtree(exported)
        return found

    def all_problems(self) -> list[str]:
        """Let every operation fail, in every way."""
        places = range(1, self.num_operations + 1)
        return [
            line for fault in FAULTS for place in places for line in self.problems(fault, place)
        ]


@pytest.mark.parametrize("before", ["nothing", "an older model", "a damaged file"])
def test_every_operation_may_fail(before: str, versions: dict[str, Any], quick_path: Path) -> None:
    campaign = Campaign(quick_path, versions, before)
    assert campaign.new not in (None, campaign.old)
    assert campaign.num_operations >= (5 if before == "a damaged file" else 20)
    assert list(campaign.all_problems()) == []


def test_controls(
    versions: dict[str, Any], quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = Campaign(quick_path, versions, "an older model")
    with monkeypatch.context() as patch:  # without the reader's checks a mixture would be used
        patch.setattr(sys.modules[__name__], "open_bundle", lambda folder: None)
        assert any("neither refused" in line for line in campaign.all_problems())
    monkeypatch.setattr(bundle, "_remove_half_written", lambda *_: None)
    assert any("not ended" in line for line in campaign.all_problems())


@pytest.mark.parametrize("call", ["listdir", "lstat"])
def test_a_listing_that_finds_nothing_costs_no_earlier_model(
    call: str, versions: dict[str, Any], quick_path: Path
) -> None:
    """Each call in turn says "no such file", with the list of checksums gone too."""
    write_bundle(quick_path / "first", "toy", versions, FaultyFileSystem())
    (quick_path / "first" / "toy" / "SHA256SUMS").unlink()
    first = versions["export"].read("model.onnx")
    other = versions | {"export": OtherModel(versions["export"])}
    for number in range(1, 12):
        exported = quick_path / "exported"
        shutil.copytree(quick_path / "first", exported)
        with pytest.MonkeyPatch.context() as patch, suppress(StorageError, DamagedArtifactError):
            one = Vanishing(exported / "toy", number)
            patch.setattr(os, call, one.watched(getattr(os, call)))
            write_bundle(exported, "toy", other, FaultyFileSystem())
        assert (exported / "toy" / "1" / "model.onnx").read_bytes() == first
        shutil.rmtree(exported)


def test_control_a_careless_listing_writes_over_the_first_model(
    versions: dict[str, Any], quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(quick_path, "toy", versions, FaultyFileSystem())
    (quick_path / "toy" / "SHA256SUMS").unlink()
    monkeypatch.setattr(bundle, "names_in", lambda _: [])
    write_bundle(
        quick_path, "toy", versions | {"export": OtherModel(versions["export"])}, FaultyFileSystem()
    )
    first = versions["export"].read("model.onnx")
    assert (quick_path / "toy" / "1" / "model.onnx").read_bytes() != first
