"""The Open Inference Protocol v2 over HTTP, as a Starlette application.

Every request is read whole before it is looked at, within a size and a time; every error is
``{"error": "one line"}``. There is nothing else: no files, no documentation pages, no CORS.
"""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .protocol import HEADER_LENGTH, RequestError, encode_json
from .service import InferenceService

_HELD_BYTES = 1024 * 1024 * 1024
"""Most bytes of request bodies in memory at a time."""
_MAX_WAITING = 256
_DRAIN_FACTOR = 4
_CLOSE = {"Connection": "close"}
_DIGITS = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Limits:
    """What one client may take from the others."""

    read_seconds: float = 30.0
    """A request must have arrived whole within this time from its headers on."""
    header_seconds: float = 10.0
    """Time for the headers alone."""
    num_workers: int = 2
    """Requests that are worked on at a time: one is parsed while another is computed."""
    stop_seconds: int = 60
    """Time that running requests have once a stop was asked for."""


def make_application(
    service: InferenceService,
    workers: ThreadPoolExecutor,
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Starlette:
    """Return the application; ``say`` is told in one line of what is no client's fault."""
    routes = _Routes(service, workers, say)
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    application = Starlette(
        routes=[
            Route("/v2", routes.server),
            Route("/v2/health/live", routes.live),
            Route("/v2/health/ready", routes.ready),
            *(Route(path, routes.model) for path in (model, version)),
            *(Route(f"{path}/ready", routes.model_ready) for path in (model, version)),
            *(Route(f"{path}/infer", routes.infer, methods=["POST"]) for path in (model, version)),
        ],
        middleware=[
            Middleware(
                _WholeRequests,
                max_bytes=service.signature.max_body_bytes,
                read_seconds=(limits or Limits()).read_seconds,
            )
        ],
        exception_handlers={
            RequestError: _refused,
            HTTPException: _no_route,
            Exception: routes.bug,
        },
    )
    application.router.redirect_slashes = False
    return application


class _Routes:
    """What is behind each path."""

    def __init__(
        self, service: InferenceService, workers: ThreadPoolExecutor, say: Callable[[str], None]
    ) -> None:
        self._service, self._workers, self._say = service, workers, say

    async def server(self, _request: Request) -> Response:
        return _json(self._service.server_metadata())

    async def live(self, _request: Request) -> Response:
        return Response()

    async def ready(self, _request: Request) -> Response:
        self._service.check_ready()
        return Response()

    async def model(self, request: Request) -> Response:
        self._check_model(request)
        return _json(self._service.model_metadata())

    async def model_ready(self, request: Request) -> Response:
        self._check_model(request)
        self._service.check_ready()
        return Response()

    async def infer(self, request: Request) -> Response:
        self._check_model(request)
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise RequestError(415, "the body is compressed, expected it as it is")
        lengths = request.headers.getlist(HEADER_LENGTH)
        if len(lengths) > 1:
            raise RequestError(400, f"{len(lengths)} headers {HEADER_LENGTH}, expected one at most")
        body = await request.body()
        loop = asyncio.get_running_loop()
        header_length = lengths[0] if lengths else None
        answer = await loop.run_in_executor(
            self._workers, self._service.answer, body, header_length
        )
        if answer.header_length is None:
            return Response(answer.body, media_type="application/json")
        headers = {HEADER_LENGTH: str(answer.header_length)}
        return Response(answer.body, headers=headers, media_type="application/octet-stream")

    async def bug(self, _request: Request, error: Exception) -> Response:
        """Answer what should not happen; the person who runs the server is told what it was."""
        reason = " ".join(str(error).split())[:300]
        self._say(f"this is a bug in d2nas: {type(error).__name__}: {reason}")
        return _error(500, "the server failed at this request")

    def _check_model(self, request: Request) -> None:
        parameters = request.path_params
        self._service.check_model(parameters["model"], parameters.get("version"))


class _WholeRequests:
    """Reads each request whole before it is looked at.

    A client that sends too much or too slowly costs a connection, never a worker; and all bodies
    together stay within a size.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, read_seconds: float) -> None:
        self._app = app
        self._max_bytes, self._read_seconds = max_bytes, read_seconds
        self._free = min(max(_HELD_BYTES // max_bytes, 2), _MAX_WAITING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer in place of the application whatever cannot be read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = _declared_length(scope)
        if not declared and not _header(scope, b"transfer-encoding"):
            await self._app(scope, receive, send)
            return
        held = 0
        try:
            if self._free < 1:
                raise RequestError(503, "too many requests at a time, try again later")
            self._free -= 1
            held = 1
            # A client that says "Expect: 100-continue" holds its body back until it is welcome.
            if declared > self._max_bytes and _header(scope, b"expect"):
                raise self._too_long()
            body = await self._read(declared, receive)
            await self._app(scope, _replay(body, receive), send)
        except _Gone:
            return
        except RequestError as error:
            # What is still on its way would be taken for the next request.
            await _error(error.status, str(error), _CLOSE)(scope, receive, send)
        except asyncio.CancelledError:
            # The stop took too long, or a second signal came: better than uvicorn's 500 in plain
            # text. Nothing was sent so far: between head and body of an answer nobody waits.
            await _error(503, "the server is stopping", _CLOSE)(scope, receive, send)
            raise
        finally:
            self._free += held

    async def _read(self, declared: int, receive: Receive) -> bytes:
        body = bytearray()
        num_bytes, more = 0, True
        try:
            async with asyncio.timeout(self._read_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    num_bytes += len(chunk)
                    if max(num_bytes, declared) <= self._max_bytes:
                        body += chunk
                    elif max(num_bytes, declared) > _DRAIN_FACTOR * self._max_bytes:
                        raise self._too_long()
                    # Else read on: a client that is still writing would not see the answer.
        except TimeoutError:
            raise RequestError(
                408, f"the request did not arrive within {self._read_seconds:g} seconds"
            ) from None
        if num_bytes > self._max_bytes:
            raise self._too_long()
        return bytes(body)

    def _too_long(self) -> RequestError:
        return RequestError(
            413, f"the request is too long, expected {self._max_bytes} bytes at most"
        )


class _Gone(Exception):  # noqa: N818 - not an error
    """The client has left before its request was complete."""


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _header(scope: Scope, name: bytes) -> str:
    values = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1") if values else ""


def _declared_length(scope: Scope) -> int:
    text = _header(scope, b"content-length")
    return int(text) if _DIGITS.fullmatch(text) else 0


def _json(value: object) -> Response:
    return Response(encode_json(value), media_type="application/json")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    body = encode_json({"error": message})
    return Response(body, status, headers, media_type="application/json")


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _error(error.status, str(error))


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = ascii(request.url.path)[:100]
    allowed = (error.headers or {}).get("Allow")
    if error.status_code == 405:
        message = f"method {request.method} is not for {path}, expected {allowed}"
    else:
        message = f"there is no {path}, expected a path of the Open Inference Protocol under /v2"
    headers = dict(error.headers) if error.headers else None
    return _error(error.status_code, message, headers)
