"""Image files read while training: the same batches as from memory, errors with the file's name."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import write_classes, write_image
from PIL import Image
from streaming import batches_of, config_of, loaded, no_workers_of_other_tests  # noqa: F401

from d2nas.config import build_config
from d2nas.data.augmentation import read_random_crop
from d2nas.data.decoding import Decoding
from d2nas.data.files import ImageFiles
from d2nas.data.images import ImageSet, preprocessing
from d2nas.data.readers import streams
from d2nas.errors import ConfigError, OutOfMemoryError, StorageError
from pipeline.cli import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "images", {"cat": 12, "dog": 15, "owl": 11})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_draws_an_epochs_order_once(
    folder: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, config = loaded(folder, stream="always", workers=workers)
    real, drawn = torch.randperm, []

    def counted(number: int, **options: object) -> torch.Tensor:
        drawn.append(number)
        return real(number, **options)

    monkeypatch.setattr(torch, "randperm", counted)
    batches = batches_of(stream.train, config, seed=71 + workers)
    for step in range(3):  # of an epoch's three; the readers are up to eight steps ahead
        batches.batch(step)
    assert len(drawn) <= 4
    assert len(stream.train) // 8 == 3


def test_a_stream_is_the_same_data_set(folder: Path) -> None:
    memory, _ = loaded(folder)
    stream, _ = loaded(folder, stream="always")
    assert isinstance(memory.train, ImageSet)
    assert isinstance(stream.train, ImageFiles)
    for name in ("train", "weight_half", "arch_half", "test"):
        one, other = getattr(memory, name), getattr(stream, name)
        assert len(one) == len(other)
        assert torch.equal(one.labels_N, other.labels_N)
        everything = slice(0, len(one))
        assert torch.equal(one.pixels(everything), other.pixels(everything))
    assert (memory.mean, memory.std) == (stream.mean, stream.std)
    assert (memory.digest, memory.class_names) == (stream.digest, stream.class_names)
    assert any("streamed" in line for line in stream.summary_lines())
    assert not any("streamed" in line for line in memory.summary_lines())


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_stream_are_those_from_memory(folder: Path, workers: int) -> None:
    memory, config = loaded(folder)
    stream, _ = loaded(folder, stream="always")
    streamed = batches_of(stream.train, config.model_copy(update={"workers": workers}))
    expected = batches_of(memory.train, config)
    # In order, then as after a resume, then backwards.
    for step in (0, 1, 2, 3, 4, 9, 10, 2):
        for one, other in zip(streamed.batch(step), expected.batch(step), strict=True):
            assert torch.equal(one, other)


def test_random_crops_are_a_function_of_the_step(folder: Path) -> None:
    data, config = loaded(folder, crop="resized", color_jitter=0.4, crop_padding=0)
    here = batches_of(data.train, config.model_copy(update={"workers": 0}))
    there = batches_of(data.train, config.model_copy(update={"workers": 2}))
    other_seed = batches_of(data.train, config.model_copy(update={"workers": 0}), seed=6)
    images = [here.batch(step)[0] for step in range(4)]
    assert all(torch.equal(images[step], there.batch(step)[0]) for step in (2, 3))
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], other_seed.batch(0)[0])


def test_the_global_generator_is_left_alone(folder: Path) -> None:
    data, config = loaded(folder, stream="always", crop="resized", workers=2)
    before = torch.random.get_rng_state()
    batches_of(data.train, config).batch(0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_crops_cover_what_they_should(tmp_path: Path) -> None:
    # Each pixel tells its place: red its column, green its row.
    rows, columns = np.indices((200, 240), dtype=np.uint8)
    path = tmp_path / "map.png"
    Image.fromarray(np.stack([columns, rows, rows * 0], axis=2)).save(path)
    areas, ratios = [], []
    for seed in range(300):
        crop = read_random_crop(path, Decoding(32, 3), color_jitter=0.0, seed=seed).astype(float)
        wide = (crop[:, -1, 0].mean() - crop[:, 0, 0].mean()) * 32 / 31
        high = (crop[-1, :, 1].mean() - crop[0, :, 1].mean()) * 32 / 31
        areas.append(wide * high / (200 * 240))
        ratios.append(wide / high)
    assert 0.07 < min(areas) < 0.12
    assert 0.9 < max(areas) < 1.02
    assert 0.72 < min(ratios) < 0.80
    assert 1.27 < max(ratios) < 1.37
    assert np.quantile(areas, 0.5) == pytest.approx(0.5, abs=0.08)
    same = read_random_crop(path, Decoding(32, 3), color_jitter=0.0, seed=7)
    assert (same == read_random_crop(path, Decoding(32, 3), color_jitter=0.0, seed=7)).all()


def test_a_sliver_is_cut_in_its_middle(tmp_path: Path) -> None:
    path = write_image(tmp_path / "thin.png", size=(400, 3))
    assert read_random_crop(path, Decoding(8, 3), color_jitter=0.0, seed=1).shape == (8, 8, 3)


def test_colours_change_by_what_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    Image.new("RGB", (40, 40), (100, 100, 100)).save(path)
    values = {
        int(read_random_crop(path, Decoding(8, 3), color_jitter=0.4, seed=seed)[0, 0, 0])
        for seed in range(200)
    }
    assert 58 <= min(values) < 70
    assert 130 < max(values) <= 142
    still = read_random_crop(path, Decoding(8, 3), color_jitter=0.0, seed=1)
    assert (still == 100).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_named(folder: Path, workers: int) -> None:
    data, config = loaded(folder, stream="always", workers=workers)
    assert isinstance(data.train, ImageFiles)
    (folder / data.train.paths[4]).write_bytes(b"not an image")
    files = replace(data.train, states=None)  # as if it had been so from the start
    batches = batches_of(files, config, batch_size=len(data.train))
    with pytest.raises(ConfigError, match=data.train.paths[4]) as caught:
        batches.batch(0)
    assert caught.value.hint == (
        "repair or remove it; --set data.on_error=skip leaves such images out"
    )


def test_a_killed_worker_is_an_error_not_a_hang(folder: Path) -> None:
    data, config = loaded(folder, stream="always", workers=1)
    batches = batches_of(data.train, config)
    batches.batch(0)
    for child in multiprocessing.active_children():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
    time.sleep(0.2)  # PyTorch's own handler would raise here, outside of any step
    with pytest.raises(OutOfMemoryError, match="a process that reads images ended"):
        _ = [batches.batch(step) for step in range(1, 100)]


def test_what_stops_a_whole_process_group_leaves_the_workers_to_their_parent(folder: Path) -> None:
    data, config = loaded(folder, stream="always", workers=1)
    batches = batches_of(data.train, config)
    batches.batch(0)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        # From another process than the parent, as from a shell or a supervisor.
        subprocess.run([sys.executable, "-c", f"import os; os.kill({worker.pid}, {int(number)})"])
    for step in range(1, 10):
        batches.batch(step)
    assert worker.is_alive()
    worker.terminate()  # the control: the parent's own word is heard
    worker.join(timeout=60)
    assert not worker.is_alive()


@pytest.mark.parametrize("crop", ["shift", "resized"])
def test_a_picture_that_is_exchanged_during_training_ends_it(folder: Path, crop: str) -> None:
    """The version vouches for the images that were hashed when it began."""
    data, config = loaded(folder, stream="always", workers=0, crop=crop)
    assert isinstance(data.train, ImageFiles)
    batches = batches_of(data.train, config, batch_size=len(data.train))
    batches.batch(0)
    path = folder / data.train.paths[3]
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # that time can be set back
    with pytest.raises(StorageError, match=f"{data.train.paths[3]}: changed since"):
        batches.batch(1)
    path.unlink()
    with pytest.raises(StorageError, match=data.train.paths[3]) as caught:
        batches.batch(2)
    assert "let the images be as they were" in (caught.value.hint or "")
    # Control: without the states of the files nobody notices.
    path.write_bytes(content)
    batches_of(replace(data.train, states=None), config, batch_size=len(data.train)).batch(0)


def test_workers_outlive_an_interrupt_and_end_with_their_stream(folder: Path) -> None:
    data, config = loaded(folder, stream="always", workers=2)
    batches = batches_of(data.train, config)
    expected = batches_of(data.train, config.model_copy(update={"workers": 0}))
    for step in range(2):  # one from each worker: both are past their start
        batches.batch(step)
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGINT)
    for step in range(2, 20):
        assert torch.equal(batches.batch(step)[0], expected.batch(step)[0])
    del batches
    deadline = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not multiprocessing.active_children()


def test_what_is_streamed(folder: Path) -> None:
    big = 9 * 2**30
    assert not streams(config_of(folder), 1000)
    assert streams(config_of(folder), big)
    assert not streams(config_of(folder, stream="never"), big)
    assert streams(config_of(folder, name="imagenet"), 1000)
    assert not streams(config_of(folder, name="imagenet", stream="never"), 1000)
    assert streams(config_of(folder, crop="resized"), 1000)
    assert streams(config_of(folder, color_jitter=0.1), 1000)
    assert not streams(build_config({"data": {"name": "cifar10"}}).data, big)
    for settings in ({"crop": "resized"}, {"color_jitter": 0.1}):
        with pytest.raises(ConfigError, match="streamed image files"):
            config_of(folder, **settings, stream="never")
        with pytest.raises(ConfigError, match="streamed image files"):
            build_config({"data": {"name": "cifar10", **settings}})


def test_how_pictures_are_cut_travels_with_the_data(folder: Path) -> None:
    data, _ = loaded(folder, stream="always", crop_fraction=0.5)
    assert preprocessing(data)["crop_fraction"] == 0.5


def test_a_whole_run_can_be_streamed(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = [
        "data.stream=always", "data.workers=1", "data.crop=resized", "data.color_jitter=0.2",
        "data.crop_padding=0", "search.num_cells=1", "search.init_channels=4", "search.epochs=1",
        "search.draws=1", "search.batch_size=4", "retrain.num_cells=2", "retrain.epochs=2",
        "retrain.warmup_epochs=0", "retrain.init_channels=4", "retrain.batch_size=8",
        "retrain.lr=0.2", "retrain.auxiliary=false", "validate.latency_samples=2",
    ]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    places = ["--store", str(tmp_path / "store"), "--exported", str(tmp_path / "exported")]
    assert run(["run", "folder", "--data-root", str(folder), *words, *places]) in (0, 3)
    assert "streamed from files" in capfd.readouterr().err
    assert (tmp_path / "store/runs/folder/export").is_dir()
