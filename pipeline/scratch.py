"""Scratch files without a name, in memory where the system can: a container may be read-only."""

import os
import tempfile
from typing import IO


def scratch_file() -> IO[bytes]:
    """Open an empty file that is gone when it is closed. Raises ``OSError`` where there is none."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("d2nas"), "w+b")
    return tempfile.TemporaryFile()
