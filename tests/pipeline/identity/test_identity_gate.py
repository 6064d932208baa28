"""The validate stage refuses a model whose metadata claims another genotype than its graph is."""

import json
from typing import Any

import pytest
from toy import Place

from d2nas import Genotype
from pipeline.identity import check as identity
from pipeline.onnx_io import export


def other_genotype(genotype: Genotype) -> Genotype:
    """The same cells but for one operation."""
    (operation, source), *others = genotype.normal
    other = "max_pool_3x3" if operation != "max_pool_3x3" else "avg_pool_3x3"
    return Genotype(((other, source), *others), genotype.reduce)


def lying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the export write the true network and another genotype."""
    sound = export.export_onnx

    def exported(network: Any, *, metadata: dict[str, str], **options: Any) -> bytes:
        wrong = other_genotype(network.genotype)
        described = json.loads(metadata[identity.NETWORK_KEY]) | {"genotype": wrong.to_dict()}
        claimed = {
            identity.GENOTYPE_KEY: wrong.to_json().strip(),
            identity.NETWORK_KEY: json.dumps(described),
        }
        return sound(network, metadata={**metadata, **claimed}, **options)

    monkeypatch.setattr(export, "export_onnx", exported)


def test_a_model_of_another_genotype_ends_in_exit_3_and_leaves_no_version(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lying(monkeypatch)
    assert finished.run("export", "toy", "--set", "export.opset=18") == 0
    capfd.readouterr()
    assert finished.run("validate", "toy/export@v2") == 3
    told = capfd.readouterr().err
    assert "identity: cell03/node2: the graph computes" in told
    assert "Traceback" not in told
    rows = finished.json(capfd, "ls")
    assert [row["ref"] for row in rows if row["kind"] == "validate"] == ["toy/validate@v1"]
    # Control: a stage that does not look at the graph lets the model pass.
    from pipeline.stages import validate

    monkeypatch.setattr(
        validate, "_check_identity", lambda *_: identity.IdentityReport("", 4, 1, 1)
    )
    assert finished.run("validate", "toy/export@v2") == 0


def test_a_true_claim_of_another_genotype_than_was_derived_is_refused(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        identity, "check_identity", lambda model: identity.IdentityReport("0" * 64, 4, 1, 1)
    )
    assert finished.run("validate", "toy", "--fresh") == 3
    assert "another genotype's network than toy/derive@v1" in capfd.readouterr().err
