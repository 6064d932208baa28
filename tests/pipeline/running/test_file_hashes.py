"""Hashes of image files: each file is read once, and what was read is kept when it breaks off."""

import signal
from pathlib import Path

import pytest
from image_files import write_classes
from toy import Place

from d2nas.config import Config, build_config
from d2nas.data import sources as data_sources
from d2nas.data.sources import data_folder
from d2nas.errors import ConfigError, StoppedError, StorageError
from pipeline.preflight.doctor import examine
from pipeline.running.display import Display
from pipeline.running.file_hashes import LINE_SECONDS, FileHashes, HashingProgress
from pipeline.running.runner import Runner
from pipeline.running.signals import StopFlag
from pipeline.store import Store

CLASSES = {"cat": 6, "dog": 6}
QUICK = [
    "retrain.num_cells=2", "retrain.init_channels=4", "retrain.auxiliary=false",
    "retrain.epochs=1", "retrain.batch_size=4", "data.image_size=8", "data.test_fraction=0.4",
    "data.stream=always", "data.workers=0",
]  # fmt: skip


class Silent(Display):
    pass


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "images", CLASSES)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read for their hash."""
    real, names = data_sources.hash_file, []

    def counted(path: Path, algorithm: str) -> str:
        names.append(path.name)
        return real(path, algorithm)

    monkeypatch.setattr(data_sources, "hash_file", counted)
    return names


def config_of(images: Path) -> Config:
    return build_config({"data": {"name": "folder", "root": str(images)}})


def runner_on(store: Path, stop: StopFlag | None = None) -> Runner:
    return Runner(Store(store), Silent(), stop or StopFlag())


def test_a_stop_while_hashing_keeps_what_was_hashed(
    images: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_sources, "_FILES_AT_ONCE", 5)
    config, store = config_of(images), tmp_path / "store"
    stop = StopFlag(signal.SIGTERM)
    with pytest.raises(StoppedError, match=r"stopped while images were read \(5 of 12\)"):
        runner_on(store, stop).data_digest(config)
    assert len(read) == 5
    digest = runner_on(store).data_digest(config)
    assert len(read) == 12
    assert digest == data_sources.content_digest(config.data, default_root=images)


def test_an_error_forgets_nothing_that_was_known(
    images: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_sources, "_FILES_AT_ONCE", 5)
    config, store = config_of(images), tmp_path / "store"
    runner_on(store).data_digest(config)
    (images / "cat" / "000.png").write_bytes((images / "dog" / "000.png").read_bytes())
    with pytest.raises(StoppedError):
        runner_on(store, StopFlag(signal.SIGINT)).data_digest(config)
    assert read[12:] == ["000.png"]
    runner_on(store).data_digest(config)
    assert len(read) == 13


def test_of_two_errors_the_first_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(Store, "store_cache", full)
    hashes = FileHashes(Store(tmp_path))
    hashes.set("a", "b")
    with pytest.raises(KeyboardInterrupt), hashes:
        raise KeyboardInterrupt
    with pytest.raises(StorageError), hashes:
        pass


def test_a_streamed_training_reads_each_file_once_for_its_hash(
    images: Path, place: Place, read: list[str]
) -> None:
    settings = [word for setting in QUICK for word in ("--set", setting)]
    words = ("retrain", "folder", "--genotype", "DARTS_V2", "--data-root", str(images), *settings)
    assert place.run(*words) == 0
    assert len(read) == 12


def test_progress_is_told_now_and_then() -> None:
    lines: list[str] = []
    now = 0.0
    progress = HashingProgress(lines.append, lambda _: None, lambda: now)
    progress(256, 5000)
    assert lines == []
    now = LINE_SECONDS
    progress(512, 5000)
    progress(768, 5000)
    assert lines == ["reading images, once: 512 of 5,000"]


def test_a_user_without_a_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_home(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(ConfigError, match="no home folder"):
        data_folder()
    found = {finding.subject: finding for finding in examine(tmp_path, None)}
    assert found["data"].state == "problem"
    assert "HOME" in str(found["data"].advice)
