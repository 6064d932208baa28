"""Damaged, tampered and forged artifacts: every one is refused, with its name and exit code 4."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from faults import commit, contents, files_of, lineage_in, refusal

from d2nas.errors import ConfigError, DamagedArtifactError, StorageError
from d2nas.files import verified_folder
from d2nas.files.verified_folder import MANIFEST_NAME, read_plain_file, read_verified
from pipeline.store import Store, audit
from pipeline.store.version import open_version

TARGET = "quickstart/search@v2"


@pytest.fixture
def lineage(tmp_path: Path) -> Store:
    return lineage_in(tmp_path / "store")


# Damage


def test_read_checks_again(lineage: Store) -> None:
    version = lineage.open(TARGET)
    path = version.path / "weights.bin"
    whole = path.read_bytes()
    for changed in (whole[::-1], whole[:-1], whole + b"x"):
        path.write_bytes(changed)
        with pytest.raises(DamagedArtifactError, match=r"weights\.bin"):
            version.read("weights.bin")
    path.write_bytes(whole)
    assert version.read("weights.bin") == whole
    for name in ("absent.bin", MANIFEST_NAME, "../manifest.json"):
        with pytest.raises(DamagedArtifactError, match="has no file"):
            version.read(name)


def test_repair_gives_the_same_name_back(lineage: Store) -> None:
    older = lineage.open("quickstart/search@v1")
    version = lineage.open(TARGET)
    for damage in (
        lambda: (version.path / "weights.bin").write_bytes(b""),
        lambda: shutil.rmtree(version.path),
        lambda: (shutil.rmtree(version.path), version.path.symlink_to(older.path)),
        lambda: (shutil.rmtree(version.path), version.path.write_bytes(b"a file")),
    ):
        damage()
        error = refusal(lineage, TARGET)
        assert error.hint == "rebuild it with: d2nas search quickstart --fresh"
        assert TARGET in str(error)
        repaired = commit(lineage, contents(2))
        assert repaired.reference == TARGET
        assert files_of(lineage.open(TARGET)) == contents(2)
    assert files_of(lineage.open("quickstart/search@v1")) == contents(1)
    assert lineage.find_garbage() == []


def test_damage_is_never_passed_over(lineage: Store) -> None:
    version = lineage.open(TARGET)
    (version.path / "weights.bin").write_bytes(b"")
    for call in (
        lambda: lineage.latest("quickstart", "search"),
        lambda: lineage.find("quickstart", "search", version.manifest.key),
        lambda: lineage.open_id(version.id),
        lambda: lineage.open(version.id[:10]),
    ):
        with pytest.raises(DamagedArtifactError, match=r"weights\.bin"):
            call()
    # What the damage does not concern goes on.
    older = lineage.open("quickstart/search@v1")
    assert lineage.find("quickstart", "search", older.manifest.key) == older
    assert lineage.latest("quickstart", "derive") is not None


def test_broken_reference_harms_no_other(lineage: Store) -> None:
    path = lineage.root / "runs/quickstart/search/v2.json"
    path.write_bytes(b"{}")
    assert "v2.json" in str(refusal(lineage, "quickstart/search"))
    assert lineage.open("quickstart/search@v1").number == 1
    assert lineage.latest("quickstart", "derive") is not None
    assert lineage.open_id(lineage.open("quickstart/derive").manifest.parents["search"])
    with pytest.raises(DamagedArtifactError, match=r"v2\.json"):
        lineage.references()
    readable, broken = lineage.scan_references()
    assert len(readable) == 2
    assert [item.name for item in broken] == [TARGET]
    assert commit(lineage, contents(2)).number == 3


def test_cannot_read_is_no_damage(lineage: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    version = lineage.open(TARGET)
    monkeypatch.setattr(verified_folder.os, "open", refuse)
    with pytest.raises(StorageError, match="Permission denied") as caught:
        read_verified(version.path)
    assert caught.value.exit_code == 7


# Verify


def test_verify_names_everything(lineage: Store) -> None:
    assert lineage.verify() == lineage.verify(["quickstart/derive", "quickstart/search@v1"])
    assert lineage.verify().checked == 3
    assert lineage.verify(["quickstart/derive"]).checked == 2  # with what it was made from
    with pytest.raises(ConfigError):
        lineage.verify(["quickstart/nothing"])
    unnamed = commit(lineage, contents(8), run="gone")
    (lineage.root / "runs/gone/search/v1.json").unlink()
    (unnamed.path / "other.bin").write_bytes(b"")
    (lineage.root / "versions/notes.txt").write_bytes(b"")
    (lineage.root / "versions/.DS_Store").write_bytes(b"")
    (lineage.root / "runs/quickstart/search/v01.json").write_bytes(b"")
    (lineage.root / "runs/quickstart/serch").mkdir()
    (lineage.root / "runs/Other").mkdir()
    shutil.rmtree(lineage.open(TARGET).path)
    report = lineage.verify()
    assert report.checked == 5
    assert sorted(item.name for item in report.damaged) == sorted(
        [
            unnamed.id,
            "'notes.txt'",
            "quickstart/search/v01.json",
            "quickstart/serch",
            "Other",
            TARGET,
            "quickstart/derive@v1",  # its parent is gone
        ]
    )
    assert [item.name for item in lineage.verify(["quickstart/derive"]).damaged] == [TARGET]


def test_verify_sees_no_damage_in_what_was_removed_meanwhile(
    lineage: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(lineage, contents(5), stage="search-state")
    vanished = []

    def remove_then_open(layout: Any, version_id: str, reference: Any) -> Any:
        lineage.drop_states("quickstart", "search-state")
        try:
            return open_version(layout, version_id, reference)
        except DamagedArtifactError:
            vanished.append(version_id)
            raise

    monkeypatch.setattr(audit, "open_version", remove_then_open)
    report = lineage.verify()
    assert (report.checked, report.damaged) == (3, [])
    assert len(vanished) == 1


# Folders read without a store


def test_folder_alone(lineage: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = lineage.open(TARGET)
    copy = tmp_path / version.id
    shutil.copytree(version.path, copy)
    monkeypatch.chdir(copy)
    for folder in (copy, Path("."), Path("..") / version.id):
        opened = read_verified(folder)
        assert opened.folder == copy
        assert opened.id == version.id
        assert opened.read("weights.bin") == contents(2)["weights.bin"]
    renamed = copy.rename(tmp_path / "model")
    assert read_verified(renamed, expected_id=version.id).id == version.id
    for folder, problem in (
        (renamed, "is not an id"),
        (tmp_path / "absent", "is missing"),
        (renamed / "weights.bin", "is not a folder"),
    ):
        with pytest.raises(DamagedArtifactError, match=problem) as caught:
            read_verified(folder, hint="ask the sender")
        assert caught.value.hint == "ask the sender"
    with pytest.raises(DamagedArtifactError, match="not the version's id"):
        read_verified(renamed, expected_id="0" * 64)


def test_plain_file_is_small_and_plain(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"12345")
    assert read_plain_file(path, max_bytes=5) == b"12345"
    with pytest.raises(DamagedArtifactError, match="larger than 4 bytes"):
        read_plain_file(path, max_bytes=4)
    (tmp_path / "link").symlink_to(path)
    for name in ("link", "absent", "."):
        with pytest.raises(DamagedArtifactError):
            read_plain_file(tmp_path / name, max_bytes=5)
