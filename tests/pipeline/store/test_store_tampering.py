"""Tampered and forged artifacts: refused, however well the forger knows the format."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from faults import contents, lineage_in, refusal
from forgery import forge_manifest, rewrite_reference

from d2nas.errors import DamagedArtifactError
from d2nas.files import verified_folder
from d2nas.files.strict_json import canonical_json
from d2nas.files.verified_folder import MANIFEST_NAME
from pipeline.store import Store

TARGET = "quickstart/search@v2"


@pytest.fixture
def lineage(quick_path: Path) -> Store:
    return lineage_in(quick_path / "store")


# Tampering: each function changes quickstart/search@v2, made from ``contents(2)``


def forge(store: Store, manifest: bytes, files: Mapping[str, bytes]) -> None:
    forge_manifest(store.root, TARGET, manifest, files)


def _edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_NAME
    path.write_bytes(canonical_json(json.loads(path.read_bytes()) | changes))


def _edit_file_and_manifest(folder: Path) -> None:
    data = b"backdoor"
    (folder / "weights.bin").write_bytes(data)
    files = json.loads((folder / MANIFEST_NAME).read_bytes())["files"]
    files["weights.bin"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _edit_manifest(folder, files=files)


def _edit_all_and_rename(folder: Path) -> None:
    _edit_file_and_manifest(folder)
    name = hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest()
    folder.rename(folder.with_name(name))


def _swap_for_link(path: Path, outside: Path, link: Callable[[Path, Path], None]) -> None:
    path.rename(outside)
    link(outside, path)


def _replay_folder(older: Path, newer: Path) -> None:
    shutil.rmtree(newer)
    shutil.copytree(older, newer)


def _replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def tamperings(store: Store) -> dict[str, Callable[[], object]]:
    """Return ways to change search@v2 that keep it plausible; search@v1 is an older one."""
    older, newer = store.open("quickstart/search@v1").path, store.open("quickstart/search@v2").path
    names = store.root / "runs/quickstart"
    first, second = names / "search/v1.json", names / "search/v2.json"
    child = json.loads((names / "derive/v1.json").read_bytes())["body"]
    outside = store.root.parent / "outside"
    weights = newer / "weights.bin"
    parents = {"search": older.name}
    return {
        "edit a file": lambda: weights.write_bytes(b"backdoor"),
        "edit a file, same size": lambda: weights.write_bytes(weights.read_bytes()[::-1]),
        "edit the manifest": lambda: _edit_manifest(newer, facts={"accuracy": 0.99}),
        "edit both": lambda: _edit_file_and_manifest(newer),
        "edit both, rename the folder": lambda: _edit_all_and_rename(newer),
        "swap parents": lambda: _edit_manifest(newer, parents=parents),
        "replay an older folder": lambda: _replay_folder(older, newer),
        "replay an older reference": lambda: shutil.copy(first, second),
        "replay another stage's reference": lambda: shutil.copy(names / "derive/v1.json", second),
        "edit the reference": lambda: second.write_bytes(
            second.read_bytes().replace(newer.name.encode(), older.name.encode())
        ),
        "forge the reference, older id": lambda: rewrite_reference(second, id=older.name),
        "forge the reference, other kind": lambda: rewrite_reference(
            second, id=child["id"], key=child["key"]
        ),
        "forge the reference, schema 2": lambda: rewrite_reference(second, schema=2),
        "rename the folder": lambda: newer.rename(newer.with_name("0" * 64)),
        "remove the folder": lambda: shutil.rmtree(newer),
        "remove a file": weights.unlink,
        "remove the manifest": (newer / MANIFEST_NAME).unlink,
        "add a file": lambda: (newer / "extra.txt").write_bytes(b""),
        "add a hidden file": lambda: (newer / ".hidden").write_bytes(b""),
        "add a folder": (newer / "sub").mkdir,
        "symbolic link for a file": lambda: _swap_for_link(
            weights, outside, lambda target, path: path.symlink_to(target)
        ),
        "hard link for a file": lambda: _swap_for_link(
            weights, outside, lambda target, path: path.hardlink_to(target)
        ),
        "symbolic link for the folder": lambda: _swap_for_link(
            newer, outside, lambda target, path: path.symlink_to(target)
        ),
        "symbolic link for all versions": lambda: _swap_for_link(
            newer.parent, outside, lambda target, path: path.symlink_to(target)
        ),
        "symbolic link for the reference": lambda: _swap_for_link(
            second, outside, lambda target, path: path.symlink_to(target)
        ),
        "symbolic link for the run": lambda: _swap_for_link(
            names, outside, lambda target, path: path.symlink_to(target)
        ),
        "pipe for a file": lambda: _replace_by_pipe(weights),
        "pipe for the reference": lambda: _replace_by_pipe(second),
    }


def test_tampering_is_refused(quick_path: Path) -> None:
    names = list(tamperings(lineage_in(quick_path / "names" / "store")))
    assert len(names) >= 28
    for number, name in enumerate(names):
        store = lineage_in(quick_path / str(number) / "store")
        tamperings(store)[name]()
        assert refusal(store, TARGET), name
        damaged = [item.name for item in verified(store)]
        assert damaged, name


def verified(store: Store) -> list[Any]:
    """Return what ``verify`` reports; where it cannot even list the store, the error."""
    try:
        return store.verify().damaged
    except DamagedArtifactError as error:
        return [type("Refused", (), {"name": str(error)})]


def test_control_without_the_id_edited_manifests_pass(
    lineage: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tamperings(lineage)["edit both"]()
    monkeypatch.setattr(
        verified_folder,
        "_verified_manifest",
        lambda _, descriptor: verified_folder._parse_manifest(
            verified_folder._read(MANIFEST_NAME, 10**6, descriptor)
        ),
    )
    assert lineage.open(TARGET).read("weights.bin") == b"backdoor"


# Forgery: a folder whose id, manifest and reference agree, but which the store never writes


Values = dict[str, Any]
FORGERIES: dict[str, Callable[[Values], object]] = {
    "has schema 2, this d2nas reads schema 1": lambda values: values.update(schema=2),
    "schema": lambda values: values.update(schema="1"),
    "clock": lambda values: values.update(clock="now"),
    "parents": lambda values: values.update(parents={"search": "../../x"}),
    "parents.Up": lambda values: values.update(parents={"Up": "0" * 64}),
    "seed": lambda values: values.update(seed=1.5),
    "code_schema": lambda values: values.pop("code_schema"),
    "kind": lambda values: values.update(kind="model"),
    "another derive": lambda values: values.update(kind="derive"),
    "another search": lambda values: values.update(key="0" * 64),
    "lists no files": lambda values: values.update(files=["weights.bin"]),
    "no size and SHA-256": lambda values: values["files"].update(a={"size": 1}),
    "no size and SHA-256 for weights": lambda values: values["files"]["weights.bin"].update(
        size=-1
    ),
    "no size and SHA-256 for other": lambda values: values["files"]["other.bin"].update(size=True),
    "upper and lower case": lambda values: values["files"].update(
        {"WEIGHTS.bin": values["files"]["weights.bin"]}
    ),
    "forbidden file name '../x'": lambda values: values["files"].update(
        {"../x": values["files"].pop("other.bin")}
    ),
    "forbidden file name '.x'": lambda values: values["files"].update(
        {".x": values["files"].pop("other.bin")}
    ),
    "forbidden file name 'manifest.json'": lambda values: values["files"].update(
        {"manifest.json": values["files"].pop("other.bin")}
    ),
}


@pytest.mark.parametrize("problem", FORGERIES)
def test_forged_manifest_is_refused(problem: str, lineage: Store) -> None:
    version = lineage.open(TARGET)
    values = json.loads((version.path / MANIFEST_NAME).read_bytes())
    FORGERIES[problem](values)
    forge(lineage, canonical_json(values), contents(2))
    assert problem in str(refusal(lineage, TARGET))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.rstrip(),
        lambda data: data.replace(b",", b", "),
        lambda data: data.replace(b'"seed":7', b'"seed":7,"seed":7'),
        lambda data: data.replace(b"0.5", b"0.50"),
        lambda data: data.replace(b"0.5", b"NaN"),
        lambda data: data.replace(b'"torch"', b'"\\ud800"'),
        lambda data: b"[" * 1000 + b"]" * 1000,
        lambda data: b"[]\n",
        lambda data: b"",
    ],
)
def test_forged_encoding_is_refused(change: Callable[[bytes], bytes], lineage: Store) -> None:
    data = (lineage.open(TARGET).path / MANIFEST_NAME).read_bytes()
    assert change(data) != data
    forge(lineage, change(data), contents(2))
    assert MANIFEST_NAME in str(refusal(lineage, TARGET))


def test_consistent_forgery_is_found_by_its_children(lineage: Store) -> None:
    # Control of the harness too: a forgery without a flaw of its own opens.
    version = lineage.open(TARGET)
    values = json.loads((version.path / MANIFEST_NAME).read_bytes())
    values["facts"]["accuracy"] = 0.99
    forge(lineage, canonical_json(values), contents(2))
    shutil.rmtree(version.path)
    assert lineage.open(TARGET).manifest.facts == {"accuracy": 0.99}
    (damage,) = lineage.verify().damaged
    assert damage.name == "quickstart/derive@v1"
    assert "parent search" in damage.problem
