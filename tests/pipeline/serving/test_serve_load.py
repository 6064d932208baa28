"""The server under load: every client gets its own answers, and memory stays flat."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from served import (
    INFER,
    MAX_BATCH,
    ask,
    binary_request,
    connect,
    images_of,
    json_request,
    running,
    warm_service,
)

from pipeline.serving.limits import Limits
from pipeline.serving.protocol import Answer, RequestError
from pipeline.serving.service import InferenceService

REQUESTS = int(os.environ.get("D2NAS_SERVE_REQUESTS", "500"))
"""Of each client in the load test."""
CLIENTS = 8
SERVICE, SESSION = warm_service()
BODY, HEADERS = binary_request(images_of(3))


def load(url: str, seed: int) -> list[str]:
    """Send mixed requests on one connection; return what went wrong."""
    draw, wrong = np.random.default_rng(seed), []
    with closing(connect(url)) as connection:
        for index in range(REQUESTS):
            images = images_of(int(draw.integers(1, MAX_BATCH + 1)), seed * 10_000 + index)
            identity = f"{seed}-{index}"
            kind = index % 4
            if kind == 0:
                body, headers = json.dumps(json_request(images, id=identity)).encode(), {}
            else:
                binary = {"parameters": {"binary_data_output": kind == 1}}
                body, headers = binary_request(images, id=identity, **binary)
            if kind == 3:
                reply = ask(connection, "POST", INFER, body[:-1], headers)
                if (reply.status, "bytes follow" in reply.error) != (400, True):
                    wrong.append(f"{identity}: {reply.status} {reply.error}")
                continue
            reply = ask(connection, "POST", INFER, body, headers)
            own = f'"id":"{identity}"'.encode() in reply.body
            expected = SESSION.run(images)
            if not own or not np.array_equal(reply.logits, expected):
                wrong.append(identity)
    return wrong


def test_many_clients_get_their_own_answers() -> None:
    with running(SERVICE, warm_up=lambda: None) as url, ThreadPoolExecutor(CLIENTS) as clients:
        found = list(clients.map(lambda seed: load(url, seed), range(CLIENTS)))
    assert found == [[]] * CLIENTS


def test_control_a_swapped_answer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    service, _ = warm_service()
    answer, last = service.answer, []

    def late(body: bytes, length: str | None) -> Answer:
        last.append(answer(body, length))
        return last[max(0, len(last) - 2)]

    service.answer = late  # type: ignore[method-assign]
    monkeypatch.setattr(sys.modules[__name__], "REQUESTS", 3)
    with running(service, Limits(num_workers=1), lambda: None) as url:
        assert load(url, 1) != []


# Memory


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(service: InferenceService) -> int:
    """Bytes that a thousand mixed requests leave behind, after some that do not count."""
    junk = bytes(service.signature.max_body_bytes)

    def send(connection: Any, rounds: int) -> None:
        for _ in range(rounds):
            assert ask(connection, "POST", INFER, BODY, HEADERS).status == 200
            assert ask(connection, "POST", INFER, junk).status == 400

    with running(service, warm_up=lambda: None) as url, closing(connect(url)) as connection:
        send(connection, 50)
        before = resident_bytes()
        send(connection, 500)
        return resident_bytes() - before


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc here")


@needs_proc
def test_memory_stays_flat() -> None:
    assert growth(SERVICE) < 50 * 2**20


@needs_proc
def test_control_a_leak_is_noticed() -> None:
    service, _ = warm_service()
    answer, kept = service.answer, []

    def leaking(body: bytes, length: str | None) -> Answer:
        # A copy in which every byte is written, or it would cost no memory.
        kept.append(body.replace(b"\0", b"\1") * 2)
        try:
            return answer(body, length)
        except RequestError:
            kept.append(body.replace(b"\0", b"\2"))
            raise

    service.answer = leaking  # type: ignore[method-assign]
    assert growth(service) > 50 * 2**20
