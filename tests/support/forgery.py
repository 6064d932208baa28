"""Versions and bundles as a forger makes them: every digest is right, the content is not."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2nas.files.strict_json import canonical_json, digest
from d2nas.files.verified_folder import MANIFEST_NAME

CHECKSUMS = "SHA256SUMS"


def reference_file(root: Path, name: str) -> Path:
    """Return the file of the reference ``RUN/STAGE@vN``."""
    run, _, rest = name.partition("/")
    stage, _, number = rest.partition("@")
    return root / "runs" / run / stage / f"{number}.json"


def rewrite_reference(path: Path, **changes: Any) -> None:
    """Change a reference and make its digest right again, as a careful forger would."""
    body = json.loads(path.read_bytes())["body"] | changes
    path.write_bytes(canonical_json({"body": body, "digest": digest(body)}))


def forge_manifest(root: Path, name: str, manifest: bytes, files: Mapping[str, bytes]) -> Path:
    """Put a version of any shape in the place of ``name``: folder, id and reference agree.

    Returns its folder.
    """
    version_id = hashlib.sha256(manifest).hexdigest()
    folder = root / "versions" / version_id
    folder.mkdir()
    (folder / MANIFEST_NAME).write_bytes(manifest)
    for file_name, data in files.items():
        (folder / file_name).write_bytes(data)
    rewrite_reference(reference_file(root, name), id=version_id)
    return folder


def forge_version(root: Path, name: str, files: Mapping[str, bytes], **changes: Any) -> Path:
    """Give ``name`` other files, and its manifest other values; all that says what it is agrees."""
    reference = json.loads(reference_file(root, name).read_bytes())["body"]
    folder = root / "versions" / reference["id"]
    values = json.loads((folder / MANIFEST_NAME).read_bytes()) | changes
    content = {file_name: (folder / file_name).read_bytes() for file_name in values["files"]}
    content |= files
    values["files"] = {
        file_name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for file_name, data in content.items()
    }
    return forge_manifest(root, name, canonical_json(values), content)


def seal(bundle: Path) -> None:
    """Write a bundle's checksums again; of an only version its own files are made to agree, too."""
    numbers = [path for path in bundle.iterdir() if path.name.isdecimal()]
    for path in numbers[0].iterdir() if len(numbers) == 1 else ():
        if path.name != "model.onnx" and (bundle / path.name).is_file():
            shutil.copyfile(bundle / path.name, path)
    files = sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file())
    lines = [
        f"{hashlib.sha256((bundle / name).read_bytes()).hexdigest()}  {name}\n"
        for name in files
        if name != CHECKSUMS
    ]
    (bundle / CHECKSUMS).write_text("".join(lines))
