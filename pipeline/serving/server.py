"""The Open Inference Protocol v2 over HTTP, as a Starlette application.

Every request is whole when it comes here (``connection.py``); every error is
``{"error": "one line"}``. There is nothing else: no files, no documentation pages, no CORS.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from d2nas.errors import brief_reason

from .limits import Limits
from .protocol import HEADER_LENGTH, Answer, RequestError, encode_json
from .service import InferenceService
from .statistics import Statistics
from .turns import Turns

PROMETHEUS = "text/plain; version=0.0.4"


def make_application(
    service: InferenceService,
    workers: ThreadPoolExecutor,
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Starlette:
    """Return the application; ``say`` is told in one line of what is no client's fault."""
    turns = Turns(workers, (limits or Limits()).num_workers)
    routes = _Routes(service, turns, say)
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    application = Starlette(
        routes=[
            Route("/v2", routes.server),
            Route("/v2/health/live", routes.live),
            Route("/v2/health/ready", routes.ready),
            Route("/v2/models/stats", routes.all_statistics),
            *(Route(path, routes.model) for path in (model, version)),
            *(Route(f"{path}/ready", routes.model_ready) for path in (model, version)),
            *(Route(f"{path}/infer", routes.infer, methods=["POST"]) for path in (model, version)),
            *(
                Route(f"{path}/classify", routes.classify, methods=["POST"])
                for path in (model, version)
            ),
            *(Route(f"{path}/stats", routes.statistics) for path in (model, version)),
            Route("/metrics", routes.metrics),
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
    """Routes of the server: a path each."""

    def __init__(self, service: InferenceService, turns: Turns, say: Callable[[str], None]) -> None:
        self._service, self._turns, self._say = service, turns, say
        self._statistics = Statistics(service.name, service.version)

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
        answer = await self._worked(
            request, partial(self._service.answer, body, lengths[0] if lengths else None)
        )
        if answer.header_length is None:
            return Response(answer.body, media_type="application/json")
        headers = {HEADER_LENGTH: str(answer.header_length)}
        return Response(answer.body, headers=headers, media_type="application/octet-stream")

    async def classify(self, request: Request) -> Response:
        """Answer a picture, which is the body: PNG, JPEG or another format that is read."""
        self._check_model(request)
        content = await request.body()
        answer = await self._worked(request, partial(self._service.classify, content))
        return Response(answer.body, media_type="application/json")

    async def statistics(self, request: Request) -> Response:
        self._check_model(request)
        return _json(self._statistics.to_dict())

    async def all_statistics(self, _request: Request) -> Response:
        return _json(self._statistics.to_dict())

    async def metrics(self, _request: Request) -> Response:
        return Response(self._statistics.metrics(), media_type=PROMETHEUS)

    async def _worked(self, request: Request, work: Callable[[], Answer]) -> Answer:
        """Return what a worker answers, counted and timed."""
        came = time.perf_counter_ns()
        self._statistics.begin()
        try:
            answer = await self._turns.run(request.state.line, work)
        except BaseException:  # a client that left, too
            self._statistics.fail(time.perf_counter_ns() - came)
            raise
        assert answer.times is not None
        queue = answer.times.began_ns - came
        self._statistics.succeed(time.perf_counter_ns() - came, queue, answer.times)
        return answer

    async def bug(self, _request: Request, error: Exception) -> Response:
        """Answer what should not happen; the person who runs the server is told what it was."""
        reason = brief_reason(error, 300)
        self._say(f"this is a bug in d2nas: {type(error).__name__}: {reason}")
        return _error(500, "the server failed at this request")

    def _check_model(self, request: Request) -> None:
        parameters = request.path_params
        self._service.check_model(parameters["model"], parameters.get("version"))


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
