"""Requests that wait for a worker: lines of them take turns, so that a long one delays itself.

A peer has two lines: of requests that were sent before the last answer was taken, and of others.
"""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class Turns:
    """At most ``num_workers`` calls in ``workers`` at a time."""

    def __init__(self, workers: ThreadPoolExecutor, num_workers: int) -> None:
        self._workers = workers
        self._free = num_workers
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def run(self, line: str, call: Callable[[], Result]) -> Result:
        """Return what ``call`` returns in a worker, once it is the turn of ``line``."""
        loop = asyncio.get_running_loop()
        if self._free:
            self._free -= 1
        else:
            await self._turn(line, loop.create_future())
        try:
            job = self._workers.submit(call)
        except RuntimeError:  # the workers have been shut down
            self._pass_on()
            raise

        def finished(_job: object) -> None:
            # The loop may have ended before the thread: then nobody waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._pass_on)

        job.add_done_callback(finished)
        return await asyncio.wrap_future(job)

    async def _turn(self, line: str, turn: "asyncio.Future[None]") -> None:
        self._waiting.setdefault(line, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(line, turn)
            else:
                self._pass_on()
            raise

    def _forget(self, line: str, turn: "asyncio.Future[None]") -> None:
        turns = self._waiting.get(line, deque())
        with contextlib.suppress(ValueError):  # its turn has come meanwhile
            turns.remove(turn)
        if not turns:
            self._waiting.pop(line, None)

    def _pass_on(self) -> None:
        """Give a worker that is free to the next line."""
        while self._waiting:
            line, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[line] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
