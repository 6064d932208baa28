"""Verification of a bundle from itself alone: all checks of ``d2nas verify``, and of ``push``."""

from typing import Any

from ..identity.check import check_identity
from . import derived, prediction
from .reader import Bundle


def verify_bundle(bundle: Bundle, device: str, *, published: bool) -> dict[str, Any]:
    """Check an opened bundle by its genotype, golden answers and derived files; return what was
    checked, and what could not be, as JSON data.

    ``published``: its digest was compared with one that is known. Raises
    ``DamagedArtifactError`` or ``ValidationFailedError`` for what is wrong.
    """
    identity = check_identity(bundle.model)
    unknown = {"model.onnx": identity.not_checked} if identity.not_checked else {}
    picture = prediction.check_preparation(bundle)
    session = prediction.open_model(bundle, device)
    found = prediction.check_golden(bundle, session)
    checks = derived.check_derived(bundle, published=published)
    return {
        "name": bundle.name,
        "version": bundle.number,
        "digest": bundle.digest,
        **(
            {"genotype_digest": identity.genotype_digest}
            if identity.graph_sha256 is None
            else {"graph_sha256": identity.graph_sha256}
        ),
        "convolutions": identity.num_convolutions,
        "device": session.device.label,
        "mode": session.mode,
        "golden_inputs": len(bundle.golden["images"]),
        "golden_picture": picture,
        "relative_l2": found.relative_l2,
        "lineage": dict(bundle.report["lineage"]),
        "checked": checks.checked,
        "not_checked": [
            {"file": path, "reason": reason}
            for path, reason in {**checks.not_checked, **unknown}.items()
        ],
    }
