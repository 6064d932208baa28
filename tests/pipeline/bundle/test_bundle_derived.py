"""What a bundle derives from its other files is compared with them, or told as not checked."""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from forgery import CHECKSUMS, seal

from d2nas.errors import DamagedArtifactError
from d2nas.files.strict_json import digest
from pipeline.bundle import documents
from pipeline.bundle import reader as bundle_reader
from pipeline.bundle.derived import Checks, check_derived
from pipeline.bundle.reader import open_bundle
from pipeline.cli import run

Change = Callable[[Path], object]


@pytest.fixture
def bundle(finished_folder: Path, quick_path: Path) -> Path:
    """A finished run's bundle alone."""
    folder = quick_path / "toy"
    shutil.copytree(finished_folder / "exported" / "toy", folder)
    return folder


def checks_of(bundle: Path) -> Checks:
    return check_derived(open_bundle(bundle), published=False)


def edit(name: str, old: str, new: str) -> Change:
    def change(bundle: Path) -> None:
        text = (bundle / name).read_text()
        assert old in text
        (bundle / name).write_text(text.replace(old, new))

    return change


def edit_json(name: str, change_values: Callable[[Any], object]) -> Change:
    def change(bundle: Path) -> None:
        values = json.loads((bundle / name).read_text())
        change_values(values)
        text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
        (bundle / name).write_text(text + "\n")

    return change


def other_curves(bundle: Path) -> None:
    """Show the curves of the retraining as those of the search."""
    page = (bundle / "report.html").read_bytes()
    found = re.findall(rb"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page)
    *_, search, retrain = found
    assert base64.b64decode(search) != base64.b64decode(retrain)
    (bundle / "report.html").write_bytes(page.replace(search, retrain))


def other_golden_labels(bundle: Path) -> None:
    path = bundle / "golden.safetensors"
    values = safetensors.numpy.load_file(path)
    path.write_bytes(safetensors.numpy.save(values | {"labels": values["labels"] + 1}))


def from_elsewhere(bundle: Path) -> None:
    """Say that another d2nas wrote the bundle."""
    values = {"d2nas": "9.9.9", "documents": "f" * 64}
    edit_json("report.json", lambda report: report.update(written_by=values))(bundle)


def without_manifests(bundle: Path) -> None:
    (bundle / "manifests.json").unlink()


def all_of(*changes: Change) -> Change:
    def change(bundle: Path) -> None:
        for one in changes:
            one(bundle)

    return change


def forge_validation(bundle: Path) -> None:
    """Claim another accuracy, in the report and in the validation's manifest, by its new id."""
    report, manifests = (
        json.loads((bundle / name).read_text()) for name in ("report.json", "manifests.json")
    )
    report["accuracy"]["onnx"] = 1.0
    manifests["validate"]["facts"]["accuracy"]["onnx"] = 1.0
    report["lineage"]["validate"] = digest(manifests["validate"])
    (bundle / "report.json").write_text(json.dumps(report))
    (bundle / "manifests.json").write_text(json.dumps(manifests))


FORGED: dict[str, tuple[Change, str]] = {
    "the card": (edit("MODEL_CARD.md", "Image classifier", "Perfect classifier"), "MODEL_CARD.md"),
    "the page": (edit("report.html", "Validated on CPU", "Validated on GPU"), "report.html"),
    "the page's script": (edit("report.html", "<main>", "<main><script></script>"), "report.html"),
    "the page's curves": (other_curves, "report.html"),
    "the page without curves": (
        lambda b: (b / "report.html").write_bytes(
            re.sub(rb"<img [^>]*>", b"", (b / "report.html").read_bytes())
        ),
        "report.html",
    ),
    "no page": (lambda b: (b / "report.html").unlink(), "report.html: is missing"),
    "Triton's instances": (edit("config.pbtxt", "count: 1", "count: 999"), "config.pbtxt"),
    "the drawing": (edit("genotype.svg", "Normal cell", "Best cell"), "genotype.svg"),
    "an accuracy": (
        edit_json("report.json", lambda report: report["accuracy"].update(onnx=1.0)),
        "report.json: is not the one of its validate version",
    ),
    "an accuracy and its manifest": (
        forge_validation,
        "report.json: is not the one of its validate version",
    ),
    "golden labels": (
        other_golden_labels,
        "golden.safetensors: is not the one of its validate version",
    ),
    "a manifest": (
        edit_json("manifests.json", lambda all_: all_["search"].update(seed=4)),
        "manifests.json: has another 'search' than report.json",
    ),
    "a manifest for another": (
        edit_json("manifests.json", lambda all_: all_.update(search=all_["derive"])),
        "manifests.json: has another 'search' than report.json",
    ),
    "a manifest of nothing": (
        edit_json("manifests.json", lambda all_: all_.update({"\n": {}})),
        r"manifests.json: has another '\n' than report.json",
    ),
    "no validation": (
        edit_json("manifests.json", lambda all_: all_.pop("validate")),
        "manifests.json: does not hold the validation's manifest",
    ),
    "no manifests": (without_manifests, "manifests.json: is missing"),
    "a listed file": (lambda b: (b / "setup.sh").write_text("rm"), "setup.sh: is listed in"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_file_is_found_though_its_checksum_is_right(what: str, bundle: Path) -> None:
    change, words = FORGED[what]
    change(bundle)
    seal(bundle)
    opened = open_bundle(bundle)  # control: without the comparison all seems well
    with pytest.raises(DamagedArtifactError) as caught:
        check_derived(opened, published=False)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_whole_bundle_is_checked_but_for_who_wrote_it(
    bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(bundle), "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)
    names = {path.name for path in bundle.iterdir() if path.is_file()}
    assert set(row["checked"]) == names - {CHECKSUMS} | {"1/model.onnx"}
    (left,) = row["not_checked"]
    assert left["file"] == CHECKSUMS
    assert "--digest" in left["reason"]
    known = hashlib.sha256((bundle / CHECKSUMS).read_bytes()).hexdigest()
    assert run(["verify", str(bundle), "--digest", known, "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert CHECKSUMS in row["checked"]
    assert row["not_checked"] == []


def test_verify_says_what_it_found_and_what_it_did_not_check(
    bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit("MODEL_CARD.md", "Image classifier", "Perfect classifier")(bundle)
    seal(bundle)
    assert run(["verify", str(bundle)]) == 4
    assert "MODEL_CARD.md: is not what the other files say" in capfd.readouterr().err
    with monkeypatch.context() as patch:  # control
        patch.setattr("pipeline.bundle.derived.check_derived", lambda *_, **__: Checks())
        assert run(["verify", str(bundle)]) == 0
    capfd.readouterr()
    all_of(from_elsewhere, without_manifests)(bundle)
    seal(bundle)
    assert run(["verify", str(bundle)]) == 0
    lines = capfd.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("not checked: MODEL_CARD.md: ")]
    assert told == [
        "not checked: MODEL_CARD.md: this d2nas writes it otherwise; "
        "the bundle was written by d2nas 9.9.9 (documents ffffffffffffffff)"
    ]


@pytest.mark.parametrize("what", ["the card", "the page", "Triton's instances", "a listed file"])
def test_another_version_s_words_are_no_damage_but_told(what: str, bundle: Path) -> None:
    """Whoever forges a document can also say that another version wrote it."""
    change, words = FORGED[what]
    all_of(change, from_elsewhere)(bundle)
    seal(bundle)
    checks = checks_of(bundle)
    name = words.partition(":")[0]
    assert "written by d2nas 9.9.9" in checks.not_checked[name]
    assert name not in checks.checked
    # Control: the others are what this version writes, too; the page has the sizes of all files.
    assert set(checks.not_checked) - {"report.html"} == {CHECKSUMS, name} - {"report.html"}


def test_without_the_manifests_the_page_and_the_figures_are_told(bundle: Path) -> None:
    all_of(from_elsewhere, without_manifests)(bundle)
    seal(bundle)
    checks = checks_of(bundle)
    for name in ("report.html", "report.json", "golden.safetensors", "golden.png"):
        assert "manifests.json is missing" in checks.not_checked[name]
    assert "genotype.svg" in checks.checked


def test_the_writer_s_code_is_known_by_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    own = documents.writer.__wrapped__()
    assert own == documents.writer()
    monkeypatch.setattr(Path, "read_bytes", lambda path: path.name.encode())
    other = documents.writer.__wrapped__()
    assert other["d2nas"] == own["d2nas"]
    assert other["documents"] != own["documents"]


def test_forged_values_of_the_wrong_kind_are_damage(bundle: Path) -> None:
    gate = {"batch": 1, "max_p99_ms": "never"}
    all_of(
        from_elsewhere,
        without_manifests,
        edit_json("report.json", lambda report: report.update(latency_gate=gate)),
    )(bundle)
    seal(bundle)
    with pytest.raises(DamagedArtifactError, match=r"holds values that d2nas does not write"):
        checks_of(bundle)


@pytest.mark.parametrize("name", ["report.json", "preprocess.json", "manifests.json"])
def test_half_a_character_is_damage(name: str, bundle: Path) -> None:
    text = (bundle / name).read_text()
    (bundle / name).write_text(text.replace("{", '{"x": "\\ud800",', 1))
    seal(bundle)
    with pytest.raises(DamagedArtifactError, match=r"has half of a character pair"):
        checks_of(bundle)


# What the reader itself finds in a forged report, and would not without its comparisons


def forged_reports() -> dict[str, Change]:
    def changed(**values: Any) -> Change:
        return edit_json("report.json", lambda report: report.update(values))

    return {
        "schema": changed(schema="d2nas.report.v9"),
        "genotype": changed(genotype={}),
        "identity": changed(identity=None),
        "numbers": edit_json("report.json", lambda report: report["model"].update(opset=1)),
    }


@pytest.mark.parametrize("what", forged_reports())
def test_control_without_the_comparisons_a_forged_report_passes(
    what: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged_reports()[what](bundle)
    seal(bundle)
    with pytest.raises(DamagedArtifactError, match=r"report\.json"):
        open_bundle(bundle)
    if what == "schema":
        monkeypatch.setattr(bundle_reader, "_has_our_schema", lambda _: True)
    else:
        monkeypatch.setattr(bundle_reader, "_reports", lambda *_: True)
    monkeypatch.setattr("pipeline.bundle.derived.check_derived", lambda *_, **__: Checks())
    assert run(["verify", str(bundle)]) == 0


# Versions that are not served


def with_second_version(bundle: Path) -> None:
    """Add a copy of version 1 that says that it is version 2."""
    shutil.copytree(bundle / "1", bundle / "2")
    edit_json("2/report.json", lambda report: report.update(bundle_version=2))(bundle)
    seal(bundle)


def test_an_extra_version_is_compared_with_its_model_and_told(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_second_version(bundle)
    assert "golden inputs" in checks_of(bundle).not_checked["2/"]
    edit_json("2/report.json", lambda report: report.update(identity=None))(bundle)
    seal(bundle)
    with pytest.raises(DamagedArtifactError, match=r"2/report\.json: contradicts 2/model\.onnx"):
        open_bundle(bundle)
    with monkeypatch.context() as patch:  # control
        patch.setattr(bundle_reader, "_reports", lambda *_: True)
        open_bundle(bundle)
    # An older d2nas may have written it: then it is told.
    edit_json("2/report.json", lambda report: report.update(schema=0))(bundle)
    seal(bundle)
    assert "another schema" in checks_of(bundle).not_checked["2/"]
    for path in (bundle / "2").iterdir():
        if path.name != "model.onnx":
            path.unlink()
    seal(bundle)
    assert "it has none" in checks_of(bundle).not_checked["2/"]


@pytest.mark.parametrize(
    "path", ["report/facts.py", "report/page.css", "report/page.html.j2", "bundle/MODEL_CARD.md.j2"]
)
def test_who_wrote_a_bundle_is_told_by_words_and_looks(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(str(resources.files("pipeline")))
    for folder in ("bundle", "report"):
        shutil.copytree(package / folder, tmp_path / folder)
    before = documents.writer()
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    assert documents.writer.__wrapped__() == before  # control
    (tmp_path / path).write_text((tmp_path / path).read_text() + " ")
    assert documents.writer.__wrapped__() != before
