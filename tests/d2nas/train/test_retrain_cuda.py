"""Retraining on a CUDA device: it runs, no step waits for it, and it resumes; on two, by NCCL.

What can be told without a GPU is told in this module's last tests.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_device import CUDA, deterministic, no_waiting
from processes import on_processes, save
from searches import CPU, config_of, made_images
from torch.utils._python_dispatch import TorchDispatchMode

from d2nas.genotype import Genotype
from d2nas.parallel import ALONE, Ranks
from d2nas.train.loop import FiniteCheck
from d2nas.train.retrain import Retraining, train_step

PRECISIONS = ["fp32", "bf16", "fp16"]
STEPS = 6
# All kinds of operations; and, for what must be exact, none whose backward adds in no fixed order.
MIXED = Genotype(
    normal=(("sep_conv_3x3", 0), ("noise", 1), ("max_pool_3x3", 0), ("dil_conv_5x5", 1),
            ("skip_connect", 0), ("avg_pool_3x3", 2), ("sep_conv_5x5", 1), ("skip_connect", 3)),
    reduce=(("skip_connect", 0), ("sep_conv_3x3", 1), ("max_pool_3x3", 0), ("noise", 2),
            ("avg_pool_3x3", 0), ("dil_conv_3x3", 1), ("sep_conv_3x3", 2), ("skip_connect", 3)),
)  # fmt: skip
EXACT = Genotype(
    normal=(("sep_conv_3x3", 0), ("skip_connect", 1)) * 4,
    reduce=(("skip_connect", 0), ("sep_conv_3x3", 1)) * 4,
)


def retraining_on(
    device: torch.device, genotype: Genotype, *settings: str, ranks: Ranks = ALONE
) -> Retraining:
    """Two steps an epoch; drop-path, cutout, crops and flips from the second epoch on."""
    sizes = ("num_cells=3", "init_channels=8", "batch_size=16", "epochs=3", "auxiliary=false")
    words = [f"retrain.{word}" for word in (*sizes, "drop_path=0.3", "cutout=3", *settings)]
    config = config_of("d2nas", *words)
    retraining = Retraining(
        config.retrain,
        genotype,
        made_images(size=16, half=16),
        seed=0,
        device=device,
        augmentation=config.data,
        ranks=ranks,
    )
    retraining.network.train()
    return retraining


def take_all_kinds_of_steps(retraining: Retraining) -> None:
    """One without drop-path and one with it: libraries load, algorithms are tried."""
    for step in (0, 2):
        with retraining.arithmetic.pinned():
            train_step(retraining, step)


def resumed_exactly(
    genotype: Genotype, device: torch.device, *settings: str, **options: Any
) -> bool:
    whole = retraining_on(device, genotype, *settings, **options)
    states = {report.step + 1: whole.capture(report.step + 1) for report in whole.run()}
    again = retraining_on(device, genotype, *settings, **options)
    for _ in again.run(states[3]):
        pass
    got, wanted = again.capture(STEPS).tensors, states[STEPS].tensors
    return all(torch.equal(got[name], value) for name, value in wanted.items())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_runs(precision: str) -> None:
    retraining = retraining_on(CUDA, MIXED, f"precision={precision}")
    before = [weight.detach().clone() for weight in retraining.weights]
    for _ in retraining.run():
        pass
    for name, value in retraining.capture(STEPS).tensors.items():
        assert torch.isfinite(value).all(), name
    assert {weight.device.type for weight in retraining.weights} == {CUDA.type}
    moved = zip(before, retraining.weights, strict=True)
    assert any(not torch.equal(old, new) for old, new in moved)


@pytest.mark.gpu
def test_the_first_step_is_about_that_of_the_cpu() -> None:
    sums = []
    for device in (CPU, CUDA):
        retraining = retraining_on(device, EXACT)
        with retraining.arithmetic.pinned():
            train_step(retraining, 0)
        sums.append(retraining.trained.sums["loss"].cpu())
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-4, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_step_waits_for_the_device(precision: str) -> None:
    retraining = retraining_on(CUDA, MIXED, f"precision={precision}")
    take_all_kinds_of_steps(retraining)
    torch.cuda.synchronize(CUDA)
    with no_waiting(), retraining.arithmetic.pinned():
        for step in (1, 3):
            train_step(retraining, step)
        with pytest.raises(RuntimeError, match="synchroniz"):
            retraining.trained.sums["loss"].item()  # control
    retraining.check()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resume_is_exact(precision: str) -> None:
    with deterministic():
        assert resumed_exactly(EXACT, CUDA, f"precision={precision}")


def train_by_nccl(ranks: Ranks, folder: str) -> None:
    device = ranks.device(CUDA)
    retraining = retraining_on(device, MIXED, ranks=ranks)
    for _ in retraining.run():
        pass
    tensors = retraining.capture(STEPS).tensors
    with deterministic():
        exact = resumed_exactly(EXACT, device, ranks=ranks)
    save(folder, ranks, {**tensors, "exact": torch.tensor(exact)})


@pytest.mark.gpu
def test_two_gpus_train_one_network(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs 2 CUDA devices, there are {torch.cuda.device_count()}")
    first, second = on_processes(2, "test_retrain_cuda.train_by_nccl", tmp_path)
    for name, value in first.items():
        if "running" not in name:  # each rank's own
            assert torch.equal(value, second[name]), name
    assert bool(first["exact"])


# Without a GPU


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a value, or for a number of values, from the device."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        # An index of booleans is a search for those that are true.
        by_mask = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in arguments[1]
        )
        if name in self.NAMES or by_mask:
            self.found.append(name)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_step_asks_for_a_value(precision: str) -> None:
    """As on a GPU, where finite values are not asked for either."""
    retraining = retraining_on(CPU, MIXED, f"precision={precision}")
    retraining.watch = FiniteCheck(CUDA)
    take_all_kinds_of_steps(retraining)
    with HostReads() as reads:
        for step in (1, 3):
            train_step(retraining, step)
    assert reads.found == []
    with reads:  # control
        retraining.check()
        retraining.trained.sums["loss"].item()
    assert "_local_scalar_dense" in reads.found


def test_a_resume_is_exact_here() -> None:
    assert resumed_exactly(MIXED, CPU)
