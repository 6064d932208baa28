"""Mutated files: whatever stands in a file, its reader gives a value or an error of d2nas.

10,000 mutated manifests and genotypes, and some thousand of everything else that is read.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from campaigns import count
from faults import lineage_in
from forgery import forge_manifest, reference_file
from mutations import mutated_bytes, mutated_values

from d2nas import genotype
from d2nas.config import build_config
from d2nas.errors import D2NasError
from d2nas.files.arrays import decode_arrays
from d2nas.files.strict_json import canonical_json
from d2nas.files.tensors import (
    STATE_SCALARS,
    STATE_TENSORS,
    decode_state,
    decode_tensors,
    encode_state,
)
from d2nas.files.text_files import read_space
from d2nas.files.verified_folder import MANIFEST_NAME
from d2nas.genotype import Genotype
from pipeline.presets import read_preset
from pipeline.store import manifest
from pipeline.study.grid import read_study

TARGET = "quickstart/search@v2"


class Reader(NamedTuple):
    """A whole file, what reads a changed one, and how many are tried."""

    whole: bytes
    read: Callable[[bytes], object]
    number: int


def manifest_reader(folder: Path) -> Reader:
    """A version whose id is right, whatever its manifest holds."""
    store = lineage_in(folder / "store")
    version, reference = store.open(TARGET), reference_file(store.root, TARGET)
    files = {name: version.read(name) for name in version.manifest.files}
    whole, name = (version.path / MANIFEST_NAME).read_bytes(), reference.read_bytes()

    def read(data: bytes) -> object:
        if data == whole:
            return store.open(TARGET)
        forged = forge_manifest(store.root, TARGET, data, files)
        try:
            return store.open(TARGET)
        finally:
            reference.write_bytes(name)
            shutil.rmtree(forged)

    return Reader(whole, read, count(5000, 500_000))


def reference_reader(folder: Path) -> Reader:
    """A name whose digest is right, whatever it says."""
    store = lineage_in(folder / "store")
    path = reference_file(store.root, TARGET)

    def read(body: bytes) -> object:
        ending = b',"digest":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'
        path.write_bytes(b'{"body":' + body.rstrip() + ending)
        return store.open(TARGET), store.references(), store.verify()

    whole = canonical_json(json.loads(path.read_bytes())["body"])
    return Reader(whole, read, count(1000, 100_000))


def genotype_reader(_: Path) -> Reader:
    whole = Genotype.published("DARTS_V2").to_json().encode()
    return Reader(whole, Genotype.from_json, count(5000, 500_000))


def text_reader(name: str, text: str, use: Callable[[str], object]) -> Callable[[Path], Reader]:
    """A TOML file that a user names."""

    def reader(folder: Path) -> Reader:
        path = folder / name

        def read(data: bytes) -> object:
            path.write_bytes(data)
            return use(str(path))

        return Reader(text.encode(), read, count(1000, 100_000))

    return reader


def checkpoint_reader(folder: Path) -> Reader:
    files = encode_state({"a": torch.arange(3.0)}, {"step": 1, "metrics": [{"loss": 0.5}]})

    def read(data: bytes) -> object:
        return decode_state((files | {STATE_SCALARS: data}).__getitem__)

    return Reader(files[STATE_SCALARS], read, count(500, 50_000))


def tensor_reader(decode: Callable[..., object]) -> Callable[[Path], Reader]:
    def reader(_: Path) -> Reader:
        tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.float16)}
        whole = encode_state(tensors, {})[STATE_TENSORS]
        return Reader(whole, lambda data: decode(data, what="it"), count(1000, 100_000))

    return reader


READERS: dict[str, Callable[[Path], Reader]] = {
    "manifest": manifest_reader,
    "reference": reference_reader,
    "genotype": genotype_reader,
    "preset": text_reader(
        "preset.toml",
        '[data]\nname = "digits"\nflip = false\n[search]\nepochs = 2\nweight_lr = 0.1\n'
        '[retrain]\nlr = 0.1\n[sources]\n"retrain.lr" = "ours"\nsearch = "ours"\n',
        lambda path: build_config(read_preset(path)),
    ),
    "study": text_reader(
        "study.toml",
        'preset = "quickstart"\nmethods = ["d2nas", "gdas"]\nspaces = ["S0"]\nseeds = [0, 1]\n'
        '[settings]\n"search.epochs" = 4\n[method.gdas]\n"search.epochs" = 8\n'
        '[[variant]]\nname = "wide"\ntrainings = 2\n[variant.settings]\n"retrain.lr" = 0.1\n',
        read_study,
    ),
    "space": text_reader(
        "space.toml",
        'name = "own"\nnormal = ["skip_connect", "sep_conv_3x3"]\nreduce = ["max_pool_3x3"]\n',
        read_space,
    ),
    "checkpoint": checkpoint_reader,
    "tensors": tensor_reader(decode_tensors),
    "arrays": tensor_reader(decode_arrays),
}


def mutants(reader: Reader) -> Iterator[tuple[int, bytes]]:
    """Change bytes, and in every other case values where the file is JSON."""
    try:
        values: Any = json.loads(reader.whole)
    except ValueError:
        values = None
    for case in range(reader.number):
        draw = random.Random(case)
        if values is not None and case % 2:
            yield case, canonical_json(mutated_values(values, draw))
        else:
            yield case, mutated_bytes(reader.whole, draw)


def escapes(reader: Reader) -> tuple[list[str], int]:
    """Return what escaped that is no error of d2nas in one line, and how many were refused."""
    found, num_refused = [], 0
    for case, data in mutants(reader):
        try:
            reader.read(data)
        except D2NasError as error:
            num_refused += 1
            if error.exit_code not in (2, 4) or "\n" in str(error):
                found.append(f"case {case}: {error.exit_code} {str(error)!r}")
        except Exception as error:  # noqa: BLE001 - what escapes is what is looked for
            found.append(f"case {case}: {error!r}")
    return found, num_refused


@pytest.mark.parametrize("name", READERS)
def test_only_errors_of_d2nas_escape(name: str, quick_path: Path) -> None:
    reader = READERS[name](quick_path)
    assert reader.read(reader.whole)  # the whole file is fine
    found, num_refused = escapes(reader)
    assert found == []
    assert reader.number // 10 < num_refused < reader.number


def test_controls_what_escapes_is_seen(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = genotype_reader(quick_path)
    with monkeypatch.context() as patch:
        patch.setattr(genotype, "_is_list", lambda value: True)
        assert any("TypeError" in line for line in escapes(reader)[0])
    reader = manifest_reader(quick_path)._replace(number=1000)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "ValidationError", KeyError)
        assert any("validation error" in line for line in escapes(reader)[0])
