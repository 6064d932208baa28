"""Small folders of pictures that are read while training."""

import gc
import hashlib
import multiprocessing
from pathlib import Path

import pytest

from d2nas.config import DataConfig, build_config
from d2nas.data.batches import Batches
from d2nas.data.images import ImageData, Normalizer, load_data

GREY = Normalizer((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(autouse=True)
def no_workers_of_other_tests() -> None:
    """End what an earlier test of this process left: a stream that only the collector ends."""
    gc.collect()
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


def config_of(folder: Path, **settings: object) -> DataConfig:
    settings = {"name": "folder", "root": str(folder), "image_size": 9, **settings}
    return build_config({"data": settings}).data


def loaded(folder: Path, **settings: object) -> tuple[ImageData, DataConfig]:
    config = config_of(folder, **settings)
    return load_data(config, seed=3, default_root=folder), config


def batches_of(images: object, config: DataConfig, batch_size: int = 8, seed: int = 5) -> Batches:
    return Batches(  # type: ignore[arg-type]
        images, GREY, config, batch_size, cutout_size=2, seed=seed, purpose="test"
    )


BATCH = 30


SIZE = 64


def stream(folder: Path, *, workers: int) -> Batches:
    data, config = loaded(folder, stream="always", workers=workers, image_size=SIZE)
    return batches_of(data.train, config, batch_size=BATCH)


def digest(batches: Batches, step: int) -> str:
    return hashlib.sha256(batches.batch(step)[0].contiguous().numpy().tobytes()).hexdigest()
