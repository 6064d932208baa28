"""Data sets for the library datasets: what is found, written once, left out, and refused."""

import json
import os
import socket
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import noise, write_classes
from PIL import Image

from d2nas.config import DataConfig
from d2nas.data import hub
from d2nas.data.hub import hub_folder, hub_manifest, is_hub
from d2nas.data.image_writer import MANIFEST, remarks_of, suffix_of, written_images
from d2nas.data.images import load_data
from d2nas.data.sources import content_digest, list_config
from d2nas.errors import ConfigError, StorageError
from pipeline.cli import run


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="the extra hf is not installed")


def png(seed: int) -> bytes:
    file = BytesIO()
    Image.fromarray(noise(seed, 10, 12, 3)).save(file, "PNG")
    return file.getvalue()


def made(datasets: Any, count: int, *, start: int = 0, labels: Sequence[Any] = (), **more: Any):
    """Images of two classes by turns, as a data set of ``datasets``."""
    values = {"picture": [{"bytes": png(start + index), "path": None} for index in range(count)]}
    values["kind"] = list(labels) or [index % 2 for index in range(count)]
    kinds = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["dog", "cat"])}
    for name, (feature, column) in more.items():
        kinds[name], values[name] = feature, column
    return datasets.Dataset.from_dict(values, features=datasets.Features(kinds))


def saved(datasets: Any, folder: Path, **splits: Any) -> str:
    datasets.DatasetDict(splits).save_to_disk(folder)
    return f"hf:{folder}"


def config_of(root: str) -> DataConfig:
    return DataConfig(name="folder", root=root, image_size=9)


def digest_of(root: str, place: Path) -> str:
    return content_digest(config_of(root), default_root=place)


# --- what is found ------------------------------------------------------------------------------


def test_splits_labels_and_files_are_those_of_the_data_set(datasets: Any, tmp_path: Path) -> None:
    parts = {"train": 10, "validation": 4, "test": 6}
    splits = {name: made(datasets, n, start=50 * n) for name, n in parts.items()}
    root = saved(datasets, tmp_path / "saved", **splits)
    listing = list_config(config_of(root), tmp_path / "data")
    assert listing.class_names == ("cat", "dog")
    assert [len(part) for part in (listing.train, listing.validation, listing.test)] == [10, 4, 6]
    assert listing.notes() == []
    first = next(file for file in listing.train if file.path.endswith("0000000.png"))
    assert listing.class_names[first.label] == "dog"
    assert (listing.root / first.path).read_bytes() == png(500)
    data = load_data(config_of(root), default_root=tmp_path / "data")
    assert (len(data.weight_half), len(data.arch_half), len(data.test)) == (10, 4, 6)
    assert data.digest == digest_of(root, tmp_path / "data")


def test_one_split_parquet_files_and_columns_by_name(datasets: Any, tmp_path: Path) -> None:
    found = made(datasets, 10)
    found.save_to_disk(tmp_path / "one")
    (tmp_path / "parquet").mkdir()
    found.to_parquet(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    texts = made(datasets, 10, word=(datasets.Value("string"), ["dog", "cat"] * 5))
    texts.save_to_disk(tmp_path / "texts")
    digests = {
        digest_of(f"hf:{tmp_path}/{name}", tmp_path / "data")
        for name in ("one", "parquet", "texts", "texts?label=word&image=picture")
    }
    assert len(digests) == 1
    listing = list_config(config_of(f"hf:{tmp_path}/one"), tmp_path / "data")
    assert (len(listing.train), listing.test) == (10, ())


def test_images_are_written_once_and_anew_when_the_data_set_changes(
    datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, place = saved(datasets, tmp_path / "saved", train=made(datasets, 10)), tmp_path / "data"
    before = digest_of(root, place)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "datasets", None)
        assert digest_of(root, place) == before
    made(datasets, 12).save_to_disk(tmp_path / "new")
    os.rename(tmp_path / "saved", tmp_path / "old")
    saved(datasets, tmp_path / "saved", train=made(datasets, 12))
    assert digest_of(root, place) != before
    assert not [path for path in (place / "hf").iterdir() if path.name.startswith(".")]


def test_splits_without_labels_or_of_other_names_are_told(datasets: Any, tmp_path: Path) -> None:
    unlabelled = made(datasets, 3, labels=[-1, -1, -1])
    without = made(datasets, 5).remove_columns("kind")
    splits = {"train": made(datasets, 10), "test": unlabelled, "extra": made(datasets, 2)}
    splits["validation"] = without
    root, place = saved(datasets, tmp_path / "saved", **splits), tmp_path / "data"
    told = [f"split validation of {tmp_path}/saved is left out: 5 images, no label"]
    told += [f"split test of {tmp_path}/saved is left out: 3 images, no label"]
    told += [
        f"split extra of {tmp_path}/saved is left out: 2 images, neither training, validation nor "
        "test"
    ]
    for _ in range(2):
        assert sorted(list_config(config_of(root), place).notes()) == sorted(told)


def test_a_command_takes_it(datasets: Any, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("D2NAS_DATA", str(tmp_path / "data"))
    root = saved(datasets, tmp_path / "saved", train=made(datasets, 10))
    words = ["search", "small", "--method", "random", "--store", str(tmp_path / "store")]
    assert run([*words, "--data-root", root, "--set", "data.image_size=8"]) == 0
    assert "training images per class: cat 4, dog 4" in capsys.readouterr().err
    assert run([*words, "--data-root", root, "--set", "data.image_size=8"]) == 0
    assert "up to date" in capsys.readouterr().err


# --- what is refused ----------------------------------------------------------------------------


def test_columns_that_cannot_be_told_by_type_are_named(datasets: Any, tmp_path: Path) -> None:
    two = made(datasets, 10, fine=(datasets.ClassLabel(names=["a", "b"]), [0, 1] * 5))
    two.save_to_disk(tmp_path / "two")
    made(datasets, 10).remove_columns("kind").save_to_disk(tmp_path / "none")
    place = tmp_path / "data"
    for root, problem in {
        "two": r"several columns of type ClassLabel: picture \(Image\), kind \(ClassLabel\), fine",
        "two?label=coarse": "no label column coarse",
        "two?image=kind": "no image column kind",
        "two?label=picture": "no label column picture",
        "none": "no column of type ClassLabel",
    }.items():
        with pytest.raises(ConfigError, match=problem) as raised:
            hub_manifest(f"hf:{tmp_path}/{root}", place)
        assert raised.value.hint
    assert digest_of(f"hf:{tmp_path}/two?label=fine", place)
    assert len(list((place / "hf").iterdir())) == 1  # of what was refused nothing stays


def test_rows_without_image_or_label_and_data_without_training_are_refused(
    datasets: Any, tmp_path: Path
) -> None:
    whole = made(datasets, 10)
    lacking = made(datasets, 3, labels=[0, -1, 1])
    empty = datasets.Dataset.from_dict(
        {"picture": [{"bytes": png(0), "path": None}, None], "kind": [0, 1]},
        features=whole.features,
    )
    for name, splits, problem in (
        ("label", {"train": whole, "test": lacking}, "row 1 of test has no label"),
        ("image", {"train": empty}, "row 1 of train has no image"),
        ("train", {"test": whole, "more": whole}, "no split train, but test, more"),
    ):
        root = saved(datasets, tmp_path / name, **splits)
        with pytest.raises(ConfigError, match=problem):
            hub_manifest(root, tmp_path / "data")
    assert not list((tmp_path / "data" / "hf").iterdir())


def foreign(datasets: Any, tmp_path: Path) -> str:
    """A data set whose second image is a path out of it."""
    outside = tmp_path / "secret.png"
    outside.write_bytes(png(77))
    rows = [{"bytes": png(index), "path": None} for index in range(9)]
    rows.insert(1, {"bytes": None, "path": str(outside)})
    whole = made(datasets, 10)
    values = {"picture": rows, "kind": whole["kind"][:]}
    plain = datasets.Dataset.from_dict(values, features=whole.features)
    (tmp_path / "foreign").mkdir()
    import pyarrow.parquet

    pyarrow.parquet.write_table(plain.data.table, tmp_path / "foreign" / "train.parquet")
    return f"hf:{tmp_path}/foreign"


def test_a_path_out_of_the_data_set_is_not_followed(
    datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = foreign(datasets, tmp_path)
    with pytest.raises(ConfigError, match="row 1 of train has no image"):
        hub_manifest(root, tmp_path / "data")
    # The control: without the check the foreign file would be an image of the data set.
    monkeypatch.setattr(Path, "is_relative_to", lambda *_: True)
    written = hub_manifest(root, tmp_path / "data").parent
    assert (written / "train/0000/0000001.png").read_bytes() == png(77)


def test_pictures_in_folders_are_taken_by_their_paths(datasets: Any, tmp_path: Path) -> None:
    write_classes(tmp_path / "pictures" / "train", {"cat": 4, "dog": 4})
    listing = list_config(config_of(f"hf:{tmp_path}/pictures"), tmp_path / "data")
    assert (listing.class_names, len(listing.train)) == (("cat", "dog"), 8)


def test_what_datasets_cannot_load_is_told_in_a_line(datasets: Any, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.xyz").write_text("nothing")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.json").write_text("{")
    for name in ("text", "state"):
        with pytest.raises(ConfigError, match=f"{name}: datasets cannot load it") as raised:
            hub_manifest(f"hf:{tmp_path}/{name}", tmp_path / "data")
        assert "\n" not in str(raised.value)


# --- without the package ------------------------------------------------------------------------


def test_without_its_package_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for root in ("hf:owner/name", f"hf:{write_classes(tmp_path / 'x', {'a': 1})}"):
        with pytest.raises(
            ConfigError, match="need the package datasets, which is missing"
        ) as told:
            list_config(config_of(root), tmp_path)
        assert "'.[hf]'" in str(told.value.hint)


@pytest.mark.parametrize(
    "root", ["hf:", "hf:a/b/c", "hf:a b/c", "hf:a/b?", "hf:a/b?x=1", "hf:a/b?label=1&label=2",
             "hf:a\0b/c", "hf:a/b?label", "hf:./?config=x"],
)  # fmt: skip
def test_another_form_is_refused(tmp_path: Path, root: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.root=hf:"):
        hub_manifest(root, tmp_path)


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    for root in (f"hf:{tmp_path}/none", "hf:./none", "hf:../none/data"):
        with pytest.raises(ConfigError, match="no such folder"):
            hub_manifest(root, tmp_path)


def test_a_data_set_with_files_of_its_own_takes_no_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.name=cifar10 has files of its own"):
        load_data(DataConfig(name="cifar10", root="hf:a/b"), default_root=tmp_path)
    assert not is_hub("hf")


def test_each_revision_and_configuration_has_a_place_of_its_own(tmp_path: Path) -> None:
    roots = [f"hf:o/n{more}" for more in ("", "?revision=1", "?revision=2", "?config=1")]
    roots += ["hf:o--n", "hf:o/n?revision=" + "x" * 400]
    places = [hub_folder(root, tmp_path) for root in roots]
    assert len(set(places)) == len(roots)
    assert all(len(place.name) < 128 and place.parent == tmp_path / "hf" for place in places)


# --- writing ------------------------------------------------------------------------------------


def test_a_folder_of_written_images_is_whole_or_absent(tmp_path: Path) -> None:
    def stopped() -> None:
        with written_images(tmp_path / "images") as writer:
            writer.write("train", "a", png(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not list(tmp_path.iterdir())
    with written_images(tmp_path / "images") as writer:
        writer.write("train", 'a, "b"', png(0))
        writer.remark("left\nout")
        assert not (tmp_path / "images").exists()
    assert (tmp_path / "images" / MANIFEST).read_text().splitlines()[1] == (
        'train/0000/0000000.png,"a, ""b""",train'
    )
    assert remarks_of(tmp_path / "images") == (r"left\nout",)
    with pytest.raises(ConfigError, match="is there already"), written_images(tmp_path / "images"):
        pass


def test_who_comes_second_leaves_what_is_there(tmp_path: Path) -> None:
    with written_images(tmp_path / "images") as writer:
        writer.write("train", "a", png(0))
        with written_images(tmp_path / "images") as other:
            other.write("train", "b", png(1))
    assert "b" in (tmp_path / "images" / MANIFEST).read_text()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with (
        pytest.raises(StorageError, match="No space left"),
        written_images(tmp_path / "images") as writer,
    ):
        writer.write("train", "a", png(0))
    assert not list(tmp_path.iterdir())


def test_suffixes_are_those_of_the_content() -> None:
    image = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    for suffix, kind in ((".jpg", "JPEG"), (".gif", "GIF"), (".bmp", "BMP"), (".tif", "TIFF"),
                         (".webp", "WEBP"), (".png", "PNG")):  # fmt: skip
        file = BytesIO()
        image.save(file, kind)
        assert suffix_of(file.getvalue()) == suffix
    assert suffix_of(b"") == ""
    assert hub.PREFIX == "hf:"


def test_the_doctor_says_where_it_is_or_will_be(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("D2NAS_DATA", str(tmp_path))

    def found(root: str) -> dict[str, Any]:
        run(["doctor", "--json", "--data-root", root])
        findings = json.loads(capsys.readouterr().out)
        return next(one for one in findings if one["subject"] == "data folder")

    assert found("hf:o/n")["state"] == "absent"
    hub_folder("hf:o/n", tmp_path).mkdir(parents=True)
    assert found("hf:o/n")["state"] == "ok"
    assert found("hf:o/n/m")["state"] == "problem"
