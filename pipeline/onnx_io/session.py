"""Sessions that run where they were told to, or not at all.

ONNX Runtime answers a request for CUDA with a working CPU session when a library is missing, and
may place single nodes on the CPU. A CUDA session is handed out here only after its provider, its
options and the place of every node were checked; the provider is checked again after every use.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from d2nas.cpus import usable_cpus
from d2nas.devices import CPU_PROVIDER, CUDA_PROVIDER
from d2nas.errors import ConfigError, OutOfMemoryError, ValidationFailedError

from . import INPUT_NAME, OUTPUT_NAME
from .devices import (
    NO_CUDA_HINT,
    CpuDevice,
    CudaDevice,
    Device,
    check_provider,
    describe_cpu,
    has_gpu,
    misplaced,
    placement,
    prove_cuda,
)
from .model_file import ModelDescription, check_model, describe
from .runtime import (
    LOG_ERRORS,
    LOG_FATAL,
    captured_log,
    is_out_of_memory,
    load_problem,
    load_runtime,
    problem,
    runtime_errors,
)

__all__ = [
    "BoundRun",
    "CpuDevice",
    "CudaDevice",
    "OnnxSession",
    "open_session",
]

Result = TypeVar("Result")

SMALLER_BATCHES = "use smaller batches (validate.parity_batches, validate.latency_batches)"

PLAIN = "plain"
MODE_OPTIONS: Mapping[str, Mapping[str, str]] = {
    PLAIN: {},
    "nhwc": {"prefer_nhwc": "1"},
    "cuda-graph": {"enable_cuda_graph": "1"},
    "nhwc-cuda-graph": {"prefer_nhwc": "1", "enable_cuda_graph": "1"},
}
"""Ways to run one model on CUDA, with the provider's options; a CPU has only the first."""


def may_serve(mode: str) -> bool:
    """Whether a server that takes any batch size at any time can run in ``mode``."""
    return "cuda-graph" not in mode


def modes_of(device: Device, chosen: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the modes to try on ``device``, plain first: those ``chosen``, or all."""
    if isinstance(device, CpuDevice):
        return (PLAIN,)
    # Plain always: it is what parity was checked in, and what serves where no other may.
    return tuple(m for m in MODE_OPTIONS if m == PLAIN or chosen is None or m in chosen)


_DEVICE = re.compile(r"cpu|cuda(?::(\d{1,3}))?")


class OnnxSession:
    """A model on a known device. Made by ``open_session``."""

    def __init__(
        self,
        runtime: Any,
        session: Any,
        device: Device,
        description: ModelDescription,
        mode: str = PLAIN,
    ) -> None:
        self._runtime = runtime
        self._session = session
        self._errors = runtime_errors(runtime)
        self._run_options = _quiet(runtime.RunOptions())
        self.device = device
        self.description = description
        self.mode = mode
        self._captured: dict[int, BoundRun] = {}

    @property
    def provider(self) -> str:
        """Name of the execution provider that this session was checked to use."""
        return CUDA_PROVIDER if isinstance(self.device, CudaDevice) else CPU_PROVIDER

    @property
    def num_nodes_placed(self) -> dict[str, int]:
        """Number of nodes on each execution provider."""
        return {name: len(nodes) for name, nodes in placement(self._session).items()}

    def check_provider(self) -> None:
        """Raise ``ValidationFailedError`` if the session has changed its provider."""
        check_provider(self._session, self.provider)

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits [N, classes] of ``images`` [N, *array_shape] as the model takes them.

        Raises ``ConfigError`` for images of another shape or type, ``OutOfMemoryError``, and
        ``ValidationFailedError`` if the runtime fails or has left its device.
        """
        self._check_images(images)
        feeds = {INPUT_NAME: np.ascontiguousarray(images)}
        outputs = self.attempt(lambda: self._session.run([OUTPUT_NAME], feeds, self._run_options))
        self.check_provider()
        logits: NDArray[np.float32] = outputs[0]
        return logits

    def bind(self, images: NDArray[Any]) -> "BoundRun":
        """Put ``images`` and room for their logits on the device; raises as ``run`` does."""
        self._check_images(images)
        if "cuda-graph" not in self.mode:
            return self.attempt(lambda: BoundRun(self, images))
        # A captured graph reads and writes where it did when it was captured: the same memory
        # for every binding of a batch size.
        captured = self._captured.get(len(images))
        if captured is None:
            captured = self._captured[len(images)] = self.attempt(lambda: BoundRun(self, images))
        else:
            self.attempt(lambda: captured.replace_images(images))
        return captured

    def attempt(self, action: Callable[[], Result]) -> Result:
        """Call ``action`` and turn the runtime's exceptions into errors of d2nas."""
        try:
            return action()
        except self._errors as error:
            if is_out_of_memory(error):
                raise _out_of_memory(self.device.label, error) from error
            raise ValidationFailedError(
                f"the model fails on {self.device.label} ({problem(error)})"
            ) from error

    def _check_images(self, images: NDArray[Any]) -> None:
        wanted, dtype = self.description.array_shape, self.description.dtype
        if images.dtype != dtype or images.shape[1:] != wanted or len(images) < 1:
            raise ConfigError(
                f"the model takes {dtype} images of shape [N, {', '.join(map(str, wanted))}], "
                f"got {images.dtype} {list(images.shape)}"
            )


class BoundRun:
    """One batch that already lies on the device: calling it runs the model and waits for it."""

    def __init__(self, owner: OnnxSession, images: NDArray[Any]) -> None:
        values = owner._runtime.OrtValue
        device = owner.device
        where = ("cuda", device.index) if isinstance(device, CudaDevice) else ("cpu", 0)
        shape = [len(images), owner.description.num_classes]
        self._owner = owner
        self._input = values.ortvalue_from_numpy(np.ascontiguousarray(images), *where)
        self._output = values.ortvalue_from_shape_and_type(shape, np.float32, *where)
        self._run_options = owner._run_options
        if "cuda-graph" in owner.mode:
            # Captured at the first run and replayed from then on: one graph for each batch size.
            self._run_options = _quiet(owner._runtime.RunOptions())
            self._run_options.add_run_config_entry("gpu_graph_id", str(len(images)))
        self._binding = owner._session.io_binding()
        self._binding.bind_ortvalue_input(INPUT_NAME, self._input)
        self._binding.bind_ortvalue_output(OUTPUT_NAME, self._output)

    def __call__(self) -> None:
        """Run once; return when the logits are complete on the device."""
        self._owner.attempt(self._run)

    def answer(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Copy other ``images`` of the same shape to the device, run, and return the logits."""
        self._owner.attempt(lambda: self.replace_images(images))
        self()
        return self.logits()

    def replace_images(self, images: NDArray[Any]) -> None:
        """Copy other ``images`` of the same shape to where the first ones lie."""
        self._input.update_inplace(np.ascontiguousarray(images))

    def logits(self) -> NDArray[np.float32]:
        """Copy the logits [N, classes] of the last run from the device."""
        logits: NDArray[np.float32] = self._output.numpy()
        return logits

    def _run(self) -> None:
        self._owner._session.run_with_iobinding(self._binding, self._run_options)
        self._binding.synchronize_outputs()


def _quiet(run_options: Any) -> Any:
    # What goes wrong in a run arrives as an exception; its native log line would be a second
    # report, on the terminal.
    run_options.log_severity_level = LOG_FATAL
    return run_options


def open_session(
    model: bytes,
    *,
    device: str,
    num_threads: int | None = None,
    what: str = "model",
    mode: str = PLAIN,
) -> OnnxSession:
    """Open ``model`` on ``device``: ``cpu``, ``cuda`` or ``cuda:N``; never on another one.

    ``num_threads`` is for the CPU; None takes all that this process may use. ``mode`` is one of
    ``MODE_OPTIONS``; those of CUDA graphs answer bound images only. Raises
    ``DamagedArtifactError`` for a model that ``check_model`` refuses (``what`` names it),
    ``ConfigError`` for a device that this machine or installation does not have,
    ``OutOfMemoryError``, and ``ValidationFailedError`` if a device that is there does not load or
    would not run the whole model.
    """
    found = _DEVICE.fullmatch(device)
    if found is None:
        raise ConfigError(f"device {device!r} is not cpu, cuda or cuda:N")
    if num_threads is not None and num_threads < 1:
        raise ConfigError(f"num_threads={num_threads} must be at least 1")
    if mode not in MODE_OPTIONS or (device == "cpu" and mode != PLAIN):
        raise ConfigError(f"{device} has no mode {mode}", hint="validate.modes")
    description = describe(check_model(model, what=what))
    runtime = load_runtime()
    if device == "cpu":
        return _open_cpu(runtime, model, num_threads or usable_cpus(), description)
    return _open_cuda(runtime, model, int(found[1] or 0), description, mode)


def _open_cpu(
    runtime: Any, model: bytes, num_threads: int, description: ModelDescription
) -> OnnxSession:
    options = _session_options(runtime)
    # Set even when it is the default, so that the label's number is the session's.
    options.intra_op_num_threads = num_threads
    device = describe_cpu(num_threads)
    try:
        with captured_log():
            session = runtime.InferenceSession(
                model, options, providers=[CPU_PROVIDER], enable_fallback=0
            )
    except runtime_errors(runtime) as error:
        if is_out_of_memory(error):
            raise _out_of_memory(device.label, error) from error
        raise ValidationFailedError(
            f"ONNX Runtime does not load the model on {device.label} ({problem(error)})"
        ) from error
    check_provider(session, CPU_PROVIDER)
    return OnnxSession(runtime, session, device, description)


def _open_cuda(
    runtime: Any, model: bytes, index: int, description: ModelDescription, mode: str
) -> OnnxSession:
    if CUDA_PROVIDER not in runtime.get_available_providers():
        raise ConfigError(
            "CUDA was asked for, but this ONNX Runtime is built without CUDA",
            hint="pip uninstall onnxruntime, then pip install onnxruntime-gpu; or the device cpu",
        )
    log: list[str] = []
    try:
        with captured_log() as log:
            preload_cuda(runtime)
            session = _cuda_session(runtime, model, index, strict_options(runtime), mode)
    except runtime_errors(runtime) as error:
        if is_out_of_memory(error):
            raise _out_of_memory(f"cuda:{index}", error) from error
        reason = load_problem("".join(log))
        if not has_gpu(index):
            raise ConfigError(
                f"CUDA was asked for (cuda:{index}), but no such GPU answers here "
                f"({reason or problem(error)})",
                hint=NO_CUDA_HINT,
            ) from error
        if reason is not None:
            why = f"it does not load ({reason})"
        else:
            why = _nodes_without_kernel(runtime, model, index) or problem(error)
        raise ValidationFailedError(
            f"CUDA was asked for (cuda:{index}), but {why}", hint=NO_CUDA_HINT
        ) from error
    device = prove_cuda(session, index, MODE_OPTIONS[mode])
    return OnnxSession(runtime, session, device, description, mode)


def preload_cuda(runtime: Any) -> None:
    """Load the CUDA libraries that PyTorch brings."""
    # The wheels of torch bring the CUDA libraries, in folders that no loader searches.
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()


def _cuda_session(runtime: Any, model: bytes, index: int, options: Any, mode: str = PLAIN) -> Any:
    provider_options = {
        "device_id": str(index),
        # Full float32 products: the parity tolerance is for these.
        "use_tf32": "0",
        # An exhaustive search costs seconds at every new batch size and gains nothing steady.
        "cudnn_conv_algo_search": "HEURISTIC",
        **MODE_OPTIONS[mode],
    }
    return runtime.InferenceSession(
        model, options, providers=[(CUDA_PROVIDER, provider_options)], enable_fallback=0
    )


def _session_options(runtime: Any) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = LOG_ERRORS
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def strict_options(runtime: Any) -> Any:
    """Return session options under which no node may fall back to the CPU."""
    options = _session_options(runtime)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _nodes_without_kernel(runtime: Any, model: bytes, index: int) -> str | None:
    """Name the nodes that made a strict session fail, by a lenient one that is thrown away."""
    try:
        with captured_log():
            session = _cuda_session(runtime, model, index, _session_options(runtime))
    except runtime_errors(runtime):
        return None
    if list(session.get_providers())[:1] != [CUDA_PROVIDER]:
        return "ONNX Runtime did not load it and would have used the CPU"
    return misplaced(session)


def _out_of_memory(where: str, error: BaseException) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"out of memory on {where} ({problem(error)})",
        hint=SMALLER_BATCHES,
    )
