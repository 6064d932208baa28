"""``d2nas serve`` as a process: what it says, what ends it, what it refuses to start with."""

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import fake_runtime
import numpy as np
import pytest
from fake_runtime import Situation
from safetensors.numpy import load_file
from served import (
    ask_once,
    bundle_of,
    cold_service,
    connect,
    hand_made_model,
    json_request,
    running,
    serving,
)

from d2nas.errors import ConfigError, OutOfMemoryError, StoppedError, ValidationFailedError
from pipeline.bundle.prediction import open_model, serving_mode
from pipeline.cli import run
from pipeline.onnx_io.session import MODE_OPTIONS
from pipeline.serving.connection import Entrance
from pipeline.serving.lifecycle import ServerSocket, Serving, open_service
from pipeline.serving.limits import Limits

INFER = "/v2/models/toy/infer"


def begin(connection: http.client.HTTPConnection, body: bytes) -> None:
    """Send the headers of a request and wait until the server is at it."""
    connection.putrequest("POST", INFER)
    connection.putheader("Content-Length", str(len(body)))
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    assert connection.sock.recv(1000).startswith(b"HTTP/1.1 100 ")


def test_a_bundle_is_served_and_gives_its_golden_answers(finished_folder: Path) -> None:
    bundle = finished_folder / "exported" / "toy"
    golden = load_file(bundle / "golden.safetensors")
    with serving(bundle, "--device", "cpu") as (process, url, lines):
        assert url.startswith("http://127.0.0.1:")
        metadata = json.loads(ask_once(url, "GET", "/v2").body)
        assert metadata["provider"] == "CPUExecutionProvider"
        assert lines == [
            f"toy, version 1, on {metadata['device']}",
            f"listening on {url}",
            "ready",
        ]
        images = next(value for name, value in golden.items() if value.ndim == 4)
        expected = next(value for name, value in golden.items() if value.ndim == 2)
        request = json.dumps(json_request(images[:2])).encode()
        np.testing.assert_allclose(
            ask_once(url, "POST", INFER, request).logits, expected[:2], atol=1e-4
        )
        assert ask_once(url, "POST", INFER, b"{").status == 400
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "stopped\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_requests_are_answered_before_the_end(
    finished_folder: Path, number: signal.Signals
) -> None:
    bundle = finished_folder / "exported" / "toy"
    images = next(v for v in load_file(bundle / "golden.safetensors").values() if v.ndim == 4)
    body = json.dumps(json_request(images[:2])).encode()
    with serving(bundle, "--device", "cpu") as (process, url, _):
        expected = ask_once(url, "POST", INFER, body).logits
        with closing(connect(url)) as connection:
            begin(connection, body)
            process.send_signal(number)
            while not refused(url):
                pass
            connection.send(body)
            response = connection.getresponse()
            (output,) = json.loads(response.read())["outputs"]
        assert response.status == 200
        np.testing.assert_array_equal(
            np.array(output["data"], np.float32).reshape(output["shape"]), expected
        )
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "stopped\n")


def refused(url: str) -> bool:
    """Return whether nobody listens any more."""
    with closing(connect(url)) as connection:
        try:
            connection.connect()
        except OSError:
            return True
        return False


def test_a_second_signal_ends_at_once(finished_folder: Path) -> None:
    bundle = finished_folder / "exported" / "toy"
    with (
        serving(bundle, "--device", "cpu") as (process, url, _),
        closing(connect(url)) as connection,
    ):
        begin(connection, b"{}")
        process.send_signal(signal.SIGTERM)
        while not refused(url):
            pass
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert err == "error: stopped at once by a second signal\n"


def test_a_device_that_is_not_there_is_refused_before_listening(finished_folder: Path) -> None:
    bundle = str(finished_folder / "exported" / "toy")
    for device in ("cuda:99", "gpu"):
        command = [sys.executable, "-m", "d2nas", "serve", bundle, "--port", "0"]
        done = subprocess.run([*command, "--device", device], capture_output=True, text=True)
        assert done.returncode in (2, 3)
        assert done.stderr.startswith("error: ")
        assert "listening" not in done.stderr
        assert "Traceback" not in done.stderr


# Without a process


@pytest.mark.parametrize("name", ["starlette", "uvicorn"])
def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert run(["serve", str(tmp_path)]) == 2
    error, hint = capfd.readouterr().err.splitlines()
    assert error.startswith("error: serving needs what is not installed")
    assert name in error
    assert hint == "hint: pip install '.[serve]' in the clone"


def test_an_address_that_is_taken_is_refused() -> None:
    with ServerSocket("127.0.0.1", 0) as taken:
        assert taken.is_loopback
        with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1, port") as caught:
            ServerSocket("127.0.0.1", taken.port)
        assert caught.value.hint == "--port 0 takes any free port"
    with ServerSocket("0.0.0.0", 0) as public:
        assert not public.is_loopback


@pytest.mark.parametrize("host", ["no.such.host.invalid", "", "a" * 300, "256.0.0.1", "\ud800"])
def test_an_address_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        ServerSocket(host, 0)


def test_a_failed_warm_up_ends_the_server() -> None:
    service, _ = cold_service()

    def fail() -> None:
        raise OutOfMemoryError("out of memory on cuda:0")

    with ServerSocket("127.0.0.1", 0) as listening:
        server = Serving(service, listening, warm_up=fail)
        with pytest.raises(OutOfMemoryError, match="out of memory on cuda:0"):
            server.run()
    assert service.problem == "the model is warming up"


def test_automatic_choice_never_calls_a_cpu_a_gpu() -> None:
    service = open_service(bundle_of(hand_made_model()), "auto")
    place = service.server_metadata()
    kind = {"CPUExecutionProvider": "CPU ", "CUDAExecutionProvider": "CUDA "}[place["provider"]]
    assert place["device"].startswith(kind)


def test_a_device_that_answers_otherwise_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_of(hand_made_model())
    bundle.golden["logits"][0, 0] += np.float32(0.1)
    with pytest.raises(ValidationFailedError, match="golden inputs are answered otherwise on CPU"):
        open_service(bundle, "cpu")
    # Control: only the golden inputs tell.
    monkeypatch.setattr(
        "pipeline.bundle.prediction.judge_parity", lambda found, limits, **_: ("passed", ())
    )
    assert open_service(bundle, "cpu").device.startswith("CPU ")


@pytest.mark.parametrize(
    ("report", "device", "mode"),
    [
        ({"best_mode": "nhwc"}, "cuda:1", "nhwc"),
        ({"best_mode": "nhwc"}, "cpu", "plain"),
        ({"best_mode": "plain"}, "cuda", "plain"),
        ({"best_mode": None}, "cuda", "plain"),
        ({}, "cuda", "plain"),
    ],
)
def test_a_gpu_serves_in_the_mode_of_the_bundle(
    report: dict[str, object], device: str, mode: str
) -> None:
    assert serving_mode(report, device) == mode
    assert mode in MODE_OPTIONS


@pytest.mark.parametrize(
    ("validated", "asked", "loads", "served", "warning"),
    [
        ("cuda", "auto", True, "CUDA ", None),
        (
            "cuda",
            "auto",
            False,
            "CPU ",
            r"on CUDA .*, served on cpu: .*; CUDA .*libcublas",
        ),
        ("cuda", "cpu", True, "CPU ", "validated on CUDA Test GPU, served on cpu: no latency of"),
        ("cpu", "auto", True, "CPU ", None),
        ("cpu", "cuda:1", True, "CUDA ", "validated on CPU Test, served on cuda:1"),
    ],
)
def test_what_is_served_elsewhere_than_it_was_validated_is_warned_of(
    validated: str,
    asked: str,
    loads: bool,
    served: str,
    warning: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = bundle_of(hand_made_model(), kind=validated)
    fake_runtime.install(Situation(cuda_loads=loads), monkeypatch)
    bundle.golden["logits"][:] = 0  # what the stand-in answers
    bundle.report["parity"]["limits"]["relative_l2"] = 1.0
    warned: list[str] = []
    monkeypatch.setattr(
        "pipeline.bundle.prediction.judge_parity", lambda found, limits, **_: ("passed", ())
    )
    service = open_service(bundle, asked, warned.append)
    assert service.device.startswith(served)
    assert len(warned) == (warning is not None)
    if warning is not None:
        assert re.search(warning, warned[0])


def test_a_model_that_is_verified_runs_in_the_mode_that_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = fake_runtime.install(Situation(options_in_use={"prefer_nhwc": "1"}), monkeypatch)
    bundle = bundle_of(hand_made_model(), kind="cuda")
    assert open_model(bundle, "cuda").mode == "plain"
    bundle.report["best_mode"] = "nhwc"
    assert open_model(bundle, "cuda").mode == "nhwc"
    assert fake.requests[-1][0][0][1]["prefer_nhwc"] == "1"
    assert open_model(bundle, "cpu").mode == "plain"


def test_signals_are_given_back() -> None:
    service, _ = cold_service()
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with ServerSocket("127.0.0.1", 0) as listening:
        server = Serving(service, listening)
        server._warm_up = lambda: os.kill(os.getpid(), signal.SIGTERM)
        server.run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_control_a_request_under_way_is_lost_when_it_is_not_waited_for() -> None:
    service, _ = cold_service()
    with (
        ServerSocket("127.0.0.1", 0) as listening,
        closing(connect(listening.url)) as connection,
    ):
        server = Serving(service, listening)

        def stop_by_force() -> None:
            begin(connection, b"{}")
            for _ in range(2):
                server._handle(signal.SIGTERM, None)

        server._warm_up = stop_by_force
        with pytest.raises(StoppedError):
            server.run()
        response = connection.sock.recv(1000)
    assert response.startswith(b"HTTP/1.1 503 ")
    assert b'{"error":"the server is stopping"}' in response


def test_a_request_that_does_not_end_cannot_hold_the_server() -> None:
    service, _ = cold_service()
    with (
        ServerSocket("127.0.0.1", 0) as listening,
        closing(connect(listening.url)) as connection,
    ):
        server = Serving(service, listening, Limits(stop_seconds=1))

        def stop() -> None:
            begin(connection, b"{}")
            server.stop()

        server._warm_up = stop
        server.run()
        assert connection.sock.recv(1000).startswith(b"HTTP/1.1 503 ")


def test_a_server_in_a_thread_leaves_signals_alone() -> None:
    service, _ = cold_service()
    before = signal.getsignal(signal.SIGTERM)
    with running(service) as url:
        assert ask_once(url, "GET", "/v2/health/live").status == 200
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_stop_has_one_time_for_all_that_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: Entrance) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Entrance, "end", never)
    service, _ = cold_service()
    with ServerSocket("127.0.0.1", 0) as listening:
        server = Serving(service, listening, Limits(stop_seconds=1))
        server._warm_up = server.stop
        server.run()
    # What is left for the requests; without the one time it would be the whole second again.
    assert server._server.config.timeout_graceful_shutdown == 0
