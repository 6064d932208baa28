"""Clients that mean harm, many at once: others get every answer, and memory has a bound."""

import asyncio
import contextlib
import math
import signal
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, NamedTuple

import campaigns
import numpy as np
import pytest
from attacks import Attack, begun, memory_of, pipelined, server_process, trickle
from numpy.typing import NDArray
from onnx_models import hand_made_model
from served import (
    INFER,
    ask,
    ask_once,
    binary_request,
    connect,
    images_of,
    raw_connection,
    received,
    running,
    warm_service,
)

from pipeline.serving.capacity import Capacity, peer_of
from pipeline.serving.connection import Connection
from pipeline.serving.limits import MIB, Limits
from pipeline.serving.service import InferenceService
from pipeline.serving.turns import Turns

SERVICE, SESSION = warm_service()
BODY, HEADERS = binary_request(images_of(2))
NOISE = 24 * MIB
"""What a process may take beside: the two requests in work, and what its allocator keeps."""


class Target(NamedTuple):
    """What is attacked: a model for images of ``image`` pixels, and what is asked of it."""

    image: int
    max_batch: int

    @property
    def max_body_bytes(self) -> int:
        return self.max_batch * self.image**2 * 32 + 64 * 1024

    @property
    def request(self) -> tuple[bytes, dict[str, str]]:
        shape = (1, 1, self.image, self.image)
        return binary_request(np.linspace(-1, 1, math.prod(shape), dtype=np.float32).reshape(shape))

    def head(self, num_bytes: int) -> bytes:
        headers = {**self.request[1], "Content-Length": str(num_bytes)}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()

    def attacks(self, url: str, *numbers: int) -> list[Attack]:
        """One of each kind, by so many connections."""
        body, _ = self.request
        longest = self.max_body_bytes
        kinds = [
            begun(self.head(longest), b"{"),
            pipelined(self.head(len(body)) + body),
            begun(self.head(longest), b" " * (longest - 1)),
            pipelined(b"GET /v2/models/toy HTTP/1.1\r\nHost: x\r\n\r\n"),
            trickle(self.head(longest), 0.01),
            trickle(self.head(longest)[:-2], 0.01),
            lambda sent: b"",
        ]
        return [Attack(url, number, kind) for number, kind in zip(numbers, kinds, strict=True)]


SMALL = Target(image=64, max_batch=8)
SMALL_LIMITS = Limits(room_bytes=8 * MIB, max_connections=96)
SMALL_OPTIONS = ("image=64", "max_batch=8", "room_bytes=8388608", "max_connections=96")
SMALL_NUMBERS = (24,) * 7


def well_behaved(url: str, target: Target, requests: int) -> list[NDArray[np.float32]]:
    """All answers to a client that keeps its connection, and to one that does not."""
    body, headers = target.request
    with closing(connect(url)) as kept:
        found = []
        for _ in range(requests):
            found.append(ask(kept, "POST", INFER, body, headers).logits)
            found.append(ask_once(url, "POST", INFER, body, headers).logits)
            assert ask_once(url, "GET", "/v2/health/ready").status == 200
        return found


def check_everybody_else(url: str, target: Target, numbers: Sequence[int], requests: int) -> None:
    """Three clients get every answer, and the right one, while attacks of every kind run."""
    (expected,) = {one.tobytes() for one in well_behaved(url, target, 5)}
    with ExitStack() as attacks:
        for attack in target.attacks(url, *numbers):
            attacks.enter_context(attack)
        with ThreadPoolExecutor(3) as clients:
            asked = clients.map(lambda _: well_behaved(url, target, requests), range(3))
            for answers in asked:
                assert {one.tobytes() for one in answers} == {expected}


def check_process(
    target: Target, numbers: Sequence[int], requests: int, bound: int, *options: str
) -> None:
    """The same of a server process, whose memory has grown by ``bound`` at most."""
    with server_process(*options) as (process, url):
        well_behaved(url, target, 5)
        before = memory_of(process.pid)
        check_everybody_else(url, target, numbers, requests)
        assert memory_of(process.pid, "VmHWM") - before < bound
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_everybody_else_gets_every_answer_and_memory_has_a_bound() -> None:
    bound = SMALL_LIMITS.memory_bytes(SMALL.max_body_bytes)
    assert bound == 8 * MIB + 96 * 128 * 1024
    # By number and by size, the attacks are for much more than there is.
    assert sum(SMALL_NUMBERS) > SMALL_LIMITS.max_connections
    assert 24 * SMALL.max_body_bytes > SMALL_LIMITS.room_bytes
    check_process(SMALL, SMALL_NUMBERS, 2, bound + NOISE, *SMALL_OPTIONS)


@pytest.mark.long
@pytest.mark.skipif(not campaigns.LONG, reason="256 and 300 connections at once: -m long")
def test_as_many_as_were_seen() -> None:
    target = Target(image=224, max_batch=8)
    bound = Limits().memory_bytes(target.max_body_bytes) + 8 * target.max_body_bytes
    options = ("image=224", "max_batch=8")
    check_process(target, [256, 300, 60, 100, 60, 60, 60], 50, bound, *options)


# What holds it up, and that nothing of it can be left out


class Watched:
    """Most bytes that connections held at a time, by their own buffers."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.most, self._calls = 0, 0
        self._connections: set[Connection] = set()
        made, lost, updated = (
            getattr(Connection, name)
            for name in ("connection_made", "connection_lost", "buffer_updated")
        )

        def connection_made(one: Connection, transport: Any) -> None:
            self._connections.add(one)
            made(one, transport)

        def connection_lost(one: Connection, error: Exception | None) -> None:
            self._connections.discard(one)
            lost(one, error)

        def buffer_updated(one: Connection, nbytes: int) -> None:
            updated(one, nbytes)
            self._calls += 1
            if self._calls % 20 == 0:
                self.most = max(self.most, sum(map(self._held, self._connections)))

        patch.setattr(Connection, "connection_made", connection_made)
        patch.setattr(Connection, "connection_lost", connection_lost)
        patch.setattr(Connection, "buffer_updated", buffer_updated)

    @staticmethod
    def _held(one: Connection) -> int:
        unread = len(one._http.trailing_data[0]) + one._transport.get_write_buffer_size()
        return sum(map(len, one._body)) + unread


def small_service() -> InferenceService:
    model = hand_made_model()
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_value = SMALL.image
    return warm_service(model, SMALL.max_batch)[0]


@pytest.mark.parametrize("without", [None, "room", "reading"])
def test_what_is_held_has_a_bound_and_without_a_protection_none(
    without: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    if without == "room":
        monkeypatch.setattr(Capacity, "hold", lambda *_: True)
    elif without == "reading":
        look_again = Connection._look_again

        def greedy(self: Connection) -> None:
            self._transport.resume_reading()
            look_again(self)

        monkeypatch.setattr(Connection, "_look_again", greedy)
    bound = SMALL_LIMITS.memory_bytes(SMALL.max_body_bytes)
    with running(small_service(), SMALL_LIMITS, lambda: None) as url, ExitStack() as attacks:
        for attack in SMALL.attacks(url, 0, 0, 60, 20, 0, 0, 0):
            attacks.enter_context(attack)
        give_up = time.monotonic() + (60 if without else 1)
        while watched.most <= bound and time.monotonic() < give_up:
            time.sleep(0.05)
    assert (watched.most > bound) == (without is not None)
    assert watched.most > SMALL_LIMITS.room_bytes // 2


@pytest.mark.parametrize("protected", [True, False])
def test_connections_that_are_merely_open_are_closed_when_there_are_many(
    protected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = contextlib.nullcontext() if protected else pytest.raises(OSError, match="timed out")
    if not protected:
        # Where they are only counted, a limit on them shuts everybody out.
        monkeypatch.setattr(Capacity, "_make_place", lambda self: False)
    limits = Limits(max_connections=20, stop_seconds=1, grace_seconds=0.2)
    with running(SERVICE, limits, lambda: None) as url, ExitStack() as stack:
        kept = stack.enter_context(closing(connect(url)))
        assert ask(kept, "POST", INFER, BODY, HEADERS).status == 200
        first = [stack.enter_context(raw_connection(url)) for _ in range(19)]
        stack.enter_context(Attack(url, 60, lambda sent: b""))
        with refused:
            for _ in range(5):
                with closing(connect(url)) as fresh:
                    fresh.timeout = 60 if protected else 0.5
                    assert ask(fresh, "POST", INFER, BODY, HEADERS).status == 200
            # The oldest of those that ask for nothing went, not who was answered before.
            assert first[0].recv(1) == b""
            assert ask(kept, "POST", INFER, BODY, HEADERS).status == 200


def test_a_server_with_few_files_serves(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        server_process("files=128") as (_, url),
        Attack(url, 200, lambda sent: b"") as attack,
    ):
        for _ in range(3):
            assert ask_once(url, "POST", INFER, BODY, HEADERS).status == 200
        assert attack.num_opened >= 200
    assert capfd.readouterr().err == ""


def unread(sock: socket.socket, times: int) -> None:
    """Send requests until the server reads no more of them for a second, and never read."""
    sock.settimeout(1.0)
    request = b"GET /v2/models/toy HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
    for _ in range(times):
        with contextlib.suppress(TimeoutError):
            while True:
                sock.sendall(request)


def test_answers_that_are_not_taken_end_a_connection() -> None:
    with (
        running(SERVICE, Limits(write_seconds=0.3), lambda: None) as url,
        raw_connection(url) as sock,
        pytest.raises(OSError, match=r"reset|pipe"),
    ):
        unread(sock, 20)
    # Control: it is this limit.
    with running(SERVICE, Limits(stop_seconds=1), lambda: None) as url, raw_connection(url) as sock:
        unread(sock, 1)


def test_slow_requests_cost_no_work() -> None:
    """A request that is not whole holds no worker, and is told when its time is over."""
    head = SMALL.head(1000)
    limits = Limits(num_workers=1, read_seconds=1.0)
    with running(SERVICE, limits, lambda: None) as url, ExitStack() as stack:
        slow = [stack.enter_context(raw_connection(url)) for _ in range(50)]
        for sock in slow:
            sock.sendall(head + b"{")
        for _ in range(5):
            assert ask_once(url, "POST", INFER, BODY, HEADERS).status == 200
        for sock in slow:
            assert received(sock).startswith(b"HTTP/1.1 408 ")


# The parts by themselves


class Fake:
    """A client of a ``Capacity``."""

    def __init__(self, peer: str = "a", *, age: float = 0.0, state: str = "body") -> None:
        self.peer, self.held, self.has_asked = peer, 0, False
        self.since = time.monotonic() - age
        self.is_unfinished = self.is_sending = state == "body"
        self.is_idle = state == "idle"
        self.log: list[str] = []
        self.owner: Capacity | None = None

    def give_way(self, _message: str) -> None:
        self.log.append("gave way")
        if self.owner is not None:
            self.owner.free(self)

    def drop(self) -> None:
        self.log.append("dropped")

    def go_on(self) -> None:
        self.log.append("went on")


LONGEST = MIB


def capacity(**limits: Any) -> Capacity:
    return Capacity(Limits(room_bytes=4 * MIB, **limits), LONGEST)


def test_the_peer_that_takes_most_gives_way_and_there_who_takes_longest() -> None:
    shared = capacity()
    quiet, old, young = Fake("b", age=99), Fake("a", age=9), Fake("a", age=1)
    for client in (quiet, old, young):
        client.owner = shared
        shared.enter(client)
        assert shared.hold(client, MIB)
    assert shared.hold(young, MIB)
    assert shared.hold(young, MIB)
    assert [client.log for client in (quiet, old, young)] == [[], ["gave way"], []]


def test_whole_requests_are_waited_for_and_never_given_up() -> None:
    shared = capacity()
    whole, late = Fake(state="work"), Fake()
    for client in (whole, late):
        client.owner = shared
        shared.enter(client)
    shared.hold(whole, 4 * MIB)
    assert not shared.hold(late, 10)
    assert (whole.log, late.log) == ([], [])
    shared.free(whole)
    assert late.log == ["went on"]
    assert shared.hold(late, 10)


def test_there_is_always_room_for_the_longest_request() -> None:
    assert Limits(room_bytes=1).room_for(100) > 200
    assert Limits().room_for(100) == Limits().room_bytes


def test_who_sends_or_was_answered_stays() -> None:
    shared = capacity(max_connections=4)
    answered, sending, opened = Fake(age=50, state="idle"), Fake(age=5), Fake(age=2, state="idle")
    working = Fake(age=90, state="work")
    answered.has_asked = True
    sending.held = 1000
    for client in (answered, sending, opened, working):
        shared.enter(client)
    for gone in (opened, sending, answered):
        asyncio.run(shared.place())
        assert gone.log == ["dropped"]
        shared.enter(Fake(state="work"))

    async def waits() -> None:
        shared.enter(Fake(state="idle"))  # new, and may still ask
        waiting = asyncio.create_task(shared.place())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        shared.leave(working)
        shared.leave(answered)
        await waiting

    shared.leave(next(iter(shared._clients - {working})))
    asyncio.run(waits())
    assert working.log == []


def test_a_peer_is_an_address() -> None:
    assert peer_of("192.0.2.1") == peer_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert peer_of("2001:db8::1") == peer_of("2001:db8::ffff:2") != peer_of("2001:db8:0:1::1")
    assert peer_of("fe80::1%eth0") == peer_of("fe80::2%eth0")
    assert peer_of("") == ""


def order_of_turns(requests: Sequence[tuple[str, int]]) -> list[str]:
    """Lines in the order in which one worker saw them; 0 stands for a request taken back."""

    async def ask_all() -> list[str]:
        done: list[str] = []
        with ThreadPoolExecutor(1) as workers:
            turns = Turns(workers, 1)
            tasks = [
                asyncio.create_task(turns.run(line, partial(done.append, line)))
                for line, _ in requests
            ]
            await asyncio.sleep(0)
            for task, (_, wanted) in zip(tasks, requests, strict=True):
                if not wanted:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # Whoever comes later finds the worker free.
            await turns.run("last", partial(done.append, "last"))
        return done

    return asyncio.run(ask_all())


def test_lines_take_turns() -> None:
    busy = [("busy", 1)] * 5
    assert order_of_turns([*busy, ("a", 1), ("b", 1)]) == [
        *("busy", "busy", "a", "b", "busy", "busy", "busy", "last")
    ]
    assert order_of_turns([*busy[:2], ("a", 0), ("b", 1)]) == ["busy", "busy", "b", "last"]
