"""Data sets: one record each, found where it lies; a new one is one file."""

import hashlib
import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import numpy as np
import pytest
from image_files import publish
from toy import Place

from d2nas import registry as registry_module
from d2nas.config import DataConfig, build_config
from d2nas.config.registry import data_sets
from d2nas.data import readers as data_readers
from d2nas.data import sets
from d2nas.data.images import load_data
from d2nas.data.sets import Arrays, DataSet, register_data_set
from d2nas.data.sources import content_digest, on_disk
from d2nas.errors import ConfigError, DamagedArtifactError
from pipeline.preflight.doctor import examine

ROOT = Path(__file__).resolve().parents[3]
(EXAMPLE,) = re.findall(
    r"```python\n(.*?register_data_set.*?)```", (ROOT / "d2nas/README.md").read_text(), re.DOTALL
)
MODULE = "d2nas.data.sets.toy"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files count as those of d2nas/data/sets; what they register goes again."""
    place = tmp_path / "sets"
    place.mkdir()
    monkeypatch.setattr(sets, "__path__", [*sets.__path__, str(place)])
    monkeypatch.setattr(data_sets, "_known", dict(data_sets._known))
    yield place
    sys.modules.pop(MODULE, None)
    vars(sets).pop("toy", None)


def own() -> list[DataSet]:
    return [data_sets.find(name) for name in data_sets.names()]


def test_the_sets_of_d2nas_are_found_with_their_facts() -> None:
    names = ["cifar10", "cifar100", "digits", "fashion-mnist", "folder", "imagenet", "svhn"]
    assert [data_set.name for data_set in own()] == names
    for data_set in own():
        assert len(data_set.title) > 3
        facts = data_set.num_train, data_set.channels, data_set.size, data_set.num_classes
        assert all(facts) is (data_set.name != "folder")
        assert data_set.is_folder is (data_set.name in ("folder", "imagenet"))
        assert bool(data_set.files) is not data_set.is_folder


# As in the keys of stored versions: another digest would make every stage run again.
DIGESTS = {
    "cifar10": "09e55c85ef81276d6d9d59d2b5e165265fa33b2d882fba7b9a31e399177c26c5",
    "cifar100": "c531708e68dfb47941af04184bc77ff8dfdab7450860b81b0d3170a55ddfc88f",
    "digits": "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
    "fashion-mnist": "1a1645b8a491b6bbf39694f8276a513c4eb0ee1a4bfd46558412dbaf99efcb40",
    "svhn": "ac2ce676d6121910a26e64ef9fcca51f383509cf32d7f79d66ee303708414d61",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_digests_are_those_of_stored_versions(name: str) -> None:
    assert content_digest(DataConfig(name=name), default_root=Path("unused")) == DIGESTS[name]


# --- digits -------------------------------------------------------------------------------------


def test_digits_are_those_that_scikit_learn_gave() -> None:
    """The SHA-256 was taken from the arrays of scikit-learn 1.9.1, scaled."""
    digits = data_sets.find("digits")
    assert digits.folder is not None
    assert digits.read is not None
    arrays = digits.read({"digits.csv.gz": digits.folder / "digits.csv.gz"})
    content = arrays.images.tobytes() + arrays.labels.astype("<i8").tobytes()
    assert (
        hashlib.sha256(content).hexdigest()
        == "0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382"
    )


def test_their_source_and_licence_lie_beside_them() -> None:
    folder = data_sets.find("digits").folder
    assert folder is not None
    text = (folder / "digits.txt").read_text()
    assert "CC BY 4.0" in text
    assert "UCI Machine Learning Repository" in text


def test_a_damaged_file_of_a_package_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits.csv.gz").write_bytes(b"0,0,5")
    publish(monkeypatch, "digits", folder=tmp_path)
    with pytest.raises(DamagedArtifactError, match=r"digits\.csv\.gz: not the published") as found:
        load_data()
    assert found.value.hint == "install the package that brings it again"
    (tmp_path / "digits.csv.gz").unlink()
    with pytest.raises(ConfigError, match="digits"):
        load_data()


# --- a data set of one's own --------------------------------------------------------------------


def test_the_readmes_data_set_is_one_file(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "toy.py").write_text(EXAMPLE)
    data = load_data("toy")
    assert (len(data.train), len(data.test), data.image_size, data.channels) == (96, 24, 8, 1)
    assert data.digest == content_digest(DataConfig(name="toy"), default_root=tmp_path)
    assert "toy" in data_sets.names()
    assert on_disk("toy", tmp_path).present
    with pytest.raises(ConfigError, match="unknown data set 'toi'") as found:
        build_config({"data": {"name": "toi"}})
    assert found.value.hint == "did you mean toy?"
    place = Place(tmp_path)
    plan = place.json(capfd, "run", str(place.preset), "--plan", "--set", "data.name=toy")
    assert plan["data"]["image_size"] == 8
    assert plan["executes"] == ["search", "derive", "retrain", "export", "validate"]


def test_control_without_the_file_there_is_no_such_data_set(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path)
    assert place.run("run", str(place.preset), "--plan", "--set", "data.name=toy") == 2
    assert "data.name: unknown data set 'toy'" in capfd.readouterr().err


def test_other_images_have_another_digest(folder: Path, tmp_path: Path) -> None:
    exec(EXAMPLE, {})  # noqa: S102 - registered by a program
    digest = content_digest(DataConfig(name="toy"), default_root=tmp_path)
    publish(pytest.MonkeyPatch(), "toy", read=lambda _: stripes(images=120 * [np.eye(8)]))
    assert content_digest(DataConfig(name="toy"), default_root=tmp_path) != digest


def test_a_grown_revision_has_another_digest(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and their checksums are the same whatever ``read`` makes of them."""
    config = DataConfig(name="fashion-mnist")
    publish(monkeypatch, "fashion-mnist", read=lambda _: stripes())  # control: a new reader alone
    assert content_digest(config, default_root=tmp_path) == DIGESTS["fashion-mnist"]
    publish(monkeypatch, "fashion-mnist", revision=2)
    second = content_digest(config, default_root=tmp_path)
    publish(monkeypatch, "fashion-mnist", revision=3)
    third = content_digest(config, default_root=tmp_path)
    assert len({DIGESTS["fashion-mnist"], second, third}) == 3
    publish(monkeypatch, "fashion-mnist", revision=1)
    assert content_digest(config, default_root=tmp_path) == DIGESTS["fashion-mnist"]


def entry_point(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Have an installed package declare the data set toy."""
    points = EntryPoints([EntryPoint("toy", value, "d2nas.datasets")])
    monkeypatch.setattr(registry_module, "entry_points", points.select)


def test_a_package_brings_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy_of_another_package.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    entry_point(monkeypatch, "toy_of_another_package")
    assert "toy" in data_sets.names()
    assert "toy_of_another_package" not in sys.modules  # only when it is asked for
    assert len(load_data("toy").train) == 96
    sys.modules.pop("toy_of_another_package")


@pytest.mark.parametrize(
    ("value", "reason"), [("missing_package", "ModuleNotFoundError"), ("json", "registers no toy")]
)
def test_a_package_that_cannot_be_loaded_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    entry_point(monkeypatch, value)
    with pytest.raises(ConfigError, match=reason) as found:
        data_sets.find("toy")
    assert value in str(found.value)
    states = {finding.subject: finding.state for finding in examine(tmp_path, None)}
    assert states["data toy"] == "problem"
    assert states["data digits"] == "ok"


def test_a_broken_module_hides_no_other(folder: Path) -> None:
    (folder / "toy.py").write_text("import d2nas.nowhere")
    assert data_sets.find("digits").name == "digits"
    with pytest.raises(ConfigError, match=r"unknown data set 'toy'; d2nas\.data\.sets\.toy cannot"):
        data_sets.find("toy")


@pytest.mark.parametrize(
    ("name", "reason"), [("digits", "is already registered"), ("My Set", "invalid name")]
)
def test_a_name_is_taken_once_and_plain(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        register_data_set(DataSet(name=name, title="another"))


# --- a record and its arrays --------------------------------------------------------------------


def stripes(**changes: object) -> Arrays:
    images = np.zeros((120, 8, 8), np.uint8)
    arrays = Arrays(("lying", "standing"), images, np.arange(120) % 2)
    arrays = arrays._replace(**changes)
    return arrays._replace(images=np.asarray(arrays.images))


WRONG = {
    "shape of images": {"images": np.zeros((119, 8, 8), np.uint8)},
    "type of pixels": {"images": np.zeros((120, 8, 8), np.float32)},
    "labels": {"labels": np.arange(119) % 2},
    "classes": {"class_names": ("same", "same")},
}
UNUSABLE = {
    "labels are 1 to 2, classes 0 to 1": {"labels": np.arange(120) % 2 + 1},
    "labels are float64, not whole numbers": {"labels": np.arange(120) % 2 + 0.5},
    "labels are list, no array": {"labels": [0, 1] * 60},
    "class names must be texts": {"class_names": (0, 1)},
}


@pytest.mark.parametrize("problem", UNUSABLE)
def test_arrays_that_cannot_be_used_are_refused(folder: Path, problem: str) -> None:
    exec(EXAMPLE, {})  # noqa: S102 - registered by a program
    publish(pytest.MonkeyPatch(), "toy", read=lambda _: stripes(**UNUSABLE[problem]))
    with pytest.raises(ConfigError, match=problem):
        load_data("toy")


def exits(_files: object) -> Arrays:
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("read", "problem"),
    [(lambda _: None, "returns NoneType, no Arrays"), (exits, "its reader exits with 0")],
)
def test_a_reader_that_returns_nothing_is_told(folder: Path, read: object, problem: str) -> None:
    exec(EXAMPLE, {})  # noqa: S102 - registered by a program
    publish(pytest.MonkeyPatch(), "toy", read=read)
    with pytest.raises(ConfigError, match=problem):
        load_data("toy")


@pytest.mark.parametrize("fact", ["size", "channels", "num_classes", "num_train"])
def test_a_record_with_a_reader_needs_its_facts(folder: Path, fact: str) -> None:
    facts = {"size": 8, "channels": 1, "num_classes": 2, "num_train": 10} | {fact: None}
    with pytest.raises(ConfigError, match=f"invalid {fact}: None"):
        register_data_set(DataSet(name="toy", title="a toy", read=lambda _: stripes(), **facts))


@pytest.mark.parametrize("fact", WRONG)
def test_arrays_that_are_not_as_their_record_says_are_refused(folder: Path, fact: str) -> None:
    exec(EXAMPLE, {})  # noqa: S102 - registered by a program
    publish(pytest.MonkeyPatch(), "toy", read=lambda _: stripes())
    load_data("toy")
    publish(pytest.MonkeyPatch(), "toy", read=lambda _: stripes(**WRONG[fact]))
    with pytest.raises(ConfigError, match=f"toy: {fact}: .* as its record says"):
        load_data("toy")


def test_control_unchecked_a_missing_class_would_be_trained_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_readers, "_check_facts", lambda *_: None)
    exec(EXAMPLE, {})  # noqa: S102 - registered by a program
    publish(monkeypatch, "toy", read=lambda _: stripes(class_names=("same", "same")))
    assert load_data("toy").class_names == ("same", "same")
