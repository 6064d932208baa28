"""Handwritten digits, which come with d2nas: ``digits.txt`` has source and licence."""

from collections.abc import Mapping
from pathlib import Path

from . import Arrays, DataSet, OfficialFile, register_data_set

_FILE = "digits.csv.gz"
_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"


def _read(files: Mapping[str, Path]) -> Arrays:
    import numpy as np

    table = np.loadtxt(files[_FILE], delimiter=",")
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return Arrays(tuple("0123456789"), images, table[:, -1].astype(np.int64))


register_data_set(
    DataSet(
        name="digits",
        title="Optical Recognition of Handwritten Digits",
        num_train=1_797,
        num_test=0,
        channels=1,
        size=8,
        num_classes=10,
        read=_read,
        files=(OfficialFile(_FILE, f"sha256:{_SHA256}"),),
        folder=Path(__file__).parent,
        digest=_SHA256,
    )
)
