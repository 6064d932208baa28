"""Requests that mean harm: random bytes, mutated requests, text that grows in memory."""

import json
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from served import (
    INFER,
    MAX_BATCH,
    ask_once,
    binary_request,
    decoded,
    images_of,
    json_request,
    running,
    warm_service,
)

from d2nas.errors import DamagedArtifactError
from d2nas.files.strict_json import parse_json
from pipeline.serving import protocol as inference_protocol
from pipeline.serving.limits import Limits
from pipeline.serving.protocol import (
    HEADER_LENGTH,
    Answer,
    InferenceRequest,
    RequestError,
    Signature,
    encode_answer,
    parse_request,
)

FLOATS = Signature("FP32", (1, 4, 4), 3, MAX_BATCH)
IMAGES = images_of(2)
SERVICE, SESSION = warm_service()


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def peak_of(parse: Callable[[], object]) -> int:
    """Most bytes that a parser holds while it refuses something."""
    tracemalloc.start()
    try:
        with pytest.raises((RequestError, DamagedArtifactError)):
            parse()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("filling", [b"[],", b"{},", b'"ab",', b"257,", b"1.5,", b"1,"])
def test_hostile_text_does_not_grow_in_memory(filling: bytes) -> None:
    # The comma before the bracket makes the parser refuse it, at the very end.
    body = b"[" + filling * (1_000_000 // len(filling)) + b"]"
    assert peak_of(lambda: parse_request(body, None, FLOATS)) < 16 * len(body)


def test_control_the_parser_alone_would_let_it_grow() -> None:
    body = b"[" + b"[]," * 333_333 + b"]"
    assert peak_of(lambda: parse_json(body, what="it")) > 16 * len(body)


def outcome(body: bytes, length: str | None) -> str:
    """Ask; the answer must be right or a refusal."""
    try:
        answer = SERVICE.answer(body, length)
    except RequestError as error:
        return "refused" if (error.status, "\n" in str(error)) == (400, False) else repr(error)
    np.testing.assert_array_equal(
        decoded(answer.body, answer.header_length), SESSION.run(images_in(body, length))
    )
    return "answered"


def images_in(body: bytes, length: str | None) -> NDArray[np.float32]:
    """The images of a good request, read another way."""
    end = len(body) if length is None else int(length)
    (tensor,) = json.loads(body[:end])["inputs"]
    if "binary_data_size" in (tensor.get("parameters") or {}):
        values = np.frombuffer(body[end:], "<f4")
    else:
        values = np.array(tensor["data"], np.float64).astype(np.float32)
    return values.reshape(tensor["shape"])


few = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
lengths = st.none() | st.integers(0, 400).map(str) | st.text(max_size=8)
good_requests = st.sampled_from(
    [
        (encoded(json_request(IMAGES, id="x", outputs=[{"name": "logits"}])), None),
        (lambda made: (made[0], made[1][HEADER_LENGTH]))(binary_request(IMAGES)),
    ]
)


@few
@given(st.binary(max_size=300), lengths)
def test_random_bytes_are_refused(body: bytes, length: str | None) -> None:
    assert outcome(body, length) == "refused"


@few
@given(good_requests, st.data())
def test_a_mutated_request_is_refused_or_answered_rightly(
    request: tuple[bytes, str | None], data: st.DataObject
) -> None:
    body, length = request
    assert outcome(body, length) == "answered"
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        cut = data.draw(st.integers(0, 4))
        body = body[:at] + data.draw(st.binary(max_size=4)) + body[at + cut :]
    assert outcome(body, data.draw(st.just(length) | lengths)) in ("answered", "refused")


def test_control_a_wrong_answer_and_an_escaping_error_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body, headers = binary_request(IMAGES)
    length = headers[HEADER_LENGTH]

    def swapped(
        logits: NDArray[np.float32], request: InferenceRequest, model: str, version: str
    ) -> Answer:
        return encode_answer(logits[::-1], request, model, version)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.serving.service.encode_answer", swapped)
        with pytest.raises(AssertionError):
            outcome(body, length)
    with monkeypatch.context() as patch:
        patch.setattr(inference_protocol, "_only_input", lambda inputs: inputs[0])
        with pytest.raises((AttributeError, IndexError)):
            outcome(b'{"inputs": []}', None)


# Over a connection


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    lines: list[str] = []
    limits = Limits(read_seconds=0.2, header_seconds=0.5)
    with running(SERVICE, limits, lambda: None, lines.append) as address:
        yield address
    assert lines == ["ready"]  # no bug was met


def status_of(url: str, request: bytes) -> int | None:
    """Send bytes and nothing more; return the first status, None for a closed connection."""
    parts = urlsplit(url)
    with socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=60) as sock:
        try:
            sock.sendall(request)
            answer = sock.recv(65536)
        except OSError:
            return None
    return int(answer.split(b" ")[1]) if answer else None


def whole_request() -> bytes:
    body, headers = binary_request(IMAGES, id="x")
    lines = [f"POST {INFER} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


WHOLE = whole_request()


@few
@given(st.data())
def test_a_mutated_connection_gets_no_error_of_the_server(url: str, data: st.DataObject) -> None:
    request = WHOLE
    assert status_of(url, request) == 200  # control: this request would be answered
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(request) - 1))
        cut = data.draw(st.integers(0, 4))
        request = request[:at] + data.draw(st.binary(max_size=4)) + request[at + cut :]
    status = status_of(url, request)
    assert status is None or status == 200 or 400 <= status < 500


def test_the_server_is_still_there(url: str) -> None:
    assert ask_once(url, "GET", "/v2/health/ready").status == 200
    body, headers = binary_request(IMAGES)
    np.testing.assert_array_equal(
        ask_once(url, "POST", INFER, body, headers).logits, SESSION.run(IMAGES)
    )
