"""Memory and connections of a server, and who gives them back when they are short.

Room is taken by bytes that have arrived, not by what a client announces. A body that is not whole
and an answer that is not taken are *unfinished*: their clients decide how long they stay, so they
are what gives way. A whole request is never given up: it is answered, and then its room is free.
"""

import asyncio
import ipaddress
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from .limits import PICTURE_BYTES, READ_BYTES, Limits

_LOOK_SECONDS = 0.02
"""Between two looks whether a connection may be closed."""


class Client(Protocol):
    """A connection, as far as it takes from others."""

    peer: str
    held: int
    """Bytes of its body or of its answer."""
    since: float
    """When it began to hold them, or was last of use; by ``time.monotonic``."""
    has_asked: bool
    """Whether it has sent a whole request before."""

    @property
    def is_unfinished(self) -> bool:
        """Whether its client decides how long it stays as it is."""
        ...

    @property
    def is_sending(self) -> bool:
        """Whether what it holds is a body on its way."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether it is asking for nothing, or has not said for what."""
        ...

    def give_way(self, message: str) -> None:
        """Free what it holds; it is told why if it can still be told."""
        ...

    def drop(self) -> None:
        """Close the connection at once."""
        ...

    def go_on(self) -> None:
        """Read again: there is room."""
        ...


class Capacity:
    """Capacity that all connections of a server share."""

    def __init__(self, limits: Limits, max_body_bytes: int) -> None:
        """``max_body_bytes`` is the length of the longest request that can be right."""
        self.limits = limits
        self.max_body_bytes = max_body_bytes
        # Two of them must fit, as two of the longest requests do.
        self.max_picture_bytes = max(
            max_body_bytes, min(PICTURE_BYTES, limits.room_for(max_body_bytes) // 2 - READ_BYTES)
        )
        self.is_stopping = False
        self._room = limits.room_for(max_body_bytes)
        self._taken = 0
        self._clients: set[Client] = set()
        self._waiting: dict[Client, None] = {}
        self._later: deque[Callable[[], None]] = deque()

    async def place(self) -> None:
        """Wait until there is a place for another connection; closes some if there are many."""
        while len(self._clients) >= self.limits.max_connections and not self._make_place():
            await asyncio.sleep(_LOOK_SECONDS)

    def enter(self, client: Client) -> None:
        """Count a connection."""
        self._clients.add(client)

    def _make_place(self) -> bool:
        """Close connections that do not wait for an answer; return whether there were any."""
        now = time.monotonic()
        per_peer = Counter(one.peer for one in self._clients)
        others = [one for one in self._clients if one.is_idle or one.is_unfinished]
        # Who was answered and keeps the connection stays as long as there is anybody else.
        new = [one for one in others if not (one.is_idle and one.has_asked)]

        def worth(one: Client) -> tuple[int, float, float]:
            # Who sends fast stays longest; then who came last.
            speed = one.held / max(now - one.since, 1.0) if one.is_sending else 0.0
            return -per_peer[one.peer], speed, one.since

        # Many at once, as choosing looks at all of them.
        most = max(1, self.limits.max_connections // 16)
        old = now - self.limits.grace_seconds
        chosen = sorted((one for one in new or others if one.since <= old), key=worth)[:most]
        for one in chosen:
            self._clients.discard(one)
            one.drop()
        return bool(chosen)

    def leave(self, client: Client) -> None:
        """Forget a connection that is gone."""
        self.free(client)
        self._clients.discard(client)

    def call_later(self, call: Callable[[], None]) -> None:
        """Call ``call`` when all that came before was called, one at each turn of the loop.

        For those who do not wait for answers: however many they are, between two of them
        everybody else has a turn.
        """
        self._later.append(call)
        if len(self._later) == 1:
            asyncio.get_running_loop().call_soon(self._call_next)

    def _call_next(self) -> None:
        call = self._later.popleft()
        if self._later:
            asyncio.get_running_loop().call_soon(self._call_next)
        call()

    def hold(self, client: Client, num_bytes: int) -> bool:
        """Take room for bytes that have come; return whether ``client`` may go on reading.

        If not, ``go_on`` is called later. May make others give way, and ``client`` itself.
        """
        client.held += num_bytes
        self._taken += num_bytes
        if self._taken <= self._room:
            return True
        self._make_room()
        if self._taken <= self._room or not client.held:
            return True
        self._waiting[client] = None
        return False

    def free(self, client: Client) -> None:
        """Give back all that ``client`` holds."""
        self._waiting.pop(client, None)
        self._taken -= client.held
        client.held = 0
        # As many as may each bring as much as one read.
        for _ in range(max(0, self._room - self._taken) // READ_BYTES):
            if not self._waiting:
                break
            first = next(iter(self._waiting))
            del self._waiting[first]
            first.go_on()

    def _make_room(self) -> None:
        """Make the unfinished give way while they hold more than half, the worst one first."""
        unfinished = [one for one in self._clients if one.is_unfinished and one.held]
        now = time.monotonic()
        while self._taken > self._room and sum(one.held for one in unfinished) > self._room // 2:
            per_peer: Counter[str] = Counter()
            for one in unfinished:
                per_peer[one.peer] += one.held
            (peer, _), *_ = per_peer.most_common(1)
            # Much memory for a long time: who sends or reads quickly is never the first.
            worst = max(
                (one for one in unfinished if one.peer == peer),
                key=lambda one: one.held * (now - one.since),
            )
            unfinished.remove(worst)
            worst.give_way("too much is being sent at a time and this was slowest, try again later")


def peer_of(address: str) -> str:
    """Return the peer of a remote address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))
