"""config.pbtxt: what Triton's own definition of the format makes of it."""

from typing import Any

import pytest
from google.protobuf import text_format
from toy import Place
from tritonclient.grpc import model_config_pb2

from pipeline.bundle.reader import open_bundle
from pipeline.bundle.triton import triton_config


def parsed(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def report_of(kind: str, mode: str, input_type: str = "float32") -> dict[str, Any]:
    return {
        "model": {"input_type": input_type, "input_shape": [3, 32, 48], "num_classes": 10},
        "parity": {"batches": [{"batch": 1}, {"batch": 64}]},
        "device": {"kind": kind},
        "best_mode": mode,
    }


@pytest.mark.parametrize("input_type", ["float32", "uint8"])
def test_the_server_is_told_what_the_model_takes_and_gives(input_type: str) -> None:
    config = parsed(triton_config("net", 3, report_of("cpu", "plain", input_type)))
    assert (config.name, config.backend, config.max_batch_size) == ("net", "onnxruntime", 64)
    (image,), (logits,) = config.input, config.output
    pixels = input_type == "uint8"
    wanted = model_config_pb2.TYPE_UINT8 if pixels else model_config_pb2.TYPE_FP32
    assert (image.name, image.data_type) == ("images", wanted)
    assert list(image.dims) == ([32, 48, 3] if pixels else [3, 32, 48])
    assert (logits.name, logits.data_type, list(logits.dims)) == (
        "logits",
        model_config_pb2.TYPE_FP32,
        [10],
    )
    assert logits.label_filename == "labels.txt"
    assert config.HasField("dynamic_batching")
    assert list(config.version_policy.specific.versions) == [3]
    assert [warm_up.batch_size for warm_up in config.model_warmup] == [1, 64]
    for warm_up in config.model_warmup:
        assert list(warm_up.inputs["images"].dims) == list(image.dims)
        assert warm_up.inputs["images"].data_type == wanted


def test_the_server_runs_where_and_how_the_model_was_validated() -> None:
    on_cpu = parsed(triton_config("net", 1, report_of("cpu", "plain")))
    assert on_cpu.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert not on_cpu.HasField("optimization")
    for mode in ("plain", "nhwc"):
        config = parsed(triton_config("net", 1, report_of("cuda", mode)))
        assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
        (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert cuda.name == "cuda"
        assert cuda.parameters["use_tf32"] == "0"
        assert ("prefer_nhwc" in cuda.parameters) == (mode == "nhwc")


def test_the_bundles_own_configuration_fits_its_model(finished: Place) -> None:
    bundle = open_bundle(finished.exported / "toy")
    config = parsed((bundle.folder / "config.pbtxt").read_text())
    assert (config.name, config.max_batch_size) == (bundle.folder.name, bundle.max_batch)
    assert tuple(config.input[0].dims) == bundle.description.array_shape
    assert tuple(config.output[0].dims) == (bundle.description.num_classes,)
    assert list(config.version_policy.specific.versions) == [bundle.number]


def test_control_a_misspelt_field_is_refused() -> None:
    text = triton_config("net", 1, report_of("cpu", "plain"))
    with pytest.raises(text_format.ParseError):
        parsed(text.replace("max_batch_size", "max_batchsize"))
