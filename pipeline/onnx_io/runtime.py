"""ONNX Runtime, loaded late and kept quiet: import, its exception types, its messages.

Why a GPU library failed to load is known only to the runtime's native log on file descriptor 2.
It is captured there, so that the reason can be told and nothing leaks to the terminal.
"""

import contextlib
import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

from d2nas.errors import ConfigError, brief_reason, one_line

from ..scratch import scratch_file

LOG_ERRORS = 3
LOG_FATAL = 4

_capture_lock = threading.RLock()
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LIBRARY_FAILURE = re.compile(r"Failed to load library \S+ with error: ([^\n]+)")
_CUDA_FAILURE = re.compile(r"(?:CUDA|CUDNN|CUBLAS) failure \d+: [^;\n]+")
_LOG_PREFIX = re.compile(r"^.*?\[ONNXRuntimeError\] : \d+ : \w+ : ")
_OUT_OF_MEMORY = re.compile(
    r"out of memory|Failed to allocate memory|_STATUS_ALLOC_FAILED|bad_alloc", re.IGNORECASE
)


def load_runtime() -> Any:
    """Import ONNX Runtime with error-level logging; this package's import turned telemetry off.

    Raises ``ConfigError`` if it is not installed or does not load.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f"ONNX Runtime cannot be imported ({brief_reason(error, 300)})",
            hint="pip install onnxruntime-gpu (or onnxruntime where there is no GPU wheel)",
        ) from error
    onnxruntime.set_default_logger_severity(LOG_ERRORS)
    return onnxruntime


def runtime_errors(runtime: Any) -> tuple[type[Exception], ...]:
    """Return every exception type that ``runtime`` raises for a model or a device.

    Its native exceptions derive from ``Exception`` directly, so they have to be named.
    """
    native = [
        value
        for value in vars(runtime.capi.onnxruntime_pybind11_state).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    return (*native, RuntimeError, ValueError)


@contextlib.contextmanager
def captured_log() -> Iterator[list[str]]:
    """Divert file descriptor 2 and Python's prints; the list holds the text after the block.

    Process-wide while it lasts: for creating sessions, not for running them.
    """
    log: list[str] = []
    printed = io.StringIO()
    with _capture_lock, scratch_file() as file:
        try:
            saved = os.dup(2)
        except OSError:  # no standard error at all: nothing can leak
            saved = None
        if saved is not None:
            _flush()
            os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stdout(printed):
                yield log
        finally:
            if saved is not None:
                _flush()
                os.dup2(saved, 2)
                os.close(saved)
            file.seek(0)
            log.append(printed.getvalue() + file.read().decode(errors="replace"))


def load_problem(log: str) -> str | None:
    """Return the line of a captured log that says why a GPU library did not load, if any."""
    text = _COLOUR.sub("", log)
    found = _LIBRARY_FAILURE.search(text)
    if found:
        return one_line(found[1], 300)
    failure = _CUDA_FAILURE.search(text)
    return one_line(failure[0], 300) if failure else None


def problem(error: BaseException, log: str = "") -> str:
    """Say in one line why the runtime failed, by its captured log or else by its exception."""
    text = str(error)
    return load_problem(log) or load_problem(text) or one_line(_LOG_PREFIX.sub("", text), 300)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the runtime's exception says that memory ran out."""
    return _OUT_OF_MEMORY.search(str(error)) is not None


def _flush() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()
