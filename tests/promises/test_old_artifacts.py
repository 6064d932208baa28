"""What older versions of d2nas wrote stays readable; what newer ones wrote is refused, and why.

``tests/data/schema-N`` holds a store and a bundle as schema N was written (``old_artifacts.py``).
They are never written again: a reader that no longer takes them has broken a promise.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forgery import rewrite_reference
from toy import Place

from d2nas import Genotype, load_network
from d2nas.config.registry import search_methods
from d2nas.errors import DamagedArtifactError
from d2nas.files.strict_json import canonical_json, parse_json
from d2nas.files.tensors import decode_tensors
from d2nas.files.verified_folder import MANIFEST_NAME
from d2nas.nn.network import load_weights
from d2nas.nn.sampling import ArchLogits
from d2nas.spaces import SearchSpace
from pipeline.bundle import reader as bundle_reader
from pipeline.bundle.reader import open_bundle
from pipeline.bundle.writing import CHECKSUMS
from pipeline.gate.report import REPORT_SCHEMA
from pipeline.running.checkpoints import read_state
from pipeline.stages import KINDS
from pipeline.store import Store, kind_of
from pipeline.store import manifest as manifest_module
from pipeline.store import references as references_module

DATA = Path(__file__).parents[1] / "data"
SCHEMAS = sorted(folder.name for folder in DATA.glob("schema-*"))
CURRENT = f"schema-{manifest_module.SCHEMA}"
BUNDLE = "exported/old"


@pytest.fixture(params=SCHEMAS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A copy of what one schema wrote."""
    return copied(request.param, tmp_path)


def copied(schema: str, folder: Path) -> Place:
    shutil.copytree(DATA / schema, folder / schema)
    return Place(folder / schema)


def test_every_released_schema_has_its_fixture() -> None:
    assert [f"schema-{number}" for number in range(1, manifest_module.SCHEMA + 1)] == SCHEMAS
    assert references_module.SCHEMA == manifest_module.SCHEMA == REPORT_SCHEMA


def test_every_version_verifies_and_every_kind_is_there(
    old: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    store = Store(old.store)
    report = store.verify()
    assert report.damaged == []
    assert report.checked == len(store.references()) == 11
    kinds = set(map(kind_of, KINDS.names))
    assert {store.open(reference.name).manifest.kind for reference in store.references()} == kinds
    rows = old.json(capfd, "ls")
    assert {row["kind"] for row in rows} == kinds
    for row in rows:
        assert old.json(capfd, "show", row["ref"])["id"] == row["id"]
    assert old.run("verify") == 0


def test_tensors_genotypes_and_states_are_read(old: Place) -> None:
    store = Store(old.store)
    searched, derived = store.open("old/search"), store.open("old/derive")
    logits = ArchLogits(SearchSpace.from_dict(searched.manifest.facts["searched_space"]))
    load_weights(
        logits, decode_tensors(searched.read("logits.safetensors"), what="logits"), what="logits"
    )
    genotype = Genotype.from_json(derived.read("genotype.json"), what="genotype")
    assert search_methods.find("d2nas").genotype_of(logits) == genotype
    for loop in ("search", "retrain"):
        state = read_state(store.open(f"old/{loop}-state"))
        assert state.step == 11
        assert len(state.metrics) == 3
        assert len(state.tensors) > 50
    golden = decode_tensors(store.open("old/validate").read("golden.safetensors"), what="golden")
    with torch.no_grad():
        answer = load_network(store.open("old/retrain").path)(golden["images"])
    np.testing.assert_allclose(answer.numpy(), golden["logits"].numpy(), rtol=1e-4, atol=1e-5)


def test_later_stages_run_on_old_versions(old: Place) -> None:
    quick = ("--set", "validate.latency_samples=11")
    assert old.run("validate", "old/export@v1", *quick) == 0
    assert old.run("export", "old/retrain@v1", "--fresh") == 0
    assert old.run("retrain", "old/derive@v1", "--set", "retrain.epochs=1") == 0


def test_a_bundle_proves_itself(old: Place) -> None:
    assert old.run("verify", str(old.folder / BUNDLE)) == 0


# --- what is too new ----------------------------------------------------------------------------


def newer_manifest(place: Place) -> Callable[[], object]:
    store = Store(place.store)
    path = store.open("old/search").path
    values = json.loads((path / MANIFEST_NAME).read_bytes()) | {"schema": 99, "novelty": 1}
    content = canonical_json(values)
    newer = path.with_name(hashlib.sha256(content).hexdigest())
    path.rename(newer)
    (newer / MANIFEST_NAME).write_bytes(content)
    rewrite_reference(place.store / "runs/old/search/v1.json", id=newer.name)
    return lambda: store.open("old/search")


def newer_reference(place: Place) -> Callable[[], object]:
    rewrite_reference(place.store / "runs/old/search/v1.json", schema=99)
    return lambda: Store(place.store).open("old/search")


def newer_bundle(place: Place) -> Callable[[], object]:
    folder = place.folder / BUNDLE
    path, sums = folder / "report.json", folder / CHECKSUMS
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    report = parse_json(path.read_bytes(), what="report") | {"schema": 99}
    path.write_bytes(canonical_json(report))
    after = hashlib.sha256(path.read_bytes()).hexdigest()
    sums.write_text(sums.read_text().replace(before, after))
    return lambda: open_bundle(folder)


NEWER = {
    newer_manifest: (manifest_module, "SCHEMA"),
    newer_reference: (references_module, "SCHEMA"),
    newer_bundle: (bundle_reader, "REPORT_SCHEMA"),
}


@pytest.mark.parametrize("make", NEWER)
def test_an_unknown_schema_is_refused_naming_both(
    tmp_path: Path, make: Callable[[Place], Callable[[], object]]
) -> None:
    open_it = make(copied(CURRENT, tmp_path))
    with pytest.raises(DamagedArtifactError) as caught:
        open_it()
    assert "schema 99, this d2nas reads schema 1" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("make", NEWER)
def test_control_without_the_check_the_two_are_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Place], Callable[[], object]]
) -> None:
    open_it = make(copied(CURRENT, tmp_path))
    module, name = NEWER[make]
    monkeypatch.setattr(module, name, 99)
    if make is newer_bundle:
        open_it()  # as if it were one of today's
        return
    with pytest.raises(DamagedArtifactError) as caught:
        open_it()
    assert "this d2nas reads" not in str(caught.value)
