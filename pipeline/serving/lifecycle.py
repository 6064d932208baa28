"""Life of a server: a bundle on a device, an address to listen on, and an orderly end.

SIGTERM and SIGINT end the server the same way: no new connections, running requests are answered,
exit code 0, which is what a supervisor expects of a server it stopped and a person of Ctrl+C. A
second signal leaves at once, with the shell's code (143 or 130), because answers may be lost.
"""

import asyncio
import contextlib
import importlib
import math
import resource
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from d2nas.errors import ConfigError, StoppedError, one_line

from ..running.signals import signals_handled
from .limits import BACKLOG, Limits

if TYPE_CHECKING:
    import uvicorn

    from ..bundle.reader import Bundle
    from .capacity import Capacity
    from .service import InferenceService

_LOOPBACK = ("127.", "::1")
_OTHER_FILES = 64
"""Open files of a server beside its connections, with those that it is about to accept."""
_HURRY_SECONDS = 0.05


def check_extra() -> None:
    """Raise ``ConfigError`` if what the extra ``serve`` installs is not there."""
    try:
        for name in ("starlette", "uvicorn"):
            importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"serving needs what is not installed ({' '.join(str(error).split())})",
            hint="pip install '.[serve]' in the clone",
        ) from error


def open_service(
    bundle: "Bundle", device: str, warn: Callable[[str], None] = lambda line: None
) -> "InferenceService":
    """Open the model of ``bundle`` on ``device`` (auto, cpu, cuda or cuda:N); not yet warm.

    ``auto`` is the kind of device that the bundle was validated on, and the CPU where that does
    not load; ``warn`` is told of every difference. Raises what ``open_session`` raises, and
    ``ValidationFailedError`` where that device, which may be another than the validated one,
    answers the golden inputs otherwise.
    """
    from ..bundle.prediction import check_golden, open_model
    from ..onnx_io.providers import cuda_problem
    from .service import InferenceService

    validated = bundle.report["device"]
    why = ""
    if device == "auto":
        device = validated["kind"]
        problem = cuda_problem() if device == "cuda" else None
        if problem is not None:
            device, why = "cpu", f"; CUDA does not run here: {problem}"
    session = open_model(bundle, device)
    check_golden(bundle, session)
    if not device.startswith(validated["kind"]):
        warn(
            f"validated on {validated['label']}, served on {device}: no latency of its report "
            f"holds here{why}"
        )
    return InferenceService(bundle, session)


class ServerSocket:
    """A socket that listens. Port 0 takes any that is free; ``url`` says which."""

    def __init__(self, host: str, port: int) -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[0]
            self.socket = socket.create_server(
                address[:2], family=family, backlog=BACKLOG, reuse_port=False
            )
        except (OSError, UnicodeError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"cannot listen on {host}, port {port} ({reason})",
                hint="--port 0 takes any free port",
            ) from error
        self.host, self.port = self.socket.getsockname()[:2]

    @property
    def url(self) -> str:
        """URL for clients."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return str(self.host).startswith(_LOOPBACK)

    def __enter__(self) -> "ServerSocket":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self.socket.close()


class Serving:
    """Runs a service on a socket, in the thread that calls ``run``."""

    def __init__(
        self,
        service: "InferenceService",
        listener: ServerSocket,
        limits: "Limits | None" = None,
        say: Callable[[str], None] = lambda line: None,
        warm_up: Callable[[], None] | None = None,
    ) -> None:
        from .capacity import Capacity
        from .server import make_application

        limits = limits or Limits()
        most = _allowed_connections(limits.max_connections)
        self._limits = replace(limits, max_connections=most)
        self._listener = listener
        self._warm_up = warm_up or service.warm_up
        self._say = say
        self._problem: BaseException | None = None
        self._workers = ThreadPoolExecutor(self._limits.num_workers, "inference")
        application = make_application(service, self._workers, self._limits, say)
        self.capacity = Capacity(self._limits, service.signature.max_body_bytes)
        self._server = _make_server(application, self.capacity, say)

    def run(self) -> None:
        """Listen, warm up, answer; return once all running requests were answered after a stop.

        Raises what the warm-up raised, and ``StoppedError`` after a second signal.
        """
        try:
            with self._signals():
                self._workers.submit(self._warm_up).add_done_callback(self._warmed_up)
                self._server.run(sockets=[self._listener.socket])
        finally:
            self._workers.shutdown()
        if self._problem is not None:
            raise self._problem

    def stop(self) -> None:
        """Ask for an orderly end, from any thread."""
        self._server.should_exit = True

    def _warmed_up(self, done: "Future[None]") -> None:
        problem = done.exception()
        if problem is None:
            self._say("ready")
        else:
            self._problem = problem
            self.stop()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle both signals inside the ``with``; only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with signals_handled(self._handle):
            yield

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._server.should_exit:
            self._problem = StoppedError(number, "stopped at once by a second signal")
            self._server.force_exit = True
        self.stop()


def _allowed_connections(wanted: int) -> int:
    """Return how many connections this process may have open, at most ``wanted``.

    Raises the limit on open files as far as it may: that of a shell is meant for other programs.
    """
    needed = wanted + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft - _OTHER_FILES))


def _make_server(
    application: Any, capacity: "Capacity", say: Callable[[str], None]
) -> "uvicorn.Server":
    import uvicorn

    from .connection import Connection, Entrance, connection_factory

    class Server(uvicorn.Server):
        _entrances: Sequence[Entrance] = ()

        def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
            # Its own way ends with the signal raised once more, which would be our exit code.
            return contextlib.nullcontext()

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            # Its own way, asyncio's, accepts whoever comes, and prints tracebacks.
            await super().startup([])
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, what: say(_told(what)))
            connect = connection_factory(application, capacity, self.server_state)
            self._entrances = [Entrance(one, connect, capacity) for one in sockets or []]
            for entrance in self._entrances:
                entrance.open()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            capacity.is_stopping = True
            hurry = asyncio.create_task(self._hurry())
            time = asyncio.get_running_loop().time
            deadline = time() + capacity.limits.stop_seconds
            try:
                for entrance in self._entrances:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(entrance.end(), deadline - time())
                # One time for all, which a supervisor waits for: its own way would begin anew.
                self.config.timeout_graceful_shutdown = max(0, math.ceil(deadline - time()))
                await super().shutdown(sockets)
            finally:
                hurry.cancel()
                self._give_up()

        async def _hurry(self) -> None:
            """Wait for a second signal: uvicorn would wait for all connections to close."""
            while not self.force_exit:
                await asyncio.sleep(_HURRY_SECONDS)
            self._give_up()

        def _give_up(self) -> None:
            for connection in list(self.server_state.connections):
                assert isinstance(connection, Connection)
                connection.give_up()

    config = uvicorn.Config(
        application,
        http="h11",
        # Named, so that an installed uvloop changes nothing of what was tested.
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        # It would print tracebacks; what a person has to know is said in a line elsewhere.
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=capacity.limits.stop_seconds,
    )
    return Server(config)


def _told(what: dict[str, Any]) -> str:
    """Return what asyncio has to tell in one line."""
    error = what.get("exception")
    reason = f"{what.get('message', '')}: {error}" if error else str(what.get("message", ""))
    return f"server: {one_line(reason, 300)}"
