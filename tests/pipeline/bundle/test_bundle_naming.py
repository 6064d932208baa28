"""A path that is no bundle: the bundles that may be meant are named, by every command."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from bundles import bundle_of
from toy import Place

from pipeline.bundle import nearby
from pipeline.cli import run


def two_bundles(place: Place) -> Path:
    """The toy's bundle under two names, in one folder; nothing else is in it."""
    exported = bundle_of(place).parent
    shutil.copytree(exported / "toy", exported / "other")
    return exported


def words_of(command: str, path: Path, place: Place) -> list[str]:
    more = {"predict": ["x.png"], "evaluate": ["x"], "verify": ["--store", str(place.store)]}
    words = command.split()
    return [*words, str(path), *more.get(command, [])]


COMMANDS = ("verify", "predict", "evaluate", "serve", "bench profile")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_bundles_in_a_folder_are_named(
    command: str, finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    exported = two_bundles(finished)
    capfd.readouterr()
    assert run(words_of(command, exported, finished)) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"error: {exported}: no bundle, it holds 2 bundles: other, toy",
        f"hint: did you mean {exported / 'other'}?",
    ]
    shutil.rmtree(exported / "other")
    assert run(words_of(command, exported, finished)) == 2
    assert "it holds the bundle toy" in capfd.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("inner", ["1", "1/preprocess.json", "MODEL_CARD.md"])
def test_the_bundle_of_a_part_is_named(
    command: str, inner: str, finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    if command == "bench profile" and inner != "1":
        pytest.skip("a file is a model or nothing there")
    bundle = bundle_of(finished)
    capfd.readouterr()
    assert run(words_of(command, bundle / inner, finished)) == 2
    assert capfd.readouterr().err.splitlines() == [
        f"error: {bundle / inner}: no bundle, it is a part of the bundle toy",
        f"hint: did you mean {bundle}?",
    ]


def test_a_bundle_may_have_a_number_for_a_name_and_lose_its_list(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_of(finished).rename(bundle_of(finished).parent / "7")
    assert run(words_of("verify", bundle, finished)) == 0
    (bundle / "SHA256SUMS").unlink()
    assert run(words_of("verify", bundle, finished)) == 4
    assert "SHA256SUMS: is missing" in capfd.readouterr().err


def test_a_relative_path_is_named_as_it_was_given(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two_bundles(finished).parent)
    for given, meant in (("exported", "exported/other"), (".", None), ("exported/", None)):
        capfd.readouterr()
        assert run(["predict", given, "x.png"]) == 2
        told = capfd.readouterr().err
        assert meant is None or f"hint: did you mean {meant}?" in told
        assert ("it holds 2 bundles" in told) == (given != ".")
    monkeypatch.chdir("exported/toy/1")
    assert run(["predict", ".", "x.png"]) == 2
    assert "part of the bundle toy" in capfd.readouterr().err


def test_a_name_that_is_not_there_tells_those_that_are(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    exported = two_bundles(finished)
    capfd.readouterr()
    assert run(["predict", str(exported / "tyo"), "x.png"]) == 2
    told = capfd.readouterr().err
    assert f"there is no such folder; {exported} holds other, toy" in told
    assert run(["predict", str(exported / "a" / "b"), "x.png"]) == 2
    assert "holds" not in capfd.readouterr().err


def test_verify_names_bundles_before_it_looks_for_a_store(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = two_bundles(finished)
    words = ["verify", str(exported), "--store", str(exported / "no-store")]
    assert run(words) == 2
    assert "holds 2 bundles" in capfd.readouterr().err
    # Beside a bundle, too; and with a digest.
    assert run(["verify", str(exported / "toy"), str(exported), "--digest", "0" * 64]) == 2
    assert "holds 2 bundles" in capfd.readouterr().err
    # Control: without the look at what is near, nothing that helps is said.
    monkeypatch.setattr(nearby, "bundles_near", lambda path: [])
    assert run(words) == 2
    assert "other" not in capfd.readouterr().err


def test_a_version_is_a_version_whatever_lies_in_the_folder(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished.folder / "here"
    shutil.copytree(bundle_of(finished), folder / "toy" / "search" / "a-bundle")
    monkeypatch.chdir(folder)
    assert finished.json(capfd, "verify", "toy/search@v1")["damaged"] == []
    assert finished.json(capfd, "verify", "toy/search")["damaged"] == []


def test_a_folder_that_cannot_be_listed_is_7(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Any) -> Any:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert run(["predict", str(tmp_path), "x.png"]) == 7
    assert "input/output error" in capfd.readouterr().err


def test_a_neighbour_that_may_not_be_looked_into_is_none_that_is_meant(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "SHA256SUMS").touch()
    real = Path.is_file

    def is_file(path: Path) -> bool:
        if path.parent.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    assert run(["predict", str(tmp_path / "bundle"), "x.png"]) == 2
    assert f"there is no such folder; {tmp_path} holds open\n" in capfd.readouterr().err
    # Itself, it is told.
    with pytest.raises(PermissionError):
        nearby.is_bundle(tmp_path / "closed")
