"""The server over real connections: protocol, limits, readiness, many clients at once."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from served import (
    INFER,
    MAX_BATCH,
    ask_once,
    binary_request,
    cold_service,
    connect,
    images_of,
    json_request,
    pixel_model,
    raw_connection,
    received,
    running,
    warm_service,
)

from d2nas._version import __version__
from d2nas.errors import ValidationFailedError
from pipeline.serving.connection import Connection
from pipeline.serving.limits import Limits
from pipeline.serving.protocol import HEADER_LENGTH

SERVICE, SESSION = warm_service()
IMAGES = images_of(3)
BODY, HEADERS = binary_request(IMAGES)


@pytest.fixture(scope="module")
def url() -> Any:
    with running(SERVICE, warm_up=lambda: None) as address:
        yield address


def refuse(url: str, status: int, words: str, *request: Any) -> None:
    reply = ask_once(url, *request)
    assert reply.status == status
    assert words in reply.error
    assert reply.headers["content-type"] == "application/json"


# An independent client


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True, None])
def test_a_client_of_the_protocol_gets_the_session_s_answers(
    url: str, binary_in: bool, binary_out: bool | None
) -> None:
    with closing(triton.InferenceServerClient(urlsplit(url).netloc)) as client:
        tensor = triton.InferInput("images", list(IMAGES.shape), "FP32")
        tensor.set_data_from_numpy(IMAGES, binary_data=binary_in)
        wanted = [triton.InferRequestedOutput("logits", binary_data=bool(binary_out))]
        for version in ("", "1"):
            answer = client.infer(
                "toy",
                [tensor],
                version,
                outputs=None if binary_out is None else wanted,
                request_id="seven",
            )
            np.testing.assert_array_equal(answer.as_numpy("logits"), SESSION.run(IMAGES))
            assert answer.get_response()["id"] == "seven"


def test_a_client_of_the_protocol_sees_health_and_metadata(url: str) -> None:
    with closing(triton.InferenceServerClient(urlsplit(url).netloc)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("toy")
        assert client.is_model_ready("toy", "1")
        assert not client.is_model_ready("toy", "2")
        server_metadata = client.get_server_metadata()
        model = client.get_model_metadata("toy", "1")
        with pytest.raises(triton.InferenceServerException, match="no version '2', expected 1"):
            client.get_model_metadata("toy", "2")
    place = {"provider": "CPUExecutionProvider", "device": SESSION.device.label}
    assert SESSION.device.label.startswith("CPU ")
    assert server_metadata == {
        "name": "d2nas",
        "version": __version__,
        "extensions": ["binary_tensor_data", "statistics"],
        **place,
    }
    assert model == {
        "name": "toy",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 4, 4]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
        "parameters": {**place, "max_batch": MAX_BATCH, "bundle_digest": "0" * 64},
    }


def test_a_client_of_the_protocol_sends_pixels() -> None:
    service, session = warm_service(pixel_model())
    pixels = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)
    with (
        running(service) as address,
        closing(triton.InferenceServerClient(urlsplit(address).netloc)) as client,
    ):
        for binary in (False, True):
            tensor = triton.InferInput("images", [2, 4, 4, 1], "UINT8")
            tensor.set_data_from_numpy(pixels, binary_data=binary)
            answer = client.infer("toy", [tensor]).as_numpy("logits")
            np.testing.assert_array_equal(answer, session.run(pixels))


# Paths and refusals


@pytest.mark.parametrize(
    ("status", "words", "method", "path"),
    [
        (404, "no model 'other', expected toy", "GET", "/v2/models/other"),
        (404, "no model 'other', expected toy", "GET", "/v2/models/other/ready"),
        (404, "no model 'other', expected toy", "POST", "/v2/models/other/infer"),
        (404, "no version '2', expected 1", "GET", "/v2/models/toy/versions/2"),
        (404, "no version '01', expected 1", "POST", "/v2/models/toy/versions/01/infer"),
        (405, "method GET is not for '/v2/models/toy/infer', expected POST", "GET", INFER),
        (405, "method POST is not for '/v2'", "POST", "/v2"),
        (405, "method DELETE is not for", "DELETE", "/v2/models/toy"),
        (405, "method OPTIONS is not for", "OPTIONS", INFER),
        (404, "there is no '/'", "GET", "/"),
        (404, "there is no '/docs'", "GET", "/docs"),
        (404, "there is no '/openapi.json'", "GET", "/openapi.json"),
        (404, "there is no '/v2/'", "GET", "/v2/"),
        (404, "there is no '/v2/models/../../etc/passwd'", "GET", "/v2/models/../../etc/passwd"),
        (404, "there is no", "GET", "/v2/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
        (404, "there is no", "GET", "/v2/models/toy/1/model.onnx"),
    ],
)
def test_there_is_nothing_but_the_protocol(
    url: str, status: int, words: str, method: str, path: str
) -> None:
    refuse(url, status, words, method, path)


def test_malformed_requests_are_told_what_is_wrong(url: str) -> None:
    large = json.dumps(json_request(images_of(MAX_BATCH + 1))).encode()
    refuse(url, 400, "a batch of 5, expected 1 to 4 images", "POST", INFER, large)
    refuse(url, 400, "not valid JSON", "POST", INFER)
    refuse(url, 400, "not valid JSON", "POST", INFER, BODY)
    refuse(url, 400, "expected a number of bytes", "POST", INFER, BODY, {HEADER_LENGTH: "-5"})
    refuse(url, 415, "compressed", "POST", INFER, BODY, {**HEADERS, "Content-Encoding": "gzip"})
    with closing(connect(url)) as connection:
        connection.putrequest("POST", INFER)
        for _ in range(2):
            connection.putheader(HEADER_LENGTH, HEADERS[HEADER_LENGTH])
        connection.putheader("Content-Length", str(len(BODY)))
        connection.endheaders(BODY)
        response = connection.getresponse()
        assert response.status == 400
        assert "2 headers" in json.loads(response.read())["error"]


def test_no_page_of_another_site_is_let_in(url: str) -> None:
    reply = ask_once(url, "GET", "/v2", None, {"Origin": "http://example.org"})
    assert not [name for name in reply.headers if name.lower().startswith("access-control")]


def test_what_is_not_http_is_refused_in_json(url: str) -> None:
    with raw_connection(url) as sock:
        sock.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = received(sock)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"].endswith("expected HTTP/1.1")


# Limits


def test_an_oversized_request_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = SERVICE.signature.max_body_bytes
    words = f"too long, expected {limit} bytes at most"
    refuse(url, 413, words, "POST", INFER, bytes(limit + 1))
    refuse(url, 413, words, "POST", INFER, iter([bytes(limit), b"1"]))  # in chunks, no length
    refuse(url, 400, "not valid JSON", "POST", INFER, bytes(limit))  # control: only that size
    # Far too long: refused before it was sent, or the connection is closed.
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {limit * 1000}\r\n"
    for expect in ("", "Expect: 100-continue\r\n"):
        with raw_connection(url) as sock:
            sock.sendall(f"{head}{expect}\r\n".encode() + (b"" if expect else b"{"))
            assert received(sock).startswith(b"HTTP/1.1 413 ")


def drip(sock: socket.socket) -> None:
    """Send headers that never end, until the server has had enough."""
    while True:
        sock.sendall(b"x")
        time.sleep(0.05)


def test_a_slow_request_is_cut_off() -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode()
    with running(SERVICE, Limits(read_seconds=0.3, header_seconds=0.3), lambda: None) as url:
        for start in (head, head + b"{"):
            with raw_connection(url) as sock:
                sock.sendall(start)
                answer = received(sock)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"did not arrive within 0.3 seconds" in answer
        for start in (b"", b"POST", head[:-2]):
            with raw_connection(url) as sock:
                sock.sendall(start)
                assert received(sock) == b""
        # Neither does a drop now and then keep a connection open.
        with raw_connection(url) as sock, pytest.raises(OSError, match=r"reset|pipe|closed"):
            drip(sock)


def test_control_without_the_limit_a_slow_request_stays() -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode()
    with running(SERVICE, Limits(stop_seconds=1), lambda: None) as url:
        for start in (head, head[:-2]):
            with raw_connection(url) as sock:
                sock.sendall(start)
                sock.settimeout(1.0)
                with pytest.raises(TimeoutError):
                    sock.recv(1)


def test_answers_do_not_wait_for_acknowledgements(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    original = Connection.connection_made

    def watched(self: Connection, transport: Any) -> None:
        original(self, transport)
        option = (socket.IPPROTO_TCP, socket.TCP_NODELAY)
        found.append(transport.get_extra_info("socket").getsockopt(*option))

    monkeypatch.setattr(Connection, "connection_made", watched)
    with running(SERVICE, warm_up=lambda: None) as url:
        ask_once(url, "GET", "/v2")
    assert found
    assert all(found)


# Readiness and failures


def test_ready_only_once_warm() -> None:
    service, session = cold_service()
    may_warm_up, runs = threading.Event(), []
    run = session.run

    def counted(images: NDArray[Any]) -> NDArray[np.float32]:
        runs.append(len(images))
        return run(images)

    session.run = counted  # type: ignore[method-assign]

    def held() -> None:
        may_warm_up.wait(60)
        service.warm_up()

    ready, lines = threading.Event(), []

    def say(line: str) -> None:
        lines.append(line)
        ready.set()

    paths = ("/v2/health/ready", "/v2/models/toy/ready", "/v2/models/toy/versions/1/ready")
    with running(service, None, held, say) as url:
        try:
            assert ask_once(url, "GET", "/v2/health/live").status == 200
            assert ask_once(url, "GET", "/v2/models/toy").status == 200
            for path in paths:
                refuse(url, 503, "the model is warming up", "GET", path)
            refuse(url, 503, "the model is warming up", "POST", INFER, BODY, HEADERS)
            assert runs == []
        finally:
            may_warm_up.set()
        assert ready.wait(60)
        assert lines == ["ready"]
        assert runs == [1, MAX_BATCH]
        for path in paths:
            assert ask_once(url, "GET", path).status == 200
        assert ask_once(url, "POST", INFER, BODY, HEADERS).status == 200


def test_health_answers_while_the_model_computes() -> None:
    service, session = warm_service()
    run, entered, may_go_on = session.run, threading.Event(), threading.Event()

    def slow(images: NDArray[Any]) -> NDArray[np.float32]:
        entered.set()
        may_go_on.wait(60)
        return run(images)

    session.run = slow  # type: ignore[method-assign]
    with running(service, warm_up=lambda: None) as url, ThreadPoolExecutor(4) as clients:
        pending = [clients.submit(ask_once, url, "POST", INFER, BODY, HEADERS) for _ in range(4)]
        assert entered.wait(60)
        assert ask_once(url, "GET", "/v2/health/ready").status == 200
        assert not any(future.done() for future in pending)
        may_go_on.set()
        for future in pending:
            np.testing.assert_array_equal(future.result().logits, run(IMAGES))


def test_a_model_that_fails_is_no_longer_ready() -> None:
    service, session = warm_service()

    def fail(_images: NDArray[Any]) -> NDArray[np.float32]:
        raise ValidationFailedError("the session left CUDA")

    session.run = fail  # type: ignore[method-assign]
    with running(service, warm_up=lambda: None) as url:
        refuse(url, 500, "the session left CUDA", "POST", INFER, BODY, HEADERS)
        refuse(url, 503, "the session left CUDA", "GET", "/v2/health/ready")
        refuse(url, 503, "the session left CUDA", "POST", INFER, BODY, HEADERS)


def test_a_bug_is_told_to_whoever_runs_the_server(capfd: pytest.CaptureFixture[str]) -> None:
    service, session = warm_service()
    session.run = lambda images: images["no"]  # type: ignore[method-assign,call-overload]
    lines: list[str] = []
    with running(service, None, lambda: None, lines.append) as url:
        refuse(url, 500, "the server failed at this request", "POST", INFER, BODY, HEADERS)
        assert ask_once(url, "GET", "/v2/health/live").status == 200
    assert lines[0] == "ready"
    assert [line.split(":")[0] for line in lines[1:]] == ["this is a bug in d2nas"]
    assert "Traceback" not in capfd.readouterr().err
