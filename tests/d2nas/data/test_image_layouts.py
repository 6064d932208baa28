"""Folders whose classes lie deeper than where they are looked for: refused, with the path meant."""

import shlex

import pytest
from image_files import write_classes

from d2nas.config import DataConfig
from d2nas.data import folders as image_folders
from d2nas.data.folders import find_images
from d2nas.data.images import load_data
from d2nas.errors import ConfigError

CLASSES = {"cat": 4, "dog": 4}


def below(*folders: str) -> dict[str, int]:
    return {f"{folder}/{name}": count for folder in folders for name, count in CLASSES.items()}


DEEPER = {
    "an archive unpacked into itself": (
        below("seg_train/seg_train", "seg_test/seg_test") | {"seg_pred/seg_pred": 4},
        "seg_train/seg_train",
    ),
    "the same, of one part": (
        below("seg_train/seg_train") | {"seg_pred": 4},
        "seg_train/seg_train",
    ),
    "a copy beside the classes": (below("all") | CLASSES, "all"),
    "one folder": (below("images"), "images"),
    "one folder, twice": (below("archive/images"), "archive/images"),
    "one folder of pictures beside others": (below("images") | {"notes": 0}, "images"),
    "splits one level down": (below("data/train", "data/test"), "data"),
    "splits two levels down": (below("kaggle/data/train", "kaggle/data/test"), "kaggle/data"),
    "a train folder only": (below("dataset/train"), "dataset/train"),
    "splits beside a class": (below("data/train", "data/test") | {"more": 4}, "data"),
    "splits of other names": (below("train_data", "test_data"), "train_data"),
    "splits of other names, a year": (below("val2017", "train2017"), "train2017"),
    "inside a split": (below("train/train", "test/test"), "train/train"),
    "inside a split, one folder": (below("train/images", "val/images"), "train/images"),
}


@pytest.mark.parametrize(("counts", "meant"), DEEPER.values(), ids=DEEPER)
def test_classes_that_lie_deeper_are_refused_with_a_path_that_works(tmp_path, counts, meant):
    root = write_classes(tmp_path / "my images", counts)
    for folder, count in counts.items():
        if not count:
            (root / folder).mkdir()
            (root / folder / "read.txt").touch()
    with pytest.raises(ConfigError) as raised:
        find_images(root)
    assert raised.value.exit_code == 2
    assert "\n" not in f"{raised.value}{raised.value.hint}"
    words = shlex.split(raised.value.hint.replace(";", " ; "))
    path = words[words.index("--data-root") + 1]
    assert path == str(root / meant)
    assert find_images(type(root)(path)).class_names == ("cat", "dog")


SILENT = [
    "an archive unpacked into itself",
    "the same, of one part",
    "a copy beside the classes",
    "splits beside a class",
    "splits of other names",
    "splits of other names, a year",
]


@pytest.mark.parametrize("name", SILENT)
def test_without_the_check_the_outer_folders_would_be_the_classes(tmp_path, monkeypatch, name):
    root = write_classes(tmp_path, DEEPER[name][0])
    monkeypatch.setattr(image_folders, "check_depth", lambda *_: None)
    assert find_images(root).class_names != ("cat", "dog")


def test_splits_inside_of_classes_are_not_mixed(tmp_path, monkeypatch):
    root = write_classes(
        tmp_path, {f"{name}/{part}": 4 for name in CLASSES for part in ("train", "test")}
    )
    with pytest.raises(ConfigError, match=r"every class holds splits \(test/, train/\)") as raised:
        find_images(root)
    assert "train/<class>" in raised.value.hint
    monkeypatch.setattr(image_folders, "check_depth", lambda *_: None)
    assert len(find_images(root).train) == 16


LEGITIMATE = {
    "folders inside one class": {"cat/a": 2, "cat/b": 2, "cat": 1, "dog": 4},
    "folders of some classes' names in one": {"cat": 4, "dog/cat": 2, "dog/dog": 2},
    "one folder inside each": {"cat/cat": 4, "dog/dog": 4},
    "a class of the name of a split": {"train/a": 4, "train": 1, "bus": 4},
    "a class with a split's word": {"train station/a": 4, "train station/b": 4, "harbour": 4},
    "classes that begin alike": {"test tube": 4, "train station": 4},
    "one class with a folder train": {"cat/train": 4, "dog/photos": 4},
    "folders inside the classes of splits": {
        **{f"train/{name}/{part}": 4 for name in CLASSES for part in "xy"},
        "test/cat": 1,
        "test/dog": 1,
    },
}


@pytest.mark.parametrize("counts", LEGITIMATE.values(), ids=LEGITIMATE)
def test_folders_inside_of_classes_are_still_walked(tmp_path, counts):
    listing = find_images(write_classes(tmp_path, counts))
    assert len(listing.files) == sum(counts.values())
    assert len(listing.class_names) == 2


def test_a_folder_of_folders_beside_classes_with_pictures_is_told(tmp_path):
    root = write_classes(tmp_path, {"pics/cat": 4, "pics/dog": 4, "screens": 4, "shots": 4})
    assert find_images(root).nested == (
        "pics/ is taken for one class, but unlike others it holds no picture itself, only folders "
        f"(cat, dog); if those are the classes: --data-root {root / 'pics'}"
    )
    write_classes(root, {"pics": 1})
    assert find_images(root).nested is None


def test_where_it_may_be_either_what_is_taken_is_told(tmp_path):
    root = write_classes(tmp_path / "a b", below("site2", "site1"))
    listing = find_images(root)
    assert listing.class_names == ("site1", "site2")
    told = (
        "no class folder holds pictures itself: the classes are site1, site2, and what lies in "
        "site1/ (cat, dog) is one of them; if those are the classes: --data-root "
        f"{shlex.quote(str(root / 'site1'))}"
    )
    assert listing.nested == told
    config = DataConfig(name="folder", root=str(root))
    assert told in load_data(config, seed=0, default_root=root).warnings
    write_classes(root, {"site1": 1})
    assert "site2/ is taken for one class" in str(find_images(root).nested)
    write_classes(root, {"site2": 1})
    assert find_images(root).nested is None
