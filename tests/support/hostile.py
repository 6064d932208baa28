"""Bad files of every kind that d2nas reads, each with the command that is made to read it.

``corpus(place)`` writes them all; nothing in them may run, and each must end in its exit code.
"""

import gzip
import io
import json
import math
import os
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from forgery import seal
from hostile_models import Change, bad_models, headers, written
from toy import Place

USAGE, DAMAGED = 2, 4


class Case(NamedTuple):
    """A bad file: what it is, the command that reads it, the code that this must end with.

    ``says`` is what the line about it must contain, where other reasons have the same code.
    """

    name: str
    command: list[str]
    code: int
    says: str = ""

    @property
    def kind(self) -> str:
        """The first word of the name."""
        return self.name.replace(":", " ").split()[0]


def pickled_command(marker: Path) -> bytes:
    """A pickle that leaves ``marker`` behind when it is loaded."""
    return b"cposix\nsystem\n(S'touch " + os.fsencode(marker) + b"'\ntR."


def corpus(place: Place, marker: Path) -> Iterator[Case]:
    """Write every bad file and yield it. ``marker`` is what a file that runs leaves behind."""
    for part in (_toml, _studies, _genotypes, _json, _pickles, _folders, _archives, _paths):
        yield from part(place, marker)


def bundles(place: Place, bundle: Path, outside: Path) -> Iterator[Case]:
    """Write bundles whose checksums are right, each with one bad file, as ``corpus`` does.

    ``outside`` is a file that the models of some of them name.
    """
    bad: dict[str, tuple[str, Change]] = {
        f"safetensors: {name}": ("golden.safetensors", written(data))
        for name, data in headers().items()
    }
    bad |= {
        f"ONNX: {name}": ("1/model.onnx", change) for name, change in bad_models(outside).items()
    }
    for number, (name, (file, change)) in enumerate(bad.items()):
        folder = place.folder / "bad" / "bundles" / str(number)
        shutil.copytree(bundle, folder)
        change(folder / file)
        if not (folder / file).is_fifo():
            seal(folder)
        linked = name.startswith("ONNX: weights in") and "link" in name
        says = "weights.bin" if linked else Path(file).name
        yield Case(name, ["verify", str(folder)], DAMAGED, says)


def _write(place: Place, name: str, content: str | bytes) -> Path:
    path = place.folder / "bad" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _toml(place: Place, _marker: Path) -> Iterator[Case]:
    bad: dict[str, str | bytes] = {
        "empty key": "= 1",
        "no value": "[search]\nepochs =",
        "cut off": "[search\nepochs = 1",
        "the same key twice": "[search]\nepochs = 1\nepochs = 2",
        "unknown key": "[search]\nepoch = 1",
        "unknown section": "[sarch]\nepochs = 1",
        "text for a number": '[search]\nepochs = "1"',
        "number as huge as no integer": f"[search]\nepochs = {'9' * 5000}",
        "not a number": "[retrain]\nlr = nan",
        "infinite": "[retrain]\nlr = inf",
        "negative": "[retrain]\nepochs = -1",
        "not UTF-8": b"[search]\nepochs = \xff\xfe",
        "a NUL": "[search]\nspace = 'S0\\u0000'\x00",
        "deeply nested": "a = " + "[" * 5000 + "]" * 5000,
        "a list for a section": "search = [1]",
        "a table for a number": "[search.epochs]\na = 1",
        "a binary": bytes(range(256)) * 40,
    }
    for name, content in bad.items():
        path = _write(place, f"toml/{name}.toml", content)
        yield Case(f"preset: {name}", ["show", "--config", str(path)], USAGE)


def _studies(place: Place, _marker: Path) -> Iterator[Case]:
    bad = {
        "no methods": "seeds = [0]",
        "unknown method": 'methods = ["../gdas"]\nspaces = ["S0"]\nseeds = [0]',
        "a preset that leads out": f'preset = "{"../" * 40}etc/passwd"\nmethods = ["gdas"]',
        "seeds that are text": 'methods = ["gdas"]\nspaces = ["S0"]\nseeds = ["0"]',
        "a space that leads out": 'methods = ["gdas"]\nspaces = ["/etc/passwd"]\nseeds = [0]',
        "a variant without a name": 'methods = ["gdas"]\nspaces = ["S0"]\nseeds = [0]\n[[variant]]',
        "a variant that leads out": '[[variant]]\nname = "../../x"',
    }
    for name, content in bad.items():
        path = _write(place, f"studies/{name}.toml", content)
        yield Case(f"study: {name}", ["study", str(path), "--plan"], USAGE)


GOOD_CELL = [["sep_conv_3x3", 0], ["skip_connect", 1]] * 4


def _genotypes(place: Place, _marker: Path) -> Iterator[Case]:
    def changed(**changes: object) -> str:
        return json.dumps({"normal": GOOD_CELL, "reduce": GOOD_CELL} | changes)

    def edges(*first: object) -> str:
        return changed(normal=[*first, *GOOD_CELL[len(first) :]])

    bad = {
        "no reduction cell": json.dumps({"normal": GOOD_CELL}),
        "a third cell": changed(other=GOOD_CELL),
        "seven edges": changed(normal=GOOD_CELL[:7]),
        "nine edges": changed(normal=[*GOOD_CELL, GOOD_CELL[0]]),
        "a thousand edges": changed(normal=GOOD_CELL * 125),
        "no edges": changed(normal=[]),
        "a text for a cell": changed(normal="sep_conv_3x3"),
        "a number for a cell": changed(normal=7),
        "null for a cell": changed(normal=None),
        "unknown operation": edges(["sep_conv_9x9", 0]),
        "none as an operation": edges(["none", 0]),
        "an operation that is a path": edges(["../../ops", 0]),
        "an operation that is code": edges(["__import__('os').system('id')", 0]),
        "an operation that is a number": edges([3, 0]),
        "an operation with a NUL": edges(["skip_connect\0", 0]),
        "an operation of a megabyte": edges(["x" * 2**20, 0]),
        "a predecessor that comes later": edges(["skip_connect", 2]),
        "a negative predecessor": edges(["skip_connect", -1]),
        "a huge predecessor": edges(["skip_connect", 2**70]),
        "a predecessor that is a text": edges(["skip_connect", "0"]),
        "a predecessor that is true": edges(["skip_connect", True]),
        "a predecessor that is 0.5": edges(["skip_connect", 0.5]),
        "the same predecessor twice": edges(["skip_connect", 0], ["sep_conv_3x3", 0]),
        "an edge of three": edges(["skip_connect", 0, 1]),
        "an edge of one": edges(["skip_connect"]),
        "an edge that is a table": edges({"op": "skip_connect"}),
        "a concatenation of nothing": changed(normal_concat=[]),
        "a concatenation of a node that is not there": changed(normal_concat=[2, 3, 4, 9]),
        "a concatenation of text": changed(normal_concat=["2"]),
        "a concatenation twice": changed(normal_concat=[2, 2, 3, 4]),
    }
    for number, (name, content) in enumerate(bad.items()):
        path = _write(place, f"genotypes/{number}.json", content)
        words = ["retrain", str(place.preset), "--genotype", str(path)]
        yield Case(f"genotype: {name}", words, USAGE)


def _json(place: Place, _marker: Path) -> Iterator[Case]:
    whole = json.dumps({"normal": GOOD_CELL, "reduce": GOOD_CELL})
    bad: dict[str, str | bytes] = {
        "empty": "",
        "cut off": whole[:-5],
        "more behind it": whole + "{}",
        "the same key twice": whole[:-1] + ', "normal": []}',
        "NaN": '{"normal": NaN}',
        "infinite": '{"normal": 1e999}',
        "an endless integer": '{"normal": ' + "9" * 100_000 + "}",
        "deeply nested": "[" * 100_000 + "]" * 100_000,
        "not UTF-8": b'{"normal": "\xff"}',
        "half of a surrogate": '{"normal": "\\ud800"}',
        "a comment": "/* */" + whole,
        "UTF-16": whole.encode("utf-16"),
        "a list": "[]",
        "a binary": bytes(range(256)) * 100,
        "spaces without end": " " * 2**21,
    }
    for number, (name, content) in enumerate(bad.items()):
        path = _write(place, f"json/{number}.json", content)
        words = ["retrain", str(place.preset), "--genotype", str(path)]
        yield Case(f"JSON: {name}", words, USAGE)


def _pickles(place: Place, marker: Path) -> Iterator[Case]:
    """A pickle under every name that d2nas accepts."""
    content = pickled_command(marker)
    for name in ("preset.toml", "preset.pkl", "preset.pt", "preset.json"):
        path = _write(place, f"pickles/{name}", content)
        yield Case(f"pickle as {name}", ["show", "--config", str(path)], USAGE)
        yield Case(f"pickle as study {name}", ["study", str(path), "--plan"], USAGE)
    for name in ("cell.json", "cell.pt", "cell.pkl", "cell.pth", "cell.py"):
        path = _write(place, f"pickles/{name}", content)
        words = ["retrain", str(place.preset), "--genotype", str(path)]
        yield Case(f"pickle as {name}", words, USAGE)
    published = {
        "cifar10": [f"cifar-10-batches-py/data_batch_{n}" for n in range(1, 6)]
        + ["cifar-10-batches-py/test_batch", "cifar-10-batches-py/batches.meta"],
        "cifar100": [f"cifar-100-python/{name}" for name in ("train", "test", "meta")],
        "svhn": ["train_32x32.mat", "test_32x32.mat"],
        "fashion-mnist": [
            f"FashionMNIST/raw/{part}-{what}.gz"
            for part in ("train", "t10k")
            for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ],
    }
    for data, names in published.items():
        root = place.folder / "bad" / "data" / data
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        words = ["search", str(place.preset), "--set", f"data.name={data}"]
        yield Case(f"pickles as {data}", [*words, "--data-root", str(root)], DAMAGED)
    for ending in ("png", "jpg", "bmp", "webp", "ppm", "tif"):
        root = _picture_folder(place, f"pickle-{ending}", {f"image.{ending}": content})
        yield Case(f"pickle as .{ending}", _folder_search(place, root), USAGE)


def _picture_folder(place: Place, name: str, files: dict[str, bytes]) -> Path:
    from PIL import Image

    root = place.folder / "bad" / "folders" / name
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(12):
            Image.new("RGB", (8, 8), (number * 20, 10, 200)).save(root / label / f"{number}.png")
    for file, content in files.items():
        (root / "cat" / file).write_bytes(content)
    return root


def _folder_search(place: Place, root: Path) -> list[str]:
    size = ["--set", "data.name=folder", "--set", "data.image_size=8"]
    return ["search", str(place.preset), *size, "--data-root", str(root)]


def _png(width: int, height: int) -> bytes:
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def _folders(place: Place, _marker: Path) -> Iterator[Case]:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2**24))
    bad = {
        "an empty picture": b"",
        "a picture cut off": _png(8, 8)[:30],
        "a picture of 4 gigapixels": _png(65_000, 65_000),
        "a picture without pixels": _png(0, 8),
        "a page": b"<html><script>alert(1)</script></html>",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%id) (w) file\n",
        "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "an archive": bomb.getvalue(),
        "a program": b"\x7fELF" + bytes(200),
    }
    for number, (name, content) in enumerate(bad.items()):
        root = _picture_folder(place, f"bad-{number}", {"bad.png": content})
        yield Case(f"folder: {name}", _folder_search(place, root), USAGE)


def _archives(place: Place, marker: Path) -> Iterator[Case]:
    """Archives in the place of data: none is unpacked."""
    content = pickled_command(marker)
    for kind, name in (("tar", "../../../outside"), ("link", "link"), ("zip", "../outside")):
        root = place.folder / "bad" / "archives" / kind
        root.mkdir(parents=True)
        if kind == "zip":
            with zipfile.ZipFile(root / "cifar-10-python.tar.gz", "w") as archive:
                archive.writestr(name, content)
        else:
            with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as tar:
                member = tarfile.TarInfo(name)
                if kind == "link":
                    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                    tar.addfile(member)
                else:
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        words = ["search", str(place.preset), "--set", "data.name=cifar10"]
        # Not what the table of published files says: as if there were nothing, and no network.
        yield Case(f"archive: {kind}", [*words, "--data-root", str(root)], USAGE)
    names = [
        f"{part}-{what}.gz"
        for part in ("train", "t10k")
        for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    cases = {
        "zeros without end": gzip.compress(bytes(2**28), 1),
        "cut off": gzip.compress(b"x" * 9999)[:-20],
        "no archive": b"\x1f\x8b" + bytes(50),
    }
    for name, data in cases.items():
        folder = place.folder / "bad" / "archives" / name.replace(" ", "-")
        (folder / "FashionMNIST" / "raw").mkdir(parents=True)
        for file in names:
            (folder / "FashionMNIST" / "raw" / file).write_bytes(data)
        words = ["search", str(place.preset), "--set", "data.name=fashion-mnist"]
        yield Case(f"archive: {name}", [*words, "--data-root", str(folder)], DAMAGED)


def _paths(place: Place, _marker: Path) -> Iterator[Case]:
    preset = str(place.preset)
    names = ["../outside", "a/b", "..", ".", "", "-x", "a\nb", "x" * 300, "nul\\", "A B", "ümlaut"]
    for name in names:
        yield Case(f"run named {name[:20]!r}", ["search", preset, "--name", name], USAGE)
    targets = ("../../etc/passwd", "toy/../../x@v1", "toy/search@v../1", "/etc/passwd", "\x1b[2J")
    for target in targets:
        yield Case(f"target {target!r}", ["show", target], USAGE)
    (place.folder / "bad").mkdir(exist_ok=True)
    link = place.folder / "bad" / "link.toml"
    link.symlink_to("/dev/zero")
    yield Case("preset that is a device", ["show", "--config", str(link)], USAGE)
    folder = _write(place, "folder.toml/x", "")
    yield Case("preset that is a folder", ["show", "--config", str(folder.parent)], USAGE)
    pipe = place.folder / "bad" / "pipe.toml"
    os.mkfifo(pipe)
    yield Case("preset that is a pipe", ["show", "--config", str(pipe)], USAGE)


VALUES: dict[str, Any] = {
    "huge integer": 10**30,
    "more digits than Python writes": 16**5000,
    "largest of 64 bits": 2**63 - 1,
    "negative": -1,
    "zero": 0,
    "not a number": math.nan,
    "infinite": math.inf,
    "largest float": 1e308,
    "smallest float": 5e-324,
    "tilde": "~",
    "word": "x",
    "empty": "",
    "list": [],
    "nested list": [[[1e308]]],
    "table": {},
    "true": True,
    "null": None,
    "long": "x" * 1_000_000,
    "surrogate": "\udc80",
    "zero character": "a\0b",
    "line break": "a\nb",
    "path out": "../../../../etc/passwd",
}
