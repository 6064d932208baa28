"""State of the GPU during a measurement: clocks, temperature, memory, by NVML.

NVML comes with NVIDIA's driver; its Python binding is the package ``nvidia-ml-py``. Without either
there is no record, and nothing else changes.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from .devices import CpuDevice, CudaDevice


@dataclass(frozen=True)
class GpuState:
    """One look at a GPU: clocks in MHz, memory in MiB, temperature in degrees Celsius.

    A number that the driver does not tell is None.
    """

    name: str | None
    driver: str | None
    graphics_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    memory_used_mib: int | None
    memory_total_mib: int | None

    def to_dict(self, after: "GpuState | None") -> dict[str, Any]:
        """Return JSON data of the states before and after a measurement."""
        return {"before": asdict(self), "after": None if after is None else asdict(after)}


def read_gpu_state(device: CpuDevice | CudaDevice) -> GpuState | None:
    """Return the state of ``device``; None for a CPU and where NVML cannot be asked."""
    if not isinstance(device, CudaDevice):
        return None
    try:
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - missing package, missing library, refused by the driver
        return None
    try:
        return _read(pynvml, device)
    finally:
        pynvml.nvmlShutdown()


def _read(nvml: Any, device: CudaDevice) -> GpuState | None:
    def asked(question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            answer = question(*arguments)
        except nvml.NVMLError:
            return None
        return answer.decode() if isinstance(answer, bytes) else answer

    if device.pci_bus_id is None:
        return None
    # By its place, because NVML numbers all GPUs of the machine and CUDA only the visible ones.
    handle = asked(nvml.nvmlDeviceGetHandleByPciBusId, device.pci_bus_id.encode())
    if handle is None:
        return None
    memory = asked(nvml.nvmlDeviceGetMemoryInfo, handle)
    return GpuState(
        name=device.name,
        driver=asked(nvml.nvmlSystemGetDriverVersion),
        graphics_clock_mhz=asked(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_GRAPHICS),
        memory_clock_mhz=asked(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
        temperature_c=asked(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        memory_used_mib=None if memory is None else memory.used // 2**20,
        memory_total_mib=None if memory is None else memory.total // 2**20,
    )
