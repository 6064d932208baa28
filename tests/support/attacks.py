"""Clients that take from a server what they can, and a server process to take it from.

    python tests/attacks.py [NAME=VALUE ...]     a server; ``image`` and ``max_batch`` say of what

Each attacker is a thread with many sockets; what the server closes is opened again.
"""

import contextlib
import json
import resource
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

Payload = Callable[[int], bytes]
"""What an attacking connection sends, by its number of bytes so far; empty: nothing for now."""


class Attack:
    """``number`` connections that send ``payload`` and read nothing. A context manager."""

    def __init__(self, url: str, number: int, payload: Payload) -> None:
        parts = urlsplit(url)
        self._address = (str(parts.hostname), int(parts.port or 0))
        self._payload = payload
        self._selector = selectors.DefaultSelector()
        self._number = number
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.num_opened = 0
        self.num_sent = 0
        self.is_up = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self.is_up.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join(timeout=60)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _open(self) -> None:
        with contextlib.suppress(OSError):
            sock = socket.create_connection(self._address, timeout=5)
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_WRITE, [0])
            self.num_opened += 1

    def _run(self) -> None:
        while not self._ends.is_set():
            for _ in range(self._number - len(self._selector.get_map())):
                self._open()
            busy = False
            for key, _ in self._selector.select(timeout=0.05):
                busy |= self._send(key)
            self.is_up.set()
            time.sleep(0.001 if busy else 0.02)

    def _send(self, key: selectors.SelectorKey) -> bool:
        sock, (sent,) = key.fileobj, key.data
        assert isinstance(sock, socket.socket)
        data = self._payload(sent)
        try:
            # Whether the server has closed; what it says stays where it is.
            with contextlib.suppress(BlockingIOError):
                if not sock.recv(1, socket.MSG_PEEK):
                    raise ConnectionResetError
            key.data[0] += sock.send(data) if data else 0
        except BlockingIOError:
            return False
        except OSError:
            self._selector.unregister(sock)
            sock.close()
            return True
        self.num_sent += len(data)
        return bool(data)


def begun(head: bytes, body: bytes = b"{") -> Payload:
    """A head and the beginning of a body, and then nothing."""
    data = head + body
    return lambda sent: data[sent : sent + 2**18]


def pipelined(request: bytes) -> Payload:
    """The same request again and again."""
    data = request * max(1, 2**16 // len(request))
    return lambda sent: data[sent % len(data) :]


def trickle(head: bytes, every: float) -> Payload:
    """A head, and then a byte of the body now and then, to each connection in turn."""
    last = [0.0]

    def payload(sent: int) -> bytes:
        if sent < len(head):
            return head[sent:]
        now = time.monotonic()
        if now - last[0] < every:
            return b""
        last[0] = now
        return b" "

    return payload


def memory_of(process: int, field: str = "VmRSS") -> int:
    """Resident bytes of a process; ``VmHWM`` is the most so far."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(field)


@contextlib.contextmanager
def server_process(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process that is ready, and its URL."""
    command = [sys.executable, __file__, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert process.stdout.readline() == "ready\n"
            yield process, url
        finally:
            process.kill()


def main(arguments: Sequence[str]) -> None:
    """Serve the classifier of the tests until a signal comes."""
    from onnx_models import hand_made_model
    from served import cold_service

    from pipeline.serving.lifecycle import ServerSocket, Serving
    from pipeline.serving.limits import Limits

    given = {
        name: json.loads(value) for name, _, value in (one.partition("=") for one in arguments)
    }
    if "files" in given:
        resource.setrlimit(resource.RLIMIT_NOFILE, (given["files"], given.pop("files")))
    model = hand_made_model()
    if "image" in given:
        for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
            axis.dim_value = given["image"]
        del given["image"]
    service, _ = cold_service(model, given.pop("max_batch", 4))
    with ServerSocket("127.0.0.1", 0) as listener:
        _say(listener.url)
        Serving(service, listener, replace(Limits(), **given), _say).run()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
