"""What RFC 9110 and 9112 ask of a server, over raw connections: framing, ends, order."""

import errno
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import numpy as np
import pytest
from numpy.typing import NDArray
from served import (
    INFER,
    ask_once,
    binary_request,
    images_of,
    raw_connection,
    received,
    running,
    warm_service,
)

from pipeline.serving import connection as server_connection
from pipeline.serving.connection import Connection
from pipeline.serving.lifecycle import ServerSocket, Serving
from pipeline.serving.limits import MAX_HEADERS, Limits
from pipeline.serving.protocol import HEADER_LENGTH

SERVICE, SESSION = warm_service()
IMAGES = images_of(3)
BODY, HEADERS = binary_request(IMAGES)
LENGTH = f"Content-Length: {len(BODY)}\r\n"
ENDS = "Connection: close\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def head(others: str = LENGTH, version: str = "1.1", target: str = INFER) -> bytes:
    """The head of an inference request."""
    given = f"{HEADER_LENGTH}: {HEADERS[HEADER_LENGTH]}\r\n{others}"
    return f"POST {target} HTTP/{version}\r\nHost: x\r\n{given}\r\n".encode()


REQUEST = head() + BODY


def chunked(body: bytes, size: int = 100) -> bytes:
    """A body in chunks."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def answers(data: bytes, methods: list[str] | None = None) -> list[tuple[int, Any, bytes]]:
    """The answers in what a server sent, and that there is nothing else: status, headers, body."""
    client, found = h11.Connection(h11.CLIENT), []
    client.receive_data(data)
    client.receive_data(b"")
    for method in [*(methods or []), *(["GET"] * 100)]:
        sent = h11.Request(method=method, target="/", headers=[("Host", "x")])
        client.send(sent)
        client.send(h11.EndOfMessage())
        status, headers, body = 0, {}, b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
        found.append((status, headers, body))
        if client.their_state is h11.MUST_CLOSE or not client.trailing_data[0]:
            assert not client.trailing_data[0]
            return found
        client.start_next_cycle()
    raise AssertionError("more answers than a test asks for")


def exchange(url: str, data: bytes, *, end: bool = False) -> list[tuple[int, Any, bytes]]:
    """Send ``data`` and read all answers; ``end`` says that nothing else comes."""
    with raw_connection(url) as sock:
        sock.sendall(data)
        if end:
            sock.shutdown(socket.SHUT_WR)
        methods = re.findall(r"(GET|HEAD|POST|CONNECT) \S+ HTTP/1", data.decode("latin-1"))
        return answers(received(sock), methods)


def logits_of(answer: tuple[int, Any, bytes]) -> NDArray[np.float64]:
    """The logits of an answer in JSON."""
    assert answer[0] == 200, answer
    (output,) = json.loads(answer[2])["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(SERVICE, Limits(header_seconds=2), lambda: None) as address:
        yield address


@contextmanager
def held_service() -> Iterator[tuple[Any, threading.Event, threading.Event]]:
    """A service whose model computes when it may, and says when it began."""
    service, session = warm_service()
    run, entered, may_go_on = session.run, threading.Event(), threading.Event()

    def slow(images: NDArray[Any]) -> NDArray[np.float32]:
        entered.set()
        may_go_on.wait(60)
        return run(images)

    session.run = slow  # type: ignore[method-assign]
    try:
        yield service, entered, may_go_on
    finally:
        may_go_on.set()


# Where a request ends


TWO_ENDS = f"Transfer-Encoding: chunked\r\nContent-Length: {len(chunked(BODY))}\r\n"


@pytest.mark.parametrize(
    ("words", "status", "data"),
    [
        ("expected one of them", 400, head(TWO_ENDS) + chunked(BODY)),
        ("expected one of them", 400, head(TWO_ENDS.swapcase()) + chunked(BODY)),
        ("expected one of them", 400, head("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n")),
        ("in HTTP/1.0", 400, head("Transfer-Encoding: chunked\r\n", "1.0") + chunked(BODY)),
        ("chunked is supported", 501, head("Transfer-Encoding: gzip\r\n") + BODY),
        ("chunked is supported", 501, head("Transfer-Encoding: gzip, chunked\r\n") + BODY),
        ("chunked is supported", 501, head("Transfer-Encoding: identity\r\n" + LENGTH) + BODY),
        ("chunked is supported", 501, head("Transfer-Encoding: xchunked\r\n") + BODY),
        ("multiple Transfer", 501, head("Transfer-Encoding: chunked\r\n" * 2) + chunked(BODY)),
        ("conflicting Content-Length", 400, head(LENGTH + "Content-Length: 4\r\n") + BODY),
        ("conflicting Content-Length", 400, head("Content-Length: 4, 5\r\n") + BODY),
        ("bad Content-Length", 400, head("Content-Length: -1\r\n") + BODY),
        ("bad Content-Length", 400, head("Content-Length: +4\r\n") + BODY),
        ("bad Content-Length", 400, head("Content-Length: 0x10\r\n") + BODY),
        ("bad Content-Length", 400, head("Content-Length: 1_0\r\n") + BODY),
        ("bad Content-Length", 400, head(f"Content-Length: {'9' * 30}\r\n") + BODY),
        ("too long, expected", 413, head(f"Content-Length: {'9' * 18}\r\n") + BODY),
        ("", 400, head("Transfer-Encoding : chunked\r\n") + chunked(BODY)),
        ("", 400, head(LENGTH.replace(":", " :")) + BODY),
        ("", 400, head("Transfer-Encoding: chunked\r\n") + b"zz\r\n" + BODY),
        ("", 400, head("Transfer-Encoding: chunked\r\n") + b"-4\r\nabcd\r\n0\r\n\r\n"),
        ("", 400, head("Transfer-Encoding: chunked\r\n") + b"4\r\nabcdXX0\r\n\r\n"),
        ("", 400, head(LENGTH + "X: a\x00b\r\n") + BODY),
        ("Host", 400, b"GET /v2 HTTP/1.1\r\n\r\n"),
        ("Host", 400, b"GET /v2 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        *(
            ("invalid Host", 400, b"GET /v2 HTTP/" + version + b"\r\nHost: %b\r\n\r\n" % host)
            for version in (b"1.1", b"1.0")
            for host in (
                b"a b",
                b"a/b",
                b"u@a",
                b"a,b:x",
                b"a:80:80",
                b"a?",
                b"[::1",
                b"a%2",
                b"<a>",
            )
        ),
        ("invalid Host", 400, "GET /v2 HTTP/1.1\r\nHost: \u00e9\r\n\r\n".encode()),
        ("expected HTTP/1.1", 505, b"GET /v2 HTTP/2.0\r\nHost: x\r\n\r\n"),
        ("expected HTTP/1.1", 505, b"GET /v2 HTTP/0.9\r\nHost: x\r\n\r\n"),
        ("", 400, b"PRI * HTTP/22\r\n\r\nSM\r\n\r\n"),
        ("", 400, b"GET  /v2  HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("", 400, b"\x00\r\n\r\n"),
        ("headers, expected", 431, head(LENGTH + "X: y\r\n" * MAX_HEADERS) + BODY),
        ("", 431, head(LENGTH + "X: " + "y" * 100_000 + "\r\n") + BODY),
    ],
)
def test_what_two_readers_could_read_otherwise_is_refused_and_closed(
    url: str, words: str, status: int, data: bytes
) -> None:
    # What follows is not answered: another reader may have taken it for a part of the body.
    (answer,) = exchange(url, data + LIVE)
    assert answer[0] == status
    assert answer[1]["connection"] == "close"
    assert list(json.loads(answer[2])) == ["error"]
    assert words in json.loads(answer[2])["error"]


def test_control_both_lengths_would_be_answered(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Connection._begin

    def unseeing(self: Connection, request: h11.Request) -> None:
        kept = [(name, value) for name, value in request.headers if name != b"content-length"]
        begin(self, h11.Request(method=request.method, target=request.target, headers=kept))

    monkeypatch.setattr(Connection, "_begin", unseeing)
    first, second = exchange(url, head(TWO_ENDS) + chunked(BODY) + LIVE, end=True)
    np.testing.assert_array_equal(logits_of(first), SESSION.run(IMAGES))
    assert second[0] == 200


def test_control_an_invalid_host_would_be_answered(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_connection, "_HOST", re.compile(rb".*"))
    (answer,) = exchange(url, LIVE.replace(b"Host: x", b"Host: u@a/b"), end=True)
    assert answer[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        REQUEST,
        b"\r\n\r\n" + REQUEST,
        head(LENGTH * 2) + BODY,
        head(f"Content-Length: {len(BODY)}, {len(BODY)}\r\n") + BODY,
        head("Transfer-Encoding: chunked\r\n") + chunked(BODY),
        head("Transfer-Encoding: chunked\r\n") + chunked(BODY, 1),
        head("Transfer-Encoding: Chunked\r\n") + chunked(BODY)[:-2] + b"X-Trailer: 1\r\n\r\n",
        head(LENGTH + "X-Folded: a\r\n  b\r\n") + BODY,
        head(LENGTH + "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n") + BODY,
        head(target="http://other:80" + INFER) + BODY,
        head(target="HTTPS://other" + INFER + "?x=http://y") + BODY,
        *(
            REQUEST.replace(b"Host: x", b"Host: " + host)
            for host in (b"", b"a.example:", b"127.0.0.1:8000", b"[::1]:8000", b"%C3%A9")
        ),
        head(LENGTH, "1.0").replace(b"Host: x\r\n", b"") + BODY,
        head(LENGTH, "1.0") + BODY,
        head(LENGTH + "Connection: keep-alive\r\n", "1.0") + BODY,
        head(LENGTH + ENDS) + BODY,
    ],
)
def test_a_request_in_any_form_is_answered(url: str, data: bytes) -> None:
    # The client has nothing more to say, which is no reason not to answer.
    (answer,) = exchange(url, data, end=True)
    np.testing.assert_array_equal(logits_of(answer), SESSION.run(IMAGES))
    if b"HTTP/1.0" in data or ENDS.encode() in data:
        assert answer[1]["connection"] == "close"


def half_closed_answer(monkeypatch: pytest.MonkeyPatch, keeps: bool) -> bytes:
    """What a client reads that closed its half while the model computed."""
    noted, seen = Connection.eof_received, threading.Event()

    def eof_received(self: Connection) -> bool:
        kept = noted(self) and keeps
        seen.set()
        return kept

    monkeypatch.setattr(Connection, "eof_received", eof_received)
    with (
        held_service() as (service, entered, may_go_on),
        running(service, warm_up=lambda: None) as address,
        raw_connection(address) as sock,
    ):
        sock.sendall(REQUEST)
        assert entered.wait(60)
        sock.shutdown(socket.SHUT_WR)
        assert seen.wait(60)
        if keeps:
            may_go_on.set()
        read = received(sock)
        may_go_on.set()
        return read


def test_a_client_that_closed_its_half_gets_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    (answer,) = answers(half_closed_answer(monkeypatch, keeps=True), ["POST"])
    np.testing.assert_array_equal(logits_of(answer), SESSION.run(IMAGES))


def test_control_asyncio_alone_takes_a_half_closed_client_for_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert half_closed_answer(monkeypatch, keeps=False) == b""


def test_half_a_request_is_told_or_left(url: str) -> None:
    for data in (REQUEST[:-1], REQUEST[:40]):
        ((status, headers, body),) = exchange(url, data, end=True)
        assert (status, headers["connection"]) == (400, "close")
        assert "closed" in json.loads(body)["error"]
    with raw_connection(url) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert received(sock) == b""


def test_methods_and_targets(url: str) -> None:
    data = b"HEAD /v2 HTTP/1.1\r\nHost: x\r\n\r\nGET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    (first, second) = exchange(url, data, end=True)
    assert (first[0], first[2]) == (200, b"")
    assert int(first[1]["content-length"]) == len(second[2]) > 0
    for line, status in (
        (b"CONNECT x:443", 404),
        (b"OPTIONS *", 404),
        (b"TRACE /v2", 405),
        (b"BREW /v2", 405),
        (b"GET http://x", 404),
        (b"GET http:///v2/health/live", 200),
        (b"GET /v2%2fhealth/live", 200),
    ):
        (answer,) = exchange(url, line + b" HTTP/1.1\r\nHost: x\r\n" + ENDS.encode() + b"\r\n")
        assert answer[0] == status, line
        assert (status != 405) or "GET" in answer[1]["allow"]


# One after the other


def test_pipelined_requests_are_answered_in_order(url: str) -> None:
    others = [binary_request(images_of(1, seed)) for seed in range(20)]
    heads = [
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        + "\r\n"
        for body, headers in others
    ]
    data = b"".join(begin.encode() + body for begin, (body, _) in zip(heads, others, strict=True))
    found = exchange(url, data, end=True)
    assert len(found) == 20
    for seed, answer in enumerate(found):
        np.testing.assert_array_equal(logits_of(answer), SESSION.run(images_of(1, seed)))
    assert [answer[1].get("connection") for answer in found[:-1]] == [None] * 19


def test_nothing_after_the_last_request_is_answered(url: str) -> None:
    (answer,) = exchange(url, head(LENGTH + ENDS) + BODY + LIVE * 3)
    assert answer[1]["connection"] == "close"


def test_a_refusal_is_read_by_a_client_that_is_still_sending(url: str) -> None:
    limit = SERVICE.signature.max_body_bytes
    with raw_connection(url) as sock:
        sock.sendall(head(f"Content-Length: {limit * 1000}\r\n"))
        time.sleep(0.1)
        for _ in range(20):
            sock.sendall(bytes(limit))
        ((status, _, _),) = answers(received(sock), ["POST"])
    assert status == 413


def test_control_without_waiting_the_refusal_is_lost(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "_close", Connection._leave)
    with pytest.raises(OSError, match=r"reset|pipe"):
        test_a_refusal_is_read_by_a_client_that_is_still_sending(url)


def test_a_client_that_waits_to_be_asked_is_asked_once(url: str) -> None:
    with raw_connection(url) as sock:
        sock.sendall(head(LENGTH + "Expect: 100-continue\r\n" + ENDS))
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(BODY)
        ((status, _, _),) = answers(received(sock), ["POST"])
        assert status == 200
    # It may also not wait, or be of a time without this.
    for version, expected in (("1.1", b"HTTP/1.1 100 "), ("1.0", b"HTTP/1.1 200 ")):
        with raw_connection(url) as sock:
            sock.sendall(head(LENGTH + "Expect: 100-continue\r\n" + ENDS, version) + BODY)
            assert received(sock).startswith(expected)


# The end of the server


def last_answers(patch: pytest.MonkeyPatch | None = None) -> list[Any]:
    """Headers of answers given after a stop: in work, body on its way, head on its way, unread."""
    if patch is not None:
        patch.setattr(server_connection, "_STOP_SECONDS", 1.0)
    with held_service() as (service, entered, may_go_on), ServerSocket("127.0.0.1", 0) as listener:
        serving = Serving(service, listener, warm_up=lambda: None)
        thread = threading.Thread(target=serving.run)
        thread.start()
        socks = [raw_connection(listener.url) for _ in range(4)]
        try:
            parts = (REQUEST, REQUEST[:-5], REQUEST[:20], b"")
            for sock, part in zip(socks, parts, strict=True):
                sock.sendall(part)
            assert entered.wait(60)
            assert ask_once(listener.url, "GET", "/v2/health/live").status == 200
            serving.stop()
            while not serving.capacity.is_stopping:
                time.sleep(0.01)
            for sock, part in zip(socks, parts, strict=True):
                sock.sendall(REQUEST[len(part) :])
            may_go_on.set()
            found = [answers(received(sock), ["POST"])[0] for sock in socks]
            for answer in found:
                np.testing.assert_array_equal(logits_of(answer), SESSION.run(IMAGES))
            return [answer[1] for answer in found]
        finally:
            for sock in socks:
                sock.close()
            serving.stop()
            thread.join(60)


def test_the_last_answers_say_that_they_are_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [headers.get("connection") for headers in last_answers(monkeypatch)] == ["close"] * 4


def test_control_before_a_stop_they_do_not(url: str) -> None:
    with raw_connection(url) as sock:
        sock.sendall(REQUEST)
        assert b"connection" not in sock.recv(10_000).lower().split(b"\r\n\r\n")[0]


def queued_answers(patch: pytest.MonkeyPatch) -> list[bytes]:
    """What clients get that wait in the system's queue, where only the end looks, at a stop."""
    patch.setattr(server_connection.Entrance, "open", lambda _: None)
    with ServerSocket("127.0.0.1", 0) as listener:
        socks = [raw_connection(listener.url) for _ in range(3 * server_connection._ACCEPTED)]
        for sock in socks:
            sock.sendall(REQUEST)
        serving = Serving(SERVICE, listener, warm_up=lambda: None)
        serving.stop()
        thread = threading.Thread(target=serving.run)
        thread.start()
        found = []
        for sock in socks:
            try:
                found.append(received(sock))
            except ConnectionResetError:
                found.append(b"")
            sock.close()
        thread.join(60)
        assert not thread.is_alive()
    return found


def test_who_waits_to_be_accepted_at_a_stop_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in queued_answers(monkeypatch):
        (answer,) = answers(data, ["POST"])
        np.testing.assert_array_equal(logits_of(answer), SESSION.run(IMAGES))
        assert answer[1]["connection"] == "close"


def test_control_with_the_socket_they_would_be_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(_entrance: object) -> None:
        return

    monkeypatch.setattr(server_connection.Entrance, "end", nobody)
    assert set(queued_answers(monkeypatch)) == {b""}


def test_a_client_that_has_left_before_the_close_is_nobodys_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(_transport: object) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr("asyncio.selector_events._SelectorSocketTransport.write_eof", gone)
    lines: list[str] = []
    with running(SERVICE, None, lambda: None, lines.append) as url:
        for _ in range(2):
            with raw_connection(url) as sock:
                sock.sendall(LIVE.replace(b"Host", ENDS.encode() + b"Host"))
                assert received(sock).startswith(b"HTTP/1.1 200")
    assert lines == ["ready"]
