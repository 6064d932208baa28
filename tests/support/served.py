"""Servers for tests: bundles made by hand, a server in a thread, requests written by hand."""

import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx_models import hand_made_model

from pipeline.bundle.reader import Bundle
from pipeline.onnx_io.model_file import check_model, describe
from pipeline.onnx_io.session import OnnxSession, open_session
from pipeline.serving.lifecycle import ServerSocket, Serving
from pipeline.serving.limits import Limits
from pipeline.serving.protocol import HEADER_LENGTH
from pipeline.serving.service import InferenceService

MAX_BATCH = 4
INFER = "/v2/models/toy/infer"


def pixel_model() -> onnx.ModelProto:
    """The hand-made classifier, for uint8 pixels [batch, 4, 4, 1]."""
    model = hand_made_model()
    graph = model.graph
    graph.input[0].CopyFrom(
        helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 4, 4, 1])
    )
    graph.node[0].input[0] = "planes"
    graph.node.insert(
        0, helper.make_node("Transpose", ["floats"], ["planes"], name="to", perm=[0, 3, 1, 2])
    )
    graph.node.insert(
        0, helper.make_node("Cast", ["images"], ["floats"], name="cast", to=TensorProto.FLOAT)
    )
    return model


def bundle_of(model: onnx.ModelProto, max_batch: int = MAX_BATCH, kind: str = "cpu") -> Bundle:
    """A bundle that has only what serving looks at, validated on a ``kind`` of device."""
    data = model.SerializeToString()
    description = describe(check_model(data, what="model"))
    labels = tuple(map(str, range(description.num_classes)))
    shape = (2, *description.array_shape)
    images = (np.arange(np.prod(shape)) % 7).astype(description.dtype).reshape(shape)
    logits = open_session(data, device="cpu", num_threads=1).run(images)
    limits = {"relative_l2": 1e-5, "top1_agreement": 0.999}
    report = {
        "model": {"precision": "fp32"},
        "parity": {"limits": limits},
        "device": {"kind": kind, "label": {"cpu": "CPU Test", "cuda": "CUDA Test GPU"}[kind]},
    }
    golden = {"images": images, "logits": logits}
    return Bundle(
        Path("toy"), "toy", 1, data, description, labels, {}, report, golden, max_batch, "0" * 64
    )


def cold_service(
    model: onnx.ModelProto | None = None, max_batch: int = MAX_BATCH
) -> tuple[InferenceService, OnnxSession]:
    """A service that is not ready, and the session to ask directly."""
    bundle = bundle_of(model or hand_made_model(), max_batch)
    session = open_session(bundle.model, device="cpu", num_threads=1)
    return InferenceService(bundle, session), session


def warm_service(
    model: onnx.ModelProto | None = None, max_batch: int = MAX_BATCH
) -> tuple[InferenceService, OnnxSession]:
    """A service that is ready."""
    service, session = cold_service(model, max_batch)
    service.warm_up()
    return service, session


@contextmanager
def running(
    service: InferenceService,
    limits: Limits | None = None,
    warm_up: Callable[[], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[str]:
    """A real server in a thread; gives its URL."""
    listening = ServerSocket("127.0.0.1", 0)
    serving = Serving(service, listening, limits, say, warm_up)
    thread = threading.Thread(target=serving.run)
    thread.start()
    try:
        yield listening.url
    finally:
        serving.stop()
        thread.join(timeout=60)
        assert not thread.is_alive()


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The error's line; checks that there is nothing else."""
        document = json.loads(self.body)
        assert list(document) == ["error"]
        assert "\n" not in document["error"]
        assert "Traceback" not in document["error"]
        return str(document["error"])

    @property
    def logits(self) -> NDArray[np.float32]:
        """The logits of an answer, JSON or binary."""
        assert self.status == 200, self.body[:300]
        length = next((v for k, v in self.headers.items() if k.lower() == HEADER_LENGTH.lower()), 0)
        return decoded(self.body, int(length) or None)


def decoded(body: bytes, header_length: int | None) -> NDArray[np.float32]:
    """The logits in an answer's body."""
    document = json.loads(body[:header_length])
    (output,) = document["outputs"]
    assert (output["name"], output["datatype"]) == ("logits", "FP32")
    if header_length is None:
        values = np.array(output["data"], np.float64).astype(np.float32)
    else:
        raw = body[header_length:]
        assert output["parameters"]["binary_data_size"] == len(raw)
        values = np.frombuffer(raw, "<f4")
    return values.reshape(output["shape"])


def connect(url: str) -> http.client.HTTPConnection:
    """A connection that outlives a request."""
    parts = urlsplit(url)
    return http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)


def raw_connection(url: str) -> socket.socket:
    """A connection for bytes that no client library would send."""
    parts = urlsplit(url)
    return socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=60)


def received(sock: socket.socket) -> bytes:
    """Everything until the server closes."""
    answer = b""
    while chunk := sock.recv(65536):
        answer += chunk
    return answer


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Send one request and read its answer."""
    connection.request(method, path, body, dict(headers or {}))
    response = connection.getresponse()
    return Reply(response.status, dict(response.headers), response.read())


def ask_once(url: str, method: str, path: str, *arguments: Any) -> Reply:
    """Send one request on a connection of its own."""
    with closing(connect(url)) as connection:
        return ask(connection, method, path, *arguments)


def images_of(num_images: int, seed: int = 0) -> NDArray[np.float32]:
    """Images for the hand-made classifier, of which no two are alike."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=(num_images, 1, 4, 4)).astype(np.float32)


def json_request(images: NDArray[Any], **others: Any) -> dict[str, Any]:
    """A request with its values in the JSON."""
    datatype = "UINT8" if images.dtype == np.uint8 else "FP32"
    tensor = {"name": "images", "datatype": datatype, "shape": list(images.shape)}
    return {"inputs": [{**tensor, "data": images.ravel().tolist()}], **others}


def binary_request(images: NDArray[Any], **others: Any) -> tuple[bytes, dict[str, str]]:
    """A request with its values behind the JSON: its body and its headers."""
    raw = images.tobytes()
    document = json_request(images, **others)
    del document["inputs"][0]["data"]
    document["inputs"][0]["parameters"] = {"binary_data_size": len(raw)}
    header = json.dumps(document).encode()
    return header + raw, {HEADER_LENGTH: str(len(header))}


@contextmanager
def serving(
    bundle: Path, *options: str, program: tuple[str, ...] = ("-m", "d2nas"), **process: Any
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A server process that is ready, its URL, and the lines it has said so far."""
    command = [sys.executable, *program, "serve", str(bundle), "--port", "0", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **process
    ) as server:
        try:
            assert server.stderr is not None
            lines: list[str] = []
            for line in server.stderr:
                lines.append(line.rstrip("\n"))
                if lines[-1] == "ready":
                    break
            (url,) = (line.split()[-1] for line in lines if line.startswith("listening on "))
            yield server, url, lines
        finally:
            server.kill()
