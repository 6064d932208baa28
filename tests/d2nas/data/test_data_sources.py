"""Data sources: what is there, and what the digest of its content covers."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from image_files import official, publish, write_classes

from d2nas.config import DataConfig
from d2nas.config.registry import data_sets
from d2nas.data import sources as data_sources
from d2nas.data.sources import content_digest, on_disk
from d2nas.errors import ConfigError, StorageError

OFFICIAL = [data_set.name for data_set in official()]


def folder_config(root: Path, name: str = "folder") -> DataConfig:
    return DataConfig(name=name, root=str(root))


def folder_digest(root: Path, cache=None) -> str:
    return content_digest(folder_config(root), default_root=Path("unused"), cache=cache)


class MemoryCache(dict):
    """A digest cache that counts what it could not answer."""

    def set(self, key: str, value: str) -> None:
        self[key] = value


# --- cost ---------------------------------------------------------------------------------------


def test_asking_for_digests_and_states_imports_nothing_heavy(tmp_path):
    write_classes(tmp_path, {"cat": 4, "dog": 4})
    program = f"""
import sys
from pathlib import Path
from d2nas.config import DataConfig
from d2nas.config.registry import data_sets
from d2nas.data.sources import content_digest, on_disk
root = Path({str(tmp_path)!r})
for name in data_sets.names():
    on_disk(name, root)
for name in ("digits", "cifar10", "fashion-mnist", "folder"):
    content_digest(DataConfig(name=name, root=str(root)), default_root=root)
print([name for name in ("torch", "torchvision", "numpy", "PIL", "scipy")
       if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- digests ------------------------------------------------------------------------------------


def test_a_folder_without_a_root_is_refused():
    with pytest.raises(ConfigError, match=r"needs data\.root"):
        content_digest(DataConfig(name="folder"), default_root=Path())
    with pytest.raises(ConfigError, match="root"):
        folder_digest(Path("~nobody-of-this-name/images"))


def test_the_digits_digest_is_that_of_the_file():
    digits = data_sets.find("digits")
    expected = hashlib.sha256((digits.folder / digits.files[0].path).read_bytes()).hexdigest()
    assert content_digest(DataConfig(), default_root=Path("unused")) == expected


def test_digits_without_their_file_say_so(monkeypatch, tmp_path):
    publish(monkeypatch, "digits", folder=tmp_path)
    status = on_disk("digits", tmp_path)
    assert (status.present, status.advice) == (False, "install the package that brings it again")


def test_a_folder_digest_is_the_same_elsewhere(tmp_path):
    first = write_classes(tmp_path / "here", {"cat": 4, "dog": 4})
    second = write_classes(tmp_path / "there" / "deeper", {"cat": 4, "dog": 4})
    (second / "cat" / "notes.txt").touch()
    assert folder_digest(first) == folder_digest(second)


def test_a_folder_digest_changes_with_content_names_and_parts(tmp_path):
    root = write_classes(tmp_path, {"train/cat": 5, "train/dog": 5, "test/cat": 1, "test/dog": 1})
    digests = {folder_digest(root)}
    image = root / "train" / "cat" / "000.png"
    image.write_bytes(image.read_bytes() + b"\0")
    digests.add(folder_digest(root))
    image.rename(root / "train" / "dog" / "moved.png")
    digests.add(folder_digest(root))
    (root / "train" / "dog" / "moved.png").rename(root / "test" / "dog" / "moved.png")
    digests.add(folder_digest(root))
    (root / "test" / "dog" / "moved.png").unlink()
    digests.add(folder_digest(root))
    assert len(digests) == 5


def test_names_and_contents_cannot_be_exchanged_in_the_digest():
    listing = data_sources.listing_digest
    assert listing([("a", "1"), ("b", "2")]) == listing([("b", "2"), ("a", "1")])
    assert listing([("a", "1"), ("b", "2")]) != listing([("a", "2"), ("b", "1")])
    assert listing([("a", "1"), ("b", "2")]) != listing([("a", "1\nb"), ("", "2")])


def test_a_cached_digest_reads_no_file(tmp_path, monkeypatch):
    root = write_classes(tmp_path, {"cat": 4, "dog": 4})
    cache = MemoryCache()
    expected = folder_digest(root, cache)
    assert expected == folder_digest(root)
    assert len(cache) == 8

    def unreadable(path, algorithm):
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(data_sources, "hash_file", unreadable)
    assert folder_digest(root, cache) == expected


def rewrite_unnoticed(path: Path) -> None:
    """Change one byte; size and time of modification stay."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the file system's clock is coarse
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_cache_notices_a_rewritten_file(tmp_path):
    root = write_classes(tmp_path, {"cat": 4, "dog": 4})
    cache = MemoryCache()
    before = folder_digest(root, cache)
    rewrite_unnoticed(root / "cat" / "000.png")
    assert folder_digest(root, cache) == folder_digest(root) != before


def test_a_cache_by_path_alone_would_not_notice(tmp_path, monkeypatch):
    monkeypatch.setattr(data_sources, "_cache_key", str)
    root = write_classes(tmp_path, {"cat": 4, "dog": 4})
    cache = MemoryCache()
    before = folder_digest(root, cache)
    rewrite_unnoticed(root / "cat" / "000.png")
    assert folder_digest(root, cache) == before != folder_digest(root)


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path, monkeypatch):
    root = write_classes(tmp_path, {"cat": 4, "dog": 4})
    changing = root / "cat" / "000.png"
    hash_of = data_sources.hash_file

    def hash_and_change(path, algorithm):
        result = hash_of(path, algorithm)
        if path == changing:
            path.write_bytes(b"longer than before" * 1000)
        return result

    monkeypatch.setattr(data_sources, "hash_file", hash_and_change)
    cache = MemoryCache()
    folder_digest(root, cache)
    assert len(cache) == 7


def test_what_was_read_before_it_broke_off_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(data_sources, "_FILES_AT_ONCE", 3)
    root = write_classes(tmp_path, {"cat": 4, "dog": 4})
    config, told, cache = folder_config(root), [], MemoryCache()

    def stop_at_six(done: int, total: int) -> None:
        told.append((done, total))
        if done == 6:
            raise KeyboardInterrupt

    def digest() -> str:
        return content_digest(config, default_root=root, cache=cache, progress=stop_at_six)

    with pytest.raises(KeyboardInterrupt):
        digest()
    assert told == [(3, 8), (6, 8)]
    assert len(cache) == 6
    # What is known already is no news.
    assert digest() == folder_digest(root)
    assert told[2:] == [(8, 8)]
    assert digest() == folder_digest(root)
    assert told[3:] == []


def test_files_are_read_by_several_threads(tmp_path, monkeypatch):
    """Two that wait for each other: one thread alone would stay with the first."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    root = write_classes(tmp_path, {"cat": 4, "dog": 4})
    expected, hash_of = folder_digest(root), data_sources.hash_file
    both = threading.Barrier(2, timeout=30)

    def together(path, algorithm):
        both.wait()
        return hash_of(path, algorithm)

    monkeypatch.setattr(data_sources, "hash_file", together)
    assert folder_digest(root) == expected
    assert not both.broken


def test_an_unreadable_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"gone\.png: No such file"):
        list(data_sources._file_hashes([tmp_path / "gone.png"], None, None))
    with pytest.raises(StorageError, match=r"gone\.png: No such file"):
        list(data_sources._file_hashes([tmp_path / "gone.png"], MemoryCache(), None))


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_published_digest_needs_no_files_and_covers_every_checksum(name, tmp_path, monkeypatch):
    digests = {content_digest(DataConfig(name=name), default_root=tmp_path / "none")}
    files = data_sets.find(name).files
    for index, file in enumerate(files):
        changed = list(files)
        changed[index] = file._replace(checksum=file.checksum[:-1] + "x")
        publish(monkeypatch, name, files=tuple(changed))
        digests.add(content_digest(DataConfig(name=name), default_root=tmp_path))
    assert len(digests) == len(files) + 1


def test_every_data_set_has_its_own_digest(tmp_path):
    names = ["digits", *OFFICIAL]
    assert (
        len({content_digest(DataConfig(name=name), default_root=tmp_path) for name in names}) == 5
    )


# --- what is there ------------------------------------------------------------------------------


def test_imagenet_needs_splits(tmp_path):
    write_classes(tmp_path, {"cat": 4, "dog": 4})
    with pytest.raises(ConfigError, match="imagenet needs train"):
        content_digest(folder_config(tmp_path, "imagenet"), default_root=tmp_path)
    assert not on_disk("imagenet", tmp_path).present
    split = tmp_path / "split"
    write_classes(split, {"train/cat": 4, "train/dog": 4, "val/cat": 1, "val/dog": 1})
    assert content_digest(folder_config(split, "imagenet"), default_root=tmp_path)
    assert on_disk("imagenet", split).present


@pytest.mark.parametrize("name", sorted(set(data_sets.names()) - {"digits"}))
def test_a_missing_data_set_comes_with_advice(name, tmp_path):
    status = on_disk(name, tmp_path)
    assert (status.name, status.present) == (name, False)
    assert "--data-root" in status.advice
    assert "\n" not in status.advice


@pytest.mark.parametrize("name", OFFICIAL)
def test_published_files_are_found_where_torchvision_puts_them(name, tmp_path):
    for index, file in enumerate(data_sets.find(name).files):
        assert not on_disk(name, tmp_path).present, index
        (tmp_path / file.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.path).touch()
    status = on_disk(name, tmp_path)
    assert status.present
    assert status.advice is None


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_is_found_in_a_flat_folder_too(tmp_path, suffix):
    for file in data_sets.find("fashion-mnist").files:
        (tmp_path / (Path(file.path).stem + suffix)).touch()
    assert on_disk("fashion-mnist", tmp_path).present


def test_folder_and_digits_are_there(tmp_path):
    write_classes(tmp_path, {"cat": 4, "dog": 4})
    assert on_disk("folder", tmp_path).present
    assert on_disk("digits", tmp_path).present
    with pytest.raises(ConfigError, match="unknown data set"):
        on_disk("mnist", tmp_path)
