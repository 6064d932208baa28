"""A bundle proves itself, or is refused with the file that is wrong; pictures get their answers."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from bundles import bundle_of, other_golden
from forgery import CHECKSUMS, seal
from PIL import Image
from toy import Place

from d2nas.errors import ConfigError, DamagedArtifactError, StorageError
from pipeline.bundle import prediction
from pipeline.bundle import reader as bundle_reader
from pipeline.bundle.reader import open_bundle
from pipeline.cli import run


def change_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        value = json.loads((bundle / name).read_text())
        (bundle / name).write_text(json.dumps(value | changes))

    return change


def replace_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        text = (bundle / name).read_text()
        assert old in text
        (bundle / name).write_text(text.replace(old, new))

    return change


def change_model(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    def changed(bundle: Path) -> None:
        model = onnx.ModelProto.FromString((bundle / "1" / "model.onnx").read_bytes())
        change(model)
        (bundle / "1" / "model.onnx").write_bytes(model.SerializeToString())

    return changed


def other_lineage(model: onnx.ModelProto) -> None:
    for entry in model.metadata_props:
        if entry.key == "d2nas.retrain":
            entry.value = "0" * 64


def external_weights(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


UNSEALED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed byte": (lambda b: flip(b / "1" / "model.onnx"), "1/model.onnx: its SHA-256"),
    "a changed card": (lambda b: flip(b / "MODEL_CARD.md"), "MODEL_CARD.md: its SHA-256"),
    "a file cut off": (
        lambda b: os.truncate(b / "golden.safetensors", 100),
        "golden.safetensors: its SHA-256",
    ),
    "a missing file": (lambda b: (b / "labels.txt").unlink(), "labels.txt: is missing"),
    "a missing model": (lambda b: (b / "1" / "model.onnx").unlink(), "1/model.onnx: is missing"),
    "an extra file": (lambda b: (b / "x.so").write_text("x"), "x.so: is not listed"),
    "an extra file beside the model": (
        lambda b: (b / "1" / "model.onnx.data").write_text("x"),
        "1/model.onnx.data: is not listed",
    ),
    "an extra folder": (lambda b: (b / "plugins").mkdir(), "plugins: is a folder"),
    "a link for a file": (lambda b: linked(b / "labels.txt"), "labels.txt: is a link"),
    "a hard link for a file": (lambda b: hard_linked(b / "labels.txt"), "labels.txt: is a hard"),
    "a link for a folder": (lambda b: linked(b / "1"), "1/config.pbtxt: is missing"),
    "a pipe for a file": (lambda b: piped(b / "labels.txt"), "labels.txt: is not a plain file"),
    "somebody's notes": (lambda b: (b / "README.txt").touch(), "README.txt: is not listed"),
    "a hidden file": (lambda b: (b / ".DS_Store").touch(), ".DS_Store: is not listed"),
    "a hidden folder": (lambda b: (b / ".git").mkdir(), ".git: is a folder not listed"),
    "a hidden file of a version": (lambda b: (b / "1" / ".x").touch(), "1/.x: is not listed"),
    "a folder in a version": (lambda b: (b / "1" / "x").mkdir(), "1/x: is not listed"),
    "a bundle in the bundle": (
        lambda b: shutil.copytree(b, b.parent / "copy").rename(b / "toy"),
        "toy: is a folder not listed",
    ),
    "a version more": (lambda b: shutil.copytree(b / "1", b / "2"), "2/config.pbtxt: is not list"),
    "a link for a version more": (lambda b: (b / "2").symlink_to("1"), "2: is not listed"),
    "a link that leads nowhere": (lambda b: (b / "x").symlink_to("gone"), "x: is not listed"),
    "a second name more": (lambda b: os.link(b / "labels.txt", b / "x"), "x: is not listed"),
    "a pipe more": (lambda b: os.mkfifo(b / "x"), "x: is not listed"),
    "a pipe in a version": (lambda b: os.mkfifo(b / "1" / "x"), "1/x: is not listed"),
    "a socket": (lambda b: bound(b / "x"), "x: is not listed"),
    "a missing list": (lambda b: (b / CHECKSUMS).unlink(), "SHA256SUMS: is missing"),
    "an empty list": (lambda b: (b / CHECKSUMS).write_text(""), "does not list MODEL_CARD.md"),
    "a list that leads out": (
        lambda b: append(b / CHECKSUMS, f"{'0' * 64}  ../../secret\n"),
        "has a line that is none of its own",
    ),
    "a list of an absolute path": (
        lambda b: append(b / CHECKSUMS, f"{'0' * 64}  /etc/passwd\n"),
        "has a line that is none of its own",
    ),
    "a file listed twice": (
        lambda b: append(b / CHECKSUMS, f"{'0' * 64}  LABELS.txt\n"),
        "lists LABELS.txt twice",
    ),
    "a list that is a binary": (
        lambda b: (b / CHECKSUMS).write_bytes(bytes(range(256))),
        "is not ASCII",
    ),
}

SEALED: dict[str, tuple[Callable[[Path], object], str]] = {
    "other lineage": (change_model(other_lineage), "report.json: contradicts"),
    "weights in another file": (change_model(external_weights), "lies in another file"),
    "no model": (lambda b: (b / "1" / "model.onnx").write_bytes(b"x"), "not an ONNX file"),
    "one label less": (replace_text("labels.txt", "9\n", ""), "labels.txt: contradicts"),
    "other channels": (change_json("preprocess.json", channels=3), "preprocess.json: contradicts"),
    "another size": (change_json("preprocess.json", image_size=9), "preprocess.json: contradicts"),
    "no numbers": (change_json("preprocess.json", mean=["0"]), "preprocess.json: contradicts"),
    "pixels for real": (change_json("preprocess.json", dtype="uint8"), "preprocess.json: contra"),
    "a list for an object": (lambda b: (b / "report.json").write_text("[]"), "no JSON object"),
    "JSON with NaN": (lambda b: (b / "report.json").write_text('{"a": NaN}'), "not valid JSON"),
    "another version": (replace_text("config.pbtxt", "[ 1 ]", "[ 2 ]"), "serves version 2"),
    "other dims": (replace_text("config.pbtxt", "1, 8, 8", "1, 9, 9"), "config.pbtxt: contradict"),
    "another mean": (change_json("preprocess.json", mean=[0.9]), "preprocess.json: contradicts"),
    "another crop": (change_json("preprocess.json", crop_fraction=0.3), "preprocess.json: contra"),
    "labels the other way round": (
        lambda b: (b / "labels.txt").write_text("".join(f"{n}\n" for n in range(9, -1, -1))),
        "labels.txt: contradicts",
    ),
    "a larger batch than was checked": (
        replace_text("config.pbtxt", "max_batch_size: 64", "max_batch_size: 4096"),
        "config.pbtxt: contradicts",
    ),
    "a GPU for a CPU": (replace_text("config.pbtxt", "KIND_CPU", "KIND_GPU"), "config.pbtxt: con"),
    "a GPU in the report": (
        change_json(
            "report.json",
            device={"kind": "cuda", "label": "CUDA H100", "provider": "CUDAExecutionProvider"},
        ),
        "contradicts",
    ),
    "a report without a model": (change_json("report.json", model=None), "is no report that"),
    "a schema that is no number": (
        change_json("report.json", schema="d2nas.report.v9"),
        "report.json has schema d2nas.report.v9",
    ),
    "no schema": (change_json("report.json", schema=None), "report.json has schema None"),
    "no identity": (change_json("report.json", identity=None), "report.json: contradicts"),
    "another genotype in the report": (
        change_json("report.json", genotype={}),
        "report.json: contradicts",
    ),
    "a report without limits": (change_json("report.json", parity={}), "is no report that"),
    "lineage that is no text": (change_json("report.json", lineage={"derive": 1}), "is no report"),
    "a name that leads out": (
        replace_text("config.pbtxt", 'name: "toy"', 'name: "../toy"'),
        "does not say the model's name",
    ),
    "a library for the server to load": (
        lambda b: append(b / "config.pbtxt", 'model_operations { op_library_filename: "x.so" }\n'),
        "has the field model_operations",
    ),
    "another file for the server to load": (
        lambda b: append(b / "config.pbtxt", 'default_model_filename: "../../x"\n'),
        "has the field default_model_filename",
    ),
    "a comment that hides": (
        lambda b: append(b / "config.pbtxt", "# version_policy\n"),
        "characters that d2nas never writes",
    ),
    "no name": (replace_text("config.pbtxt", 'name: "toy"', ""), "does not say the model's name"),
    "another genotype": (
        lambda b: swap_operation(b / "genotype.json"),
        "genotype.json: contradicts",
    ),
    "an empty genotype": (
        lambda b: (b / "genotype.json").write_bytes(b"{}"),
        "genotype.json: its content: normal is missing",
    ),
    "a golden pickle": (
        lambda b: (b / "golden.safetensors").write_bytes(b"cos\nsystem\n(S'id'\ntR."),
        "not valid safetensors",
    ),
    "other golden tensors": (other_golden(more=np.zeros(1)), "does not hold images, logits"),
    "golden images of another shape": (
        other_golden(images=np.zeros((8, 3, 8, 8), np.float32)),
        "golden.safetensors: contradicts",
    ),
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def linked(path: Path) -> None:
    elsewhere = path.parent.parent / f"moved-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def hard_linked(path: Path) -> None:
    os.link(path, path.parent.parent / "another-name")


def bound(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)  # its whole path may be too long for a socket


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def swap_operation(path: Path) -> None:
    text = path.read_text()
    first = json.loads(text)["normal"][0][0]
    other = "dil_conv_3x3" if first != "dil_conv_3x3" else "sep_conv_3x3"
    path.write_text(text.replace(first, other, 1))


@pytest.mark.parametrize("what", [*UNSEALED, *SEALED])
def test_a_bundle_that_was_tampered_with_is_refused(
    what: str, finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    change, words = (UNSEALED | SEALED)[what]
    change(bundle_of(finished))
    if what in SEALED:
        seal(bundle_of(finished))
    with pytest.raises(DamagedArtifactError) as caught:
        open_bundle(bundle_of(finished))
    assert words in str(caught.value)
    assert finished.run("verify", str(bundle_of(finished))) == 4
    assert capfd.readouterr().err.count("error: ") == 1


def test_what_is_not_listed_can_be_moved_out(finished: Place) -> None:
    bundle = bundle_of(finished)
    (bundle / "README.txt").touch()
    with pytest.raises(DamagedArtifactError) as caught:
        open_bundle(bundle)
    assert f"move it out, notes can lie in {bundle.parent}" in str(caught.value.hint)
    (bundle / "README.txt").rename(bundle.parent / "README.txt")
    # There is nothing in what an interruption of the next version leaves.
    (bundle / "2").mkdir()
    assert finished.run("verify", str(bundle)) == 0


def test_control_a_whole_bundle_is_verified_from_itself_alone(
    finished: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On another machine: under another name, without a store and without images."""
    elsewhere = tmp_path / "elsewhere" / "another-name"
    shutil.copytree(bundle_of(finished), elsewhere)
    shutil.rmtree(finished.store)
    shutil.rmtree(finished.exported)
    (shown,) = finished.json(capfd, "verify", str(elsewhere))
    assert (shown["name"], shown["version"], shown["golden_inputs"]) == ("toy", 1, 8)
    assert shown["device"].startswith("CPU ")
    assert shown["relative_l2"] < 1e-5
    assert set(shown["lineage"]) == {"search", "derive", "retrain", "export", "validate"}
    digest = hashlib.sha256((elsewhere / CHECKSUMS).read_bytes()).hexdigest()
    assert shown["digest"] == digest
    assert finished.run("verify", str(elsewhere), "--digest", digest) == 0


def test_the_digest_proves_which_bundle_it_is(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    """A forger who seals a bundle again passes every check but this one."""
    bundle = bundle_of(finished)
    published = open_bundle(bundle).digest
    append(bundle / "MODEL_CARD.md", "Fit for every purpose.\n")
    seal(bundle)
    assert open_bundle(bundle).digest != published
    assert finished.run("verify", str(bundle), "--digest", published) == 4
    assert "not the one that was published" in capfd.readouterr().err
    assert finished.run("verify", "toy", "--digest", published) == 2
    assert finished.run("verify", str(bundle), "--digest", "0000") == 2


def test_golden_inputs_that_are_answered_otherwise_are_3(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(finished)
    logits = safetensors.numpy.load_file(bundle / "golden.safetensors")["logits"]
    other_golden(logits=logits * np.float32(1.001))(bundle)
    seal(bundle)
    assert finished.run("verify", str(bundle)) == 3
    assert "golden inputs are answered otherwise on CPU " in capfd.readouterr().err
    picture = bundle.parent / "picture.png"
    Image.new("L", (8, 8)).save(picture)
    assert run(["predict", str(bundle), str(picture)]) == 3
    assert capfd.readouterr().out == ""
    # A forged report does not loosen the limits.
    report = json.loads((bundle / "report.json").read_text())
    report["parity"]["limits"]["relative_l2"] = 1.0
    (bundle / "report.json").write_text(json.dumps(report))
    seal(bundle)
    assert finished.run("verify", str(bundle)) == 3
    # Control: without the comparison nobody would notice who predicts; verify has the manifests.
    monkeypatch.setattr(prediction, "judge_parity", lambda result, limits, **_: ("passed", ()))
    assert run(["predict", str(bundle), str(picture)]) == 0
    assert finished.run("verify", str(bundle)) == 4


def test_a_bundle_whose_writing_was_interrupted_is_finished_by_the_next_run(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stopped after the model and before the list: the same number, and a bundle that verifies."""
    bundle = bundle_of(finished)
    (bundle / CHECKSUMS).unlink()
    assert finished.run("run", str(finished.preset)) == 0
    assert open_bundle(bundle).number == 1
    # With another model lying there, from a run that was never listed: it stays, and is listed.
    (bundle / "2").mkdir()
    shutil.copy(bundle / "1" / "model.onnx", bundle / "2" / "model.onnx")
    flip(bundle / "2" / "model.onnx")
    with pytest.raises(DamagedArtifactError, match=r"2/model.onnx: is not listed"):
        open_bundle(bundle)
    assert finished.run("run", str(finished.preset)) == 0
    assert open_bundle(bundle).number == 1


def test_a_model_that_is_gone_is_no_longer_listed(finished: Place) -> None:
    """An old version that somebody removed must not make the bundle useless for ever."""
    bundle = bundle_of(finished)
    assert finished.run("export", "toy", "--input", "uint8") == 0
    assert finished.run("validate", "toy") == 0
    shutil.rmtree(bundle / "1")
    with pytest.raises(DamagedArtifactError, match=r"1/config.pbtxt: is missing"):
        open_bundle(bundle)
    assert finished.run("validate", "toy") == 0
    assert open_bundle(bundle).number == 2


def test_what_is_no_bundle_is_a_mistake_of_the_user(
    finished: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="no bundle, it holds neither SHA256SUMS"):
        open_bundle(tmp_path)
    assert finished.run("verify", str(bundle_of(finished)), "toy") == 2
    assert "cannot be verified together" in capfd.readouterr().err


def test_sizes_are_limited_before_anything_is_read(
    finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_reader, "_MAX_FILE_BYTES", 100)
    with pytest.raises(DamagedArtifactError, match="larger than 100 bytes"):
        open_bundle(bundle_of(finished))


def with_older_models(bundle: Path, contents: list[bytes]) -> None:
    for number, data in enumerate(contents, start=2):
        (bundle / str(number)).mkdir()
        (bundle / str(number) / "model.onnx").write_bytes(data)
    seal(bundle)


def test_an_older_model_that_is_none_is_refused_though_it_is_not_served(finished: Place) -> None:
    bundle = bundle_of(finished)
    served = (bundle / "1" / "model.onnx").read_bytes()
    with_older_models(bundle, [served, b"#!/bin/sh"])
    with pytest.raises(DamagedArtifactError, match=r"3/model.onnx: not an ONNX file"):
        open_bundle(bundle)
    shutil.rmtree(bundle / "3")
    seal(bundle)
    assert open_bundle(bundle).number == 1


def test_only_the_served_model_stays_in_memory(
    finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, size = bundle_of(finished), 8 * 2**20
    model = onnx.ModelProto.FromString((bundle / "1" / "model.onnx").read_bytes())
    older = []
    for letter in "abcdef":
        model.doc_string = letter * size
        older.append(model.SerializeToString())
    with_older_models(bundle, older)
    del older, model
    kept: list[bytes] = []
    read = bundle_reader._read

    def peak() -> int:
        tracemalloc.start()
        open_bundle(bundle)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak() < 4 * size
    # Control: what is kept is seen.
    monkeypatch.setattr(bundle_reader, "_read", lambda *of: kept.append(read(*of)) or kept[-1])
    assert peak() > 6 * size


def test_the_size_of_a_bundle_is_limited_before_anything_is_read(
    finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(finished)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    size -= (bundle / CHECKSUMS).stat().st_size
    monkeypatch.setattr(bundle_reader, "_MAX_BUNDLE_BYTES", size)
    open_bundle(bundle)
    monkeypatch.setattr(bundle_reader, "_MAX_BUNDLE_BYTES", size - 1)
    monkeypatch.setattr(bundle_reader, "_read", lambda *_: 1 / 0)
    with pytest.raises(DamagedArtifactError, match=f"lists {size} bytes in all"):
        open_bundle(bundle)


@pytest.mark.parametrize("call", ["scandir", "listdir", "lstat"])
def test_what_the_system_refuses_is_7(
    call: str, finished: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = getattr(os, call)

    def refuse(path: Any = ".", *arguments: Any, **named: Any) -> Any:
        if str(path).startswith(str(bundle_of(finished))):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StorageError, match=r"cannot read .*permission denied"):
        open_bundle(bundle_of(finished))
