"""The search on a CUDA device: it runs, waits for nothing within a pass, and resumes."""

import pytest
import torch
from cuda_device import CUDA, deterministic, no_waiting
from searches import final_state, finish, made_images, search_by
from torch import nn

from d2nas.config.registry import search_methods
from d2nas.methods.single_path import SinglePath
from d2nas.train.loop import FiniteCheck, step_if_finite
from d2nas.train.search import Search, _context, search_step

pytestmark = pytest.mark.gpu

PRECISIONS = ["fp32", "bf16"]


def search_on(
    device: torch.device, method: str, precision: str = "fp32", space: str = "S0"
) -> Search:
    data = made_images(size=16, half=32)
    return search_by(
        method,
        f"search.precision={precision}",
        "search.batch_size=16",
        space=space,
        device=device,
        data=data,
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("space", ["S0", "S4"])
@pytest.mark.parametrize("method", ["d2nas", "entangled", "gdas"])
def test_a_search_runs(method: str, space: str, precision: str) -> None:
    search = search_on(CUDA, method, precision, space)
    before = [parameter.detach().clone() for parameter in search.logits.parameters()]
    finish(search)
    for name, value in final_state(search).items():
        assert torch.isfinite(value).all(), name
        assert value.dtype in (torch.float32, torch.float64, torch.int64), name
    assert any(
        not torch.equal(old, new)
        for old, new in zip(before, search.logits.parameters(), strict=True)
    )
    assert {p.device.type for p in search.supernet.parameters()} == {CUDA.type}
    assert {p.device.type for p in search.logits.parameters()} == {"cpu"}
    assert len(search.metrics) == 2
    for row in search.metrics:
        weights = sum(parameter.nbytes for parameter in search.supernet.parameters())
        assert row["peak_bytes"] > weights


@pytest.mark.parametrize(
    "method", [name for name in search_methods.names() if name not in ("random", "d2nas")]
)
def test_rivals_run(method: str) -> None:
    search = finish(search_on(CUDA, method, space="S2"))
    for name, value in final_state(search).items():
        assert torch.isfinite(value).all(), name


@pytest.mark.parametrize("method", ["d2nas", "gdas", "darts"])
def test_the_first_step_is_about_that_of_the_cpu(method: str) -> None:
    sums = []
    for device in (torch.device("cpu"), CUDA):
        search = search_on(device, method)
        search_step(search, 0)
        found = search.trained.sums
        sums.append(torch.stack([found["arch_loss"], found["weight_loss"]]).cpu())
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-2, atol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_search_resumes_bit_equal(stop: int, precision: str) -> None:
    """In a space without pooling, whose backward on CUDA has no fixed order of additions."""
    with deterministic():
        whole = search_on(CUDA, "d2nas", precision, "S2")
        states = {report.step + 1: whole.capture(report.step + 1) for report in whole.run()}
        again = search_on(CUDA, "d2nas", precision, "S2")
        for _ in again.run(states[stop]):
            pass
    wanted, got = final_state(whole), final_state(again)
    for name, value in wanted.items():
        # The peak is the allocator's, which another history leaves elsewhere.
        assert name == "sums" or torch.equal(value, got[name]), name
    assert whole.method.derive() == again.method.derive()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", ["d2nas", "entangled", "gdas"])
def test_nothing_within_the_passes_waits_for_the_device(method: str, precision: str) -> None:
    search = search_on(CUDA, method, precision)
    search_step(search, 0)  # libraries load, buffers are made
    sampled = search.method
    assert isinstance(sampled, SinglePath)
    batch = search.batch(search.weight_batches, 1)
    context = _context(search, 1, "weight-draw")
    numbers = [context.draws(index) for index in range(sampled.draws)]
    draws = [sampled.sample(context.temperature, generator) for generator in numbers]
    search.weight_optimizer.zero_grad()
    torch.cuda.synchronize(CUDA)
    with no_waiting():
        sampled.gate_gradients(batch, draws, numbers)
        measured = sampled.run(batch, draws, numbers)
        norm = nn.utils.clip_grad_norm_(search.supernet.parameters(), 5.0)
        watch = FiniteCheck(CUDA)
        finite = watch.add(1, "the training loss", measured.loss)
        finite = finite & watch.add(1, "the gradient norm", norm)
        step_if_finite(search.weight_optimizer, finite)
        watch.check_if_synchronous()
        with pytest.raises(RuntimeError, match="synchroniz"):
            measured.loss.item()  # control
    watch.check()
