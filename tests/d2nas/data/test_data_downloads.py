"""Downloads: whole or not at all, once, and a clear line where there is no network."""

import contextlib
import gzip
import shutil
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from image_files import md5, official, write_cifar10, write_fashion_mnist, write_svhn
from torchvision import datasets

from d2nas.config import DataConfig
from d2nas.config.registry import data_sets
from d2nas.data import official as official_files
from d2nas.data.readers import open_pool
from d2nas.errors import ConfigError, StorageError

OFFICIAL = [data_set.name for data_set in official()]
WRITERS = {"fashion-mnist": write_fashion_mnist, "cifar10": write_cifar10, "svhn": write_svhn}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Refuse every connection at once; tests that serve files do so by ``file:`` addresses."""

    def refuse(*_, **__):
        raise OSError(101, "Network is unreachable")

    def retrieve(url, filename, chunk_size=0):
        with urllib.request.urlopen(url) as response:
            Path(filename).write_bytes(response.read())

    # torchvision's own asks for a length, which file: addresses do not have.
    monkeypatch.setattr(datasets.utils, "_urlretrieve", retrieve)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def opened(name, default_root):
    return open_pool(DataConfig(name=name), default_root=default_root)


def read_all(pool):
    return pool.read(torch.arange(len(pool.labels)))


def serve_fashion_mnist(served: Path, monkeypatch) -> None:
    folder = served / "FashionMNIST" / "raw"
    resources = [(path.name, md5(path)) for path in sorted(folder.iterdir())]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{folder.as_uri()}/"])


def serve_cifar10(served: Path, monkeypatch) -> None:
    archive = shutil.make_archive(str(served / "cifar"), "gztar", served, "cifar-10-batches-py")
    monkeypatch.setattr(datasets.CIFAR10, "url", Path(archive).as_uri())
    monkeypatch.setattr(datasets.CIFAR10, "filename", Path(archive).name)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(Path(archive)))


def serve_svhn(served: Path, monkeypatch) -> None:
    splits = {
        part: [(served / name).as_uri(), name, checksum]
        for part, (_, name, checksum) in datasets.SVHN.split_list.items()
    }
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)


SERVERS = {"fashion-mnist": serve_fashion_mnist, "cifar10": serve_cifar10, "svhn": serve_svhn}


@pytest.mark.parametrize("name", SERVERS)
def test_a_missing_set_is_downloaded_once(name, tmp_path, monkeypatch, capsys):
    served, root = tmp_path / "served", tmp_path / "new" / "root"
    WRITERS[name](served, monkeypatch)
    expected = read_all(opened(name, served))
    SERVERS[name](served, monkeypatch)
    images, digest = read_all(opened(name, root))
    assert torch.equal(images, expected[0])
    assert digest == expected[1]
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    assert found == sorted(file.path for file in data_sets.find(name).files)
    assert capsys.readouterr().out == ""
    assert socket.getdefaulttimeout() is None
    monkeypatch.setattr(official_files, "_download", None)
    assert torch.equal(read_all(opened(name, root))[0], images)


@pytest.mark.parametrize("name", OFFICIAL)
def test_without_a_network_the_advice_is_to_bring_the_files(name, tmp_path):
    with pytest.raises(ConfigError, match=f"{name}: .*download failed") as raised:
        opened(name, tmp_path)
    assert "--data-root" in raised.value.hint
    assert "http" not in f"{raised.value}{raised.value.hint}"
    assert "\n" not in f"{raised.value}{raised.value.hint}"
    assert list(tmp_path.iterdir()) == []


def refused(name, root, default_root):
    """The error for a folder that the user named."""
    with pytest.raises(ConfigError) as raised:
        open_pool(DataConfig(name=name, root=str(root)), default_root=default_root)
    assert "\n" not in f"{raised.value}{raised.value.hint}"
    return raised.value


INNER = {
    "cifar10": ["cifar-10-batches-py", "cifar-10-batches-py/data_batch_1"],
    "cifar100": ["cifar-100-python", "cifar-100-python/train"],
    "svhn": ["train_32x32.mat"],
    "fashion-mnist": ["FashionMNIST", "FashionMNIST/raw/train-images-idx3-ubyte.gz"],
}


@pytest.mark.parametrize(("name", "inner"), [(n, i) for n, inner in INNER.items() for i in inner])
def test_an_inner_folder_or_file_is_told_from_its_parent(name, inner, tmp_path, monkeypatch):
    root = tmp_path / "data"
    for file in data_sets.find(name).files:
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        (root / file.path).touch()
    monkeypatch.setattr(official_files, "_download", None)
    files = sorted(root.rglob("*"))
    error = refused(name, root / inner, tmp_path / "default")
    # Fashion-MNIST's files may lie directly in the folder that is named.
    parent = root / "FashionMNIST" / "raw" if inner.endswith(".gz") else root
    assert error.hint == f"give its parent: --data-root {parent}"
    assert sorted(root.rglob("*")) == files


@pytest.mark.parametrize("name", OFFICIAL)
def test_nothing_is_downloaded_into_a_folder_of_the_users(name, tmp_path, monkeypatch):
    """It is said what is missing, and where a download would go."""
    monkeypatch.setattr(official_files, "_download", None)
    root = tmp_path / "a" / "b" / "mine"
    root.mkdir(parents=True)
    error = refused(name, root, tmp_path / "default")
    files = data_sets.find(name).files
    assert f"{len(files)} of {len(files)} files are not under {root}, first" in str(error)
    assert files[0].path in str(error)
    assert f"without --data-root they are downloaded to {tmp_path / 'default'}" in error.hint
    assert list(root.iterdir()) == []
    (root / files[0].path).parent.mkdir(parents=True, exist_ok=True)
    (root / files[0].path).touch()
    error = refused(name, root, tmp_path / "default")
    assert f"{len(files) - 1} of {len(files)} files" in str(error)
    assert files[1].path in str(error)
    assert "no such folder" in str(refused(name, root.parent / "misspelt", tmp_path / "default"))


def break_off(monkeypatch) -> None:
    """Let every transfer end after 100 bytes with an error."""

    def retrieve(url, filename, chunk_size=0):
        with urllib.request.urlopen(url) as response:
            Path(filename).write_bytes(response.read(100))
        raise urllib.error.URLError("connection lost")

    monkeypatch.setattr(datasets.utils, "_urlretrieve", retrieve)


def test_a_broken_download_leaves_nothing_behind(tmp_path, monkeypatch):
    write_fashion_mnist(tmp_path / "served", monkeypatch)
    serve_fashion_mnist(tmp_path / "served", monkeypatch)
    break_off(monkeypatch)
    with pytest.raises(ConfigError, match="download failed"):
        opened("fashion-mnist", tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_a_download_straight_into_the_root_would_leave_a_part(tmp_path, monkeypatch):
    write_fashion_mnist(tmp_path / "served", monkeypatch)
    serve_fashion_mnist(tmp_path / "served", monkeypatch)
    break_off(monkeypatch)

    @contextlib.contextmanager
    def no_scratch_folder(prefix, dir):
        yield dir

    monkeypatch.setattr(official_files.tempfile, "TemporaryDirectory", no_scratch_folder)
    with pytest.raises(ConfigError, match="download failed"):
        opened("fashion-mnist", tmp_path / "root")
    assert [path.stat().st_size for path in (tmp_path / "root").rglob("*.gz")] == [100]


def test_a_download_with_the_wrong_content_is_refused(tmp_path, monkeypatch):
    write_fashion_mnist(tmp_path / "served", monkeypatch)
    serve_fashion_mnist(tmp_path / "served", monkeypatch)
    path = tmp_path / "served" / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ConfigError, match="download failed"):
        opened("fashion-mnist", tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_torchvision_neither_prints_to_stdout_nor_waits_for_ever(tmp_path, monkeypatch, capsys):
    timeouts = []

    def talk(*_, **__):
        sys.stdout.write("Downloading\n")
        timeouts.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(datasets, "CIFAR10", talk)
    with pytest.raises(ConfigError):
        opened("cifar10", tmp_path)
    streams = capsys.readouterr()
    assert (streams.out, streams.err) == ("", "Downloading\n")
    assert timeouts == [30.0]
    assert socket.getdefaulttimeout() is None


def test_a_download_that_brings_too_little_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "CIFAR10", lambda *_, **__: None)
    with pytest.raises(ConfigError, match="data_batch_1 is not under"):
        opened("cifar10", tmp_path)


def test_a_root_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/root: Not a directory"):
        opened("svhn", tmp_path / "file" / "root")
