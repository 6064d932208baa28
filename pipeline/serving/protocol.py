"""Requests and answers of the Open Inference Protocol v2 as bytes (no web framework, no runtime).

A request is JSON; a tensor's values are part of it or follow it as raw little-endian bytes (the
binary tensor extension), and the header ``Inference-Header-Content-Length`` says where the JSON
ends. Requests come from anywhere, so each is refused with one line that says what is wrong and
what was expected, and nothing is guessed: no number is cast, cut off or filled up.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2nas.errors import DamagedArtifactError, one_line
from d2nas.files.strict_json import MAX_BYTES, parse_json

from ..onnx_io import INPUT_NAME, OUTPUT_NAME

HEADER_LENGTH = "Inference-Header-Content-Length"

_DTYPES: Mapping[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
_JSON_CHARACTERS = {"FP32": 32, "UINT8": 8}
"""Room for one value: a double's 24 digits, or 3, with the comma, spaces and brackets."""
_SLACK_BYTES = 64 * 1024
_SLACK_BRACKETS = 256
_MAX_QUOTES = 4096
"""A request has a few dozen names; its numbers are not quoted."""
_MAX_MESSAGE = 300
_NOT_DONE = {
    "classification": "answers are logits; classes are for the client to pick",
    "shared_memory_region": "there is no shared memory here",
}


class RequestError(Exception):
    """A request that is not answered: ``status`` is HTTP's, ``str(error)`` is one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(one_line(message, _MAX_MESSAGE))
        self.status = status


@dataclass(frozen=True)
class Signature:
    """Signature of a model: images [N, *image_shape], logits [N, num_classes]."""

    datatype: str
    """Of the images: ``FP32`` or ``UINT8``."""
    image_shape: tuple[int, int, int]
    num_classes: int
    max_batch: int

    @property
    def max_body_bytes(self) -> int:
        """Size of the longest request that can be right, with some room."""
        num_values = self.max_batch * math.prod(self.image_shape)
        as_json = min(num_values * _JSON_CHARACTERS[self.datatype], MAX_BYTES)
        return max(num_values * _DTYPES[self.datatype].itemsize, as_json) + _SLACK_BYTES

    @property
    def max_brackets(self) -> int:
        """Most lists and objects in a request that can be right, with some room."""
        first, second, _ = self.image_shape
        return 1 + self.max_batch * (1 + first * (1 + second)) + _SLACK_BRACKETS

    @property
    def max_commas(self) -> int:
        """Most commas in a request that can be right, with some room."""
        return self.max_batch * math.prod(self.image_shape) + self.max_brackets + _MAX_QUOTES

    @property
    def expected(self) -> str:
        """The input in words."""
        shape = ", ".join(map(str, self.image_shape))
        return f"{self.datatype} [N, {shape}] with N from 1 to {self.max_batch}"


@dataclass(frozen=True)
class InferenceRequest:
    """A request that can be answered."""

    images: NDArray[Any]
    """[N, *image_shape], float32 or uint8."""
    id: str | None
    """What the client calls the request; the answer repeats it."""
    binary_output: bool


@dataclass(frozen=True, slots=True)
class Times:
    """Times of a request in a worker: when it began, of ``time.perf_counter_ns``, and nanoseconds
    of reading, computing and writing; and how many images it had.
    """

    images: int
    began_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int


@dataclass(frozen=True)
class Answer:
    """The body of an answer; ``header_length`` is the length of its JSON if raw bytes follow."""

    body: bytes
    header_length: int | None
    times: Times | None = None


def parse_request(body: bytes, header_length: str | None, signature: Signature) -> InferenceRequest:
    """Return the request in ``body``; ``header_length`` is the header's text, None without one.

    Raises ``RequestError`` (400) for everything that is not exactly a request for this model.
    """
    text, raw = _split(body, header_length)
    _check_counts(text, signature)
    request = _object(_json(text), "the request")
    parameters = _parameters(request, "the request")
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise _wrong(f"id is {_kind(identity)}, expected a string")
    binary_default = _flag(parameters, "binary_data_output", default=False)
    binary_output = _binary_output(request.get("outputs"), binary_default)
    tensor = _only_input(request.get("inputs"))
    images = _images(tensor, raw, signature, has_header=header_length is not None)
    if not np.isfinite(images).all():
        raise _wrong(f"input {INPUT_NAME} holds values that are not finite in {signature.datatype}")
    return InferenceRequest(images, identity, binary_output)


def encode_answer(
    logits: NDArray[np.float32], request: InferenceRequest, model: str, version: str
) -> Answer:
    """Return the answer to ``request``: ``logits`` [N, classes] as JSON or raw bytes.

    Raises ``RequestError`` (400) for logits that are not finite: JSON has no word for them, and
    they are no answer to anybody.
    """
    if not np.isfinite(logits).all():
        raise _wrong(
            f"the logits of these {INPUT_NAME} are not finite: their values are far from those "
            "that the model was trained on"
        )
    output: dict[str, Any] = {
        "name": OUTPUT_NAME,
        "datatype": "FP32",
        "shape": list(logits.shape),
    }
    answer: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        answer["id"] = request.id
    answer["outputs"] = [output]
    if not request.binary_output:
        output["data"] = logits.ravel().tolist()
        return Answer(encode_json(answer), None)
    raw = np.ascontiguousarray(logits, dtype="<f4").tobytes()
    output["parameters"] = {"binary_data_size": len(raw)}
    header = encode_json(answer)
    return Answer(header + raw, len(header))


def encode_json(value: Any) -> bytes:
    """Return JSON in ASCII, so that any text a client sent can be repeated to it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def _wrong(message: str) -> RequestError:
    return RequestError(400, message)


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """Return the JSON and the raw bytes behind it."""
    if header_length is None:
        return body, b""
    digits = header_length.strip()
    # Python would also read signs, underscores and the digits of other scripts.
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 12):
        raise _wrong(f"{HEADER_LENGTH} is {_shown(header_length)}, expected a number of bytes")
    length = int(digits)
    if not 1 <= length <= len(body):
        raise _wrong(f"{HEADER_LENGTH} is {length}, expected 1 to {len(body)}, the body's length")
    return body[:length], body[length:]


def _check_counts(text: bytes, signature: Signature) -> None:
    # Before parsing: an empty list takes two bytes of text and more than sixty of memory.
    # So do numbers: two bytes of text become up to thirty-six.
    brackets, quotes = text.count(b"[") + text.count(b"{"), text.count(b'"')
    commas = text.count(b",")
    if brackets > signature.max_brackets:
        raise _wrong(
            f"the request has {brackets} brackets, expected {signature.max_brackets} at most"
        )
    if quotes > _MAX_QUOTES:
        raise _wrong(f"the request has {quotes} quotes, expected {_MAX_QUOTES} at most")
    if commas > signature.max_commas:
        raise _wrong(f"the request has {commas} commas, expected {signature.max_commas} at most")


def _json(text: bytes) -> Any:
    try:
        return parse_json(text, what="the request", is_counted=True)
    except DamagedArtifactError as error:
        raise _wrong(str(error)) from None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(f"{what} is {_kind(value)}, expected an object")
    return value


def _parameters(holder: Mapping[str, Any], what: str) -> dict[str, Any]:
    value = holder.get("parameters")
    parameters = {} if value is None else _object(value, f"parameters of {what}")
    for name, why in _NOT_DONE.items():
        # Ignoring these would give an answer to another question.
        if parameters.get(name):
            raise _wrong(f"parameter {name} of {what} is not supported: {why}")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise _wrong(f"parameter {name} is {_kind(value)}, expected true or false")
    return value


def _binary_output(outputs: Any, default: bool) -> bool:
    if outputs is None or outputs == []:
        return default
    if not isinstance(outputs, list):
        raise _wrong(f"outputs is {_kind(outputs)}, expected a list")
    if len(outputs) > 1:
        raise _wrong(f"{len(outputs)} outputs are asked for, expected {OUTPUT_NAME} only")
    output = _object(outputs[0], "an output")
    name = output.get("name")
    if name != OUTPUT_NAME:
        raise _wrong(f"there is no output {_shown(name)}, expected {OUTPUT_NAME}")
    parameters = _parameters(output, f"output {OUTPUT_NAME}")
    return _flag(parameters, "binary_data", default=default)


def _only_input(inputs: Any) -> dict[str, Any]:
    if not isinstance(inputs, list):
        raise _wrong(f"inputs is {_kind(inputs)}, expected a list with {INPUT_NAME}")
    if len(inputs) != 1:
        raise _wrong(f"{len(inputs)} inputs are given, expected exactly one, {INPUT_NAME}")
    tensor = _object(inputs[0], "an input")
    name = tensor.get("name")
    if name != INPUT_NAME:
        raise _wrong(f"there is no input {_shown(name)}, expected {INPUT_NAME}")
    return tensor


def _images(
    tensor: Mapping[str, Any], raw: bytes, signature: Signature, *, has_header: bool
) -> NDArray[Any]:
    datatype = tensor.get("datatype")
    if datatype != signature.datatype:
        raise _wrong(
            f"datatype of {INPUT_NAME} is {_shown(datatype)}, expected {signature.expected}"
        )
    shape = _shape(tensor.get("shape"), signature)
    parameters = _parameters(tensor, f"input {INPUT_NAME}")
    if "binary_data_size" not in parameters:
        if raw:
            raise _wrong(
                f"{len(raw)} bytes follow the JSON, expected none or a parameter binary_data_size"
            )
        values = _from_json(tensor.get("data"), shape, signature.datatype)
    elif "data" in tensor:
        raise _wrong(f"input {INPUT_NAME} has data and binary_data_size, expected one of them")
    elif not has_header:
        raise _wrong(f"binary_data_size without a header {HEADER_LENGTH}, expected both or neither")
    else:
        values = _from_bytes(raw, parameters["binary_data_size"], shape, signature.datatype)
    return values.reshape(shape)


def _shape(shape: Any, signature: Signature) -> tuple[int, ...]:
    # type(): true and false are integers to Python.
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise _wrong(f"shape of {INPUT_NAME} is not a list of integers, {signature.expected}")
    if tuple(shape[1:]) != signature.image_shape:
        raise _wrong(f"shape of {INPUT_NAME} is {_shown(shape)}, expected {signature.expected}")
    if not 1 <= shape[0] <= signature.max_batch:
        raise _wrong(
            f"{INPUT_NAME} is a batch of {shape[0]}, expected 1 to {signature.max_batch} images"
        )
    return tuple(shape)


def _from_bytes(raw: bytes, declared: Any, shape: tuple[int, ...], datatype: str) -> NDArray[Any]:
    dtype = _DTYPES[datatype]
    wanted = math.prod(shape) * dtype.itemsize
    if type(declared) is not int or declared != wanted:
        raise _wrong(
            f"binary_data_size is {_shown(declared)}, expected {wanted} for shape {list(shape)}"
        )
    if len(raw) != wanted:
        raise _wrong(f"{len(raw)} bytes follow the JSON, expected {wanted}")
    return np.frombuffer(raw, dtype)


def _from_json(data: Any, shape: tuple[int, ...], datatype: str) -> NDArray[Any]:
    if not isinstance(data, list):
        raise _wrong(f"data of {INPUT_NAME} is {_kind(data)}, expected a list of numbers")
    values = _flattened(data, shape) if data and isinstance(data[0], list) else data
    if len(values) != math.prod(shape):
        raise _wrong(
            f"data of {INPUT_NAME} has {len(values)} values, expected {math.prod(shape)} "
            f"for shape {list(shape)}"
        )
    types = set(map(type, values))
    accepted = {int} if datatype == "UINT8" else {int, float}
    if types - accepted:
        culprit = next(value for value in values if type(value) not in accepted)
        numbers = "integers from 0 to 255" if datatype == "UINT8" else "numbers"
        raise _wrong(f"data of {INPUT_NAME} holds {_kind(culprit)}, expected {numbers}")
    if datatype == "UINT8":
        if min(values) < 0 or max(values) > 255:
            raise _wrong(f"data of {INPUT_NAME} goes beyond UINT8, expected integers from 0 to 255")
        return np.array(values, np.uint8)
    with np.errstate(over="ignore"):  # becomes infinite, which the caller refuses
        return np.array(values, np.float64).astype(np.float32)


def _flattened(data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Return the values of nested lists that must be shaped like ``shape``."""
    level = [data]
    for size in shape:
        if any(not isinstance(part, list) or len(part) != size for part in level):
            raise _wrong(
                f"data of {INPUT_NAME} is not nested like its shape, expected {list(shape)}"
            )
        level = list(chain.from_iterable(level))
    return level


def _shown(value: Any) -> str:
    text = "missing" if value is None else ascii(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _kind(value: Any) -> str:
    if value is None:
        return "missing or null"
    names = {bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
