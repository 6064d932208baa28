"""A whole run: what it leaves, what a second call does, what a change or an interruption costs."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.numpy
from children import ForkServer
from toy import Place

from d2nas import Genotype, load_network
from d2nas.errors import D2NasError, DamagedArtifactError
from pipeline.report.terminal import report_rows
from pipeline.stages import STAGES
from pipeline.store import Store

SHORT = ("--set", "retrain.epochs=1", "--set", "retrain.warmup_epochs=0")
"""Another training."""


def test_run_reports_what_it_made(finished: Place, capfd: pytest.CaptureFixture[str]) -> None:
    result = finished.json(capfd, "run", str(finished.preset))
    assert result["run"] == "toy"
    assert result["versions"] == {stage: f"toy/{stage}@v1" for stage in STAGES}
    assert result["executed"] == []
    assert Genotype.from_dict(result["genotype"]).digest
    assert result["params"] > 0
    assert result["macs"] > 0
    assert result["parity"]["passed"] is True
    assert result["parity"]["relative_l2"] <= 1e-5
    assert {entry["batch"] for entry in result["parity"]["batches"]} == {1, 2, 7, 64}
    genotype = Genotype.from_dict(result["genotype"])
    assert result["identity"]["verdict"] == "passed"
    assert result["identity"]["genotype_digest"] == genotype.digest
    assert result["identity"]["convolutions"] > 8
    assert result["accuracy"]["onnx"] == result["accuracy"]["torch"]
    assert result["accuracy"]["onnx"] > 0.3  # ten classes: it has learned something
    assert result["accuracy"]["test_images"] == result["data"]["test"] == 359
    for entry in result["latency"]:
        assert entry["device"].startswith("CPU ")
        assert entry["provider"] == "CPUExecutionProvider"
        assert entry["p99_ms"] is None  # 20 runs support no p99
        assert entry["samples"] <= 20
    assert Path(result["bundle"]) == finished.exported / "toy"


def test_the_bundle_serves_what_was_trained(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = finished.exported / "toy"
    sums = (bundle / "SHA256SUMS").read_text().splitlines()
    for line in sums:
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest
    listed = {line.partition("  ")[2] for line in sums} | {"SHA256SUMS"}
    present = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()}
    assert listed == present
    golden = safetensors.numpy.load_file(bundle / "golden.safetensors")
    session = onnxruntime.InferenceSession(
        bundle / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"images": golden["images"]})
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-4, atol=1e-4)
    assert (bundle / "labels.txt").read_text().split() == [str(digit) for digit in range(10)]
    configuration = (bundle / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in configuration
    assert "versions: [ 1 ]" in configuration
    metadata = session.get_modelmeta().custom_metadata_map
    rows = {row["ref"]: row["id"] for row in finished.json(capfd, "ls")}
    assert metadata["d2nas.retrain"] == rows["toy/retrain@v1"]
    assert all(key.startswith("d2nas.") for key in metadata)


def test_a_second_run_needs_no_torch(finished: Place) -> None:
    script = (
        "import sys; from pipeline.cli import run; "
        f"code = run({finished.arguments('run', str(finished.preset), '--json')!r}); "
        "print(sorted({'torch', 'onnxruntime'} & set(sys.modules)), file=sys.stderr); "
        "raise SystemExit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout)["executed"] == []
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_missing_or_damaged_bundle_is_written_again(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = finished.exported / "toy"
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    (bundle / "labels.txt").write_text("wrong\n")
    model = bundle / "1" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    assert finished.json(capfd, "run", str(finished.preset))["executed"] == []
    assert {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()} == before
    shutil.rmtree(bundle)
    assert finished.json(capfd, "run", str(finished.preset))["executed"] == []
    assert {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()} == before


def test_another_model_gets_the_next_number_and_the_first_keeps_its_own(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = finished.exported / "toy"
    other = finished.json(capfd, "run", str(finished.preset), *SHORT)
    assert other["versions"]["export"] == "toy/export@v2"
    assert {p.name for p in bundle.iterdir() if p.is_dir()} == {"1", "2"}
    assert "versions: [ 2 ]" in (bundle / "config.pbtxt").read_text()
    first = finished.json(capfd, "run", str(finished.preset))
    assert first["executed"] == []
    assert {p.name for p in bundle.iterdir() if p.is_dir()} == {"1", "2"}
    assert "versions: [ 1 ]" in (bundle / "config.pbtxt").read_text()


def test_an_older_model_that_is_damaged_is_named_and_can_be_removed(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = finished.exported / "toy"
    other = ("run", str(finished.preset), "--set", "export.opset=19")
    assert finished.run(*other) == 0
    older = bundle / "1" / "model.onnx"
    older.write_bytes(older.read_bytes()[:-1])
    capfd.readouterr()
    assert finished.run(*other) == 4
    told = capfd.readouterr().err
    assert "1/model.onnx: its SHA-256 is not the one in SHA256SUMS" in told
    assert f"remove {bundle / '1'}, then write the bundle again" in told
    shutil.rmtree(bundle / "1")
    assert finished.run(*other) == 0
    assert finished.run("verify", str(bundle)) == 0


@pytest.mark.parametrize(
    ("setting", "stages"), [("search.arch_lr=0.02", STAGES), ("export.opset=19", STAGES[3:])]
)
def test_a_plan_names_exactly_the_stages_that_would_run(
    finished: Place,
    capfd: pytest.CaptureFixture[str],
    setting: str,
    stages: tuple[str, ...],
) -> None:
    plan = finished.json(capfd, "run", str(finished.preset), "--plan", "--set", setting)
    assert plan["executes"] == list(stages)


def test_where_the_images_lie_changes_nothing(
    finished: Place, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = ("--data-root", str(tmp_path))
    assert finished.json(capfd, "run", str(finished.preset), *settings)["executed"] == []


def test_stages_alone_read_and_write_versions(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    assert finished.json(capfd, "search", str(finished.preset))["executed"] == []
    assert finished.json(capfd, "derive", "toy")["executed"] == []
    retrained = finished.json(capfd, "retrain", "toy/derive@v1", *SHORT)
    assert retrained["executed"] == ["retrain"]
    assert retrained["ref"] == "toy/retrain@v2"
    assert finished.json(capfd, "export", "toy")["ref"] == "toy/export@v2"
    validated = finished.json(capfd, "validate", "toy", "--set", "validate.relative_l2=1e-4")
    assert validated["versions"]["retrain"] == "toy/retrain@v2"
    shown = finished.json(capfd, "show", "toy/export@v2")
    assert {entry["ref"] for entry in shown["lineage"]} == {
        "toy/retrain@v2",
        "toy/derive@v1",
        "toy/search@v1",
    }


def test_a_stopped_run_continues_and_ends_with_the_very_same_versions(
    finished_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    fork_server: ForkServer,
) -> None:
    whole, parts = Place(finished_folder), Place(tmp_path)
    command = parts.arguments("run", str(parts.preset))
    for steps, number in ((3, signal.SIGTERM), (4, signal.SIGINT), (20, signal.SIGTERM)):
        code, talk = fork_server.run(command, signals=[(steps, number)])
        assert code == 128 + number, talk
    assert parts.run("run", str(parts.preset)) == 0
    assert "continues at step" in capfd.readouterr().err
    ids = [{row["ref"]: row["id"] for row in place.json(capfd, "ls")} for place in (whole, parts)]
    # Validation measures time; all before it is the same to the last bit.
    for stage in STAGES[:4]:
        assert ids[0][f"toy/{stage}@v1"] == ids[1][f"toy/{stage}@v1"]
    assert any(reference.startswith("toy/search-state@") for reference in ids[1])


def test_fresh_starts_over(finished: Place, capfd: pytest.CaptureFixture[str]) -> None:
    again = finished.json(capfd, "search", str(finished.preset), "--fresh")
    assert again["executed"] == ["search"]
    assert again["ref"] == "toy/search@v1"  # the same work has the same id, and keeps its name


def flip(path: Path, position: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * position)] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_anywhere_is_found(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [
        path
        for folder in ("versions", "runs")
        for path in sorted((finished.store / folder).rglob("*"))
        if path.is_file()
    ]
    assert len(files) > 20
    for index, path in enumerate(files):
        original = path.read_bytes()
        flip(path, (index % 7) / 7)
        assert finished.run("verify") == 4, path
        capfd.readouterr()
        path.write_bytes(original)
    assert finished.run("verify") == 0


def test_listing_survives_damage_and_names_it(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    reference = finished.store / "runs" / "toy" / "derive" / "v1.json"
    flip(reference, 0.5)
    rows = {row["ref"]: row for row in finished.json(capfd, "ls", "toy")}
    assert rows["toy/derive@v1"]["kind"] == "damaged"
    assert rows["toy/validate@v1"]["metrics"].startswith("test accuracy")


def test_a_damaged_input_stops_the_next_stage(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    retrained = Store(finished.store).open("toy/retrain")
    flip(retrained.path / "weights.safetensors", 0.5)
    assert finished.run("export", "toy", "--fresh") == 4
    error = capfd.readouterr().err
    assert "weights.safetensors" in error
    assert "Traceback" not in error
    with pytest.raises(DamagedArtifactError, match=r"weights\.safetensors"):
        load_network(retrained.path)


def test_a_fresh_run_replaces_what_is_damaged(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    retrained = Store(finished.store).open("toy/retrain")
    flip(retrained.path / "weights.safetensors", 0.5)
    assert finished.run("run", str(finished.preset)) == 4
    assert "hint:" in capfd.readouterr().err
    assert finished.run("verify") == 4
    assert finished.run("run", str(finished.preset), "--fresh") == 0
    assert Store(finished.store).open("toy/retrain@v1").id == retrained.id
    assert finished.run("verify") == 0


def test_control_the_trained_network_loads_when_it_is_whole(finished: Place) -> None:
    network = load_network(Store(finished.store).open("toy/retrain").path)
    assert not network.training
    assert network.auxiliary_head is None


def test_a_failed_gate_leaves_no_version_and_exits_3(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    code = finished.run("validate", "toy", "--set", "validate.relative_l2=1e-12")
    assert code == 3
    assert "parity failed" in capfd.readouterr().err
    rows = finished.json(capfd, "ls")
    assert [row["ref"] for row in rows if row["kind"] == "validate"] == ["toy/validate@v1"]
    assert not list((finished.store / "staging").iterdir())


def test_cuda_is_never_claimed_where_there_is_none(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert finished.run("validate", "toy", "--device", "cuda") in (2, 3)
    captured = capfd.readouterr()
    assert "CUDA" in captured.err
    assert "hint:" in captured.err
    assert captured.out == ""
    assert finished.run("retrain", "toy", "--set", "retrain.device=cuda") == 2
    report = finished.json(capfd, "run", str(finished.preset))
    assert "cuda" not in json.dumps([report["latency"], report["device"]]).lower()


def test_show_names_the_space_and_the_cells(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert finished.run("show", "toy/search@v1") == 0
    lines = dict(line.split(": ", 1) for line in capfd.readouterr().out.splitlines())
    assert lines["search space"] == lines["config space"] == "S0"
    assert lines["genotype"].startswith("normal 2: ")
    assert "gpu" not in lines  # what is not known is not shown


def test_show_writes_facts_as_the_report_does(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    report = json.loads(Store(finished.store).open("toy/validate").read("report.json"))
    lines = {}
    for stage in ("retrain", "validate"):
        capfd.readouterr()
        assert finished.run("show", f"toy/{stage}") == 0
        lines |= dict(line.split(": ", 1) for line in capfd.readouterr().out.splitlines())
    rows = dict(report_rows(report, "bundle"))
    assert lines["parameters"] == rows["parameters"]
    assert rows["multiply-adds"].startswith(lines["multiply-adds"])
    shown, images = lines["accuracy"].split(", on ")
    assert rows["accuracy"] == f"{shown}, on {images.replace('images', 'test images')}"


def test_a_search_without_a_normal_cell_says_so(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = ["--name", "few", "--set", "search.epochs=1", "--set"]
    for cells, warned in ((2, True), (3, False)):
        capfd.readouterr()
        arguments = [str(finished.preset), *settings, f"search.num_cells={cells}"]
        assert finished.run("search", *arguments) == 0
        assert ("normal cell is not searched" in capfd.readouterr().err) == warned


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        ("derive", "search.epochs=3"),
        ("retrain", "derive.candidates=2"),
        ("validate", "retrain.lr=0.3"),
    ],
)
def test_a_setting_of_a_stage_that_ran_is_refused(
    finished: Place, capfd: pytest.CaptureFixture[str], command: str, setting: str
) -> None:
    assert finished.run(command, "toy", "--set", setting) == 2
    error = capfd.readouterr().err
    assert setting in error
    assert "hint:" in error


@pytest.mark.parametrize(("stage", "module"), [("search", "search"), ("retrain", "retrain")])
def test_memory_that_runs_out_while_a_stage_is_built_is_reported_as_such(
    finished: Place,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    module: str,
) -> None:
    import torch

    def fail(*_arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(f"d2nas.train.{module}.to_device", fail)
    target = str(finished.preset) if stage == "search" else "toy"
    assert finished.run(stage, target, "--fresh") == 6
    assert "batch size 128" in capfd.readouterr().err


def test_a_busy_run_is_refused(finished: Place, capfd: pytest.CaptureFixture[str]) -> None:
    with Store(finished.store).lock_run("toy"):
        assert finished.run("run", str(finished.preset)) == 8
    assert f"process {os.getpid()}" in capfd.readouterr().err


def test_every_error_class_has_its_exit_code() -> None:
    codes = {error.exit_code for error in D2NasError.__subclasses__()} - {1}
    assert codes == {2, 3, 4, 5, 6, 7, 8, 9}
