"""Operations that allocate and compute nothing."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch.nn import functional as F

from d2nas.measure.allocation import AllocateOnly
from d2nas.measure.cost import LiveBytes, peak_memory


def test_results_have_the_shape_strides_and_type_of_computed_ones() -> None:
    image = torch.randn(2, 4, 9, 9).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(6, 4, 3, 3)

    def results() -> list[Tensor]:
        found = F.conv2d(image, weight, stride=2)
        pooled = F.max_pool2d(image, 3, return_indices=True)
        wide = image.double() + 1
        return [found, *pooled, wide, image.argmax(1), image.bfloat16() @ image.bfloat16()]

    computed = results()
    with AllocateOnly():
        allocated = results()
    for one, other in zip(allocated, computed, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


def test_nothing_is_written() -> None:
    value = torch.ones(3)
    with AllocateOnly():
        same = value.add_(1).mul_(torch.full((3,), 7.0))
        torch.add(value, 5, out=value)
        nn.init.zeros_(value)
    assert same is value
    assert value.tolist() == [1, 1, 1]


def test_control_outside_it_is_written() -> None:
    value = torch.ones(3)
    with AllocateOnly():
        pass
    assert value.add_(1).tolist() == [2, 2, 2]


def resident_and_mapped_bytes() -> tuple[int, int]:
    mapped, resident, *_ = (int(pages) for pages in Path("/proc/self/statm").read_text().split())
    page = os.sysconf("SC_PAGE_SIZE")
    return resident * page, mapped * page


def test_results_take_no_memory_and_hardly_an_address() -> None:
    resident, mapped = resident_and_mapped_bytes()
    with AllocateOnly():
        image = torch.empty(16, 16, 512, 512)  # 256 MiB
        found = [F.conv2d(image, torch.empty(16, 16, 3, 3), padding=1) for _ in range(40)]
    assert {one.shape for one in found} == {image.shape}
    assert len({one.untyped_storage()._cdata for one in found}) == 40
    resident_now, mapped_now = resident_and_mapped_bytes()
    assert resident_now - resident < image.nbytes / 2
    assert mapped_now - mapped < 5 * image.nbytes


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda value: value.view(4, 3),
    "detach": Tensor.detach,
    "unbind": lambda value: value.unbind(0)[1],
    "contiguous": Tensor.contiguous,
    "not called a view by its schema": lambda value: torch.ops.aten._unsafe_view(value, [4, 3]),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_shares_its_storage_and_counts_nothing(view: str) -> None:
    with AllocateOnly():
        value = torch.empty(3, 4)
        with LiveBytes() as live:
            shared = VIEWS[view](value)
    assert shared.untyped_storage()._cdata == value.untyped_storage()._cdata
    assert live.peak <= 512


def test_one_shape_does_not_answer_for_another() -> None:
    with AllocateOnly():
        assert (torch.empty(2, 3) @ torch.empty(3, 4)).shape == (2, 4)
        assert (torch.empty(5, 3) @ torch.empty(3, 4)).shape == (5, 4)
        assert (torch.empty(2, dtype=torch.int64) * 2).dtype == torch.int64
        assert (torch.empty(2, dtype=torch.int64) * 2.0).dtype == torch.float32


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda value: value.sum().item(), DataDependentOutputException),
        (lambda value: bool(value.any()), DataDependentOutputException),
        (lambda value: value[value > 0], DynamicOutputShapeException),
    ],
)
def test_a_number_is_refused(ask: Callable[[Tensor], object], error: type[Exception]) -> None:
    value = torch.ones(3)
    with AllocateOnly(), pytest.raises(error):
        ask(value)


def test_with_zeros_a_number_is_zero() -> None:
    with AllocateOnly(zeros=True):
        asked = [torch.ones((), dtype=kind) for kind in (torch.float32, torch.int64, torch.bool)]
        found = [one.item() for one in asked]
        with pytest.raises(DynamicOutputShapeException):
            torch.ones(3)[torch.ones(3, dtype=torch.bool)]
    assert found == [0.0, 0, False]
    assert [type(one) for one in found] == [float, int, bool]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_peak_of_a_step_is_that_of_a_computed_one(layout: torch.memory_format) -> None:
    def peak() -> int:
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        ).append(nn.LazyLinear(5))
        image = torch.randn(4, 3, 14, 14).contiguous(memory_format=layout)
        network(image)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)

        def step() -> None:
            F.cross_entropy(network(image), torch.zeros(4, dtype=torch.int64)).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()

        return peak_memory(step, alive=[image, *network.state_dict().values()])

    computed = peak()
    with AllocateOnly():
        assert peak() == computed


def test_the_marks_of_a_profiler_pass() -> None:
    mode = AllocateOnly()
    for _ in range(2):
        with mode, torch.profiler.record_function("a mark"):
            assert torch.empty(2).add_(1).shape == (2,)
