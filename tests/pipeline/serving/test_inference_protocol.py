"""Requests as bytes: what is right is answered, everything else is refused in one clear line."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from served import (
    MAX_BATCH,
    binary_request,
    decoded,
    images_of,
    json_request,
    pixel_model,
    warm_service,
)

from pipeline.serving.protocol import (
    HEADER_LENGTH,
    RequestError,
    Signature,
    encode_answer,
    encode_json,
    parse_request,
)

FLOATS = Signature("FP32", (1, 4, 4), 3, MAX_BATCH)
PIXELS = Signature("UINT8", (4, 4, 1), 3, MAX_BATCH)
IMAGES = images_of(2)
PIXEL_IMAGES = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)
SERVICE, SESSION = warm_service()
Change = Callable[[dict[str, Any]], Any]


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def put(*path: Any) -> Change:
    """A change: all but the last of ``path`` are keys, the last is the value to put there."""

    def change(request: dict[str, Any]) -> None:
        holder: Any = request
        for key in path[:-2]:
            holder = holder[key]
        holder[path[-2]] = path[-1]

    return change


def drop(*path: Any) -> Change:
    def change(request: dict[str, Any]) -> None:
        holder: Any = request
        for key in path[:-1]:
            holder = holder[key]
        del holder[path[-1]]

    return change


TENSOR = ("inputs", 0)
VALUES = IMAGES.ravel().tolist()
RAGGED = IMAGES.tolist()
RAGGED[1][0][2] = [1.0, 2.0, 3.0]
MALFORMED: list[tuple[str, Change, str]] = [
    ("no inputs", drop("inputs"), "inputs is missing or null, expected a list"),
    ("inputs is an object", put("inputs", {}), "inputs is an object, expected a list"),
    ("inputs is empty", put("inputs", []), "0 inputs are given, expected exactly one"),
    ("input is a string", put("inputs", ["images"]), "an input is a string, expected an object"),
    ("two inputs", lambda r: r["inputs"].append(r["inputs"][0]), "2 inputs are given, expected"),
    ("input name", put(*TENSOR, "name", "pixels"), "no input 'pixels', expected images"),
    ("input name is a number", put(*TENSOR, "name", 3), "no input 3, expected images"),
    ("no input name", drop(*TENSOR, "name"), "no input missing, expected images"),
    ("no datatype", drop(*TENSOR, "datatype"), "datatype of images is missing, expected FP32"),
    ("other datatype", put(*TENSOR, "datatype", "FP64"), "'FP64', expected FP32 [N, 1, 4, 4]"),
    ("pixels", put(*TENSOR, "datatype", "UINT8"), "'UINT8', expected FP32 [N, 1, 4, 4]"),
    ("datatype is a list", put(*TENSOR, "datatype", ["FP32"]), "['FP32'], expected FP32"),
    ("no shape", drop(*TENSOR, "shape"), "shape of images is not a list of integers"),
    ("shape is text", put(*TENSOR, "shape", "2,1,4,4"), "shape of images is not a list"),
    ("shape with a fraction", put(*TENSOR, "shape", [2.0, 1, 4, 4]), "not a list of integers"),
    ("shape with a bool", put(*TENSOR, "shape", [2, True, 4, 4]), "not a list of integers"),
    ("shape is empty", put(*TENSOR, "shape", []), "is [], expected FP32 [N, 1, 4, 4]"),
    ("three axes", put(*TENSOR, "shape", [2, 4, 4]), "is [2, 4, 4], expected FP32 [N, 1, 4, 4]"),
    ("channels last", put(*TENSOR, "shape", [2, 4, 4, 1]), "[2, 4, 4, 1], expected FP32"),
    ("no images", put(*TENSOR, "shape", [0, 1, 4, 4]), "a batch of 0, expected 1 to 4 images"),
    ("negative batch", put(*TENSOR, "shape", [-1, 1, 4, 4]), "a batch of -1, expected 1 to 4"),
    ("large batch", put(*TENSOR, "shape", [5, 1, 4, 4]), "a batch of 5, expected 1 to 4"),
    ("endless batch", put(*TENSOR, "shape", [10**29, 1, 4, 4]), "expected 1 to 4 images"),
    ("no data", drop(*TENSOR, "data"), "data of images is missing or null, expected a list"),
    ("data is text", put(*TENSOR, "data", "AAAA"), "data of images is a string, expected a list"),
    ("data is a number", put(*TENSOR, "data", 0.5), "data of images is a number, expected"),
    ("data is empty", put(*TENSOR, "data", []), "has 0 values, expected 32 for shape"),
    ("a value too few", put(*TENSOR, "data", VALUES[1:]), "has 31 values, expected 32"),
    ("a value too many", put(*TENSOR, "data", [*VALUES, 0]), "has 33 values, expected 32"),
    ("a bool among values", put(*TENSOR, "data", 7, True), "holds true or false, expected numbers"),
    ("a null among values", put(*TENSOR, "data", 7, None), "holds missing or null, expected"),
    ("text among values", put(*TENSOR, "data", 7, "1"), "holds a string, expected numbers"),
    ("a list among values", put(*TENSOR, "data", 7, [1]), "holds a list, expected numbers"),
    ("ragged", put(*TENSOR, "data", RAGGED), "not nested like its shape, expected [2, 1, 4, 4]"),
    ("nested otherwise", put(*TENSOR, "data", [VALUES]), "not nested like its shape"),
    ("beyond float32", put(*TENSOR, "data", 7, 1e39), "values that are not finite in FP32"),
    ("long integer", put(*TENSOR, "data", 7, 10**29 * 10**10), "integer of 40 digits"),
    ("id is a number", put("id", 7), "id is a number, expected a string"),
    ("parameters is a list", put("parameters", []), "parameters of the request is a list"),
    ("flag is text", put("parameters", {"binary_data_output": "yes"}), "expected true or false"),
    ("outputs is an object", put("outputs", {}), "outputs is an object, expected a list"),
    ("output is a string", put("outputs", ["logits"]), "an output is a string, expected"),
    ("other output", put("outputs", [{"name": "boxes"}]), "no output 'boxes', expected logits"),
    ("no output name", put("outputs", [{}]), "no output missing, expected logits"),
    ("two outputs", put("outputs", [{"name": "logits"}] * 2), "2 outputs are asked for, expected"),
    (
        "output flag is a number",
        put("outputs", [{"name": "logits", "parameters": {"binary_data": 1}}]),
        "binary_data is a number, expected true or false",
    ),
    (
        "classes",
        put("outputs", [{"name": "logits", "parameters": {"classification": 3}}]),
        "classification of output logits is not supported",
    ),
    (
        "shared memory",
        put(*TENSOR, "parameters", {"shared_memory_region": "x"}),
        "shared_memory_region of input images is not supported",
    ),
    (
        "binary size without a header",
        lambda r: r["inputs"][0].update(
            parameters={"binary_data_size": r["inputs"][0].pop("data")}
        ),
        "without a header Inference-Header-Content-Length",
    ),
]


@pytest.mark.parametrize(
    ("change", "words"), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED]
)
def test_a_malformed_request_is_refused_in_words(change: Change, words: str) -> None:
    request = json_request(IMAGES)
    parse_request(encoded(request), None, FLOATS)  # control: it is the change that is refused
    change(request)
    with pytest.raises(RequestError) as caught:
        parse_request(encoded(request), None, FLOATS)
    assert caught.value.status == 400
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "the request is a list, expected an object"),
        (b"3", "the request is a number, expected an object"),
        (b"null", "the request is missing or null, expected an object"),
        (b'{"id": "a", "id": "b"}', "duplicate key"),
        (b'{"inputs": [NaN]}', "NaN is not JSON"),
        (b'{"inputs": [Infinity]}', "Infinity is not JSON"),
        (b'{"inputs": [1e999]}', "1e999 is out of range"),
        (b"[" * 100, "nested deeper than 32"),
        (b"[" * 100_000, "has 100000 brackets, expected .* at most"),
        (b'{"a":' * 100_000, "has 100000 brackets, expected .* at most"),
        (b"[" + b'"",' * 100_000 + b"1]", "has 200000 quotes, expected 4096 at most"),
        (b'{"inputs": [1e' + b"9" * 100_000 + b"]}", "not valid JSON"),
    ],
)
def test_what_is_no_strict_json_object_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        parse_request(body, None, FLOATS)
    assert caught.value.status == 400
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    "length", ["", "-1", "0", "+5", "1_0", "1e2", "0x10", "٣", "9" * 5000, "100000", "5.0", "five"]
)
def test_a_wrong_header_length_is_refused(length: str) -> None:
    body, _ = binary_request(IMAGES)
    with pytest.raises(RequestError, match=f"{HEADER_LENGTH} is .*, expected") as caught:
        parse_request(body, length, FLOATS)
    assert caught.value.status == 400


def test_binary_sizes_must_agree() -> None:
    body, headers = binary_request(IMAGES)
    length = headers[HEADER_LENGTH]
    for wrong in (body[:-1], body + b"\0", body[:-4], body + bytes(4)):
        with pytest.raises(RequestError, match="bytes follow the JSON, expected 128"):
            parse_request(wrong, length, FLOATS)
    for declared in (127, -128, "128", 128.0, True, None):
        request = json_request(IMAGES)
        del request["inputs"][0]["data"]
        request["inputs"][0]["parameters"] = {"binary_data_size": declared}
        text = encoded(request)
        with pytest.raises(RequestError, match=r"binary_data_size is .*, expected 128"):
            parse_request(text + IMAGES.tobytes(), str(len(text)), FLOATS)
    both = json_request(IMAGES)
    both["inputs"][0]["parameters"] = {"binary_data_size": 128}
    text = encoded(both)
    with pytest.raises(RequestError, match="data and binary_data_size, expected one"):
        parse_request(text + IMAGES.tobytes(), str(len(text)), FLOATS)
    text = encoded(json_request(IMAGES))
    with pytest.raises(RequestError, match="128 bytes follow the JSON, expected none"):
        parse_request(text + IMAGES.tobytes(), str(len(text)), FLOATS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_raw_values_must_be_finite(value: float) -> None:
    images = IMAGES.copy()
    images[1, 0, 3, 3] = value
    body, headers = binary_request(images)
    with pytest.raises(RequestError, match="not finite in FP32"):
        parse_request(body, headers[HEADER_LENGTH], FLOATS)


@pytest.mark.parametrize(("value", "words"), [(256, "0 to 255"), (-1, "0 to 255"), (1.0, "number")])
def test_pixels_are_integers_of_a_byte(value: float, words: str) -> None:
    request = json_request(PIXEL_IMAGES)
    parsed = parse_request(encoded(request), None, PIXELS)
    assert parsed.images.dtype == np.uint8
    np.testing.assert_array_equal(parsed.images, PIXEL_IMAGES)
    request["inputs"][0]["data"][5] = value
    with pytest.raises(RequestError, match=words):
        parse_request(encoded(request), None, PIXELS)


def test_flat_nested_and_raw_values_are_the_same_images() -> None:
    nested = json_request(IMAGES)
    nested["inputs"][0]["data"] = IMAGES.tolist()
    body, headers = binary_request(IMAGES)
    for found in (
        parse_request(encoded(json_request(IMAGES)), None, FLOATS),
        parse_request(encoded(nested), None, FLOATS),
        parse_request(body, headers[HEADER_LENGTH], FLOATS),
    ):
        assert found.images.dtype == np.float32
        np.testing.assert_array_equal(found.images, IMAGES)


@pytest.mark.parametrize(
    ("others", "binary"),
    [
        ({}, False),
        ({"parameters": {"binary_data_output": True}}, True),
        ({"outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}, True),
        ({"outputs": [{"name": "logits"}], "parameters": {"binary_data_output": True}}, True),
        (
            {
                "outputs": [{"name": "logits", "parameters": {"binary_data": False}}],
                "parameters": {"binary_data_output": True},
            },
            False,
        ),
        ({"outputs": [], "parameters": None, "something": "new"}, False),
    ],
)
def test_the_client_chooses_how_logits_come_back(others: dict[str, Any], binary: bool) -> None:
    request = parse_request(encoded(json_request(IMAGES, id="a\ud800", **others)), None, FLOATS)
    assert request.binary_output == binary
    logits = SESSION.run(request.images)
    answer = encode_answer(logits, request, "toy", "1")
    assert (answer.header_length is not None) == binary
    np.testing.assert_array_equal(decoded(answer.body, answer.header_length), logits)
    document = json.loads(answer.body[: answer.header_length])
    assert (document["model_name"], document["model_version"]) == ("toy", "1")
    assert document["id"] == "a\ud800"


def test_logits_that_are_not_finite_are_no_answer() -> None:
    images = np.full((1, 1, 4, 4), 3e38, np.float32)
    body, headers = binary_request(images)
    with pytest.raises(RequestError, match="logits of these images are not finite") as caught:
        SERVICE.answer(body, headers[HEADER_LENGTH])
    assert caught.value.status == 400
    with pytest.raises(ValueError, match="not JSON compliant"):  # control: JSON has no word for it
        encode_json(float("inf"))


def test_the_longest_right_request_fits() -> None:
    for signature, values in (
        (FLOATS, np.full((MAX_BATCH, 1, 4, 4), -1.1754943508222875e-38)),
        (PIXELS, np.full((MAX_BATCH, 4, 4, 1), 255)),
    ):
        request = json_request(values)
        request["inputs"][0] |= {"datatype": signature.datatype, "data": values.tolist()}
        text = json.dumps(request, separators=(" , ", " : ")).encode()
        parse_request(text, None, signature)
        assert len(text) <= signature.max_body_bytes
    large = Signature("FP32", (3, 224, 224), 1000, 256)
    assert 256 * 3 * 224 * 224 * 4 < large.max_body_bytes < 256 * 3 * 224 * 224 * 4 + 2**17


def test_pixels_are_served_as_they_are() -> None:
    service, session = warm_service(pixel_model())
    assert service.signature == PIXELS
    body, headers = binary_request(PIXEL_IMAGES)
    answer = service.answer(body, headers[HEADER_LENGTH])
    np.testing.assert_array_equal(
        decoded(answer.body, answer.header_length), session.run(PIXEL_IMAGES)
    )
