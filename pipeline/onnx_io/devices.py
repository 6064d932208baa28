"""Devices as types: a CPU figure cannot pass for a GPU figure.

``CudaDevice`` exists only where ``prove_cuda`` looked at a live session: the provider in use, the
options it runs with and the place of every node.
"""

import ctypes
import platform
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from typing import Any, ClassVar, Literal

from d2nas.cpus import processor_name
from d2nas.devices import CPU_PROVIDER, CUDA_PROVIDER, driver_version
from d2nas.errors import ValidationFailedError

NO_CUDA_HINT = "d2nas doctor shows what loads here; cpu as device needs no GPU"

_PROOF = object()
_NO_OPTIONS: Mapping[str, str] = {}


@dataclass(frozen=True)
class CpuDevice:
    """A processor: its model name and the number of threads that the session uses."""

    kind: ClassVar[Literal["cpu"]] = "cpu"
    name: str
    num_threads: int

    @property
    def address(self) -> str:
        """As ``open_session`` and PyTorch take it."""
        return "cpu"

    @property
    def label(self) -> str:
        """For people, for example ``CPU AMD EPYC, 2 threads``."""
        threads = "1 thread" if self.num_threads == 1 else f"{self.num_threads} threads"
        return f"CPU {self.name}, {threads}"


@dataclass(frozen=True)
class CudaDevice:
    """A GPU that was proven to run every node of a session. Made by ``prove_cuda`` only."""

    kind: ClassVar[Literal["cuda"]] = "cuda"
    name: str
    index: int
    driver: str | None
    proof: InitVar[object]
    pci_bus_id: str | None = None
    """Where it sits in the machine: the same for CUDA, which numbers visible GPUs, and NVML."""

    def __post_init__(self, proof: object) -> None:
        if proof is not _PROOF:
            raise TypeError("a CudaDevice is made by prove_cuda, from a session that was checked")

    @property
    def address(self) -> str:
        """As ``open_session`` and PyTorch take it."""
        return f"cuda:{self.index}"

    @property
    def label(self) -> str:
        """For people, for example ``CUDA NVIDIA H100 (cuda:0, driver 580.65)``."""
        driver = "" if self.driver is None else f", driver {self.driver}"
        return f"CUDA {self.name} (cuda:{self.index}{driver})"


Device = CpuDevice | CudaDevice


def prove_cuda(session: Any, index: int, options: Mapping[str, str] = _NO_OPTIONS) -> CudaDevice:
    """Return the claim that ``session`` (ONNX Runtime's) runs on GPU ``index`` and nowhere else.

    ``options`` of the provider are those that the session must be using besides. Raises
    ``ValidationFailedError`` saying what contradicts it: another provider, other options than the
    strict ones, or nodes placed elsewhere.
    """
    check_provider(session, CUDA_PROVIDER)
    _check_options(session, index, options)
    _check_placement(session)
    name, driver, bus = _gpu_name(index), driver_version(), _pci_bus_id(index)
    return CudaDevice(name, index, driver, proof=_PROOF, pci_bus_id=bus)


def has_gpu(index: int) -> bool:
    """Whether NVIDIA's driver is there and knows a GPU of this number."""
    return _ask_driver("cuDeviceGetName", index, ctypes.CDLL) is not None


def describe_cpu(num_threads: int) -> CpuDevice:
    """Return this machine's processor, used with ``num_threads`` threads."""
    return CpuDevice(processor_name(), num_threads)


def check_provider(session: Any, provider: str) -> None:
    """Raise ``ValidationFailedError`` unless ``provider`` is what ``session`` uses now.

    ONNX Runtime itself always lists the CPU last; any third name is refused.
    """
    in_use = list(session.get_providers())
    if in_use[:1] != [provider] or any(name != CPU_PROVIDER for name in in_use[1:]):
        raise ValidationFailedError(
            f"{_short(provider)} was asked for, but ONNX Runtime uses "
            f"{', '.join(_short(name) for name in in_use) or 'no provider'}",
            hint=NO_CUDA_HINT if provider == CUDA_PROVIDER else None,
        )


def placement(session: Any) -> dict[str, list[str]]:
    """Return the nodes of each provider, as ``name (operator)``, from a recording session."""
    placed: dict[str, list[str]] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        nodes = [f"{node.name} ({node.op_type})" for node in subgraph.get_nodes()]
        placed.setdefault(str(subgraph.ep_name), []).extend(nodes)
    return placed


def misplaced(session: Any) -> str | None:
    """Say in one line which nodes of ``session`` are not on CUDA; None if all are there."""
    placed = placement(session)
    elsewhere = {name: nodes for name, nodes in placed.items() if name != CUDA_PROVIDER and nodes}
    if not elsewhere:
        return None
    nodes = [node for group in elsewhere.values() for node in group]
    total = sum(len(group) for group in placed.values())
    shown = ", ".join(nodes[:3]) + (", …" if len(nodes) > 3 else "")
    where = ", ".join(_short(name) for name in elsewhere)
    return f"{len(nodes)} of {total} nodes are on {where} instead: {shown}"


def _check_options(session: Any, index: int, asked: Mapping[str, str]) -> None:
    options = session.get_provider_options().get(CUDA_PROVIDER, {})
    for name, wanted in {"device_id": str(index), "use_tf32": "0", **asked}.items():
        if str(options.get(name)) != wanted:
            raise ValidationFailedError(
                f"CUDA was asked for with {name}={wanted}, the session runs with "
                f"{name}={options.get(name)}"
            )


def _check_placement(session: Any) -> None:
    problem = misplaced(session)
    if problem is None and not placement(session).get(CUDA_PROVIDER):
        problem = "the session does not tell where its nodes are placed"
    if problem is not None:
        raise ValidationFailedError(
            f"CUDA was asked for, but {problem}",
            hint="export.opset=20 has a CUDA kernel for every operation of the search spaces",
        )


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _gpu_name(index: int, load_library: Any = ctypes.CDLL) -> str:
    """Ask the driver, which numbers the visible devices as the provider does."""
    return _ask_driver("cuDeviceGetName", index, load_library) or "NVIDIA GPU"


def _pci_bus_id(index: int, load_library: Any = ctypes.CDLL) -> str | None:
    return _ask_driver("cuDeviceGetPCIBusId", index, load_library)


def _ask_driver(question: str, index: int, load_library: Any) -> str | None:
    text = ctypes.create_string_buffer(256)
    device = ctypes.c_int()
    library = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        driver = load_library(library)
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(device), index)
            or getattr(driver, question)(text, len(text), device)
        )
    except (OSError, AttributeError):
        failed = True
    return None if failed else text.value.decode(errors="replace")
