"""Limits of a server: for all clients together, and for each.

A *peer* is a remote address (of IPv6, its first 64 bits). Where room or work is short, the peer
that takes most gives way first. Behind a reverse proxy all clients have one address, as on the
loopback interface: then nothing is told apart by peer, and what holds is by connection alone.
"""

from dataclasses import dataclass

MIB = 1024 * 1024
BACKLOG = 4096
"""Connections that the system holds until they are accepted, where it allows so many."""
READ_BYTES = 32 * 1024
"""Most bytes that are taken from a connection at a time."""
MAX_HEAD_BYTES = 16 * 1024
"""Of a request line with its headers, beyond what one read brings."""
MAX_HEADERS = 100
PICTURE_BYTES = 16 * MIB
"""Of a picture that is sent to be classified."""
CONNECTION_BYTES = 128 * 1024
"""Most memory of a connection beside its body and its answer: two reads and a head, in Python."""


@dataclass(frozen=True)
class Limits:
    """Times in seconds, memory in bytes; each is for one connection unless it says otherwise."""

    read_seconds: float = 30.0
    """A request must have arrived whole within this time from its headers on."""
    header_seconds: float = 10.0
    """Time for the headers alone, from the connection's start or their first byte."""
    idle_seconds: float = 60.0
    """Time between two requests."""
    write_seconds: float = 30.0
    """Time in which an answer must be taken."""
    close_seconds: float = 2.0
    """Time in which a client may read the last answer while it is still sending."""
    num_workers: int = 2
    """Requests that are worked on at a time, of all: one is parsed while another is computed."""
    stop_seconds: int = 60
    """Time that running requests have once a stop was asked for."""
    max_connections: int = 1024
    """Of all clients. When more come, those are closed that have not sent a request."""
    grace_seconds: float = 0.5
    """Time in which a connection is not closed for others; so long, others wait to be accepted."""
    room_bytes: int = 256 * MIB
    """For bodies and for answers that are not yet taken, of all clients."""

    def memory_bytes(self, max_body_bytes: int) -> int:
        """Return the most memory that connections, requests and answers take together.

        Not counted: the model, and the ``num_workers`` requests that are being worked on.
        """
        return self.room_for(max_body_bytes) + self.max_connections * CONNECTION_BYTES

    def room_for(self, max_body_bytes: int) -> int:
        """Return ``room_bytes``, or more where two of the longest bodies would not fit."""
        return max(self.room_bytes, 2 * (max_body_bytes + READ_BYTES))
