"""``d2nas baseline``, and ``run --baseline``: an ordinary network by the same gate."""

import hashlib
import json
from functools import partial
from pathlib import Path

import onnx
import pytest
from library_networks import SMALL, give_small_network, small_network
from toy import Place, expect_error

from d2nas.config import build_config
from d2nas.errors import ConfigError, D2NasError, NonFiniteError, ValidationFailedError
from d2nas.nn import library_network
from pipeline.bundle.checksums import CHECKSUMS
from pipeline.bundle.reader import open_bundle
from pipeline.commands import execution
from pipeline.identity.check import check_identity
from pipeline.onnx_io.model_file import lineage, with_metadata
from pipeline.report.baselines import baseline_row, comparison, comparison_notes, failed_row
from pipeline.running.baselines import baseline_configs, baseline_name, with_architecture

RUN = "toy-torchvision-small-net"


@pytest.fixture(autouse=True)
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    give_small_network(monkeypatch)


@pytest.fixture
def place(quick_path: Path) -> Place:
    return Place(quick_path)


def test_a_library_s_network_goes_all_the_way(
    place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = place.json(capfd, "baseline", str(place.preset), "--model", SMALL)
    assert made["executed"] == ["derive", "retrain", "export", "validate"]
    assert made["architecture"] == SMALL
    assert "genotype" not in made
    folder = place.exported / RUN
    bundle = open_bundle(folder)
    digest = made["identity"]["graph_sha256"]
    said = lineage(onnx.ModelProto.FromString(bundle.model))
    assert (said["d2nas.architecture"], said["d2nas.graph_sha256"]) == (SMALL, digest)
    assert json.loads(bundle.files["architecture.json"]) == {"model": SMALL}
    assert not {"genotype.json", "genotype.svg"} & bundle.files.keys()
    for words in (bundle.files["MODEL_CARD.md"], bundle.files["report.html"]):
        text = words.decode().replace("\\", "")
        assert f"not searched here (given: {SMALL})" in text
        assert f"the fixed graph of {SMALL}, no genotype" in text
    checked = place.json(capfd, "verify", str(folder))[0]
    assert checked["graph_sha256"] == digest
    assert "architecture.json" in checked["checked"]
    assert "architecture.json" in checked["checked"]
    assert not any(one["file"] == "architecture.json" for one in checked["not_checked"])
    again = place.json(capfd, "baseline", str(place.preset), "--model", SMALL)
    assert again["executed"] == []
    # A graph that is not the library's is refused, also with a digest that is its own.
    with monkeypatch.context() as other:
        other.setattr(library_network, "_torchvision", partial(small_network, stride=1))
        assert place.run("validate", RUN, "--set", "validate.latency_samples=11") == 3
    told = capfd.readouterr().err
    assert f"model.onnx is not the graph of {SMALL}, exported anew" in told
    assert place.run("validate", RUN, "--set", "validate.latency_samples=11") == 0
    # What stands in the bundle has to agree with the model.
    (folder / "architecture.json").write_text('{"model":"torchvision:resnet18"}\n')
    assert place.run("verify", str(folder)) == 4


def test_a_run_stands_beside_its_baselines(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = str(finished.preset)
    small = ("--set", "validate.latency_batches=[1]")
    other = ("--baseline", "cell:DARTS_V1")
    made = finished.json(capfd, "run", preset, *small, "--baseline", SMALL, *other)
    networks = ["cells found by d2nas", SMALL, "cells of DARTS_V1"]
    assert [row["network"] for row in made["baselines"]] == networks
    assert [row["run"] for row in made["baselines"]] == ["toy", RUN, "toy-cell-darts-v1"]
    assert len({row["data_digest"] for row in made["baselines"]}) == 1
    folder = finished.exported / "toy"
    page = (folder / "report.html").read_text()
    assert "Beside baselines" in page
    assert SMALL in page
    checked = finished.json(capfd, "verify", str(folder))[0]
    reasons = {one["file"]: one["reason"] for one in checked["not_checked"]}
    assert reasons["baselines.json"] == "is of other runs, whose versions are not here"
    assert "report.html" in checked["checked"]
    # As a table on the terminal; nothing runs again.
    assert finished.run("run", preset, *small, "--baseline", SMALL) == 0
    told = capfd.readouterr()
    assert f"\tcells found by d2nas\t{SMALL}" in told.out
    assert "intervals overlap are not told apart" in told.out + told.err
    # Without any, the bundle is what it was.
    assert finished.run("run", preset, *small) == 0
    assert not (folder / "baselines.json").exists()
    assert "Beside baselines" not in (folder / "report.html").read_text()
    assert finished.run("verify", str(folder)) == 0


@pytest.mark.parametrize("error", [ValidationFailedError, NonFiniteError])
def test_a_baseline_that_fails_has_a_row_that_says_so(
    finished: Place,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[D2NasError],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error("too bad")

    monkeypatch.setattr(execution, "run_baseline", refuse)
    made = finished.json(capfd, "run", str(finished.preset), "--baseline", SMALL)
    assert made["baselines"][1] == {"run": RUN, "network": SMALL, "failed": "too bad"}
    assert f"{SMALL}: failed, too bad" in (finished.exported / "toy" / "report.html").read_text()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("resnet18", "must be timm:NAME or torchvision:NAME"),
        ("cell:NOPE", "NOPE"),
        ("timm:resnet18x", "timm has no network resnet18x"),
    ],
)
def test_a_model_that_cannot_be_meant_is_refused_before_anything_runs(
    place: Place, capfd: pytest.CaptureFixture[str], model: str, words: str
) -> None:
    if model.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is an extra: d2nas[timm]")
    preset = str(place.preset)
    assert words in expect_error(capfd, place, 2, "baseline", preset, "--model", model)
    assert words in expect_error(capfd, place, 2, "run", preset, "--baseline", model)


def test_a_baseline_has_the_settings_of_the_run_but_for_what_is_searched() -> None:
    config = build_config(
        {
            "search": {"max_macs": 1e6},
            "retrain": {"epochs": 3},
            "derive": {"pareto": 4},
            "run": {"latency_table": "t"},
        }
    )
    own = with_architecture(config, SMALL, pretrained=True)
    assert own.derive.model == SMALL
    assert own.derive.pareto is None
    changed = {"pretrained": True, "auxiliary": False}
    assert own.retrain == config.retrain.model_copy(update=changed)
    assert own.derive_limit is None
    assert with_architecture(config, "cell:DARTS_V2").derive.genotype == "DARTS_V2"
    with pytest.raises(ConfigError, match="no published weights"):
        with_architecture(config, "cell:DARTS_V2", pretrained=True)
    assert baseline_name("toy", "timm:resnet18.a1_in1k", pretrained=True) == (
        "toy-timm-resnet18-a1-in1k-pretrained"
    )


def test_a_comparison_says_what_cannot_be_compared() -> None:
    report = {
        "found_by": "d2nas",
        "accuracy": {"onnx": 0.9, "test_images": 100},
        "data": {"digest": "a"},
        "device": {"label": "CPU"},
        "latency": [{"batch": 1, "p50_ms": 1.0, "p99_ms": 2.0}],
    }
    own = baseline_row("run", report, "1")
    other = baseline_row("other", report | {"data": {"digest": "b"}, "found_by": "x"}, "2")
    refused = failed_row("third", SMALL, "too slow")
    assert comparison([own]) is None
    table = comparison([own, other, refused])
    assert table is not None
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["95 % interval"] == ["82.6 to 94.5 %", "82.6 to 94.5 %", "failed"]
    assert rows["p99 ms, batch 1"] == ["2.00", "2.00", "failed"]
    assert comparison_notes([own, other, refused])[1:] == [
        f"{SMALL}: failed, too slow",
        "Of other images or on another device: cells found by x.",
    ]


def test_a_size_that_a_network_does_not_take_is_told_before_the_search(
    place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # torchvision's own networks
    told = expect_error(
        capfd, place, 2, "run", str(place.preset), "--baseline", "torchvision:alexnet"
    )
    assert "torchvision:alexnet does not take images of 8 x 8 pixels" in told


def test_baselines_keep_no_limit_on_latency_and_have_names_of_their_own() -> None:
    limited = build_config({"validate": {"max_p99_ms": 3.0, "gate_batch": 8}})
    ((_, name, own),) = baseline_configs("toy", limited, [SMALL])
    assert (own.validate_.max_p99_ms, own.validate_.gate_batch) == (None, None)
    assert name == RUN
    for models in ([SMALL, SMALL], ["timm:res_net", "timm:res.net"]):
        with pytest.raises(ConfigError, match="would be called"):
            baseline_configs("toy", limited, models)
    long = "a" * 60
    first, second = (baseline_name(long, f"timm:network_{end}") for end in "ab")
    assert len({long, first, second}) == 3
    assert max(len(first), len(second)) <= 64


def test_a_run_whose_network_becomes_of_another_kind_keeps_a_bundle(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    preset, folder = str(finished.preset), finished.exported / "toy"
    model = ("--set", f"derive.model={SMALL}")
    assert finished.run("run", preset, *model) == 0
    assert not {"genotype.json", "genotype.svg"} & {path.name for path in folder.iterdir()}
    assert finished.run("verify", str(folder)) == 0
    assert finished.run("run", preset) == 0
    assert not (folder / "architecture.json").exists()
    assert finished.run("verify", str(folder)) == 0
    # What is of a library is no genotype.
    capfd.readouterr()
    assert finished.run("retrain", preset, "--genotype", "toy/derive@v2", "--name", "other") == 2
    assert "toy/derive@v2 is a library's network" in capfd.readouterr().err


def test_a_bundle_says_one_kind_of_network(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    assert place.run("baseline", str(place.preset), "--model", SMALL) == 0
    folder = place.exported / RUN
    sums = (folder / CHECKSUMS).read_text()
    (folder / "genotype.json").write_text("{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    (folder / CHECKSUMS).write_text(f"{sums}{digest}  genotype.json\n")
    assert place.run("verify", str(folder)) == 4
    assert "lists genotype.json and architecture.json" in capfd.readouterr().err
    # A model that says both is no one's.
    model = next(folder.glob("[0-9]*/model.onnx")).read_bytes()
    with pytest.raises(ValidationFailedError, match=r"has d2nas.genotype and d2nas.architecture"):
        check_identity(with_metadata(model, "d2nas.genotype", "{}"))


def test_a_plan_is_of_the_run_alone(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    told = expect_error(capfd, place, 2, "run", str(place.preset), "--plan", "--baseline", SMALL)
    assert "--plan is of the run alone" in told
