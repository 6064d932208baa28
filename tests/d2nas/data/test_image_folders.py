"""Folder data sets: what is listed, in which order, and what is refused."""

import os
from pathlib import Path

import pytest
from image_files import write_classes, write_image
from PIL import features

from d2nas.config import DataConfig
from d2nas.data import faults as image_faults
from d2nas.data import folders as image_folders
from d2nas.data import preprocess
from d2nas.data.folders import find_images
from d2nas.data.images import load_data
from d2nas.errors import ConfigError
from pipeline.cli import run


def test_classes_and_files_are_sorted_and_nested_folders_walked(tmp_path):
    write_classes(tmp_path, {"dog": 4, "cat/b": 2, "cat/a": 2, "Ant": 4})
    write_image(tmp_path / "cat" / "Z.PNG")
    listing = find_images(tmp_path)
    assert listing.class_names == ("Ant", "cat", "dog")
    assert [file.path for file in listing.train if file.label == 1] == [
        "cat/Z.PNG",
        "cat/a/000.png",
        "cat/a/001.png",
        "cat/b/000.png",
        "cat/b/001.png",
    ]
    assert listing.validation == listing.test == ()
    assert listing.files == listing.train


def test_neither_order_nor_error_depends_on_the_file_system(tmp_path, monkeypatch):
    good = write_classes(tmp_path / "good", {"b/y": 4, "b/x": 4, "a": 4})
    bad = write_classes(tmp_path / "bad", {"a": 4, "b": 3, "c": 3})
    expected = find_images(good)
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(os, "scandir", Reversed)
    assert find_images(good) == expected
    with pytest.raises(ConfigError, match="class b has 3 images"):
        find_images(bad)


@pytest.mark.parametrize(
    "suffix",
    [
        "jpg",
        "jpeg",
        "png",
        "bmp",
        "webp",
        "gif",
        "tif",
        "tiff",
        "ppm",
        "pgm",
        "JPG",
        "jfif",
        "jpe",
        "pbm",
        "mpo",
        *(["avif"] if features.check("avif") else []),
        *(["jp2", "J2K"] if features.check("jpg_2000") else []),
    ],
)
def test_every_promised_suffix_counts(tmp_path, suffix):
    write_classes(tmp_path, {"cat": 4, "dog": 4})
    (tmp_path / "cat" / f"more.{suffix}").touch()
    assert f"cat/more.{suffix}" in [file.path for file in find_images(tmp_path).train]


def test_hidden_names_and_other_types_are_ignored(tmp_path):
    write_classes(tmp_path, {"cat": 4, "dog": 4, ".cache": 4, "cat/.thumbnails": 4})
    expected = find_images(tmp_path)
    (tmp_path / "cat" / ".hidden.png").touch()
    (tmp_path / "cat" / "notes.txt").touch()
    (tmp_path / "readme.png").touch()
    assert find_images(tmp_path) == expected
    assert len(expected.files) == 8


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_split_folders_become_parts(tmp_path, validation):
    counts = {"train/b": 4, "train/a": 5, f"{validation}/a": 2, f"{validation}/b": 1, "test/b": 3}
    listing = find_images(write_classes(tmp_path, counts))
    assert listing.class_names == ("a", "b")
    assert [file.label for file in listing.train] == [0] * 5 + [1] * 4
    assert [file.label for file in listing.validation] == [0, 0, 1]
    assert [file.path for file in listing.test] == [f"test/b/00{index}.png" for index in range(3)]


def test_a_class_may_be_called_train(tmp_path):
    listing = find_images(write_classes(tmp_path, {"bus": 4, "train": 4}))
    assert listing.class_names == ("bus", "train")


REFUSED = {
    "one class": ({"cat": 9}, "found cat"),
    "one class in train": ({"train/cat": 9, "test/cat": 2}, "found cat"),
    "no class": ({}, "no images"),
    "images without classes": ({".": 5}, "no images"),
    "images without classes in a split": ({"train": 5, "test": 5}, "no images"),
    "too few": ({"cat": 3, "dog": 4}, "cat has 3 images"),
    "test class unknown": ({"train/cat": 4, "train/dog": 4, "test/emu": 1}, "test/emu is not"),
    "val class unknown": ({"train/cat": 4, "train/dog": 4, "val/emu": 1}, "val/emu is not"),
    "no train": ({"val/cat": 4, "val/dog": 4}, "val/ but no train/"),
    "two validations": ({"train/a": 4, "val/a": 4, "validation/a": 4}, "both val/ and"),
    "classes beside splits": ({"train/a": 4, "train/b": 4, "cat": 4}, "train/ looks like a split"),
    "test beside classes": ({"cat": 4, "dog": 4, "test/cat": 4}, "test/ looks like a split"),
    "misnamed splits": ({"Training/a": 4, "Testing/a": 4}, "looks like a split"),
}


@pytest.mark.parametrize(("counts", "problem"), REFUSED.values(), ids=REFUSED)
def test_what_would_make_a_wrong_data_set_is_refused(tmp_path, counts, problem):
    write_classes(tmp_path, counts)
    with pytest.raises(ConfigError, match=problem) as raised:
        find_images(tmp_path)
    assert raised.value.exit_code == 2
    assert raised.value.hint
    assert "\n" not in f"{raised.value}{raised.value.hint}"


@pytest.mark.parametrize("part", ["", "train/", "test/"])
def test_an_empty_class_is_named(tmp_path, part):
    counts = {f"{part}{name}": 4 for name in ("cat", "dog")}
    if part:
        counts |= {"train/cat": 4, "train/dog": 4, "train/emu": 4}
    write_classes(tmp_path, counts)
    (tmp_path / part / "emu").mkdir(exist_ok=True)
    for file in (tmp_path / part / "emu").iterdir():
        file.unlink()
    with pytest.raises(ConfigError, match=f"class {part}emu has no images"):
        find_images(tmp_path)


def test_a_missing_folder_and_a_file_are_refused_with_the_option_to_use(tmp_path):
    (tmp_path / "file").touch()
    for name, problem in (("none", "no such folder"), ("file", "not a folder")):
        with pytest.raises(ConfigError, match=problem) as raised:
            find_images(tmp_path / name)
        assert "--data-root" in raised.value.hint
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(ConfigError):
            find_images(tmp_path / name)


def test_names_that_a_label_file_cannot_hold_are_refused(tmp_path):
    write_classes(tmp_path, {"cat": 4, "dog\nemu": 4})
    with pytest.raises(ConfigError, match=r"dog\\nemu") as raised:
        find_images(tmp_path)
    assert "\n" not in str(raised.value)


def test_links_inside_the_root_are_followed(tmp_path):
    write_classes(tmp_path, {"cat": 4, "dog": 4})
    (tmp_path / "cat" / "link.png").symlink_to(tmp_path / "dog" / "000.png")
    assert "cat/link.png" in [file.path for file in find_images(tmp_path).train]
    (tmp_path.parent / "entrance").symlink_to(tmp_path)
    assert find_images(tmp_path.parent / "entrance").train == find_images(tmp_path).train


def bad_links(root: Path) -> dict[str, str]:
    outside = write_image(root.parent / "outside" / "secret.png")
    (root.parent / "root-2").mkdir()
    return {
        str(outside): "leaves the data folder",
        str(write_image(root.parent / "root-2" / "a.png")): "leaves the data folder",
        str(outside.parent): "links to folders",
        str(root / "dog"): "links to folders",
        str(root / "nowhere"): "leads nowhere",
        "link.png": "leads nowhere",
    }


def test_links_that_leave_the_root_or_lead_to_folders_are_refused(tmp_path):
    root = write_classes(tmp_path / "root", {"cat": 4, "dog": 4})
    for target, problem in bad_links(root).items():
        link = root / "cat" / "link.png"
        link.symlink_to(target)
        with pytest.raises(ConfigError, match=f"link.png: .*{problem}"):
            find_images(root)
        link.unlink()
    assert len(find_images(root).train) == 8


FAULTS = [
    "class owl has no images",
    "class ant has 1 images, at least 4 are needed",
    "class bee has 3 images, at least 4 are needed",
    *(f"cat/{index:02}.png: a link that leads nowhere" for index in range(17)),
]


def faulty(root: Path) -> Path:
    write_classes(root, {"cat": 4, "dog": 4, "ant": 1, "bee": 3})
    (root / "owl").mkdir()
    for index in reversed(range(18)):
        (root / "cat" / f"{index:02}.png").symlink_to("/nowhere")
    os.mkfifo(root / "dog" / "pipe.png")
    return root


def test_all_faults_are_told_at_once_by_kind(tmp_path, capsys):
    with pytest.raises(ConfigError) as raised:
        find_images(faulty(tmp_path))
    assert str(raised.value) == (
        f"{tmp_path}: 22 faults (empty classes 1, small classes 2, links 18, irregular files 1); "
        "first: class owl has no images"
    )
    assert raised.value.details == (*FAULTS, "and 2 more (links 1, irregular files 1)")
    assert (
        raised.value.hint == "add images, or name the folder of the classes: --data-root; remove it"
    )
    store = str(tmp_path.parent / "store")
    assert run(["run", "folder", "--data-root", str(tmp_path), "--plan", "--store", store]) == 2
    told = capsys.readouterr().err.splitlines()
    first = told.index(f"  {FAULTS[0]}")
    assert told[first : first + 20] == [f"  {line}" for line in FAULTS]


def test_without_the_end_of_the_collection_faults_would_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(image_faults.Faults, "raise_any", lambda self: None)
    assert len(find_images(faulty(tmp_path)).class_names) == 5


def test_names_of_faulty_files_are_told_in_one_line(tmp_path):
    write_classes(tmp_path, {"cat": 4, "dog": 4, "e\nmu": 4})
    (tmp_path / "cat" / "a\nb.png").symlink_to("/nowhere")
    with pytest.raises(ConfigError) as raised:
        find_images(tmp_path)
    assert raised.value.details == (
        "class name e\\nmu is not printable text",
        "cat/a\\nb.png: a link that leads nowhere",
    )


def test_a_folder_of_links_is_told_to_be_one(tmp_path):
    write_classes(tmp_path / "real", {"cat": 4, "dog": 4})
    (tmp_path / "root").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "real" / name)
    with pytest.raises(ConfigError) as raised:
        find_images(tmp_path / "root")
    assert "cat: links to folders are not followed" in raised.value.details


def test_without_the_check_a_link_would_bring_in_a_foreign_file(tmp_path, monkeypatch):
    root = write_classes(tmp_path / "root", {"cat": 4, "dog": 4})
    (root / "cat" / "link.png").symlink_to(write_image(tmp_path / "secret.png"))
    monkeypatch.setattr(image_folders, "check_link", lambda *_: None)
    assert "cat/link.png" in [file.path for file in find_images(root).train]


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    write_classes(tmp_path, {"cat": 4, "dog": 4})
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    with pytest.raises(ConfigError, match=r"pipe\.png: not a regular file"):
        find_images(tmp_path)
    os.rename(tmp_path / "cat" / "pipe.png", tmp_path / "pipe")
    (tmp_path / "cat" / "link.png").symlink_to(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"link\.png: not a regular file"):
        find_images(tmp_path)


def test_what_is_left_out_is_counted_and_what_the_system_left_is_not(tmp_path):
    write_classes(tmp_path, {"cat": 4, "dog": 4})
    for name in ("cat/a.heic", "cat/b.HEIC", "dog/c.av\nif", "dog/noname"):
        (tmp_path / name).touch()
    write_image(tmp_path / "beside.png")
    write_classes(tmp_path, {"__MACOSX": 4, "cat/@eaDir": 4})
    (tmp_path / "dog" / "Thumbs.db").touch()
    listing = find_images(tmp_path)
    assert listing.class_names == ("cat", "dog")
    assert len(listing.files) == 8
    assert listing.left_out_line() == (
        "files left out: 5 of the data folder (2 .heic, 1 .av\\nif, 1 without a suffix, "
        "1 pictures outside the class folders)"
    )


@pytest.mark.parametrize("suffix", [".avif", ".JP2"])
def test_what_this_pillow_does_not_read_is_left_out_with_the_reason(tmp_path, monkeypatch, suffix):
    write_classes(tmp_path, {"cat": 4, "dog": 4})
    (tmp_path / "cat" / f"a{suffix}").touch()
    monkeypatch.setattr(preprocess, "FORMATS", ("JPEG", "PNG"))
    listing = find_images(tmp_path)
    assert len(listing.files) == 8
    assert listing.left_out_line() == (
        f"files left out: 1 of the data folder (1 {suffix.lower()} that this Pillow does not read)"
    )
    assert "avif" not in image_folders.known_suffixes()
    monkeypatch.setattr(preprocess, "FORMATS", ("JPEG", "PNG", "AVIF", "JPEG2000"))
    assert len(find_images(tmp_path).files) == 9
    assert "avif" in image_folders.known_suffixes()


def test_without_the_count_files_would_be_left_out_unseen(tmp_path, monkeypatch):
    write_classes(tmp_path, {"cat": 4, "dog": 4})
    (tmp_path / "cat" / "a.heic").touch()
    (tmp_path / "cat" / "b.png").write_bytes(b"no image")
    config = DataConfig(name="folder", root=str(tmp_path), image_size=8, on_error="skip")
    told = load_data(config, seed=0, default_root=tmp_path).warnings
    monkeypatch.setattr(image_folders.FolderListing, "notes", lambda self: [])
    data = load_data(config, seed=0, default_root=tmp_path)
    assert len(data.train) + len(data.test) == 8
    assert [line for line in told if line not in data.warnings] == [
        "files left out: 1 of the data folder (1 .heic)",
        "damaged images left out: 1 of 9 (cat/b.png)",
    ]


def test_without_the_systems_names_an_archives_folder_would_be_a_class(tmp_path, monkeypatch):
    write_classes(tmp_path, {"cat": 4, "dog": 4, "__MACOSX": 4})
    monkeypatch.setattr(image_folders, "_SYSTEM_NAMES", frozenset())
    assert find_images(tmp_path).class_names == ("__MACOSX", "cat", "dog")


@pytest.mark.parametrize("size", [None, 12])
def test_the_data_warn_of_files_left_out_and_of_pictures_that_are_enlarged(tmp_path, size):
    write_classes(tmp_path, {"cat": 6, "dog": 6})
    (tmp_path / "cat" / "a.heic").touch()
    config = DataConfig(name="folder", root=str(tmp_path), image_size=size)
    data = load_data(config, seed=0, default_root=tmp_path)
    warnings = data.warnings
    assert data.image_size == (size or 10)
    assert warnings[0] == "files left out: 1 of the data folder (1 .heic)"
    assert any("data.image_size=10" in line for line in warnings) is (size == 12)
