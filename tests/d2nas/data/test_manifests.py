"""Manifests: what a table of paths, labels and splits lists, its digest, and what is refused."""

import contextlib
import csv
import os
import sys
from pathlib import Path

import pytest
import torch
from image_files import write_classes, write_image

from d2nas.config import build_config
from d2nas.data import folders as image_folders
from d2nas.data import manifests
from d2nas.data.folders import find_images
from d2nas.data.images import load_data
from d2nas.data.manifests import read_manifest
from d2nas.data.sources import content_digest, on_disk
from d2nas.errors import ConfigError, StorageError
from pipeline.cli import run

Rows = list[tuple[str, ...]]


def config_of(root: Path, **settings: object):
    values = {"name": "folder", "root": str(root), "image_size": 9, **settings}
    return build_config({"data": values}).data


def digest_of(root: Path, **settings: object) -> str:
    return content_digest(config_of(root, **settings), default_root=Path("unused"))


def write(path: Path, rows: Rows, *, columns: tuple[str, ...] = ("path", "label")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def write_parquet(path: Path, rows: Rows, *, columns: tuple[str, ...] = ("path", "label")) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    values = {
        name: list(column) for name, column in zip(columns, zip(*rows, strict=True), strict=True)
    }
    parquet.write_table(pyarrow.table(values), path)
    return path


def rows_of(root: Path, *, with_split: bool = False) -> Rows:
    """Rows that say of each image what its folder says, in no certain order."""
    listing = find_images(root)
    parts = (("train", listing.train), ("val", listing.validation), ("test", listing.test))
    rows: Rows = [
        (file.path, listing.class_names[file.label], *([part] if with_split else []))
        for part, files in parts
        for file in files
    ]
    return sorted(rows, reverse=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "images", {"dog": 5, "cat": 5, "Ant": 5})


SPLIT = ("path", "label", "split")
PARTS = {f"{part}/{name}": 4 for part in ("train", "val", "test") for name in ("b", "a")}

# --- the same data set --------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write, write_parquet])
@pytest.mark.parametrize("splits", [False, True])
def test_a_manifest_is_the_folder_that_it_describes(tmp_path: Path, write, splits: bool) -> None:
    counts = PARTS if splits else {"dog": 5, "cat": 5, "Ant": 4}
    root = write_classes(tmp_path / "images", counts)
    columns = SPLIT if splits else SPLIT[:2]
    name = "all.csv" if write is not write_parquet else "all.PARQUET"
    found, wanted = (
        read_manifest(write(root / name, rows_of(root, with_split=splits), columns=columns)),
        find_images(root),
    )
    assert (found.class_names, found.files) == (wanted.class_names, wanted.files)
    assert (found.train, found.validation) == (wanted.train, wanted.validation)
    assert found.root == root
    assert digest_of(root / name) == digest_of(root)
    one, other = (load_data(config_of(place), seed=1) for place in (root / name, root))
    assert one.digest == other.digest == digest_of(root)
    assert torch.equal(one.train.images_NCHW, other.train.images_NCHW)
    assert torch.equal(one.test.labels_N, other.test.labels_N)


def test_other_labels_or_parts_of_the_same_files_are_another_data_set(folder: Path) -> None:
    rows = rows_of(folder)
    swapped = [(path, {"cat": "dog", "dog": "cat"}.get(label, label)) for path, label in rows]
    parted = [(*row, "test" if row[0].endswith("/000.png") else "train") for row in rows]
    trained = [(*row, "train") for row in rows]
    digests = [
        digest_of(folder),
        digest_of(write(folder / "swapped.csv", swapped)),
        digest_of(write(folder / "parted.csv", parted, columns=SPLIT)),
        digest_of(write(folder / "some.csv", rows[1:])),
    ]
    assert len(set(digests)) == 4
    assert digest_of(write(folder / "train.csv", trained, columns=SPLIT)) == digests[0]
    for name in ("swapped", "parted"):
        data = load_data(config_of(folder / f"{name}.csv"), seed=1)
        assert data.digest == digest_of(folder / f"{name}.csv")
        streamed = load_data(config_of(folder / f"{name}.csv", stream="always"), seed=1)
        assert streamed.digest == data.digest


def test_folders_that_may_be_splits_or_classes_are_told_apart(tmp_path: Path) -> None:
    root = write_classes(
        tmp_path, {f"{part}/{name}": 4 for part in ("train", "test") for name in "ab"}
    )
    by_first = [(path, path.split("/")[0]) for path, *_ in rows_of(root)]
    assert digest_of(write(root / "as_classes.csv", by_first)) != digest_of(root)


def test_labels_with_slashes_are_not_the_folders_that_they_name(tmp_path: Path) -> None:
    inner = [f"{name}/{kind}" for name in ("cat", "dog") for kind in ("plain", "tabby")]
    for part in ("", "train/"):
        root = write_classes(tmp_path / (part or "whole"), {part + name: 4 for name in inner})
        steps = [(path, path.removeprefix(part).split("/")) for path, *_ in rows_of(root)]
        coarse = write(root / "coarse.csv", [(path, step[0]) for path, step in steps])
        fine = write(root / "fine.csv", [(path, "/".join(step[:2])) for path, step in steps])
        assert read_manifest(fine).class_names == tuple(inner)
        assert digest_of(coarse) == digest_of(root)
        assert digest_of(fine) != digest_of(root)


def test_without_the_names_labels_would_not_count(folder: Path, monkeypatch) -> None:
    rows = [
        (path, {"cat": "dog", "dog": "cat"}.get(label, label)) for path, label in rows_of(folder)
    ]
    swapped = write(folder / "swapped.csv", rows)
    monkeypatch.setattr(
        image_folders.FolderListing,
        "content_names",
        lambda self: [file.path for file in self.files],
    )
    assert digest_of(swapped) == digest_of(folder)


def test_labels_are_text_whatever_the_files_are_called(tmp_path: Path) -> None:
    names = ["a b.png", "ü,ñ.png", 'quote"d.png', "no-suffix", ".hidden.png", "x.TXT", "-.png", "#"]
    for index, name in enumerate(names):
        write_image(tmp_path / "flat" / "x.png", seed=index).rename(tmp_path / "flat" / name)
    labels = ["10", "9", "animal/cat, big"]
    rows: Rows = []
    for index, name in enumerate(names):
        rows.append((f"flat/{name}", labels[index % 2]))
    for index in range(4):
        write_image(tmp_path / f"{index}.png", seed=20 + index)
        rows.append((f"./{index}.png" if index else str(tmp_path / "0.png"), labels[2]))
    data = load_data(config_of(write(tmp_path / "all.csv", rows)), seed=0)
    assert data.class_names == ("10", "9", "animal/cat, big")
    assert data.class_counts() == {"10": 3, "9": 3, "animal/cat, big": 3}


def test_csv_is_read_as_other_programs_write_it(folder: Path) -> None:
    lines = ["label,path", *(f'"{label}","{path}"' for path, label in rows_of(folder)), "", ""]
    expected = find_images(folder)
    for start, end in (("", "\n"), ("\ufeff", "\r\n"), ("\ufeff", "\r")):
        (folder / "all.csv").write_bytes((start + end.join(lines)).encode())
        assert read_manifest(folder / "all.csv").files == expected.files


def test_parquet_may_hold_numbers_and_categories(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    from pyarrow import parquet

    root = write_classes(tmp_path, {"0": 4, "1": 4})
    rows = rows_of(root)
    labels = pyarrow.array([int(label) for _, label in rows])
    for found in (labels, labels.cast("string").dictionary_encode()):
        table = pyarrow.table({"label": found, "path": [path for path, _ in rows]})
        parquet.write_table(table, root / "all.parquet")
        assert read_manifest(root / "all.parquet").files == find_images(root).files


def test_validation_rows_are_treated_as_a_folders(tmp_path: Path) -> None:
    root = write_classes(tmp_path, PARTS)
    rows = [(path, label, {"val": "validation"}.get(part, part))
            for path, label, part in rows_of(root, with_split=True)]  # fmt: skip
    data = load_data(config_of(write(root / "all.csv", rows, columns=SPLIT)), seed=0)
    assert (len(data.weight_half), len(data.arch_half), len(data.test)) == (8, 8, 8)
    without = [row for row in rows if row[2] != "test"]
    data = load_data(config_of(write(root / "all.csv", without, columns=SPLIT)), seed=0)
    assert (len(data.train), len(data.test)) == (8, 8)


def test_repeated_rows_and_other_columns_are_told(folder: Path) -> None:
    rows = [(*row, "12") for row in rows_of(folder)]
    found = write(folder / "all.csv", rows + rows[:2], columns=("path", "label", "width\n"))
    told = load_data(config_of(found), seed=0).warnings
    assert r"columns of all.csv that are not read: 1 (width\n)" in told
    assert "rows of all.csv that repeat another, used once: 2" in told
    assert read_manifest(found).files == find_images(folder).files


def test_damaged_images_are_named_or_left_out(folder: Path) -> None:
    manifest = write(folder / "all.csv", rows_of(folder))
    (folder / "dog" / "001.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"dog/001\.png: cannot be read"):
        load_data(config_of(manifest), seed=0)
    data = load_data(config_of(manifest, on_error="skip"), seed=0)
    assert data.warnings[0] == "damaged images left out: 1 of 15 (dog/001.png)"
    (folder / "dog" / "001.png").unlink()
    assert data.digest == digest_of(folder)


# --- refused ------------------------------------------------------------------------------------

GOOD: Rows = [(f"{name}/{index:03}.png", name) for name in ("cat", "dog") for index in range(4)]
ROWS = {
    "dots": ([*GOOD, ("../other/x.png", "cat")], "line 10: path ../other/x.png leaves"),
    "dots inside": ([*GOOD, ("cat/../cat/000.png", "cat")], "leaves the manifest's folder"),
    "absolute": ([*GOOD, ("/etc/passwd", "cat")], "path /etc/passwd leaves"),
    "a root like this one": ([*GOOD, ("{root}x/a.png", "cat")], "x/a.png leaves"),
    "no path": ([*GOOD, ("", "cat")], "path '' names no file"),
    "the root": ([*GOOD, ("./", "cat")], "path './' names no file"),
    "a zero byte": ([*GOOD, ("a\0.png", "cat")], r"names no file"),
    "missing": ([*GOOD, ("cat/9.png", "cat")], r"cat/9.png: no such file \(all.csv line 10\)"),
    "below a file": ([*GOOD, ("cat/000.png/x", "cat")], "no such file"),
    "a folder": ([*GOOD, ("cat", "cat")], "cat: not a regular file"),
    "two labels": ([*GOOD, ("cat/000.png", "dog")], "cat/000.png is dog, and cat in line 2"),
    "two spellings": ([*GOOD, ("./cat//000.png", "dog")], "is dog, and cat in line 2"),
    "an empty label": ([*GOOD, ("dog/004.png", "")], "line 10: label is empty"),
    "a space": ([*GOOD, ("dog/004.png", " dog")], "label ' dog' begins or ends with a space"),
    "two lines": ([*GOOD, ("dog/004.png", "a\nb")], "line 11: label .* is no printable text"),
    "a long label": ([*GOOD, ("dog/004.png", "x" * 256)], "at most 255 bytes"),
    "one class": (GOOD[:4], "two classes or more, found cat"),
    "one image of a class": (GOOD[:5], "class dog has 1 images, at least 4"),
    "nothing": ([], "all.csv: no rows"),
}


@pytest.mark.parametrize(("rows", "problem"), ROWS.values(), ids=ROWS)
def test_what_would_make_a_wrong_data_set_is_refused(
    folder: Path, rows: Rows, problem: str
) -> None:
    rows = [(path.replace("{root}", str(folder)), label) for path, label in rows]
    with pytest.raises(ConfigError, match=problem) as raised:
        read_manifest(write(folder / "all.csv", rows))
    assert raised.value.hint
    assert "\n" not in f"{raised.value}{raised.value.hint}"


WITH_SPLIT = [(*row, "train") for row in GOOD]
SPLITS = {
    "unknown": ("dev", "dog", "split 'dev' is not supported"),
    "other letters": ("Test", "dog", "split 'Test' is not supported"),
    "empty": ("", "dog", "split '' is not supported"),
    "a class of the test alone": (
        "test",
        "emu",
        "class test/emu is not among the training classes",
    ),
}


@pytest.mark.parametrize(("split", "label", "problem"), SPLITS.values(), ids=SPLITS)
def test_splits_are_known_and_their_classes_trained(folder: Path, split, label, problem) -> None:
    rows = [*WITH_SPLIT, ("dog/004.png", label, split)]
    with pytest.raises(ConfigError, match=problem) as raised:
        read_manifest(write(folder / "all.csv", rows, columns=SPLIT))
    assert raised.value.hint


def test_an_image_of_two_parts_and_parts_without_training_are_refused(folder: Path) -> None:
    rows = [*WITH_SPLIT, ("dog/000.png", "dog", "test")]
    with pytest.raises(ConfigError, match=r"dog/000\.png is in test, and in train in line 6"):
        read_manifest(write(folder / "all.csv", rows, columns=SPLIT))
    with pytest.raises(ConfigError, match="no row of split train"):
        read_manifest(write(folder / "all.csv", [(*row, "test") for row in GOOD], columns=SPLIT))


FILES = {
    "no header": (b"cat/000.png,cat\n", "no column path and no column label, but 'cat/000.png'"),
    "semicolons": (b"path;label\na;b\n", "no column path"),
    "two columns": (b"path,label,label\na,b,c\n", "two columns label"),
    "empty": (b"", "but nothing"),
    "fields": (b"path,label\na,b.png,cat\n", "line 2 has 3 fields, not 2"),
    "UTF-16": ("path,label\n".encode("utf-16"), "not UTF-8"),
    "Latin 1": ("path,label\nü,b\n".encode("latin-1"), "not UTF-8"),
    "quotes": (b'path,label\n"a"b,c\n', "line 2: invalid CSV"),
    "an open quote": (b'path,label\n"a,c\n', "invalid CSV"),
    "a huge field": (b"path,label\n" + b"x" * 200_000 + b",c\n", "invalid CSV"),
}


@pytest.mark.parametrize(("content", "problem"), FILES.values(), ids=FILES)
def test_files_of_another_form_are_refused(folder: Path, content: bytes, problem: str) -> None:
    (folder / "all.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as raised:
        read_manifest(folder / "all.csv")
    assert raised.value.hint
    assert "\n" not in f"{raised.value}{raised.value.hint}"


def test_damaged_parquet_is_refused(folder: Path) -> None:
    manifest = write_parquet(folder / "all.parquet", GOOD)
    whole = manifest.read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2], b"path,label\n"):
        manifest.write_bytes(content)
        with pytest.raises(ConfigError, match=r"all\.parquet: invalid Parquet"):
            read_manifest(manifest)
    for index in range(4, len(whole), 7):
        manifest.write_bytes(whole[:index] + bytes([whole[index] ^ 255]) + whole[index + 1 :])
        with contextlib.suppress(ConfigError):
            read_manifest(manifest)


@pytest.mark.parametrize("column", ["path", "label", "split"])
@pytest.mark.parametrize("dictionary", [True, False], ids=["dictionary", "plain"])
def test_long_values_in_parquet_are_refused_before_they_are_repeated(
    folder: Path, monkeypatch, column: str, dictionary: bool
) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    from pyarrow import parquet

    manifest = folder / "all.parquet"
    count, long = 400, "x" * 100_000
    columns = {name: ["cat"] * count for name in SPLIT}
    columns[column] = [long if dictionary else f"{long}{index}" for index in range(count)]
    table = pyarrow.table(columns)
    parquet.write_table(table, manifest, use_dictionary=dictionary, compression="zstd")
    assert manifest.stat().st_size < 10 * len(long)
    read, values = [], manifests._values
    monkeypatch.setattr(
        manifests, "_values", lambda *args: read.append(args[-1].nbytes) or values(*args)
    )
    with pytest.raises(ConfigError, match=f"{column} has values of more than 4096 bytes"):
        read_manifest(manifest)
    whole = count * len(long)
    assert sum(read) < whole / 4
    assert parquet.ParquetFile(manifest).read().nbytes > whole  # the control


def test_parquet_columns_of_other_types_are_refused_as_a_whole(folder: Path) -> None:
    for value in (1.5, True, b"cat", ["cat"], {"a": "cat"}):
        rows = [(path, value) for path, _ in GOOD]
        with pytest.raises(ConfigError, match=r"column label holds .*, no text") as raised:
            read_manifest(write_parquet(folder / "all.parquet", rows))
        assert raised.value.hint


def test_parquet_of_many_groups_and_empty_values_is_read_by_row(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    from pyarrow import parquet

    names = [name for _, name in GOOD]
    for kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
        table = pyarrow.table(
            {"path": [path for path, _ in GOOD], "label": pyarrow.array(names, kind)}
        )
        parquet.write_table(table, folder / "all.parquet", row_group_size=3)
        assert len(read_manifest(folder / "all.parquet").files) == len(GOOD)
    rows = [*GOOD, ("dog/004.png", None)]
    with pytest.raises(ConfigError, match="row 9: label is empty"):
        read_manifest(write_parquet(folder / "all.parquet", rows))
    parquet.write_table(table.slice(0, 0), folder / "all.parquet")
    with pytest.raises(ConfigError, match="no rows"):
        read_manifest(folder / "all.parquet")


def test_parquet_without_its_package_is_told(folder: Path, monkeypatch) -> None:
    (folder / "all.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="needs pyarrow, which is missing") as raised:
        read_manifest(folder / "all.parquet")
    assert "'.[parquet]'" in str(raised.value.hint)


def test_a_manifest_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("none.csv", "none.parquet", "pipe.csv"):
        with pytest.raises(ConfigError, match=f"{name}: no such file") as raised:
            digest_of(tmp_path / name)
        assert raised.value.hint
    root = write_classes(tmp_path / "folder.csv", {"a": 4, "b": 4})
    assert on_disk("folder", root).present


def test_a_manifest_that_must_not_be_read_is_a_storage_error(folder: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=r"all\.csv: Permission denied"):
        read_manifest(write_text(folder / "all.csv"))


def write_text(path: Path) -> Path:
    path.touch()
    return path


# --- links --------------------------------------------------------------------------------------


def linked(folder: Path) -> Path:
    """A manifest of good images and of links: out of the root, to nowhere, to a folder, through
    one that stays inside.
    """
    outside = write_image(folder.parent / "outside" / "x.png")
    (folder / "leaves.png").symlink_to(outside)
    (folder / "nowhere.png").symlink_to("gone.png")
    (folder / "to_folder.png").symlink_to("cat")
    (folder / "away").symlink_to(outside.parent)
    (folder / "inside").symlink_to("cat")
    (folder / "round").symlink_to("round")
    names = ("leaves.png", "nowhere.png", "to_folder.png", "away/x.png", "inside/000.png")
    names = (*names, "round/x.png")
    return write(folder / "all.csv", [*GOOD, *((name, "cat") for name in names)])


def test_links_that_leave_the_root_or_lead_to_folders_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"6 faults \(links 6\)") as raised:
        read_manifest(linked(folder))
    assert [line.split(" (")[0] for line in raised.value.details] == [
        "away/x.png: a link in the path",
        "inside/000.png: a link in the path",
        "leaves.png: a link that leaves the data folder",
        "nowhere.png: a link that leads nowhere",
        "round/x.png: a link in the path",
        "to_folder.png: links to folders are not followed",
    ]


def test_without_the_checks_links_would_bring_in_foreign_files(folder: Path, monkeypatch) -> None:
    manifest = linked(folder)
    (folder / "round").unlink()
    (folder / "round").symlink_to("away")
    monkeypatch.setattr(manifests, "check_link", lambda *_: None)
    monkeypatch.setattr(manifests._Search, "_is_plain_folder", lambda *_: True)
    assert {"leaves.png", "away/x.png"} <= {file.path for file in read_manifest(manifest).files}


def test_links_inside_the_root_and_a_root_that_is_one_are_followed(folder: Path) -> None:
    (folder / "same.png").symlink_to("cat/000.png")
    write(folder / "all.csv", [*GOOD, ("same.png", "cat")])
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert len(read_manifest(link / "all.csv").files) == 9


# --- commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["folder", "small"])
def test_commands_take_a_manifest_where_they_take_a_folder(folder: Path, tmp_path, capsys, preset):
    manifest = write(folder / "all.csv", rows_of(folder))
    assert run(["show", "--config", preset, "--data-root", str(manifest)]) == 0
    assert "chosen from 15 pictures" in capsys.readouterr().out
    words = ["search", preset, "--method", "random", "--store", str(tmp_path / "store")]
    assert run([*words, "--data-root", str(folder), "--set", "data.image_size=8"]) == 0
    capsys.readouterr()
    assert run([*words, "--data-root", str(manifest), "--set", "data.image_size=8"]) == 0
    assert "up to date" in capsys.readouterr().err
    write(folder / "all.csv", [*GOOD, ("/etc/passwd", "cat")])
    assert run([*words, "--data-root", str(manifest)]) == 2
    assert "line 10: path /etc/passwd leaves the manifest's folder" in capsys.readouterr().err
