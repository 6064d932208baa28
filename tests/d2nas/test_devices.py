"""What goes from the host to a GPU goes through pinned memory, so that the host does not wait."""

from typing import Any

import pytest
import torch

from d2nas.devices import send

CUDA = torch.device("cuda", 0)


class Recorded:
    """Stands for a tensor of ``device``; writes down what is asked of it."""

    def __init__(self, device: str, pinned: bool = False) -> None:
        self.device, self.pinned = torch.device(device), pinned
        self.copies: list[tuple[torch.device, bool, bool]] = []

    def pin_memory(self) -> "Recorded":
        pinned = Recorded("cpu", pinned=True)
        pinned.copies = self.copies
        return pinned

    def to(self, device: torch.device, non_blocking: bool = False) -> "Recorded":
        self.copies.append((device, self.pinned, non_blocking))
        return self


def copies(
    send_it: Any, source: str, target: torch.device
) -> list[tuple[torch.device, bool, bool]]:
    tensor = Recorded(source)
    send_it(tensor, target)
    return tensor.copies


def test_to_a_gpu_the_copy_is_pinned_and_not_waited_for() -> None:
    assert copies(send, "cpu", CUDA) == [(CUDA, True, True)]


def test_control_an_ordinary_copy_is_neither() -> None:
    assert copies(lambda host, device: host.to(device), "cpu", CUDA) == [(CUDA, False, False)]


@pytest.mark.parametrize(("source", "target"), [("cpu", "cpu"), ("meta", "meta"), ("cuda:0", CUDA)])
def test_elsewhere_nothing_is_pinned(source: str, target: str | torch.device) -> None:
    target = torch.device(target)
    assert copies(send, source, target) == [(target, False, False)]


def test_gradients_come_back() -> None:
    host = torch.ones(3, requires_grad=True)
    send(host, torch.device("cpu")).sum().backward()
    assert torch.equal(host.grad, torch.ones(3))


@pytest.mark.gpu
def test_gradients_come_back_from_a_gpu() -> None:
    host = torch.ones(3, requires_grad=True)
    sent = send(host, CUDA)
    (2 * sent).sum().backward()
    assert sent.device == CUDA
    assert torch.equal(host.grad, torch.full((3,), 2.0))
