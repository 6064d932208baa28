"""Counts and times of requests: the protocol's statistics of a model, and Prometheus's text.

Names and meanings are Triton's, so that its dashboards and alerts fit. Written here and not by
``prometheus_client``, which gives every counter the ending ``_total``, which Triton's lack.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .protocol import Times


@dataclass
class Sum:
    """How often something was, and for how long in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Add what took ``ns``."""
        self.count += count
        self.ns += ns

    def to_dict(self) -> dict[str, int]:
        """Return JSON data."""
        return {"count": self.count, "ns": self.ns}


@dataclass
class _OfBatch:
    compute_input: Sum = field(default_factory=Sum)
    compute_infer: Sum = field(default_factory=Sum)
    compute_output: Sum = field(default_factory=Sum)

    def add(self, one: Times) -> None:
        self.compute_input.add(one.input_ns)
        self.compute_infer.add(one.infer_ns)
        self.compute_output.add(one.output_ns)

    def to_dict(self) -> dict[str, dict[str, int]]:
        return {name: value.to_dict() for name, value in vars(self).items()}


class Statistics:
    """Requests for one version of a model since the server began. Any thread may count."""

    def __init__(self, model: str, version: str) -> None:
        self._model, self._version = model, version
        self._lock = threading.Lock()
        self._success, self._fail, self._queue = Sum(), Sum(), Sum()
        self._all = _OfBatch()
        self._of_batches: dict[int, _OfBatch] = {}
        self._images = self._pending = self._last_ms = 0

    def begin(self) -> None:
        """Count a request that has come."""
        with self._lock:
            self._pending += 1

    def fail(self, ns: int) -> None:
        """Count a request that ended without an answer, ``ns`` after it came."""
        with self._lock:
            self._pending -= 1
            self._fail.add(ns)

    def succeed(self, ns: int, queue_ns: int, one: Times) -> None:
        """Count a request that was answered, ``ns`` after it came, and waited ``queue_ns``."""
        with self._lock:
            self._pending -= 1
            self._success.add(ns)
            self._queue.add(queue_ns)
            self._all.add(one)
            self._of_batches.setdefault(one.images, _OfBatch()).add(one)
            self._images += one.images
            self._last_ms = time.time_ns() // 1_000_000

    def to_dict(self) -> dict[str, Any]:
        """Return what ``/v2/models/NAME/stats`` says (the protocol's statistics extension)."""
        with self._lock:
            return {
                "model_stats": [
                    {
                        "name": self._model,
                        "version": self._version,
                        "last_inference": self._last_ms,
                        "inference_count": self._images,
                        "execution_count": self._success.count,
                        "inference_stats": {
                            "success": self._success.to_dict(),
                            "fail": self._fail.to_dict(),
                            "queue": self._queue.to_dict(),
                            **self._all.to_dict(),
                        },
                        "batch_stats": [
                            {"batch_size": batch, **of_batch.to_dict()}
                            for batch, of_batch in sorted(self._of_batches.items())
                        ],
                    }
                ]
            }

    def metrics(self) -> str:
        """Return what ``/metrics`` says: Prometheus's text format 0.0.4."""
        labels = f'{{model="{_escaped(self._model)}",version="{_escaped(self._version)}"}}'
        with self._lock:
            rows = [*self._rows()]
        lines = []
        for name, kind, about, value in rows:
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}", f"{name}{labels} {value}"]
        return "\n".join(lines) + "\n"

    def _rows(self) -> Iterator[tuple[str, str, str, int]]:
        times = {
            "request": (self._success.ns, "from request to answer"),
            "queue": (self._queue.ns, "waiting for a worker"),
            "compute_input": (self._all.compute_input.ns, "reading requests"),
            "compute_infer": (self._all.compute_infer.ns, "computing"),
            "compute_output": (self._all.compute_output.ns, "writing answers"),
        }
        yield "nv_inference_request_success", "counter", "Requests answered", self._success.count
        yield "nv_inference_request_failure", "counter", "Requests refused", self._fail.count
        yield "nv_inference_count", "counter", "Images answered", self._images
        yield "nv_inference_exec_count", "counter", "Batches computed", self._success.count
        for name, (ns, about) in times.items():
            key = f"nv_inference_{name}_duration_us"
            yield key, "counter", f"Microseconds {about}, of answered requests", ns // 1000
        yield (
            "nv_inference_pending_request_count",
            "gauge",
            "Requests that wait or are being answered",
            self._pending,
        )


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
