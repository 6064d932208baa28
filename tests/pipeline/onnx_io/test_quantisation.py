"""Models in 8-bit integers: types, ranges, memory, the same bytes from the same images."""

import hashlib
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_models import INPUT_SHAPE, pattern_images, settled_network, torch_answer

from d2nas.cpus import has_dot_product
from d2nas.data.images import Normalizer
from pipeline.gate.comparison import PRECISION_LIMITS, compare, judge_parity
from pipeline.onnx_io.export import export_onnx
from pipeline.onnx_io.model_file import check_model, describe
from pipeline.onnx_io.quantisation import quantise
from pipeline.onnx_io.session import open_session

METADATA = {"d2nas.run": "toy"}


def exported(**options: Any) -> bytes:
    return export_onnx(
        settled_network(), input_shape=INPUT_SHAPE, metadata=METADATA, **{"opset": 20, **options}
    )


def batches() -> Iterator[Any]:
    for start in range(0, 96, 32):
        yield pattern_images(96, seed=5)[start : start + 32].numpy()


@pytest.fixture(scope="module")
def original() -> bytes:
    return exported()


def test_integers_inside_and_float32_outside(original: bytes) -> None:
    data = quantise(original, batches(), bits=8)
    model, whole = check_model(data, what="int8"), check_model(original, what="float32")
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    of_layers = {
        kinds[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in kinds
    }
    assert of_layers == {onnx.TensorProto.INT8, onnx.TensorProto.INT32}  # weights, biases
    zeros = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert {kinds[name] for name in zeros} == {onnx.TensorProto.UINT8}
    assert model.graph.node[-1].op_type == "Gemm"  # logits are not rounded
    pairs = ("QuantizeLinear", "DequantizeLinear")
    layers = [node.name for node in model.graph.node if node.op_type not in pairs]
    assert layers == [node.name for node in whole.graph.node]
    assert model.metadata_props == whole.metadata_props
    assert (model.producer_name, model.opset_import) == (whole.producer_name, whole.opset_import)
    assert (model.graph.input, model.graph.output) == (whole.graph.input, whole.graph.output)
    images = pattern_images(64).numpy()
    answered = open_session(data, device="cpu", num_threads=1).run(images)
    found = compare(torch_answer(settled_network())(images), answered)
    assert judge_parity(found, PRECISION_LIMITS["int8"])[0] == "passed"
    assert (found.relative_l2 or 0.0) > 1e-3  # not float32 any more


@pytest.mark.parametrize("opset", [18, 21])
def test_every_opset_and_pixels(opset: int) -> None:
    whole = exported(opset=opset, pixels=Normalizer((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    pixels = np.random.default_rng(3).integers(0, 256, (32, 16, 16, 3), np.uint8)
    data = quantise(whole, [pixels])
    described = describe(check_model(data, what="int8"))
    assert (described.input_type, described.opset) == ("uint8", opset)
    first, second = (
        open_session(model, device="cpu", num_threads=1).run(pixels) for model in (whole, data)
    )
    assert (compare(first, second).relative_l2 or 1.0) < PRECISION_LIMITS["int8"].relative_l2


def test_the_same_images_give_the_same_bytes_in_any_process(
    original: bytes, tmp_path: Path
) -> None:
    """Names and orders that depend on the process's hashes would show here."""
    (tmp_path / "float32.onnx").write_bytes(original)
    code = """
import hashlib, sys
from pathlib import Path
from onnx_models import pattern_images
from pipeline.onnx_io.quantisation import quantise
images = pattern_images(96, seed=5).numpy()
model = Path("float32.onnx").read_bytes()
print(hashlib.sha256(quantise(model, (images[at : at + 32] for at in (0, 32, 64)))).hexdigest())
"""
    support = Path(__file__).parents[2] / "support"
    paths = os.pathsep.join([str(support), str(support.parents[1])])
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {hashlib.sha256(quantise(original, batches())).hexdigest()}
    # Control: other images are other ranges.
    assert quantise(original, batches()) != quantise(original, [next(batches())])


def test_one_batch_of_calibration_images_is_in_memory(original: bytes) -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    def watched() -> Iterator[Any]:
        nonlocal most
        for _ in range(6):
            most = max(most, sum(ref() is not None for ref in alive))
            images = pattern_images(8).numpy().copy()
            alive.append(weakref.ref(images))
            yield images
            del images

    quantise(original, watched())
    assert len(alive) == 6
    assert most <= 1


def test_weights_have_seven_bits_where_products_would_saturate(original: bytes) -> None:
    def largest(bits: Any) -> int:
        model = check_model(quantise(original, batches(), bits=bits), what="int8")
        tensors = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
        arrays = [numpy_helper.to_array(t) for t in tensors if len(t.dims) > 1]
        return max(int(np.abs(array.astype(np.int64)).max()) for array in arrays)

    assert (largest(8), largest(7)) == (127, 64)


def test_a_processor_is_asked_for_its_dot_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    file = tmp_path / "cpuinfo"
    for flags, wanted in (("avx2 avx512_vnni", True), ("avx_vnni", True), ("avx2 avx512f", False)):
        file.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
        assert has_dot_product(file) is wanted
    assert not has_dot_product(tmp_path / "none")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert has_dot_product(tmp_path / "none")
