"""From a report back to everything it was made from: config, data, seed and code."""

import json
from pathlib import Path
from typing import Any

import pytest
from toy import Place

from d2nas.errors import DamagedArtifactError
from pipeline.stages import BY_NAME
from pipeline.store import Store, Version

ROLES = ("search", "derive", "retrain", "export", "validate")


def report_of(place: Place) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((place.exported / "toy" / "report.json").read_bytes())
    return report


def walked(store: Path, report: dict[str, Any]) -> dict[str, Version]:
    """Open what a report names, and all parents of that; a role must mean one version."""
    found: dict[str, Version] = {}
    waiting = list(report["lineage"].items())
    while waiting:
        role, version_id = waiting.pop()
        version = Store(store).open_id(version_id)
        assert version.manifest.kind == role
        assert found.setdefault(role, version).id == version_id, f"two of {role}"
        waiting += version.manifest.parents.items()
    return found


def test_every_id_of_a_report_leads_to_config_data_seed_and_code(finished: Place) -> None:
    report = report_of(finished)
    found = walked(finished.store, report)
    assert set(found) == set(report["lineage"]) == set(ROLES)
    parents = {role: set(version.manifest.parents) for role, version in found.items()}
    assert parents["search"] == set()
    assert set().union(*parents.values()) == set(ROLES) - {"validate"}
    config: dict[str, Any] = {}
    for role, version in found.items():
        assert version.manifest.seed == 0
        assert version.manifest.code_schema == BY_NAME[role].code_schema
        assert version.manifest.versions
        for section, values in version.manifest.config.items():
            assert config.setdefault(section, values).items() <= values.items()
    assert {"data", "run", "space", *ROLES} == set(config)
    assert (config["search"]["epochs"], config["retrain"]["epochs"]) == (2, 3)
    for role in ("search", "retrain"):
        assert found[role].manifest.facts["data_digest"] == report["data"]["digest"]


@pytest.mark.parametrize("role", ROLES)
def test_control_one_id_that_is_changed_leads_nowhere(role: str, finished: Place) -> None:
    report = report_of(finished)
    version_id = report["lineage"][role]
    report["lineage"][role] = version_id[:-1] + ("0" if version_id[-1] != "0" else "1")
    with pytest.raises(DamagedArtifactError, match="missing"):
        walked(finished.store, report)
    other = ROLES[ROLES.index(role) - 1]
    report["lineage"][role] = report["lineage"][other]
    with pytest.raises(AssertionError):
        walked(finished.store, report)
