"""A stand-in for the ``onnxruntime`` module that loads, fails or misbehaves as it is told.

It has the parts that d2nas uses and behaves as the real one does where that matters: a request for
CUDA alone answers with a CPU session when CUDA does not load, unless the session forbids it.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.onnx_io import devices, session

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
LIBRARY_LOG = (
    "\x1b[1;31m[E:onnxruntime:Default, provider_bridge.cc:1 Get] FAIL : Failed to load library "
    "/somewhere/libproviders_cuda.so with error: libcublasLt.so.13: cannot open shared object"
    "\x1b[m\n"
)


class Fail(Exception):  # noqa: N818
    """The real one, too, derives from Exception directly."""


class Options(SimpleNamespace):
    def __init__(self) -> None:
        super().__init__(entries={}, log_severity_level=2, intra_op_num_threads=0)

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


@dataclass
class Situation:
    """What this machine is like."""

    listed: Sequence[str] = (TENSORRT, CUDA, CPU)
    cuda_loads: bool = True
    strict_is_obeyed: bool = True
    """Whether ``session.disable_cpu_ep_fallback`` works."""
    admits_fallback: bool = True
    """Whether a session that fell back shows it in ``get_providers``."""
    cuda_providers: Sequence[str] = (CUDA, CPU)
    placed: dict[str, list[str]] | None = None
    """Nodes by provider; None puts all on the provider in use."""
    options_in_use: dict[str, str] = field(default_factory=dict)
    """Provider options that came out other than asked."""
    providers_after_run: Sequence[str] | None = None
    error: Exception | None = None
    """What creating a CUDA session raises."""
    run_error: Exception | None = None
    answer: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None


class FakeRuntime(SimpleNamespace):
    """The module: ``requests`` records every session that was asked for."""

    def __init__(self, situation: Situation) -> None:
        super().__init__(
            situation=situation,
            requests=[],
            severity=None,
            capi=SimpleNamespace(onnxruntime_pybind11_state=SimpleNamespace(Fail=Fail)),
            SessionOptions=Options,
            RunOptions=lambda: SimpleNamespace(
                log_severity_level=2, add_run_config_entry=lambda key, value: None
            ),
            OrtValue=FakeValue,
            # What torch's exporter looks at where it is imported after this.
            __spec__=ModuleSpec("onnxruntime", None),
        )

    def get_available_providers(self) -> list[str]:
        return list(self.situation.listed)

    def set_default_logger_severity(self, level: int) -> None:
        self.severity = level

    def preload_dlls(self) -> None:
        print("Failed to load a library")  # noqa: T201  the real one prints

    def InferenceSession(  # noqa: N802
        self, model: bytes, options: Options, *, providers: list[Any], enable_fallback: int
    ) -> "FakeSession":
        self.requests.append((providers, options, enable_fallback))
        (provider,) = providers
        name, provider_options = provider if isinstance(provider, tuple) else (provider, {})
        strict = options.entries.get("session.disable_cpu_ep_fallback") == "1"
        loads = name == CPU or (name == CUDA and self.situation.cuda_loads)
        if name == CUDA and self.situation.error is not None:
            raise self.situation.error
        if not loads:
            os.write(2, LIBRARY_LOG.encode())
            if strict and self.situation.strict_is_obeyed:
                raise Fail("[ONNXRuntimeError] : 1 : FAIL : nodes are assigned to the CPU EP")
        on_cpu = not loads and self.situation.admits_fallback
        in_use = [CPU] if name == CPU or on_cpu else list(self.situation.cuda_providers)
        return FakeSession(self.situation, in_use, provider_options)


class FakeSession:
    def __init__(self, situation: Situation, in_use: list[str], options: dict[str, str]) -> None:
        self.situation, self.in_use, self.options = situation, in_use, options

    def get_providers(self) -> list[str]:
        return self.in_use

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {CUDA: {**self.options, **self.situation.options_in_use}}

    def get_provider_graph_assignment_info(self) -> list[Any]:
        placed = self.situation.placed
        if placed is None:
            placed = {self.in_use[0]: ["conv", "gemm"]}
        return [
            SimpleNamespace(
                ep_name=provider,
                get_nodes=lambda names=names: [
                    SimpleNamespace(name=name, op_type=name.capitalize()) for name in names
                ],
            )
            for provider, names in placed.items()
        ]

    def run(self, outputs: list[str], feeds: dict[str, Any], options: Any) -> list[Any]:
        (images,) = feeds.values()
        return [self.answered(images)]

    def run_with_iobinding(self, binding: "FakeBinding", options: Any) -> None:
        binding.bound["logits"].values[:] = self.answered(binding.bound["images"].values)

    def answered(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.situation.run_error is not None:
            raise self.situation.run_error
        if self.situation.providers_after_run is not None:
            self.in_use = list(self.situation.providers_after_run)
        if self.situation.answer is not None:
            return self.situation.answer(images)
        return np.zeros((len(images), 3), np.float32)

    def io_binding(self) -> "FakeBinding":
        return FakeBinding()


def install(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """Put a fake in the place of the real module, on a machine with a GPU of a known name."""
    fake = FakeRuntime(situation)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(devices, "_gpu_name", lambda index: "Test GPU")
    monkeypatch.setattr(session, "has_gpu", lambda index: True)
    monkeypatch.setattr(devices, "driver_version", lambda: "580.65")
    return fake


class FakeBinding:
    def __init__(self) -> None:
        self.bound: dict[str, FakeValue] = {}

    def bind_ortvalue_input(self, name: str, value: "FakeValue") -> None:
        self.bound[name] = value

    bind_ortvalue_output = bind_ortvalue_input

    def synchronize_outputs(self) -> None:
        pass


class FakeValue:
    """A tensor that remembers the device it was put on."""

    made: list[tuple[str, int]] = []  # noqa: RUF012

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values

    @classmethod
    def ortvalue_from_numpy(cls, values: Any, device: str, index: int) -> "FakeValue":
        cls.made.append((device, index))
        return cls(values)

    @classmethod
    def ortvalue_from_shape_and_type(
        cls, shape: list[int], kind: Any, device: str, index: int
    ) -> "FakeValue":
        cls.made.append((device, index))
        return cls(np.zeros(shape, kind))

    def numpy(self) -> NDArray[np.float32]:
        return self.values

    def update_inplace(self, values: NDArray[Any]) -> None:
        self.values = values
