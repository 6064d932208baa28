"""Times requests over HTTP against direct calls of a session, by as many threads.

The server is a process of its own, as it would be in use; clients keep their connections. Blocks
of the three ways alternate, because a machine's speed drifts.
"""

import contextlib
import http.client
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from d2nas.errors import ConfigError, ValidationFailedError
from pipeline.onnx_io import INPUT_NAME
from pipeline.own_process import own_command, own_environment
from pipeline.serving.lifecycle import check_extra
from pipeline.serving.protocol import HEADER_LENGTH, encode_json
from pipeline.serving.service import signature_of

BLOCKS = 5
COLUMNS = ("way", "clients", "requests", "p50 ms", "p99 ms", "requests/s", "from", "to")
Call = Callable[[], NDArray[np.float32]]
"""Asks once and returns the logits."""


@dataclass
class _Way:
    """One way to ask, and what was measured; each client makes calls of its own."""

    name: str
    calls: list[Call]
    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def compare_serving(
    folder: Path, *, clients: int, requests: int, device: str
) -> list[dict[str, Any]]:
    """Return a row for each way of asking the bundle in ``folder``: ``requests`` of each client.

    ``p50_ms`` and ``p99_ms`` are of single requests of one image, all blocks together;
    ``requests_per_second`` is the median over blocks, with the least and the most. Raises as
    ``d2nas serve`` does, and ``ValidationFailedError`` if an answer is not the session's.
    """
    if requests < BLOCKS:
        raise ConfigError(f"{requests} requests: at least {BLOCKS} are needed, one for each block")
    check_extra()
    from pipeline.bundle.reader import open_bundle
    from pipeline.onnx_io.latency import timing_images
    from pipeline.onnx_io.providers import runtime_device
    from pipeline.onnx_io.session import open_session

    bundle = open_bundle(folder)
    device = runtime_device(device)
    session = open_session(bundle.model, device=device)
    images = timing_images(1, session.description)
    datatype = signature_of(bundle.description, 1).datatype
    expected = session.run(images)
    with _server(folder, device) as url, contextlib.ExitStack() as connections:

        def over_http(name: str, body: bytes, headers: Mapping[str, str]) -> _Way:
            path = f"/v2/models/{bundle.name}/infer"
            opened = [
                connections.enter_context(contextlib.closing(_connect(url))) for _ in range(clients)
            ]
            return _Way(name, [_asker(one, path, body, headers) for one in opened])

        ways = [
            _Way(f"direct, {session.device.label}", [lambda: session.run(images)] * clients),
            over_http("HTTP, binary tensors", *_binary_request(images, datatype)),
            over_http("HTTP, JSON", *_json_request(images, datatype)),
        ]
        for way in ways:
            for call in way.calls:
                _check(way.name, call(), expected)
        _measure(ways, requests // BLOCKS)
    return [_row(way, clients) for way in ways]


def table_rows(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the table's cells."""
    return [
        (
            row["way"],
            str(row["clients"]),
            str(row["requests"]),
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            *(f"{row[f'requests_per_second{end}']:,.0f}" for end in ("", "_min", "_max")),
        )
        for row in rows
    ]


def _measure(ways: list[_Way], requests: int) -> None:
    with ThreadPoolExecutor(len(ways[0].calls)) as clients:
        for block in range(BLOCKS):
            for way in ways if block % 2 == 0 else ways[::-1]:
                # The last one's threads look for work for a while, on cores the next one needs.
                time.sleep(0.1)
                began = time.perf_counter()
                done = list(clients.map(lambda call: _time(call, requests), way.calls))
                taken = time.perf_counter() - began
                way.seconds += [seconds for client in done for seconds in client]
                way.rates.append(requests * len(done) / taken)


def _time(call: Call, requests: int) -> list[float]:
    seconds = []
    for _ in range(requests):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return seconds


def _row(way: _Way, clients: int) -> dict[str, Any]:
    p50, p99 = np.quantile(way.seconds, [0.5, 0.99])
    return {
        "way": way.name,
        "clients": clients,
        "requests": len(way.seconds),
        "p50_ms": 1000 * float(p50),
        "p99_ms": 1000 * float(p99),
        "requests_per_second": statistics.median(way.rates),
        "requests_per_second_min": min(way.rates),
        "requests_per_second_max": max(way.rates),
        "blocks": len(way.rates),
    }


def _check(way: str, logits: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    if not np.allclose(logits, expected, rtol=1e-4, atol=1e-5):
        raise ValidationFailedError(f"{way}: the answer is not the session's")


@contextlib.contextmanager
def _server(folder: Path, device: str) -> Iterator[str]:
    """Start a server process; gives its URL once it is ready."""
    command = own_command("serve", str(folder), "--port", "0", "--device", device)
    with subprocess.Popen(
        command, env=own_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line.strip())
                if lines[-1] == "ready":
                    break
            else:
                raise ValidationFailedError(f"the server does not start ({' '.join(lines)})")
            yield next(line for line in lines if line.startswith("listening on ")).split()[-1]
        finally:
            process.terminate()


def _connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)


def _asker(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: Mapping[str, str]
) -> Call:
    def ask() -> NDArray[np.float32]:
        connection.request("POST", path, body, dict(headers))
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise ValidationFailedError(f"the server answers {response.status}")
        length = response.getheader(HEADER_LENGTH)
        if length is not None:
            return np.frombuffer(answer[int(length) :], "<f4").reshape(1, -1)
        return np.array(json.loads(answer)["outputs"][0]["data"], np.float32).reshape(1, -1)

    return ask


def _binary_request(images: NDArray[Any], datatype: str) -> tuple[bytes, dict[str, str]]:
    raw = images.tobytes()
    tensor = {
        **_tensor(images, datatype),
        "parameters": {"binary_data_size": len(raw)},
    }
    header = encode_json({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    return header + raw, {HEADER_LENGTH: str(len(header))}


def _json_request(images: NDArray[Any], datatype: str) -> tuple[bytes, dict[str, str]]:
    tensor = {**_tensor(images, datatype), "data": images.ravel().tolist()}
    return encode_json({"inputs": [tensor]}), {}


def _tensor(images: NDArray[Any], datatype: str) -> dict[str, Any]:
    return {"name": INPUT_NAME, "datatype": datatype, "shape": list(images.shape)}
