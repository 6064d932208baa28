"""CPUs that this process may use: by affinity, and by a container's limit; the processor's name."""

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cpus() -> int:
    """Return how many CPUs this process may use, at least 1."""
    limit = cpu_limit()
    return max(1, min(allowed_cpus(), math.ceil(limit) if limit is not None else 1 << 30))


def allowed_cpus() -> int:
    """Return how many CPUs the process may be placed on, whatever time it may take of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_limit(
    groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Return how many CPUs' time a container may take (control groups, versions 1 and 2); None
    where nothing limits it.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return None
    limits = [limit for line in lines for limit in _limits(groups, line)]
    return min(limits, default=None)


def processor_name(cpu_info: Path = Path("/proc/cpuinfo")) -> str:
    """Return the model of this machine's processor."""
    try:
        for line in cpu_info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return " ".join(value.split())
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown processor"


def has_dot_product(cpu_info: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this machine's processor adds products of 8-bit integers in 32 bits: VNNI of
    x86, or no x86 at all, whose other instructions saturate at 16 bits.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "i386"):
        return True
    try:
        text = cpu_info.read_text(errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags)


def _limits(groups: Path, line: str) -> Iterator[float]:
    """Yield the limits of a group and of those around it; ``line`` as in /proc/self/cgroup."""
    _, controllers, path = line.split(":", 2)
    if controllers and "cpu" not in controllers.split(","):
        return
    base = groups / "cpu" if controllers else groups
    group = PurePosixPath(path.lstrip("/"))
    for folder in (group, *group.parents):
        try:
            if controllers:
                quota = (base / folder / "cpu.cfs_quota_us").read_text()
                period = (base / folder / "cpu.cfs_period_us").read_text()
            else:
                quota, period = (base / folder / "cpu.max").read_text().split()
            if int(quota) > 0 and int(period) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):  # no such file; "max"
            continue
