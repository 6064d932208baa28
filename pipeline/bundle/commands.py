"""Bundle commands after parsing: verify, predict (no torch)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2nas.errors import ConfigError
from d2nas.verified_folder import is_digest

from ..console import Console
from ..onnx_io.identity import check_identity
from ..onnx_io.providers import resolve_device
from .prediction import check_golden, check_preparation, open_model, predict
from .reader import Bundle, open_bundle


def verify_bundles(
    folders: Sequence[Path], digest: str | None, device: str, *, as_json: bool
) -> None:
    """Check bundles from themselves alone and show what was checked.

    Raises what is wrong with the first that is not sound.
    """
    if digest is not None and not is_digest(digest.lower()):
        raise ConfigError(f"--digest {digest!r} is no SHA-256 in hexadecimal")
    rows = [_verified(open_bundle(folder, digest), resolve_device(device)) for folder in folders]
    console = Console()
    if as_json:
        console.data(rows)
        return
    for row in rows:
        console.facts(f"bundle {row['name']}", _fact_rows(row))


def _fact_rows(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = {**row, **{f"from {role}": id for role, id in row["lineage"].items()}}
    del facts["lineage"]
    return [(key.replace("_", " "), str(value)) for key, value in facts.items()]


def _verified(bundle: Bundle, device: str) -> dict[str, Any]:
    identity = check_identity(bundle.model)
    picture = check_preparation(bundle)
    session = open_model(bundle, device)
    found = check_golden(bundle, session)
    return {
        "name": bundle.name,
        "version": bundle.number,
        "digest": bundle.digest,
        "genotype_digest": identity.genotype_digest,
        "convolutions": identity.num_convolutions,
        "device": session.device.label,
        "mode": session.mode,
        "golden_inputs": len(bundle.golden["images"]),
        "golden_picture": picture,
        "relative_l2": found.relative_l2,
        "lineage": dict(bundle.report["lineage"]),
    }


def predict_images(
    folder: Path, images: Sequence[Path], *, top: int, device: str, as_json: bool
) -> None:
    """Answer pictures and show the most probable classes of each.

    The device may be another than the validated one: it answers the golden inputs first.
    """
    bundle = open_bundle(folder)
    check_preparation(bundle)
    session = open_model(bundle, resolve_device(device))
    check_golden(bundle, session)
    found = predict(bundle, session, images, top)
    console = Console()
    if as_json:
        console.data([prediction.to_dict() for prediction in found])
        return
    rows = [
        (prediction.image, name, f"{100 * probability:.2f} %")
        for prediction in found
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True)
    ]
    console.table(bundle.name, ("image", "class", "probability"), rows)
