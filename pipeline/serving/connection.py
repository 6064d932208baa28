"""A connection that does not wait for ever: uvicorn bounds the time between requests only."""

import asyncio
import socket

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .protocol import encode_json


def connection_class(header_seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol over h11 where headers take ``header_seconds`` at most."""

    class Connection(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # An answer is two writes; without this the second one waits for the client's
            # acknowledgement of the first, 40 ms. asyncio sets it for some sockets only.
            connected = transport.get_extra_info("socket")
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                self._start()
            else:
                self._cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            body = encode_json({"error": f"{msg.rstrip('.')}, expected HTTP/1.1"})
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            try:
                head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
                for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            except h11.LocalProtocolError:
                pass  # an answer is already under way on this connection
            self.transport.close()

        def _start(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(header_seconds, self._expired)

        def _cancel(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _expired(self) -> None:
            self._timer = None
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                self.transport.close()

    return Connection
