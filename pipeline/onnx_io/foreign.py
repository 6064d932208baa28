"""Classifiers that others wrote, as ONNX, asked by ONNX Runtime for their answers.

Not for what is deployed (``session``): the interface is the model's own, and on a GPU single nodes
may be placed on the CPU, as operators that only compute shapes are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2nas.devices import CPU_PROVIDER, CUDA_PROVIDER
from d2nas.errors import ConfigError, D2NasError, OutOfMemoryError, one_line

from .model_file import check_whole
from .runtime import (
    LOG_ERRORS,
    captured_log,
    is_out_of_memory,
    load_problem,
    load_runtime,
    problem,
    runtime_errors,
)
from .session import preload_cuda

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class ForeignModel:
    """A model with one input of four axes and one output of two, on a device.

    ``axes`` are the input's after the batch, None where any size will do.
    """

    def __init__(self, data: bytes, *, cuda_index: int | None, num_threads: int, what: str) -> None:
        """Open a model on the CPU, or on a GPU by its number; ``what`` names it.

        Raises ``DamagedArtifactError`` for what is no model, ``ConfigError`` for one that does not
        load or has another interface, and for a device that is not there; ``OutOfMemoryError``.
        """
        check_whole(data, what=what)
        self._data, self._cuda, self._what = data, cuda_index, what
        self._runtime = load_runtime()
        self._errors = runtime_errors(self._runtime)
        self._open(num_threads)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            names = [", ".join(one.name for one in side) for side in (inputs, outputs)]
            raise self._refused(
                f"one input and one output are needed, it has {names[0]} and {names[1]}"
            )
        (given,), (found,) = inputs, outputs
        if given.type not in _DTYPES or len(given.shape) != 4:
            shape = ", ".join(map(str, given.shape))
            raise self._refused(f"its input is {given.type} [{shape}], no batch of images")
        self.dtype: np.dtype[Any] = np.dtype(_DTYPES[given.type])
        sizes = [axis if isinstance(axis, int) and axis > 0 else None for axis in given.shape]
        self._batch, *self.axes = sizes
        self._names = given.name, found.name
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.metadata: Mapping[str, str] = dict(metadata)

    def run(self, images: NDArray[Any], *, num_threads: int) -> NDArray[np.float32]:
        """Return the answers, float32 [N, classes], to images as the input takes them.

        Threads are those of the caller, whose sums then come in the same order again. Raises
        ``ConfigError`` where the model fails, ``OutOfMemoryError``.
        """
        if num_threads != self._num_threads:
            self._open(num_threads)
        size = self._batch or len(images)
        parts = [self._answer(images[at : at + size], size) for at in range(0, len(images), size)]
        found = np.concatenate(parts)
        if found.ndim != 2:
            raise self._refused(f"its answers are {list(found.shape)}, not [batch, classes]")
        return found.astype(np.float32)

    def _answer(self, images: NDArray[Any], size: int) -> NDArray[Any]:
        """Answer a batch, which is filled up where the model takes batches of one size only."""
        count, (taken, given) = len(images), self._names
        if count < size:
            images = np.concatenate([images, np.repeat(images[-1:], size - count, axis=0)])
        feeds = {taken: np.ascontiguousarray(images)}
        try:
            answers: NDArray[Any] = self._session.run([given], feeds)[0]
        except self._errors as error:
            raise self._failed(error, "fails") from error
        return answers[:count]

    def _open(self, num_threads: int) -> None:
        options = self._runtime.SessionOptions()
        options.log_severity_level = LOG_ERRORS
        options.intra_op_num_threads = self._num_threads = num_threads
        # Threads that wait for the next batch would keep the cores from the training in between.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        log: list[str] = []
        try:
            with captured_log() as log:
                self._session = self._runtime.InferenceSession(
                    self._data, options, providers=self._providers(), enable_fallback=0
                )
        except self._errors as error:
            raise self._failed(error, "does not load", "".join(log)) from error
        if self._cuda is not None and CUDA_PROVIDER not in self._session.get_providers():
            reason = load_problem("".join(log)) or "CUDA does not load"
            raise self._refused(f"{reason}, and CUDA was asked for")

    def _providers(self) -> list[Any]:
        if self._cuda is None:
            return [CPU_PROVIDER]
        if CUDA_PROVIDER not in self._runtime.get_available_providers():
            raise ConfigError(
                f"{self._what}: CUDA was asked for, but this ONNX Runtime is built without CUDA",
                hint="pip uninstall onnxruntime, then pip install onnxruntime-gpu",
            )
        preload_cuda(self._runtime)
        # As exact as a session for what is deployed: float32 is float32.
        gpu = {
            "device_id": str(self._cuda),
            "use_tf32": "0",
            "cudnn_conv_algo_search": "HEURISTIC",
        }
        return [(CUDA_PROVIDER, gpu), CPU_PROVIDER]

    def _failed(self, error: Exception, does: str, log: str = "") -> D2NasError:
        if is_out_of_memory(error):
            return OutOfMemoryError(
                f"{self._what}: out of memory ({problem(error, log)})",
                hint="lower retrain.batch_size",
            )
        return self._refused(f"{does} in ONNX Runtime ({problem(error, log)})")

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(f"{self._what}: {one_line(why, 400)}")
