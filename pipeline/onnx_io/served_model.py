"""The model that a bundle serves, for who needs nothing else of it.

``bundle.reader`` checks a bundle as a whole.
"""

import hashlib
import re
from pathlib import Path

from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.files.verified_folder import read_plain_file

from . import MODEL_FILE

CHECKSUMS = "SHA256SUMS"
SERVED_VERSION = r"versions: \[ ([1-9][0-9]{0,8}) \]"
"""Of ``config.pbtxt``: the version that is served."""

_CONFIG = "config.pbtxt"
_MAX_TEXT_BYTES = 2**20
_HINT = "d2nas verify says what is wrong with a bundle"


def served_model(folder: Path) -> tuple[Path, str]:
    """Return the path of the model that a bundle serves, and the SHA-256 that it must have.

    Raises ``ConfigError`` for a folder that is no bundle, ``DamagedArtifactError`` for one whose
    checksums do not say which, and ``StorageError``.
    """
    if not (folder / CHECKSUMS).is_file():
        raise ConfigError(
            f"{folder}: no bundle, it has no {CHECKSUMS}",
            hint="give the folder of one model, for example exported/quickstart",
        )
    listing = read_plain_file(folder / CHECKSUMS, max_bytes=_MAX_TEXT_BYTES, hint=_HINT)
    config = read_plain_file(folder / _CONFIG, max_bytes=_MAX_TEXT_BYTES, hint=_HINT)
    lines = listing.decode(errors="replace").splitlines()
    sums = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
    found = re.search(SERVED_VERSION, config.decode(errors="replace"))
    if found is None or sums.get(_CONFIG) != hashlib.sha256(config).hexdigest():
        raise DamagedArtifactError(f"{folder}: {_CONFIG} is not the one listed", hint=_HINT)
    path = f"{found[1]}/{MODEL_FILE}"
    if path not in sums:
        raise DamagedArtifactError(f"{folder}: {CHECKSUMS} does not list {path}", hint=_HINT)
    return folder / path, sums[path]
