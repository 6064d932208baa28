"""Examination of this machine: versions, CUDA, runtime, data, disk, each gap with its remedy."""

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from d2nas._version import __version__
from d2nas.config.registry import data_sets
from d2nas.data.hub import hub_folder, is_hub
from d2nas.data.sources import data_folder, on_disk
from d2nas.errors import ConfigError, D2NasError, brief_reason, system_hint

from ..foreign_errors import declared, explained

MIN_FREE_BYTES = 2 * 2**30
SHARED_MEMORY = Path("/dev/shm")
MIN_SHARED_BYTES = 2**30
"""What NVIDIA asks for where GPUs talk to each other (NCCL); a container has 64 MiB by default."""
_MIN_PYTHON = (3, 11)
_LIBRARIES = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime-gpu",
    "onnxruntime",
    "safetensors",
)
EXTRAS = {
    "": "everything (serving takes fewer)",
    "serve": "d2nas serve",
    "tensorboard": "its event files",
    "mlflow": 'run.log=["mlflow"], d2nas push mlflow:NAME',
    "wandb": 'run.log=["wandb"]',
    "hub": "d2nas push hf:OWNER/NAME",
    "parquet": "manifests in Parquet",
    "hf": "data sets by hf:",
    "nvml": "clocks and temperature of a GPU beside its latencies",
    "timm": "its networks, as baselines or teachers",
}
"""Purposes of what may be absent, by the extra that brings it."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``state`` is ``ok``, ``absent`` or ``problem``."""

    subject: str
    state: str
    detail: str
    advice: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)


def examine(store: Path, data_root: str | None) -> list[Finding]:
    """Look at everything; a check that fails is a finding, never an error."""
    findings = [_python(), *_versions(), *_absent()]
    for check in (_torch_cuda, _runtime_providers, _shared_memory):
        findings += _guarded(check)
    if data_root is not None and is_hub(data_root):
        return [*findings, *_hub(data_root), _space(store)]
    try:
        root = Path(data_root).expanduser() if data_root else data_folder()
    except (ConfigError, RuntimeError) as error:  # a "~" without a home folder
        advice = "set HOME, or name a folder with --data-root"
        findings.append(Finding("data", "problem", str(error), advice))
    else:
        for name in data_sets.names():
            findings += _data(name, root, is_users=data_root is not None)
    findings.append(_space(store))
    return findings


def _guarded(check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except (ImportError, OSError, RuntimeError, D2NasError) as error:
        reason = brief_reason(error)
        subject = check.__name__.strip("_").replace("_", " ")
        told = explained(error) if isinstance(error, ModuleNotFoundError) else None
        if told is not None:
            return [Finding(subject, "absent", str(told), told.hint)]
        return [Finding(subject, "problem", reason, "install d2nas again: pip install .")]


def _python() -> Finding:
    fits = sys.version_info >= _MIN_PYTHON
    return Finding(
        "python",
        "ok" if fits else "problem",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        None if fits else "d2nas needs Python 3.11 or newer",
    )


def _versions() -> list[Finding]:
    found: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    findings = [
        Finding(
            "libraries",
            "ok",
            ", ".join(
                f"{name} {version}" for name, version in {"d2nas": __version__, **found}.items()
            ),
        )
    ]
    if "onnxruntime" in found and "onnxruntime-gpu" in found:
        findings.append(
            Finding(
                "onnxruntime twice",
                "problem",
                "onnxruntime and onnxruntime-gpu overwrite each other's files",
                "pip uninstall both, then pip install onnxruntime-gpu",
            )
        )
    return findings


def _absent() -> list[Finding]:
    """Name what is declared and not installed: a finding for d2nas itself, one for each extra."""
    absent: dict[str, list[str]] = {}
    for name, text, extra in declared():
        if not name.startswith("onnxruntime") and not _is_installed(name):
            absent.setdefault(extra, []).append(text)
    return [
        Finding(
            f"extra {extra}" if extra else "packages",
            "absent",
            f"not installed: {', '.join(texts)}",
            f"needed for {EXTRAS[extra]}: pip install "
            + (f"'.[{extra}]'" if extra else ".")
            + " in the clone",
        )
        for extra, texts in absent.items()
    ]


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _torch_cuda() -> list[Finding]:
    import torch

    if torch.version.cuda is None:
        return [
            Finding(
                "torch on CUDA",
                "absent",
                "this torch is built without CUDA",
                "pip install a CUDA build of torch; everything runs on the CPU without it",
            )
        ]
    findings = [_driver(torch.version.cuda)]
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        problem = _try_device(index)
        findings.append(
            Finding(
                f"cuda:{index}",
                "ok" if problem is None else "problem",
                f"{name}, {memory:.0f} GiB" + ("" if problem is None else f": {problem}"),
                None if problem is None else "check the driver with nvidia-smi",
            )
        )
    return findings


def _driver(cuda: str) -> Finding:
    import torch

    if torch.cuda.device_count():
        return Finding("torch on CUDA", "ok", f"built for CUDA {cuda}, the driver answers")
    return Finding(
        "torch on CUDA",
        "absent",
        f"built for CUDA {cuda}, but no device answers",
        "install an NVIDIA driver (580 or newer for CUDA 13); on CPU everything still runs",
    )


def _try_device(index: int) -> str | None:
    import torch

    try:
        torch.ones(8, device=f"cuda:{index}").sum().item()
    except RuntimeError as error:
        return brief_reason(error, 120)
    return None


def _runtime_providers() -> list[Finding]:
    from ..onnx_io.providers import loadable_providers

    return [
        Finding(
            f"ONNX Runtime on {status.name.removesuffix('ExecutionProvider')}",
            "ok" if status.loads else "absent",
            f"{'listed' if status.listed else 'not listed'}, "
            + ("loads and runs a model" if status.loads else f"does not load: {status.problem}"),
            None if status.loads else "needed only to validate or serve on that provider",
        )
        for status in loadable_providers()
    ]


def _shared_memory() -> list[Finding]:
    """Compare the room in /dev/shm with what several GPUs need; streamed images need none."""
    import torch

    if not SHARED_MEMORY.exists():
        return []  # not Linux
    free = shutil.disk_usage(SHARED_MEMORY).free
    writable = os.access(SHARED_MEMORY, os.W_OK)
    enough = writable and free >= MIN_SHARED_BYTES
    needed = torch.cuda.device_count() > 1
    room = f"{free / 2**20:.0f} MiB free in {SHARED_MEMORY}"
    return [
        Finding(
            "shared memory",
            "ok" if enough else "problem" if needed else "absent",
            f"{room}{'' if writable else ', which is read-only'}; several GPUs that train together "
            f"need {MIN_SHARED_BYTES / 2**20:.0f} MiB, streamed images (data.workers) none",
            None
            if enough
            else f"{'' if needed else 'needed only to train on several GPUs: '}give the container "
            "more: docker run --shm-size=1g",
        )
    ]


def _data(name: str, root: Path, *, is_users: bool) -> list[Finding]:
    subject = f"data {name}"
    try:
        if data_sets.find(name).is_any_folder and not is_users:
            return []
        status = on_disk(name, root)
    except OSError as error:
        return [_refused(subject, root, error, "--data-root")]
    except ConfigError as error:  # another package's, which cannot be loaded
        return [Finding(subject, "problem", str(error), error.hint)]
    state = "ok" if status.present else "absent"
    return [Finding(subject, state, status.where, status.advice)]


def _hub(root: str) -> list[Finding]:
    try:
        folder = hub_folder(root, data_folder())
    except D2NasError as error:
        return [Finding("data folder", "problem", str(error), error.hint)]
    if folder.is_dir():
        return [Finding("data folder", "ok", str(folder))]
    advice = "fetched when it is first used (pip install '.[hf]' in the clone)"
    return [Finding("data folder", "absent", str(folder), advice)]


def _refused(subject: str, folder: Path, error: OSError, option: str) -> Finding:
    reason = f"{folder}: {error.strerror or error}"
    advice = f"check who may read it, or give another folder with {option}"
    return Finding(subject, "problem", reason, system_hint(error, advice))


def _space(store: Path) -> Finding:
    try:
        folder = store.absolute()
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return _refused("free space", store, error, "--store")
    return Finding(
        "free space",
        "ok" if free >= MIN_FREE_BYTES else "problem",
        f"{free / 2**30:.1f} GiB where the store is ({folder})",
        None if free >= MIN_FREE_BYTES else "free some, or give --store on another disk",
    )
