"""Translation of errors of the system and of libraries into exit codes and hints.

Each becomes one of ours: what is left over is a bug.
"""

import errno
import os
import re
import sys
from collections.abc import Iterator

from d2nas.errors import (
    BusyError,
    ConfigError,
    D2NasError,
    OutOfMemoryError,
    StoppedError,
    StorageError,
    brief_reason,
    system_hint,
)

_NO_ROOM = ("failed to map segment", "cannot allocate memory")
"""What the loader of shared libraries says where there is no memory for one."""
_TENSORS_NO_ROOM = ("can't allocate memory", "not enough memory", "out of memory")
"""What PyTorch says where there is none for a tensor."""
DISTRIBUTIONS = {
    "PIL": "pillow",
    "google": "protobuf",
    "mlflow": "mlflow-skinny",
    "onnxruntime": "onnxruntime-gpu",
    "pynvml": "nvidia-ml-py",
}
"""Distributions of packages of another name, where they are not installed to say so."""
_NO_TEMPORARY_FOLDER = "No usable temporary directory"
"""What ``tempfile`` says."""


def explained(error: BaseException) -> D2NasError | None:
    """Return the error of ours that an error of the system or a library is; None for a bug."""
    if is_out_of_memory(error):
        return OutOfMemoryError(
            "out of memory", hint="lower batch_size or init_channels, or free memory"
        )
    if isinstance(error, ImportError):
        return _of_import(error)
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, UnicodeEncodeError):
        # Only names of files arrive here: what is written to a stream is escaped.
        return ConfigError(
            f"{ascii(error.object)[:300]} is no text in {error.encoding}",
            hint="rename it, or choose a locale that knows it: LC_ALL=C.UTF-8",
        )
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return ConfigError(
            "there is no home folder: HOME is not set, and the system knows none",
            hint="set HOME to a folder that can be written to",
        )
    owner = _owner_of(error)
    if owner is not None:
        reason = " ".join(str(error).split())[:300]
        return ConfigError(
            f"{owner} fails: {type(error).__name__}{': ' if reason else ''}{reason}",
            hint="d2nas --debug COMMAND shows where",
        )
    return None


def _owner_of(error: BaseException) -> str | None:
    """Return which search method, data set or operation of another package an error has passed
    through.
    """
    if "d2nas.config.registry" not in sys.modules:
        return None  # nothing was registered, and --help does without the configuration
    from d2nas.config.registry import data_sets, search_methods
    from d2nas.spaces import own_operations

    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        for registry in (search_methods, data_sets, own_operations):
            owner = registry.owner_of(module)
            if owner is not None:
                return owner
        trace = trace.tb_next
    return None


def exit_code_of(error: Exception) -> int:
    """Return the exit code of an error that ends a command."""
    own = error if isinstance(error, D2NasError) else explained(error)
    if isinstance(own, StoppedError):
        return own.shell_code
    return 1 if own is None else own.exit_code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that this process's memory, not a device's, ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = {ImportError: _NO_ROOM, RuntimeError: _TENSORS_NO_ROOM}
    return isinstance(error, MemoryError) or any(
        isinstance(error, kind) and any(one in str(error).lower() for one in words)
        for kind, words in said.items()
    )


def _of_system(error: OSError) -> D2NasError:
    reason = error.strerror or str(error) or type(error).__name__
    names = [name for name in (error.filename, error.filename2) if name is not None]
    where = " -> ".join(os.fsdecode(n) if isinstance(n, bytes | str) else str(n) for n in names)
    message = f"{where}: {reason}" if where else reason
    if isinstance(error, BlockingIOError):
        return BusyError(message, hint="another process holds it; try again when that is done")
    if reason.startswith(_NO_TEMPORARY_FOLDER):
        return StorageError(
            "there is no temporary folder that can be written to",
            hint="set TMPDIR to a folder that can be",
        )
    if isinstance(error, FileNotFoundError) and not names and not _has_working_folder():
        return StorageError(
            "the working folder has been removed", hint="cd to a folder that is there"
        )
    return StorageError(message, hint=system_hint(error, "") or None)


def _has_working_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _of_import(error: ImportError) -> D2NasError | None:
    """Return what to install; None for a module of our own."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "d2nas", "pipeline"):
        return None
    reason = brief_reason(error, 300)
    if package in sys.stdlib_module_names:
        return ConfigError(
            f"a module of Python itself is missing or cannot be read ({reason})",
            hint="check who may read Python's folders, or install Python again",
        )
    wanted = _requirement(package)
    if isinstance(error, ModuleNotFoundError):
        return ConfigError(f"the package {package} is not installed ({reason})", hint=wanted)
    return ConfigError(f"the package {package} does not fit ({reason})", hint=wanted)


def _requirement(package: str) -> str:
    """Say what d2nas asks for of the distribution that has a package."""
    from importlib import metadata  # takes as long as all else that --help needs

    found = metadata.packages_distributions().get(package)
    names = {_plain(name) for name in (found or [DISTRIBUTIONS.get(package, package)])}
    for name, text, extra in declared():
        if name in names:
            if extra:
                return f"pip install '.[{extra}]' in the clone ({text})"
            return f"d2nas needs {text}; pip install . in the clone brings it"
    return "pip install . in the clone brings what d2nas needs"


def declared() -> Iterator[tuple[str, str, str]]:
    """Yield each distribution that d2nas asks for: its name, that with versions, and the extra
    that brings it, empty for d2nas itself.
    """
    from importlib import metadata

    try:
        requirements = metadata.requires("d2nas") or []
    except metadata.PackageNotFoundError:
        return
    for requirement in requirements:
        text, _, marker = requirement.partition(";")
        extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        if extra is None or extra[1] != "test":
            name = _plain(re.split(r"[<>=!~\[ (]", text.strip())[0])
            yield name, text.strip(), "" if extra is None else extra[1]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
