"""Export: the network's function in one file whose bytes depend on nothing else."""

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx_models import (
    INPUT_SHAPE,
    NUM_CLASSES,
    hand_made_model,
    pattern_images,
    settled_network,
    torch_answer,
)
from torch import Tensor, nn

from d2nas._version import __version__
from d2nas.data.images import Normalizer
from d2nas.errors import ConfigError, ValidationFailedError
from pipeline.onnx_io import export
from pipeline.onnx_io.model_file import check_model, describe, lineage
from pipeline.onnx_io.session import open_session

ROOT = Path(__file__).parents[3]
METADATA = {"d2nas.weights": "0f" * 32, "d2nas.run": "a run"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


PIXELS = Normalizer((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def exported(network: nn.Module, opset: int = 20, **options: Any) -> bytes:
    return export.export_onnx(
        network, input_shape=INPUT_SHAPE, opset=opset, metadata=METADATA, **options
    )


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return settled_network()


@pytest.fixture(scope="module")
def data(network: nn.Module) -> bytes:
    return exported(network)


@pytest.fixture(scope="module")
def model(data: bytes) -> onnx.ModelProto:
    return check_model(data, what="exported")


def test_computes_what_the_network_computes_at_any_batch_size(
    network: nn.Module, data: bytes
) -> None:
    session = open_session(data, device="cpu", num_threads=1)
    for num_images in (1, 2, 3, 7):
        images = pattern_images(num_images).numpy()
        wanted = torch_answer(network)(images)
        np.testing.assert_allclose(session.run(images), wanted, rtol=0, atol=2e-6)
        assert np.ptp(wanted) > 0.1  # the tolerance is small beside the logits


@pytest.mark.parametrize("opset", [18, 21])
def test_the_opset_asked_for_is_the_opset_written(network: nn.Module, opset: int) -> None:
    description = describe(check_model(exported(network, opset), what="exported"))
    assert (description.opset, description.ir_version) == (opset, 10)


def test_interface_is_named_and_only_the_batch_is_free(model: onnx.ModelProto) -> None:
    (image,), (logits,) = model.graph.input, model.graph.output
    shapes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (image, logits)
    ]
    assert (image.name, logits.name) == ("images", "logits")
    assert shapes == [["batch", *INPUT_SHAPE], ["batch", NUM_CLASSES]]


def test_weights_are_inside_and_the_auxiliary_head_is_not(model: onnx.ModelProto) -> None:
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    assert all(t.raw_data and not t.external_data for t in weights.values())
    assert "classifier.weight" in weights
    assert not [name for name in weights if "auxiliary" in name]


def test_metadata_is_exactly_what_was_given(model: onnx.ModelProto, data: bytes) -> None:
    assert [(entry.key, entry.value) for entry in model.metadata_props] == sorted(METADATA.items())
    assert lineage(model) == METADATA
    assert (model.producer_name, model.producer_version) == ("d2nas", __version__)
    assert model.model_version == 1
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        assert not part.doc_string
        assert not part.metadata_props
    assert b"stack_trace" not in data
    assert str(ROOT).encode() not in data


def test_repeating_in_one_process_gives_the_same_bytes(network: nn.Module, data: bytes) -> None:
    assert exported(network) == data  # other networks and opsets were exported in between


def test_other_weights_give_other_bytes(data: bytes) -> None:
    assert exported(settled_network(seed=1)) != data


def test_the_network_is_left_as_it_was() -> None:
    network = settled_network()
    network.classifier.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    exported(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    grad = {name: value.requires_grad for name, value in network.named_parameters()}
    assert [name for name, needed in grad.items() if not needed] == ["classifier.weight"]
    assert not network.training


PROGRAM = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import torch
torch.set_num_threads(1)
from onnx_models import INPUT_SHAPE, settled_network
from pipeline.onnx_io import export

network = settled_network()
from d2nas.data.images import Normalizer

pixels = Normalizer((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
for name in ("stripped", "half", "whole"):
    options = {"pixels": pixels, "precision": "fp16"} if name == "half" else {}
    data = export.export_onnx(
        network,
        input_shape=INPUT_SHAPE,
        opset=20,
        metadata={"d2nas.weights": "0f" * 32, "d2nas.run": "a run"},
        **options,
    )
    open(name, "wb").write(data)
    if name == "half":
        export._strip = lambda message: None
"""


def test_same_bytes_from_another_folder_process_and_hash_seed_and_nothing_printed(
    network: nn.Module, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process works in a folder of its own, on its own copy of the network's source."""
    shutil.copy(ROOT / "tests/support" / "onnx_models.py", tmp_path)
    seed = "17" if os.environ.get("PYTHONHASHSEED") != "17" else "18"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(ROOT)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "stripped").read_bytes() == data
    half = exported(network, pixels=PIXELS, precision="fp16")
    assert (tmp_path / "half").read_bytes() == half != data
    monkeypatch.setattr(export, "_strip", lambda message: None)
    whole = exported(network)
    assert str(ROOT / "tests/support").encode() in whole  # paths that would leave the machine,
    assert (tmp_path / "whole").read_bytes() != whole  # and make the bytes depend on the folder


class Talkative(nn.Module):
    """Speaks up the way the exporter and its libraries do, while it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            warnings.warn("exporter chatter", UserWarning, stacklevel=1)
            logging.getLogger("torch.onnx._internal").warning("exporter chatter")
            logging.getLogger("onnxscript.optimizer").warning("exporter chatter")
        return self.linear(x.flatten(1))


def chatter(caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export.export_onnx(Talkative().eval(), input_shape=(1, 2, 2), opset=20, metadata={})
    said = [str(entry.message) for entry in caught] + [
        entry.getMessage() for entry in caplog.records
    ]
    return [text for text in said if text == "exporter chatter"]


def test_warnings_and_logging_of_the_exporter_are_silenced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    levels = {name: logging.getLogger(name).level for name in export._CHATTY_LOGGERS}
    assert chatter(caplog) == []
    assert levels == {name: logging.getLogger(name).level for name in levels}
    monkeypatch.setattr(export, "_silence", contextlib.nullcontext)
    assert len(chatter(caplog)) >= 3


def test_progress_prints_of_the_exporter_are_off(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    network = Talkative().eval()
    export.export_onnx(network, input_shape=(1, 2, 2), opset=20, metadata={})
    assert capfd.readouterr() == ("", "")
    original = torch.onnx.export
    monkeypatch.setattr(
        torch.onnx, "export", lambda *args, **kw: original(*args, **{**kw, "verbose": None})
    )
    monkeypatch.setattr(contextlib, "redirect_stdout", lambda _: contextlib.nullcontext())
    export.export_onnx(network, input_shape=(1, 2, 2), opset=20, metadata={})
    assert "[torch.onnx]" in capfd.readouterr().out


def test_a_network_in_training_mode_is_refused_even_in_part() -> None:
    network = settled_network()
    network.norm.train()
    with pytest.raises(ConfigError, match="norm is in training mode"):
        exported(network)
    with pytest.raises(ConfigError, match="the network is in training mode"):
        exported(network.train())


class Answers(nn.Module):
    """Returns whatever the given function makes of its logits."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.linear(x.flatten(1)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda logits: (logits, logits), "returns a tuple, not logits alone"),
        (lambda logits: (logits, None), "returns a tuple, not logits alone"),
        (lambda logits: logits[:, :, None], "shape .2, 2, 1."),
        (lambda logits: logits.double(), "torch.float64"),
        (lambda logits: logits[:1], "shape .1, 2."),
    ],
)
def test_outputs_other_than_logits_are_refused(change: Any, reason: str) -> None:
    network = Answers(change).eval()
    with pytest.raises(ConfigError, match=reason):
        export.export_onnx(network, input_shape=(1, 2, 2), opset=20, metadata={})


def test_weights_other_than_float32_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"holds torch\.float16 weights"):
        exported(settled_network().half())


def test_images_that_the_network_does_not_take_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not take images of shape \(1, 16, 16\)"):
        export.export_onnx(settled_network(), input_shape=(1, 16, 16), opset=20, metadata={})


@pytest.mark.parametrize("opset", [17, 22])
def test_opsets_outside_the_supported_range_are_refused(network: nn.Module, opset: int) -> None:
    with pytest.raises(ConfigError, match=f"opset {opset}"):
        exported(network, opset)


def test_metadata_keys_outside_d2nas_are_refused(network: nn.Module) -> None:
    with pytest.raises(ConfigError, match="'author' does not start with d2nas"):
        export.export_onnx(
            network, input_shape=INPUT_SHAPE, opset=20, metadata={"d2nas.run": "", "author": "me"}
        )


def test_a_network_that_cannot_be_converted_ends_in_one_line() -> None:
    network = Answers(lambda logits: logits if logits.sum() > 0 else -logits).eval()
    with pytest.raises(
        ValidationFailedError, match="cannot be converted to ONNX opset 20"
    ) as caught:
        export.export_onnx(network, input_shape=(1, 2, 2), opset=20, metadata={})
    assert "\n" not in str(caught.value)


def delivered(
    monkeypatch: pytest.MonkeyPatch, network: nn.Module, model: onnx.ModelProto | None
) -> bytes:
    """Export with an exporter that delivers ``model`` whatever it is asked for."""
    program = None if model is None else SimpleNamespace(model_proto=model)
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kw: program)
    return exported(network)


def another_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 19


def newer_format(model: onnx.ModelProto) -> None:
    model.ir_version = 11


def dropout(model: onnx.ModelProto) -> None:
    model.graph.node[1].CopyFrom(helper.make_node("Dropout", ["features"], ["active"]))


def training_mode(model: onnx.ModelProto) -> None:
    names = ["scale", "shift", "mean", "variance"]
    model.graph.node[1].CopyFrom(
        helper.make_node(
            "BatchNormalization", ["features", *names], ["active", "m", "v"], training_mode=1
        )
    )
    for name in names:
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [2], [1.0, 1.0]))


@pytest.mark.parametrize(
    ("defect", "reason"),
    [
        (another_opset, "opset 20 was asked for, the exporter wrote 19"),
        (newer_format, "IR version 11"),
        (dropout, "belongs to training"),
        (training_mode, "belongs to training"),
    ],
)
def test_what_the_exporter_delivers_is_checked(
    monkeypatch: pytest.MonkeyPatch, network: nn.Module, defect: Any, reason: str
) -> None:
    assert delivered(monkeypatch, network, hand_made_model())  # the sound one is accepted
    model = hand_made_model()
    defect(model)
    with pytest.raises(ValidationFailedError, match=reason):
        delivered(monkeypatch, network, model)
    if defect is not newer_format:  # that one, the reader refuses too
        model = hand_made_model()
        defect(model)
        monkeypatch.setattr(export, "_check_emitted", lambda model, opset: None)
        assert delivered(monkeypatch, network, model)


def test_an_exporter_that_delivers_nothing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, network: nn.Module
) -> None:
    with pytest.raises(ValidationFailedError, match="no model"):
        delivered(monkeypatch, network, None)


def test_a_package_that_the_exporter_lacks_is_not_the_networks_fault(
    monkeypatch: pytest.MonkeyPatch, network: nn.Module
) -> None:
    lacking = ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")

    def fail(*_: Any, **__: Any) -> None:
        raise torch.onnx.OnnxExporterError("failed") from reason

    monkeypatch.setattr(torch.onnx, "export", fail)
    reason: Exception = lacking
    with pytest.raises(ModuleNotFoundError) as caught:
        exported(network)
    assert caught.value is lacking
    reason = TypeError("no such operator")  # the control
    with pytest.raises(ValidationFailedError, match="no such operator"):
        exported(network)
