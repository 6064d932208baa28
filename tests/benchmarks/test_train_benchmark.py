"""``python -m benchmarks train``: the plain network computes the same; no test reads the clock."""

import itertools
import json
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import train as bench_train
from benchmarks.__main__ import main
from benchmarks.plain_network import PlainNetwork
from benchmarks.search import made_images
from benchmarks.train import OurStepper, PlainStepper, Traffic, compare_training, estimate
from d2nas import Genotype, Network
from d2nas.config import RetrainConfig, build_config
from d2nas.nn.units import keep_everything

CPU = torch.device("cpu")
LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


def tiny(**changes: Any) -> RetrainConfig:
    values = {"num_cells": 3, "init_channels": 4, "batch_size": 4, "auxiliary": False}
    return build_config({"retrain": {**values, **changes}}).retrain


def pair(name: str, num_cells: int, channels: int) -> tuple[Network, PlainNetwork]:
    """The same network twice, with the same weights, in float64."""
    genotype = Genotype.published(name)
    sizes = {"num_cells": num_cells, "init_channels": channels, "num_classes": 10}
    ours = Network(genotype, **sizes, auxiliary=True).double()
    plain = PlainNetwork(genotype, **sizes, auxiliary=True).double()
    for one, other in zip(
        *([m for m in net.modules() if isinstance(m, LAYERS)] for net in (ours, plain)),
        strict=True,
    ):
        other.load_state_dict(one.state_dict())
    return ours.train(), plain.train()


@pytest.mark.parametrize("name", ["DARTS_V1", "DARTS_V2", "PC_DARTS_cifar", "GDAS_V1", "PDARTS"])
def test_the_plain_network_is_the_same_network(name: str) -> None:
    ours, plain = pair(name, 6, 6)
    numbers = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=numbers, dtype=torch.float64)
    labels = torch.arange(4)
    gradients = []
    for network in (ours, plain):
        logits, auxiliary = network(images)
        loss = F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(auxiliary, labels)
        loss.backward()
        layers = [m for m in network.modules() if isinstance(m, LAYERS)]
        parameters = itertools.chain.from_iterable(m.parameters() for m in layers)
        gradients.append([logits, auxiliary, *(p.grad for p in parameters)])
        buffers = [b for m in layers for b in m.buffers()]
        gradients[-1] += [b.double() for b in buffers]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


class Calls(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_operations_that_read_the_same_state_share_their_relu() -> None:
    def relus(*, lean: bool) -> int:
        network = Network(Genotype.published("DARTS_V2"), num_cells=3, init_channels=4).train()
        if not lean:
            keep_everything(network)
        with Calls() as calls:
            network(torch.randn(2, 3, 8, 8))
        return calls.count["relu"]

    # Both cell inputs, and per normal cell (skips read no ReLU): the five separable convolutions'
    # states 0 and 1, the dilated one's state 2, five second units. Reductions: FactorizedReduce
    # nowhere in DARTS_V2's but as preprocessing after a reduction.
    genotype = Genotype.published("DARTS_V2")
    convolutions = [pair for pair in genotype.normal if "conv" in pair[0]]
    separable = sum(name.startswith("sep") for name, _ in convolutions)
    states = len({source for _, source in convolutions})
    shared_inputs = 2 + 2  # the stem's two outputs, and two cells' that another cell reads
    assert relus(lean=True) == shared_inputs + states + separable
    assert relus(lean=False) == 2 * 3 + len(convolutions) + separable


def test_rows_compare_steps_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("benchmarks.pairs.time.perf_counter", lambda: float(next(ticks)))
    steps, images = compare_training(tiny(), 2, steps=1, size=8)
    assert (steps["case"], steps["against"], steps["unit"]) == ("d2nas", "plain", "step")
    assert (images["unit"], images["pairs"]) == ("image", 2)
    assert images["seconds"] == pytest.approx(steps["seconds"] / 4)


def test_both_train_with_the_recipe_of_the_middle() -> None:
    config = tiny(drop_path=0.4, epochs=4)
    data = made_images(128, 8)
    ours, plain = OurStepper(config, data, CPU), PlainStepper(config, data, CPU)
    step = ours.taken
    assert ours.retraining.drop_path_at(step) == config.drop_path / 2
    before = [p.detach().clone() for p in plain.network.parameters()]
    for stepper in (ours, plain):
        stepper.run(1)
    assert ours.taken == step + 1
    assert 0 < plain.loss < 10
    assert any(
        not torch.equal(a, b) for a, b in zip(before, plain.network.parameters(), strict=True)
    )
    seen: list[float] = []
    monkey = plain.network.forward
    plain.network.forward = lambda x, p: seen.append(p) or monkey(x, p)  # type: ignore
    plain.run(1)
    assert seen == [config.drop_path / 2]


def test_traffic_counts_what_operations_read_and_write() -> None:
    x: Tensor = torch.zeros(1000)
    with Traffic() as traffic:
        y = x + x  # reads 8,000 bytes, writes 4,000
        y.view(10, 100)  # free
        y.mul_(2.0)  # reads and writes 4,000
    assert traffic.bytes == 12_000 + 8_000


def test_estimates_are_called_so_and_bound_by_the_slower_of_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_train, "ESTIMATED_GPUS", {"one": (1e9, 1e9, 1e9)})
    for row in estimate(tiny(), size=8):
        assert row["estimated"] is True
        slowest = min(1e9 / row["macs_per_image"], 1e9 / row["bytes_per_image"])
        assert row["images_per_second"] == pytest.approx(slowest, rel=1e-3)
        assert row["bound"] == "memory"


def test_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    small = ["num_cells=2", "init_channels=4", "batch_size=2", "auxiliary=false"]
    words = [word for setting in small for word in ("--set", f"retrain.{setting}")]
    assert main(["train", "--pairs", "1", "--json", *words]) == 0
    captured = capfd.readouterr()
    assert {row["unit"] for row in json.loads(captured.out)} == {"step", "image"}
    assert "goal:" in captured.err
    assert main(["train", "--pairs", "1", *words]) == 0
    assert "nothing was measured on a GPU" in capfd.readouterr().out
    assert main(["train", "--set", "search.draws=1"]) == 2
