"""The gate as a library's user calls it: values in, a verdict out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import first_example
from toy import Place

import pipeline.gate
from d2nas.data.images import Normalizer, load_data
from d2nas.errors import ValidationFailedError
from d2nas.nn.network import load_network
from pipeline.gate.judge import Reference, judge
from pipeline.gate.timing import TimingPlan, time_modes
from pipeline.identity.check import check_identity
from pipeline.onnx_io.session import open_session
from pipeline.store import Store


@pytest.fixture
def names(finished_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The toy's network and test images, in the folder of its model."""
    place = Place(finished_folder)
    data = load_data("digits")
    monkeypatch.chdir(place.exported / "toy" / "1")
    return {
        "Path": Path,
        "torch": torch,
        "check_identity": check_identity,
        "open_session": open_session,
        "judge": judge,
        "Reference": Reference,
        "time_modes": time_modes,
        "TimingPlan": TimingPlan,
        "network": load_network(Store(place.store).open("toy/retrain").path),
        "images": Normalizer(data.mean, data.std)(data.test.pixels(slice(None))).numpy(),
        "labels": data.test.labels_N.numpy(),
    }


def test_the_example_of_the_gate_runs(
    names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    exec(first_example(pipeline.gate), names)  # noqa: S102
    verdict, latencies = names["verdict"], names["latencies"]
    assert (verdict.parity.verdict, len(verdict.self_test.rejected)) == ("passed", 6)
    assert [record.batch for record in latencies.records] == [1, 1, 8, 8]
    assert capsys.readouterr().out.startswith(str(verdict.accuracy["onnx"]))
    # The golden inputs are the sample's start, with the model's answers.
    session = open_session(names["model"], device="cpu")
    golden = {name: np.asarray(values) for name, values in verdict.golden.items()}
    assert np.array_equal(golden["images"], names["images"][list(verdict.sample[:8])])
    assert np.allclose(session.run(golden["images"]), golden["logits"], atol=1e-5)


def test_a_network_of_other_weights_is_refused(names: dict[str, Any]) -> None:
    with torch.no_grad():
        names["network"].classifier.weight *= 1.1
    with pytest.raises(ValidationFailedError, match="parity failed") as refused:
        exec(first_example(pipeline.gate), names)  # noqa: S102
    assert "computes something else" in str(refused.value.hint)


def test_a_self_test_that_lets_a_copy_through_proves_nothing(
    names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.gate.judge.mutants", lambda model: [("intact", model)])
    steps: list[int] = []
    model = Path("model.onnx").read_bytes()
    with torch.no_grad():
        logits = names["network"](torch.from_numpy(names["images"])).numpy()
    reference = Reference(names["images"], names["labels"], logits)
    session = open_session(model, device="cpu")
    with pytest.raises(ValidationFailedError, match=r"a faulty copy of the model \(intact\)"):
        judge(model, session, reference, on_check_done=lambda: steps.append(1))
    assert len(steps) == 2
