"""Processes that decode batches of images ahead of time into memory they share with their parent.

The memory is anonymous and allocated before the processes are forked: neither files in /dev/shm
nor semaphores are needed, so that a container's small, full or read-only /dev/shm changes nothing.
What fails in a worker arrives as a value; a worker that ends or stalls is noticed while waiting.
"""

import mmap
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import util
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import D2NasError, OutOfMemoryError, StorageError

AHEAD = 4
"""Batches that each worker has ready or in hand."""
POLL_SECONDS = 0.5
"""How often one who waits looks at the worker and for a stop."""
END_SECONDS = 5.0
"""How long a killed worker may take to be gone."""

_FEWER = "lower data.workers, 0 uses none"


class Failure(NamedTuple):
    """An error on its way from a worker: exceptions lose their hint when they are pickled."""

    kind: type[D2NasError] | None
    """None: a bug, whose message is the traceback."""
    message: str
    hint: str | None

    def error(self) -> Exception:
        """Return what to raise."""
        if self.kind is None:
            return RuntimeError(f"in a process that reads images:\n{self.message}")
        return self.kind(self.message, hint=self.hint)


class ImageWorkers:
    """The batches of an endless iterator of requests, decoded by ``number`` processes, in order.

    ``decode`` fills uint8 pixels of ``shape`` (N x channels x size x size) as a request says. It
    runs in the workers. ``stalled`` is called while a batch is late, and may raise.

    Raises ``OutOfMemoryError`` where the system has no room for the memory or the processes.
    """

    def __init__(
        self,
        decode: Callable[[Any, NDArray[np.uint8]], None],
        requests: Iterator[Any],
        shape: Sequence[int],
        number: int,
    ) -> None:
        self._requests, self._shape, self._number = requests, tuple(shape), number
        self._workers: list[_Worker] = []
        self._sent = self._read = 0
        self.close = util.Finalize(self, _end, (self._workers,), exitpriority=10)
        slots = number * AHEAD
        try:
            memory = mmap.mmap(-1, max(1, slots * int(np.prod(self._shape))))
            self._slots = np.frombuffer(memory, np.uint8, slots * int(np.prod(self._shape)))
            self._slots = self._slots.reshape(slots, *self._shape)
            for _ in range(number):
                self._workers.append(_Worker(decode, self._slots))
        except (OSError, MemoryError) as error:
            self.close()
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise OutOfMemoryError(
                f"the {number} processes that read images cannot be started: {reason}",
                hint=f"{_FEWER}; or allow more memory, open files (ulimit -n) or processes",
            ) from error

    def next(self, out: Tensor, stalled: Callable[[float], None]) -> None:
        """Copy the next batch to ``out``.

        Raises what the decoding raised, ``OutOfMemoryError`` when its worker has ended, and what
        ``stalled`` raises; after that the workers are of no more use.
        """
        while self._sent < self._read + self._number * AHEAD:
            worker = self._workers[self._sent % self._number]
            worker.send((self._sent % len(self._slots), next(self._requests)))
            self._sent += 1
        answer = self._workers[self._read % self._number].answer(stalled)
        if answer is not None:
            raise answer.error() from None
        out.copy_(torch.from_numpy(self._slots[self._read % len(self._slots)]))
        self._read += 1


class _Worker:
    """One process, and the parent's end of the socket to it."""

    def __init__(
        self, decode: Callable[[Any, NDArray[np.uint8]], None], slots: NDArray[np.uint8]
    ) -> None:
        context = multiprocessing.get_context("fork")
        self.link, theirs = context.Pipe()
        self.process: ForkProcess | None = None
        try:
            process = context.Process(
                target=_work, args=(decode, slots, theirs, self.link), daemon=True
            )
            process.start()
        except BaseException:
            self.link.close()
            raise
        finally:
            theirs.close()  # else the worker's end would be open when it has ended
        self.process = process

    def send(self, request: Any) -> None:
        """Hand a request over; the worker takes it whatever it does."""
        try:
            self.link.send(request)
        except OSError as error:
            raise self._lost() from error

    def answer(self, stalled: Callable[[float], None]) -> Failure | None:
        """Wait for what became of the oldest request."""
        started = time.monotonic()
        try:
            while not self.link.poll(POLL_SECONDS):
                stalled(time.monotonic() - started)
            answer: Failure | None = self.link.recv()
        except (OSError, EOFError) as error:
            raise self._lost() from error
        return answer

    def end(self) -> None:
        """Kill the process, which holds nothing that could be lost, and forget it."""
        self.link.close()
        if self.process is not None:
            self.process.kill()
            self.process.join(END_SECONDS)

    def _lost(self) -> OutOfMemoryError:
        assert self.process is not None
        self.process.join(POLL_SECONDS)
        code = self.process.exitcode
        how = "" if code is None else f": exit code {code}"
        if code is not None and code < 0:
            how = f": killed by {signal.Signals(-code).name}"
        return OutOfMemoryError(
            f"a process that reads images ended{how}",
            hint=f"memory, or a container's limit of it, is the usual reason: {_FEWER}",
        )


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.end()
    workers.clear()


def _work(
    decode: Callable[[Any, NDArray[np.uint8]], None],
    slots: NDArray[np.uint8],
    link: Connection,
    parents_end: Connection,
) -> None:
    """Serve requests until the parent is gone. The main function of a worker."""
    leave_signals_to_the_parent()
    parents_end.close()
    torch.set_num_threads(1)  # the workers are many; threads do not survive a fork either
    requests: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(link, requests), daemon=True).start()
    while True:
        slot, request = requests.get()
        answer = attempt(decode, request, slots[slot])
        try:
            link.send(answer)
        except OSError:
            os._exit(0)


def attempt(
    decode: Callable[[Any, NDArray[np.uint8]], None], request: Any, out: NDArray[np.uint8]
) -> Failure | None:
    """Decode one batch to ``out``; return what failed."""
    try:
        decode(request, out)
    except D2NasError as error:
        return Failure(type(error), str(error), error.hint)
    except MemoryError:
        return Failure(OutOfMemoryError, "no memory for decoding images", _FEWER)
    except OSError as error:
        reason = error.strerror or str(error)
        return Failure(StorageError, f"a process that reads images: {reason}", _FEWER)
    except Exception:  # noqa: BLE001 (the parent raises it)
        return Failure(None, traceback.format_exc(), None)
    return None


def _receive(link: Connection, requests: "queue.SimpleQueue[tuple[int, Any]]") -> None:
    # A thread, so that the parent can hand over what is longer than the socket holds, and that the
    # parent's end is noticed, while a batch is decoded.
    try:
        while True:
            requests.put(link.recv())
    except (EOFError, OSError):
        os._exit(0)


def leave_signals_to_the_parent() -> None:
    """Ignore what stops a whole process group: the parent finishes its step and saves; until then
    it needs its workers.
    """
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "sigwaitinfo"):  # which tells who sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        threading.Thread(target=_end_when_the_parent_asks, daemon=True).start()


def _end_when_the_parent_asks() -> None:
    while signal.sigwaitinfo((signal.SIGTERM,)).si_pid != os.getppid():
        pass
    os._exit(0)
