"""Bad safetensors and ONNX files: headers that lie, models that read other files, and bombs."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from model_changes import CASES
from onnx import TensorProto, helper
from onnx_models import hand_made_model

Change = Callable[[Path], object]
"""What makes the file at a path a bad one."""

HUGE = 2**40


def written(data: bytes) -> Change:
    """Put ``data`` in the file's place."""
    return lambda path: path.write_bytes(data)


# safetensors


def headers() -> dict[str, bytes]:
    """Files whose headers are not what they should be."""

    def file(header: object, data: bytes = bytes(16)) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    def tensor(dtype: object = "F32", shape: object = (2, 2), ends: object = (0, 16)) -> object:
        return {"images": {"dtype": dtype, "shape": shape, "data_offsets": ends}}

    twice = json.dumps(tensor())
    return {
        "empty": b"",
        "half of a length": bytes(5),
        "a length of nothing": bytes(8),
        "longer than the file": (1000).to_bytes(8, "little") + b"{}",
        "longer than memory": (2**63).to_bytes(8, "little") + b"{}",
        "100 MB and more": (10**8 + 1).to_bytes(8, "little") + b"{}",
        "no JSON": file(b"{images}"),
        "no object": file([1]),
        "not UTF-8": file(b'{"\xff": 1}'),
        "deeply nested": file(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        "unknown type": file(tensor(dtype="F33")),
        "a path for a type": file(tensor(dtype="../../etc/passwd")),
        "another size than its shape": file(tensor(shape=(2, 3))),
        "a shape that overflows": file(tensor(shape=(2**62, 8))),
        "a negative shape": file(tensor(shape=(-2, -2))),
        "a shape of text": file(tensor(shape=("2", "2"))),
        "offsets beyond the end": file(tensor(shape=(4, 2), ends=(0, 32))),
        "offsets that run back": file(tensor(ends=(16, 0))),
        "negative offsets": file(tensor(ends=(-16, 0))),
        "a hole before the first": file(tensor(ends=(16, 32)), bytes(32)),
        "more behind the last": file(tensor(), bytes(32)),
        "tensors that overlap": file(tensor() | {"logits": tensor()["images"]}),  # type: ignore
        "the same name twice": file((twice[:-1] + ", " + twice[1:]).encode()),
        "metadata that is no text": file(tensor() | {"__metadata__": {"a": 1}}),  # type: ignore
        "a pickle": b"\x80\x04\x95" + bytes(40),
    }


# ONNX


def bad_models(outside: Path) -> dict[str, Change]:
    """Models that a classifier does not need, some of which name the file ``outside``."""
    bad = {
        f"{reason[:60]}, {number}": written(_changed(change))
        for number, (change, reason, _) in enumerate(CASES)
    }
    bad |= {
        f"weights in {what}": _with_external_weights(outside, what)
        for what in ("an absolute path", "a path upward", "a link", "a hard link", "its own file")
    }
    bad |= {f"a bomb of {name}": _with_nodes(nodes) for name, nodes in _bombs().items()}
    return bad | {
        "a bomb of a weight": written(_changed(_huge_weight)),
        "a bomb of empty messages": written(b"\x3a\x00" * 2**20),
        "600 MB that are not there": lambda path: os.truncate(path, 600 * 10**6),
        "a link": lambda path: (path.unlink(), path.symlink_to(outside)),
        "a hard link": lambda path: (path.unlink(), _second_name(outside, path)),
        "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
        "a pickle": written(b"\x80\x04\x95" + bytes(40)),
    }


def _second_name(outside: Path, path: Path) -> None:
    """Make ``path`` another name of a file beside ``outside``: to see that, it must be opened."""
    target = outside.with_name("linked.bin")
    target.write_bytes(b"linked")
    os.link(target, path)


def _changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = hand_made_model()
    change(model)
    return model.SerializeToString()


def _huge_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].dims[:] = [HUGE, HUGE]


def _with_external_weights(outside: Path, what: str) -> Change:
    """The bundle's own model with its first weights elsewhere."""

    def change(path: Path) -> None:
        model = onnx.ModelProto.FromString(path.read_bytes())
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        location = {
            "an absolute path": str(outside),
            "a path upward": os.path.relpath(outside, path.parent),
            "its own file": path.name,
        }.get(what, "weights.bin")
        if what == "a link":
            (path.parent / location).symlink_to(outside)
        elif what == "a hard link":
            _second_name(outside, path.parent / location)
        tensor.external_data.add(key="location", value=location)
        path.write_bytes(model.SerializeToString())

    return change


def _bombs() -> dict[str, list[onnx.NodeProto]]:
    """Nodes whose values would fill any memory, if a runtime computed them beforehand."""

    def constant(name: str, *values: int) -> onnx.NodeProto:
        value = onnx.numpy_helper.from_array(np.array(values, dtype=np.int64))
        return helper.make_node("Constant", [], [name], value=value)

    def scalar(name: str, value: int) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value_int=value)

    return {
        "zeros": [
            constant("bomb_size", HUGE),
            helper.make_node("ConstantOfShape", ["bomb_size"], ["bomb"]),
        ],
        "copies": [
            constant("bomb_one", 1),
            constant("bomb_size", HUGE),
            helper.make_node("Tile", ["bomb_one", "bomb_size"], ["bomb"]),
        ],
        "numbers": [
            scalar("bomb_start", 0),
            scalar("bomb_end", HUGE),
            scalar("bomb_step", 1),
            helper.make_node("Range", ["bomb_start", "bomb_end", "bomb_step"], ["bomb"]),
        ],
    }


def _with_nodes(nodes: list[onnx.NodeProto]) -> Change:
    """The bundle's own model with more nodes in front."""

    def change(path: Path) -> None:
        model = onnx.ModelProto.FromString(path.read_bytes())
        for node in reversed(nodes):
            model.graph.node.insert(0, node)
        path.write_bytes(model.SerializeToString())

    return change
