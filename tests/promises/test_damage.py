"""Damage of every kind in every kind of file: each is refused, the file named, with exit code 4."""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
import torch
from campaigns import count
from faults import commit, contents
from google.protobuf.message import DecodeError
from safetensors import SafetensorError
from safetensors.torch import load
from toy import Place

from d2nas.errors import DamagedArtifactError
from d2nas.files import verified_folder
from d2nas.files.tensors import encode_state
from d2nas.files.verified_folder import MANIFEST_NAME
from pipeline.bundle.reader import open_bundle
from pipeline.stages import KINDS
from pipeline.store import Store, kind_of


class Target(NamedTuple):
    """A file, and what opens the version or bundle that it is part of: the error, or None."""

    path: Path
    refused: Callable[[], DamagedArtifactError | None]


def error_of(open_it: Callable[[], object]) -> DamagedArtifactError | None:
    try:
        open_it()
    except DamagedArtifactError as error:
        return error
    return None


@pytest.fixture
def targets(finished: Place) -> list[Target]:
    """Every file of a finished run, of a checkpoint, of an evaluation and of a bundle."""
    store, tensors = Store(finished.store), {"a": torch.arange(300.0), "b": torch.ones(2, 3)}
    commit(store, encode_state(tensors, {"step": 3}), run="toy", stage="search-state")
    commit(store, contents(1), run="toy", stage="evaluate")
    references = store.references()
    found = []
    for reference in references:
        version = store.open(reference.name)
        place = finished.store / "runs" / reference.run / reference.stage / "v1.json"
        paths = [version.path / name for name in (*version.manifest.files, MANIFEST_NAME)]

        def refused(name: str = reference.name) -> DamagedArtifactError | None:
            return error_of(lambda: store.open(name))

        found += [Target(path, refused) for path in (*paths, place)]
    assert {store.open(reference.name).manifest.kind for reference in references} == set(
        map(kind_of, KINDS.names)
    )
    bundle = finished.exported / "toy"
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    assert len(files) >= 11
    return found + [Target(path, lambda: error_of(lambda: open_bundle(bundle))) for path in files]


# Damage


def flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    position = draw.randrange(8 * len(data))
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)


def zero_fill(data: bytes, draw: random.Random) -> bytes:
    begin = draw.randrange(len(data))
    return data[:begin] + bytes(len(data) - begin) if any(data[begin:]) else bytes(len(data))


DAMAGES: dict[str, tuple[int, Callable[[bytes, random.Random], bytes]]] = {
    "bit flip": (count(2000, 20_000), flip),
    "truncation": (count(300, 3000), lambda data, draw: data[: draw.randrange(len(data))]),
    "append": (count(60, 600), lambda data, draw: data + draw.randbytes(draw.randrange(1, 9))),
    "zero fill": (count(60, 600), zero_fill),
    "reversed": (count(60, 600), lambda data, draw: data[::-1]),
}


def unnoticed(cases: Iterable[tuple[str, Target, bytes]]) -> list[str]:
    """Write each content in the place of a file; return what was opened, or refused badly."""
    found = []
    for name, target, changed in cases:
        whole = target.path.read_bytes()
        target.path.write_bytes(changed)
        error = target.refused()
        target.path.write_bytes(whole)
        if error is None:
            found.append(f"{name}: {target.path} was opened")
        elif target.path.name not in str(error) or "\n" in str(error) or error.exit_code != 4:
            found.append(f"{name}: {target.path} was refused with {error}")
        elif "d2nas" not in str(error.hint):
            found.append(f"{name}: {error} does not say what makes it again")
    return found


def cases_of(damage: str, targets: list[Target]) -> Iterable[tuple[str, Target, bytes]]:
    number, change = DAMAGES[damage]
    for case in range(number):
        target = targets[case % len(targets)]
        yield f"{damage} {case}", target, change(target.path.read_bytes(), random.Random(case))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_and_named(damage: str, targets: list[Target]) -> None:
    assert unnoticed(cases_of(damage, targets)) == []
    assert all(target.refused() is None for target in targets)  # all is whole again


def test_swapped_files_are_refused(targets: list[Target]) -> None:
    swaps = []
    for shift in range(1, 3):
        others = targets[shift:] + targets[:shift]
        swaps += [
            (f"content of {other.path}", target, other.path.read_bytes())
            for target, other in zip(targets, others, strict=True)
            if target.path.read_bytes() != other.path.read_bytes()
        ]
    assert len(swaps) >= 60
    assert unnoticed(swaps) == []


def test_control_without_the_hashes_damage_passes(
    targets: list[Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified_folder, "_check_file", lambda *_: None)
    files = [
        target
        for target in targets
        if target.path.parent.parent.name == "versions" and target.path.name != MANIFEST_NAME
    ]
    flips = [(str(t.path), t, flip(t.path.read_bytes(), random.Random(0))) for t in files]
    assert len(unnoticed(flips)) == len(flips) >= 15


PARSERS: dict[str, tuple[Callable[[bytes], object], type[Exception], float]] = {
    # file, what reads it, how that refuses, and which share of flipped bits it lets pass at least
    "weights.safetensors": (load, SafetensorError, 0.9),
    "model.onnx": (onnx.load_from_string, DecodeError, 0.6),
    "genotype.json": (json.loads, ValueError, 0.2),
}


@pytest.mark.parametrize("name", PARSERS)
def test_control_the_formats_themselves_notice_little(name: str, targets: list[Target]) -> None:
    parse, refusal_of_format, share = PARSERS[name]
    whole = next(target.path for target in targets if target.path.name == name).read_bytes()
    num_passed = 0
    for case in range(200):
        try:
            parse(flip(whole, random.Random(case)))
            num_passed += 1
        except refusal_of_format:
            continue
    assert share * 200 <= num_passed
