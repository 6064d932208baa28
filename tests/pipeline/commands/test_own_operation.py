"""An operation of one's own: the README's example, from a space's file to a verified bundle."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from searches import finish, search_by
from tiny import TinyPlace
from torch import nn

import d2nas
from d2nas import Genotype, Network, SearchSpace, count_cost, register_operation
from d2nas.errors import ConfigError
from d2nas.spaces import own_operations

README = Path(d2nas.__file__).parent / "README.md"
(EXAMPLE,) = (
    block
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    if "register_operation" in block
)
NAME = "swish_conv_3x3"
MISSING = f"unknown operation '{NAME}': neither built in nor registered here, by d2nas.register"


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that a test registers or imports is there for the next one."""
    monkeypatch.setattr(own_operations, "_known", {})
    yield
    sys.modules.pop("toy_operation", None)


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str = EXAMPLE) -> None:
    """A package whose entry point leads to the example."""
    (folder / "toy_operation.py").write_text(text)
    about = folder / "toy_operation-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-operation\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[d2nas.operations]\n{NAME} = toy_operation\n")
    monkeypatch.syspath_prepend(str(folder))


def test_it_goes_all_the_way_and_what_is_not_checked_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = TinyPlace(tmp_path)
    (tmp_path / "few.toml").write_text(f'normal = ["{NAME}"]\nreduce = ["{NAME}", "skip_connect"]')
    assert place.run("run", str(place.preset)) == 2
    assert MISSING in capfd.readouterr().err
    with monkeypatch.context() as installed:
        install(installed, tmp_path)
        shown = place.json(capfd, "run", str(place.preset))
        bundle = place.exported / "tiny"
        report = json.loads((bundle / "report.json").read_text())
        reason = f"the graphs of {NAME} are not known to the identity check"
        assert report["identity"]["verdict"] == "not checked"
        assert report["identity"]["reason"] == reason
        assert report["identity"]["genotype_digest"] == Genotype.from_dict(shown["genotype"]).digest
        assert report["parameterless_normal"] == 0
        for document in ("report.html", "MODEL_CARD.md"):
            assert "not compared with the genotype" in (bundle / document).read_text()
        (verified,) = place.json(capfd, "verify", str(bundle))
        assert {"file": "model.onnx", "reason": reason} in verified["not_checked"]
    # Where it is not installed, what names it says so.
    own_operations._known.clear()
    for words in (("verify", str(bundle)), ("retrain", "tiny", "--set", "retrain.epochs=1")):
        assert place.run(*words) in (2, 4)
        assert MISSING in capfd.readouterr().err


@pytest.mark.parametrize("method", ["d2nas", "darts", "pc-darts-4"])
def test_it_is_searched_and_counted(method: str) -> None:
    built = list[tuple[int, int, bool]]()

    def build(channels: int, stride: int, affine: bool) -> nn.Module:
        built.append((channels, stride, affine))
        return nn.MaxPool2d(5, stride=stride, padding=2)

    register_operation("max_pool_5x5", build, parameterless=True)
    space = SearchSpace.from_dict({"normal": ["max_pool_5x5", "sep_conv_3x3"]})
    overrides = ("search.epochs=1", "search.batch_size=16", "search.precision=bf16")
    search = finish(search_by(method, *overrides, space=space))
    assert search.method.derive().nodes == range(2, 6)
    assert {affine for _, _, affine in built} == {False}
    pairs = (("max_pool_5x5", 0), ("max_pool_5x5", 1)) * 4
    genotype = Genotype(pairs, pairs)
    assert genotype.parameterless_normal == 8
    sizes: dict[str, Any] = {"num_cells": 3, "init_channels": 4}
    skips = (("max_pool_3x3", 0), ("max_pool_3x3", 1)) * 4
    same = count_cost(Network(Genotype(skips, skips), **sizes), (3, 8, 8))
    assert count_cost(Network(genotype, **sizes), (3, 8, 8)) == same
    assert (4, 1, True) in built


@pytest.mark.parametrize(
    ("name", "build", "words"),
    [
        ("sep_conv_3x3", nn.ReLU, "is one of d2nas's"),
        ("Swish Conv", nn.ReLU, "invalid name of an operation"),
        ("swish-conv", nn.ReLU, "invalid name"),
        ("swish", None, "cannot be called"),
    ],
)
def test_what_is_no_operation_is_refused(name: str, build: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        register_operation(name, build)


def test_what_builds_no_module_and_a_broken_package_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_operation("nothing", lambda _channels, _stride, _affine: None)  # type: ignore[arg-type, return-value]
    pairs = (("nothing", 0), ("skip_connect", 1)) * 4
    with pytest.raises(ConfigError, match="the operation nothing builds None"):
        Network(Genotype(pairs, pairs), num_cells=1, init_channels=4)
    with pytest.raises(ConfigError, match="already registered"):
        register_operation("nothing", nn.ReLU)
    install(monkeypatch, tmp_path, "import missing_package")
    with pytest.raises(ConfigError, match=r"swish_conv_3x3 \(toy_operation, an entry point d2nas"):
        SearchSpace.from_dict({"normal": [NAME]})


def test_it_computes_in_bfloat16_where_features_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path)
    pairs = ((NAME, 0), (NAME, 1)) * 4
    network = Network(Genotype(pairs, pairs), num_cells=3, init_channels=4)
    operation = network.cells[0].operations[0]
    images = torch.ones(2, 4, 8, 8, dtype=torch.bfloat16)
    assert operation(images).dtype == torch.bfloat16
    assert operation(images.float()).dtype == torch.float32
