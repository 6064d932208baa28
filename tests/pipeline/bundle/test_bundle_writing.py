"""A bundle is written by one process at a time, keeps its numbers, and is one that readers take."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest
from bundles import OtherModel, versions_in, without_lock
from forgery import forge_version
from page_facts import GPU, PREPROCESS, a_report
from store_children import start
from toy import Place

from d2nas.errors import BusyError, DamagedArtifactError
from d2nas.files.strict_json import canonical_json
from pipeline.bundle import writing
from pipeline.bundle.card import model_card
from pipeline.bundle.reader import open_bundle
from pipeline.bundle.writing import write_bundle
from pipeline.commands import execution
from pipeline.report.terminal import report_rows
from pipeline.store import locks


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


@pytest.mark.parametrize("locked", [True, False], ids=["locked", "control: without the lock"])
def test_two_processes_cannot_mix_their_bundles(
    finished: Place, tmp_path: Path, locked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has written all but the list of checksums when another begins, with another model."""
    exported, versions = tmp_path / "models", versions_in(finished.store)
    other = versions | {"export": OtherModel(versions["export"])}
    mode = "locked" if locked else "unlocked"
    first = start(mode, finished.store, exported, tmp_path, script=bundles.__file__)
    monkeypatch.setattr(locks, "BUNDLE_LOCK_SECONDS", 0.1)
    if not locked:
        monkeypatch.setattr(writing, "bundle_lock", without_lock)
    try:
        wait_for(tmp_path / "written")
        if locked:
            with pytest.raises(BusyError, match=rf"toy is in use by process {first.pid} on"):
                write_bundle(exported, "toy", other)
        else:
            write_bundle(exported, "toy", other)
    finally:
        (tmp_path / "go").touch()
        output, _ = first.communicate(timeout=60)
    if not locked:
        with pytest.raises(DamagedArtifactError):
            open_bundle(exported / "toy")
        return
    assert first.returncode == 0, output
    assert open_bundle(exported / "toy").number == 1
    write_bundle(exported, "toy", other)
    assert open_bundle(exported / "toy").number == 2


def test_the_lock_is_no_model_and_no_part_of_the_bundle(finished: Place) -> None:
    assert [path.name for path in finished.exported.iterdir() if path.is_dir()] == ["toy"]
    (lock,) = (path for path in finished.exported.iterdir() if not path.is_dir())
    assert lock.name == ".toy.lock"  # no folder, which a server would take for a model
    assert not list((finished.exported / "toy").rglob(".*"))


def test_a_bundle_that_is_in_use_is_8(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BUNDLE_LOCK_SECONDS", 0.05)
    with locks.bundle_lock(finished.exported, "toy"):
        assert finished.run("validate", "toy") == 8
    told = capfd.readouterr().err
    assert f"toy is in use by process {os.getpid()} on " in told
    assert finished.run("validate", "toy") == 0


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("notes.txt", Path.touch),
        ("1/model.onnx.data", Path.touch),
        ("2", lambda path: shutil.copytree(path.parent / "1", path, copy_function=empty)),
        ("old", Path.mkdir),
    ],
)
def test_what_a_reader_would_refuse_is_told_by_the_writer(
    finished: Place,
    capfd: pytest.CaptureFixture[str],
    name: str,
    make: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = finished.exported / "toy"
    make(bundle / name)
    if name == "2":
        for path in (bundle / "2").iterdir():
            path.rename(bundle / "2" / "weights.bin")
        name = "2/weights.bin"
    capfd.readouterr()
    assert finished.run("verify", str(bundle)) == 4
    capfd.readouterr()
    assert finished.run("validate", "toy") == 4
    told = capfd.readouterr().err
    assert f"{name}: is " in told
    assert f"hint: remove {bundle / name}, then write the bundle again" in told
    with monkeypatch.context() as patch:  # control: nobody else would have told
        patch.setattr(writing, "check_listing", lambda *_, **__: None)
        assert finished.run("validate", "toy") == 0
    path = bundle / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert finished.run("validate", "toy") == 0
    assert finished.run("verify", str(bundle)) == 0


@pytest.mark.parametrize("name", ["", "1", "2"])
def test_no_bundle_is_written_through_a_link(
    name: str, finished: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle, precious = finished.exported / "toy", finished.folder / "precious"
    place = bundle / name
    place.rename(precious) if place.exists() else precious.mkdir()
    place.symlink_to(precious)
    for mine in ("labels.txt", ".tmp-mine"):
        (precious / mine).write_text("mine")
    assert finished.run("validate", "toy") == 4
    assert f"{place}: is a symbolic link" in capfd.readouterr().err
    assert [(precious / mine).read_text() for mine in ("labels.txt", ".tmp-mine")] == ["mine"] * 2
    # Control: without the check what lies there is removed, or written over.
    monkeypatch.setattr(writing, "_refuse_links", lambda _: None)
    finished.run("validate", "toy")
    assert not (precious / ".tmp-mine").exists()


def test_the_folder_of_all_bundles_may_be_a_link(finished: Place) -> None:
    elsewhere = finished.folder / "elsewhere"
    finished.exported.rename(elsewhere)
    finished.exported.symlink_to(elsewhere)
    (elsewhere / "toy" / "labels.txt").unlink()
    assert finished.run("validate", "toy") == 0
    assert (elsewhere / "toy" / "labels.txt").exists()


@pytest.mark.parametrize("make", ["link", "second name", "pipe"])
def test_what_is_no_plain_file_is_replaced_and_not_written_through(
    make: str, finished: Place
) -> None:
    """The content may be right, but readers would refuse it; nobody waits at a pipe."""
    bundle, outside = finished.exported / "toy", finished.folder / "outside"
    for name in ("labels.txt", "1/labels.txt", "SHA256SUMS"):
        path = bundle / name
        path.replace(outside)
        before = outside.read_bytes()
        {"link": path.symlink_to, "second name": path.hardlink_to}.get(
            make, lambda _, path=path: os.mkfifo(path)
        )(outside)
        with pytest.raises(DamagedArtifactError, match=path.name):
            open_bundle(bundle)
        assert finished.run("validate", "toy") == 0
        assert open_bundle(bundle).number == 1
        assert outside.read_bytes() == before


def empty(source: str, target: str) -> None:
    Path(target).touch()


def test_a_number_that_was_given_is_not_given_to_another_model(finished: Place) -> None:
    versions, bundle = versions_in(finished.store), finished.exported / "toy"
    second, third = (
        versions | {"export": OtherModel(versions["export"], name)} for name in ("b", "c")
    )
    write_bundle(finished.exported, "toy", second)
    assert open_bundle(bundle).number == 2
    shutil.rmtree(bundle / "2")
    write_bundle(finished.exported, "toy", second)
    assert open_bundle(bundle).number == 2  # the same model keeps its own
    shutil.rmtree(bundle / "2")
    write_bundle(finished.exported, "toy", third)
    assert open_bundle(bundle).number == 3
    assert {path.name for path in bundle.iterdir() if path.is_dir()} == {"1", "3"}


# A validation's report that somebody else wrote


def lacking(*path: Any) -> Callable[[Any], object]:
    return lambda report: inner(report, path[:-1]).pop(path[-1])


def being(value: Any, *path: Any) -> Callable[[Any], object]:
    return lambda report: inner(report, path[:-1]).__setitem__(path[-1], value)


def inner(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize(
    "change",
    [
        lacking("eager"),
        lacking("latency", 0, "stable"),
        lacking("parameterless_normal"),
        being("many", "data", "class_counts"),
        being([1], "eager"),
        being(-1.5, "accuracy", "onnx"),
        being({"a": 1}, "model", "bytes"),
        being("never", "latency", 0, "p95_ms"),
        being("x", "refused_modes"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_report_of_other_values_is_damage_and_no_bug(
    change: Callable[[Any], object],
    as_json: bool,
    finished: Place,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = versions_in(finished.store)["validate"].read("report.json")
    values = json.loads(report)
    change(values)
    forge_version(finished.store, "toy/validate@v1", {"report.json": canonical_json(values)})
    command = ["validate", "toy", *(["--json"] if as_json else [])]
    assert finished.run(*command) == 4
    told = capfd.readouterr()
    assert "report.json: holds values that d2nas does not write" in told.err
    assert "hint: rebuild it with: d2nas validate toy --fresh" in told.err
    assert told.out == ""
    for module in (writing, execution):  # control
        monkeypatch.setattr(module, "damage_of", lambda *_: contextlib.nullcontext())
    assert finished.run(*command) == 1


# What the card and the console say


GOLDEN = {
    "images": np.zeros((2, 3, 32, 32)),
    "logits": np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]),
}


def told(**changes: Any) -> tuple[str, dict[str, str]]:
    """The card, and the console's rows, of a report with other values."""
    report = a_report(**changes) | {"parameterless_normal": 2, "eager": []}
    report["model"] |= {"precision": "fp32"}
    card = model_card("demo", 1, report, PREPROCESS, GOLDEN)
    return card, dict(report_rows(report, "exported/demo"))


def test_the_card_says_which_latencies_are_unsteady() -> None:
    card, _ = told()
    rows = [line for line in card.splitlines() if line.startswith("|") and "CPUExecution" in line]
    assert [row.rsplit("|", 2)[1].strip() for row in rows] == ["stable", "stable", "**unstable**"]


GATE = {"max_p99_ms": 2.0, "batch": 1, "transfers": "host"}
PASSED = {"p99_ms": 1.25, "mode": "nhwc", "device": GPU, "kind": "cuda", "stable": True}


def test_a_gate_that_was_passed_is_told_with_its_figure() -> None:
    card, rows = told(latency_gate=GATE | PASSED)
    line = "p99 of batch 1, from host to host, mode nhwc, at most 2.00 ms: 1.25 ms on GPU"
    assert f"- Gate on latency passed: {line}\n" in card
    assert rows["latency gate"] == f"passed: {line}"
    card, rows = told(latency_gate=GATE | PASSED | {"stable": False})
    assert f"{line}, UNSTABLE\n" in card
    assert rows["latency gate"].endswith(", UNSTABLE")
    card, rows = told(latency_gate=GATE)  # of a bundle that was written earlier
    assert "p99 of batch 1, from host to host, at most 2.00 ms\n" in card
    card, rows = told()
    assert "Gate" not in card
    assert "latency gate" not in rows


def test_an_accuracy_that_may_be_chance_is_told() -> None:
    chance = {"largest_class_share": 0.5, "near_chance": True}
    accuracy = {"torch": 0.52, "onnx": 0.52, "test_images": 359, **chance}
    card, rows = told(accuracy=accuracy)
    line = "52.00 % may be chance: always answering the largest class reaches 50.00 %"
    assert f"- **Its accuracy of {line}**. " in card
    assert rows["caution"] == f"accuracy {line}"
    card, rows = told(accuracy=accuracy | {"near_chance": False})
    assert "chance" not in card
    assert "caution" not in rows


def test_the_card_claims_no_data_for_a_random_draw() -> None:
    card, _ = told(found_by="random")
    assert "its architecture was drawn at random, without a look at any data.\n" in card
    assert "it classifies" not in card
