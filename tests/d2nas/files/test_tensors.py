"""Tensors come back exactly, equal tensors have equal bytes, and bad bytes are refused."""

import ast
import hashlib
import json
import random
from pathlib import Path

import faults
import pytest
import torch
from torch import Tensor

from d2nas.errors import DamagedArtifactError
from d2nas.files.tensors import decode_state, decode_tensors, encode_state, encode_tensors
from d2nas.randomness import generator
from pipeline.store import Store

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
)
GOLDEN = "8dbb03edf94a71ef1c4c5932733c49d315f540fc715d1958e84ead85750bb85e"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def some_tensors() -> dict[str, Tensor]:
    draw = generator(3, "codec")
    tensors = {str(dtype): (torch.rand(2, 3, generator=draw) * 9).to(dtype) for dtype in DTYPES}
    return tensors | {
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 4),
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "large": torch.tensor([2**63 - 1, -(2**63)]),
    }


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == sorted(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(found[name]) == bits(tensor), name
        assert found[name].is_contiguous()


def test_values_shapes_and_types_are_exact() -> None:
    tensors = some_tensors()
    assert_same(decode_tensors(encode_tensors(tensors), what="test"), tensors)
    assert decode_tensors(encode_tensors({}), what="test") == {}


def test_bytes_are_a_function_of_the_tensors() -> None:
    tensors = some_tensors()
    data = encode_tensors(tensors)
    assert encode_tensors(dict(reversed(tensors.items()))) == data
    assert encode_tensors(decode_tensors(data, what="test")) == data
    fixed = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([True, False])}
    assert hashlib.sha256(encode_tensors(fixed)).hexdigest() == GOLDEN
    fixed["b"][0, 0] = 1e-30
    assert hashlib.sha256(encode_tensors(fixed)).hexdigest() != GOLDEN


def test_strides_sharing_and_gradients_do_not_matter() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(base.clone())
    images = base.reshape(1, 3, 2, 2).to(memory_format=torch.channels_last)
    tensors = {
        "a": base.t(),
        "b": base,
        "column": base[:, 1],
        "expanded": base[:1].expand(5, 4),
        "images": images,
        "parameter": parameter,
    }
    found = decode_tensors(encode_tensors(tensors), what="test")
    assert_same(found, {name: tensor.detach() for name, tensor in tensors.items()})
    found["b"].add_(1)  # memory of its own, which may be written
    assert torch.equal(base, torch.arange(12.0).reshape(3, 4))
    assert torch.equal(found["a"], base.t())


@pytest.mark.parametrize(
    "tensor",
    [torch.eye(2).to_sparse(), torch.zeros(1, dtype=torch.complex128)],
    ids=["sparse", "complex128"],
)
def test_what_the_format_does_not_have_is_refused(tensor: Tensor) -> None:
    with pytest.raises(ValueError, match="stored"):
        encode_tensors({"a": tensor})


def header(entries: object, data: bytes = bytes(16)) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes


BAD = {
    "empty": b"",
    "short": b"\x08\x00",
    "no header": bytes(8),
    "huge header": (2**63).to_bytes(8, "little") + b"{}",
    "long header": (100).to_bytes(8, "little") + b"{}",
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    "zip": b"PK\x03\x04" + bytes(60),
    "no JSON": (2).to_bytes(8, "little") + b"{x",
    "list": header([]),
    "unknown dtype": header({"a": entry(dtype="X9")}),
    "dtype without a tensor": header({"a": entry(dtype="F8_E8M0")}),
    "small shape": header({"a": entry(shape=[2])}),
    "negative shape": header({"a": entry(shape=[-2, -2])}),
    "huge shape": header({"a": entry(shape=[2**62, 2**62])}),
    "outside": header({"a": entry(data_offsets=[0, 1600])}),
    "backwards": header({"a": entry(data_offsets=[16, 0])}),
    "overlap": header({"a": entry(), "b": entry()}),
    "gap": header({"a": entry(data_offsets=[4, 20])}, bytes(20)),
    "trailing": header({"a": entry()}, bytes(17)),
    "truncated": header({"a": entry()}, bytes(15)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_are_refused(name: str) -> None:
    with pytest.raises(DamagedArtifactError, match=r"^model: not valid safetensors") as caught:
        decode_tensors(BAD[name], what="model")
    assert "\n" not in str(caught.value)


def test_harness_of_bad_bytes_makes_good_ones() -> None:
    assert decode_tensors(header({"a": entry()}), what="model")["a"].shape == (2, 2)


def test_only_known_errors_escape_mutated_headers() -> None:
    data = encode_tensors(some_tensors())
    end = 8 + int.from_bytes(data[:8], "little")
    num_refused = 0
    for case in range(1000):
        draw = random.Random(case)
        changed = bytearray(data)
        for _ in range(draw.randrange(1, 4)):
            changed[draw.randrange(end)] = draw.choice(b'0123456789-{}[]",:aFBO\xff\x00')
        try:
            decode_tensors(bytes(changed), what="model")
        except DamagedArtifactError:
            num_refused += 1
    assert 500 < num_refused < 1000  # the rest is why every file has a digest


def test_state_goes_through_a_version(tmp_path: Path) -> None:
    scalars = {"step": 12, "best": 0.1 + 0.2, "name": "é", "none": None, "losses": [1.5, 2]}
    files = encode_state(some_tensors(), scalars)
    assert sorted(files) == ["state.json", "state.safetensors"]
    store = Store(tmp_path / "store")
    version = faults.commit(store, files, stage="search-state")
    tensors, found = decode_state(store.open("quickstart/search-state").read)
    assert_same(tensors, some_tensors())
    assert found == scalars
    path = version.path / "state.safetensors"
    path.write_bytes(faults.contents(1)["weights.bin"])
    with pytest.raises(DamagedArtifactError, match=r"state\.safetensors"):
        decode_state(version.read)


@pytest.mark.parametrize(
    "scalars", [{"loss": float("nan")}, {"best": float("-inf")}, {"value": object()}]
)
def test_state_is_strict_json(scalars: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        encode_state({}, scalars)


@pytest.mark.parametrize("text", [b"[]", b"{", b'{"a":NaN}', b'{"a":1,"a":2}'])
def test_bad_scalars_are_refused(text: bytes) -> None:
    files = encode_state({}, {}) | {"state.json": text}
    with pytest.raises(DamagedArtifactError, match=r"state\.json"):
        decode_state(files.__getitem__)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


def test_only_the_codecs_import_safetensors() -> None:
    for path in sorted((faults.PROJECT / "pipeline").rglob("*.py")):
        assert ("safetensors" in imports(path)) == (path.name in ("tensors.py", "arrays.py")), path
