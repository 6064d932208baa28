"""A connection between a client and the application: HTTP/1.1 by h11, run by uvicorn.

uvicorn's own protocol takes what clients send before it is asked for, and bounds the time between
requests only. Here a request is read whole, in bounded time and room, before the application
sees it; the next one of a connection is looked at once its answer is taken. A client that stops
sending after its request gets its answer; after an answer with ``Connection: close``
the client has some time to read it, while what it still sends is thrown away.
"""

import asyncio
import contextlib
import enum
import re
import socket
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import h11

from d2nas.errors import one_line

from .capacity import Capacity, peer_of
from .limits import BACKLOG, MAX_HEAD_BYTES, MAX_HEADERS, READ_BYTES
from .protocol import encode_json

_DRAIN_FACTOR = 4
"""How much longer than allowed a body may be and still be read: who writes sees no answer."""
_PART_BYTES = 2 * READ_BYTES
"""Of a body: parts of one size leave no holes in memory, and small chunks make few of them."""
_SEND_BUFFER_BYTES = 128 * 1024
"""In the kernel; what is not taken beyond it is seen here."""
_ACCEPTED = 16
"""Connections that are accepted at a time."""
_RETRY_SECONDS = 0.1
_STOP_SECONDS = 0.1
"""Time for a request that was on its way when a stop was asked for."""
_CLOSE = (b"connection", b"close")
_HOST = re.compile(
    rb"(\[[0-9A-Za-z:.%~_-]+\]|([0-9A-Za-z._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(:[0-9]{0,5})?"
)
"""RFC 9112 3.2 and RFC 3986 3.2.2; the empty one is of a target without a host."""

Application = Callable[[dict[str, Any], Any, Any], Any]
Header = tuple[bytes, bytes]


class _Phase(enum.Enum):
    IDLE = enum.auto()
    """Nothing of a request has come."""
    HEAD = enum.auto()
    BODY = enum.auto()
    WORK = enum.auto()
    """The request is whole; the application has it."""
    WRITE = enum.auto()
    """The answer is not yet taken."""
    CLOSING = enum.auto()
    """The last answer was given; what still comes is thrown away."""
    CLOSED = enum.auto()


def connection_factory(
    application: Application, capacity: Capacity, server_state: Any
) -> Callable[[], "Connection"]:
    """Return what makes each connection of a server, of which ``server_state`` is uvicorn's."""
    # One for all: asyncio fills it and hands it over in one step.
    read_buffer = memoryview(bytearray(READ_BYTES))
    return lambda: Connection(application, capacity, server_state, read_buffer)


class Entrance:
    """Accepts the connections of a listening socket, some at a time, while there are places."""

    def __init__(
        self, listening: socket.socket, connect: Callable[[], "Connection"], capacity: Capacity
    ) -> None:
        listening.setblocking(False)
        self._listening, self._connect, self._capacity = listening, connect, capacity
        self._loop = asyncio.get_running_loop()
        self._entering: set[asyncio.Task[None]] = set()
        self._is_ending = False

    def open(self) -> None:
        """Accept whoever comes from now on."""
        if not self._is_ending:
            self._loop.add_reader(self._listening, self._accept)

    async def end(self) -> None:
        """Accept those who are waiting in the system's queue, and nobody after them: they may have
        asked already, and would be reset with the socket.
        """
        self._is_ending = True
        self._loop.remove_reader(self._listening)
        with contextlib.suppress(OSError):  # BlockingIOError: nobody is waiting
            for _ in range(BACKLOG):
                if len(self._entering) >= _ACCEPTED:
                    await asyncio.wait(self._entering, return_when=asyncio.FIRST_COMPLETED)
                self._accept_one()
        if self._entering:
            await asyncio.wait(self._entering)

    def _accept(self) -> None:
        try:
            while len(self._entering) < _ACCEPTED:
                self._accept_one()
        except BlockingIOError:
            return
        except OSError:
            # It has left already, or there are too many open files: asked again a little later.
            self._loop.call_later(_RETRY_SECONDS, self.open)
        self._loop.remove_reader(self._listening)

    def _accept_one(self) -> None:
        connected, _ = self._listening.accept()
        task = self._loop.create_task(self._enter(connected))
        self._entering.add(task)
        task.add_done_callback(self._entered)

    async def _enter(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        try:
            await self._capacity.place()
            await self._loop.connect_accepted_socket(self._connect, connected)
        except OSError:  # it has left meanwhile
            connected.close()
        except asyncio.CancelledError:
            connected.close()
            raise

    def _entered(self, task: asyncio.Task[None]) -> None:
        self._entering.discard(task)
        self.open()


class Connection(asyncio.BufferedProtocol):
    """One client's requests, one after the other. ``capacity.Client`` says what it can lose."""

    def __init__(
        self,
        application: Application,
        capacity: Capacity,
        server_state: Any,
        read_buffer: memoryview,
    ) -> None:
        self._application, self._capacity = application, capacity
        self._state, self._read_buffer = server_state, read_buffer
        self._limits = capacity.limits
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.SERVER, MAX_HEAD_BYTES)
        self._phase = _Phase.IDLE
        self._body: list[bytearray] = []
        self._num_body_bytes = 0
        self._most_bytes = capacity.max_body_bytes
        self._request: h11.Request | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._has_ended = False
        self._is_pipelined = False
        self._waits_for_room = False
        self.peer = ""
        self.held = 0
        self.since = time.monotonic()
        self.has_asked = False

    # What asyncio and uvicorn call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start; sets what asyncio leaves as the system has it."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)
        connected = transport.get_extra_info("socket")
        # Without this a second write waits for the acknowledgement of the first, 40 ms.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._address = transport.get_extra_info("peername") or ("", 0)
        self.peer = peer_of(str(self._address[0]))
        self._state.connections.add(self)
        self._wait(self._limits.header_seconds, self._leave)
        self.since = time.monotonic()
        self._capacity.enter(self)
        if self._capacity.is_stopping:
            self.shutdown()

    def connection_lost(self, _error: Exception | None) -> None:
        """Forget everything; a request that waits for a worker is not worked on."""
        self._phase = _Phase.CLOSED
        self._stop_waiting()
        self._drop_body()
        self._capacity.leave(self)
        self._state.connections.discard(self)
        if self._task is not None:
            self._task.cancel()

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Return where to put what comes next."""
        return self._read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Look at what came."""
        data = bytes(self._read_buffer[:nbytes])
        if self._phase in (_Phase.CLOSING, _Phase.CLOSED):
            return
        if self._phase is _Phase.IDLE:
            self._is_pipelined = False
            data = data.lstrip(b"\r\n")  # some clients end a body with an empty line
            if not data:
                return
        self._http.receive_data(data)
        if self._phase not in (_Phase.WORK, _Phase.WRITE):
            self._look()
        if self._phase in (_Phase.WORK, _Phase.WRITE) and self._http.trailing_data[0]:
            # Nothing more is read until all of this was looked at: it cannot pile up.
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Note that the client sends no more; it may still be waiting for its answer."""
        self._has_ended = True
        if self._phase is _Phase.CLOSING:
            self._leave()
        else:
            self._http.receive_data(b"")
            if self._phase not in (_Phase.WORK, _Phase.WRITE):
                self._look()
        return True

    def pause_writing(self) -> None:
        """Do nothing: ``_answer`` looks at what was not taken."""

    def resume_writing(self) -> None:
        """Go on once the answer is with the system, all of it."""
        if self._phase is _Phase.WRITE:
            self._taken()

    def shutdown(self) -> None:
        """End in order: what is asked is answered, and it is the last one."""
        if self._phase is _Phase.IDLE:
            self._wait(_STOP_SECONDS, self._leave)

    def give_up(self) -> None:
        """End now; whoever waits for an answer is told."""
        if self._phase in (_Phase.BODY, _Phase.WORK):
            self._refuse(503, "the server is stopping")
        self._transport.close()

    # What the capacity calls

    @property
    def is_unfinished(self) -> bool:
        """Whether a body is not whole, or an answer not taken."""
        return self._phase in (_Phase.BODY, _Phase.WRITE)

    @property
    def is_sending(self) -> bool:
        """Whether a body is on its way."""
        return self._phase is _Phase.BODY

    @property
    def is_idle(self) -> bool:
        """Whether no request is known."""
        return self._phase in (_Phase.IDLE, _Phase.HEAD, _Phase.CLOSING)

    def give_way(self, message: str) -> None:
        """Free what is held: a body is refused with 503, all else is closed."""
        if self._phase is _Phase.BODY:
            self._refuse(503, message)
        else:
            self.drop()

    def drop(self) -> None:
        """Close at once, whatever is under way."""
        self._phase = _Phase.CLOSED
        self._stop_waiting()
        self._drop_body()
        self._transport.abort()

    def go_on(self) -> None:
        """Read on with a body."""
        self._waits_for_room = False
        if self._phase is _Phase.BODY:
            self._wait(self._limits.read_seconds, self._too_slow)
            self._transport.resume_reading()

    # Reading

    def _look(self) -> None:
        """Look at all that came, up to the end of a request."""
        while self._phase in (_Phase.IDLE, _Phase.HEAD, _Phase.BODY):
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse(error.error_status_hint or 400, f"{error}, expected HTTP/1.1")
                return
            if event is h11.NEED_DATA or event is h11.PAUSED:
                self._need_more()
                return
            if isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data):
                self._take(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._ask()
            else:
                self._leave()

    def _need_more(self) -> None:
        """Read on: all that has come was looked at."""
        if self._phase is _Phase.IDLE:
            # Something has come, or nobody would be looking.
            self._phase = _Phase.HEAD
            self._wait(self._limits.header_seconds, self._leave)
        if not self._waits_for_room:
            self._transport.resume_reading()

    def _begin(self, request: h11.Request) -> None:
        """Look at the head of a request."""
        self._phase, self._request = _Phase.BODY, request
        self.since = time.monotonic()
        self._num_body_bytes = 0
        self._waits_for_room = False
        refusal = _refusal(request)
        if refusal is not None:
            self._refuse(*refusal)
            return
        declared = int(dict(request.headers).get(b"content-length", b"0"))
        is_picture = bytes(request.target).partition(b"?")[0].endswith(b"/classify")
        capacity = self._capacity
        most = capacity.max_picture_bytes if is_picture else capacity.max_body_bytes
        self._most_bytes = most
        waits = self._http.they_are_waiting_for_100_continue
        if declared > most * _DRAIN_FACTOR or (waits and declared > most):
            self._refuse_length()
            return
        if waits:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self._transport.write(self._http.send(go_on))
        self._wait(self._limits.read_seconds, self._too_slow)

    def _take(self, data: bytes) -> None:
        """Keep a part of a body, if there is room for it."""
        self._num_body_bytes += len(data)
        most = self._most_bytes
        if self._num_body_bytes > most:
            self._drop_body()
            if self._num_body_bytes > most * _DRAIN_FACTOR:
                self._refuse_length()
            return
        if not self._body or len(self._body[-1]) >= _PART_BYTES:
            self._body.append(bytearray())
        self._body[-1] += data
        may_read_on = self._capacity.hold(self, len(data))
        if self._phase is _Phase.BODY and not may_read_on:
            # Time passes for those who can send.
            self._stop_waiting()
            self._waits_for_room = True
            self._transport.pause_reading()

    def _drop_body(self) -> None:
        self._body = []
        self._capacity.free(self)

    def _refuse_length(self) -> None:
        most = self._most_bytes
        self._refuse(413, f"the request is too long, expected {most} bytes at most")

    def _too_slow(self) -> None:
        seconds = self._limits.read_seconds
        self._refuse(408, f"the request did not arrive within {seconds:g} seconds")

    # Asking

    def _ask(self) -> None:
        """Hand the request over."""
        if self._num_body_bytes > self._most_bytes:
            self._refuse_length()
            return
        assert self._request is not None
        self._stop_waiting()
        self._phase = _Phase.WORK
        self.has_asked = True
        scope, self._request = self._scope(self._request), None
        body, self._body = b"".join(self._body), []
        self._task = self._loop.create_task(self._work(scope, body))
        self._state.tasks.add(self._task)
        self._task.add_done_callback(self._state.tasks.discard)

    def _scope(self, request: h11.Request) -> dict[str, Any]:
        target = request.target
        for scheme in (b"http://", b"https://"):  # as it is sent to a proxy
            if target.lower().startswith(scheme):
                _, slash, path = target[len(scheme) :].partition(b"/")
                target = b"/" + path if slash else b"/"
        raw_path, _, query = target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version.decode("ascii"),
            "server": self._transport.get_extra_info("sockname")[:2],
            "client": tuple(self._address[:2]),
            "scheme": "http",
            "method": request.method.decode("ascii"),
            "root_path": "",
            "path": unquote(raw_path.decode("ascii")),
            "raw_path": raw_path,
            "query_string": query,
            "headers": list(request.headers),
            # Who does not wait for answers waits behind those who do.
            "state": {"line": f"{self.peer}, pipelined" if self._is_pipelined else self.peer},
        }

    async def _work(self, scope: dict[str, Any], body: bytes) -> None:
        """Ask the application."""
        messages: list[dict[str, Any]] = [{"type": "http.request", "body": body}]
        del body
        answer = bytearray()
        status, headers = 0, []

        async def receive() -> dict[str, Any]:
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], list(message.get("headers", []))
            else:
                answer.extend(message.get("body", b""))

        is_head = scope["method"] == "HEAD"
        # What it fails with it has told, and answered with 500.
        with contextlib.suppress(Exception):
            await self._application(scope, receive, send)
        self._task = None
        if self._phase is not _Phase.WORK:
            return
        if not status:
            self._refuse(500, "the server failed at this request")
        else:
            self._capacity.free(self)
            self._answer(status, headers, b"" if is_head else bytes(answer))

    # Answering

    def _answer(
        self, status: int, headers: Iterable[Header], body: bytes, *, is_last: bool = False
    ) -> None:
        """Send an answer; goes on when it is taken."""
        has_more = not self._has_ended or bool(self._http.trailing_data[0])
        if is_last or not has_more or self._capacity.is_stopping:
            headers = [*headers, _CLOSE]
        headers = [*self._state.default_headers, *headers]
        head = h11.Response(status_code=status, headers=headers, reason=_reason(status))
        events = (head, h11.Data(data=body), h11.EndOfMessage())
        self._transport.write(b"".join(self._http.send(event) or b"" for event in events))
        self._phase, self.since = _Phase.WRITE, time.monotonic()
        waiting = self._transport.get_write_buffer_size()
        if not waiting:
            self._taken()
            return
        self._wait(self._limits.write_seconds, self._transport.abort)
        self._capacity.hold(self, waiting)

    def _taken(self) -> None:
        """Look at the next request, or close."""
        self._capacity.free(self)
        self.since = time.monotonic()
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            self._close()
            return
        self._http.start_next_cycle()
        self._phase = _Phase.IDLE
        self._wait(self._limits.idle_seconds, self._leave)
        if self._http.trailing_data[0]:
            self._capacity.call_later(self._look_again)
        else:
            self._loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        """Look at what came before the last answer was taken, after others had their turn."""
        if self._phase is not _Phase.IDLE:
            return
        self._is_pipelined = bool(self._http.trailing_data[0])
        if self._is_pipelined or self._has_ended:
            self._look()
        else:
            self._transport.resume_reading()

    def _refuse(self, status: int, message: str) -> None:
        """Answer in place of the application, for the last time on this connection."""
        self._drop_body()
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = encode_json({"error": one_line(message)})
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
            ]
            self._answer(status, headers, body, is_last=True)
        else:
            self._close()

    def _close(self) -> None:
        """Close, once the client has read its answer or had the time to."""
        if self._has_ended:
            self._leave()
            return
        self._phase = _Phase.CLOSING
        try:
            self._transport.write_eof()
        except OSError:  # it has left already, which asyncio has not heard of yet
            self._leave()
            return
        self._wait(self._limits.close_seconds, self._transport.abort)
        self._transport.resume_reading()

    def _leave(self) -> None:
        self._phase = _Phase.CLOSING
        self._stop_waiting()
        self._transport.close()

    # Time

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        """Call ``then`` unless something else happens first."""
        self._stop_waiting()
        self._timer = self._loop.call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _refusal(request: h11.Request) -> tuple[int, str] | None:
    """Return status and message for a head that h11 lets pass and this server does not."""
    names = [name for name, _ in request.headers]
    if not request.http_version.startswith(b"1."):
        version = request.http_version.decode("ascii")
        return 505, f"HTTP/{version} is not supported, expected HTTP/1.1"
    if len(names) > MAX_HEADERS:
        # Each takes many times its bytes.
        return 431, f"{len(names)} headers, expected {MAX_HEADERS} at most"
    if b"transfer-encoding" in names:
        # Two readers could see two ends, and take the rest for a request of its own.
        if b"content-length" in names:
            return 400, "Content-Length and Transfer-Encoding, expected one of them"
        if request.http_version < b"1.1":
            return 400, "Transfer-Encoding in HTTP/1.0, expected Content-Length"
    hosts = [value for name, value in request.headers if name == b"host"]
    # None, or more than one, h11 refuses.
    if not all(_HOST.fullmatch(host) for host in hosts):
        return 400, "invalid Host, expected a name or an address, with or without a port"
    return None


def _reason(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode()
