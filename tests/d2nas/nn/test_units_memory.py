"""What a unit with a hand-written backward keeps for it, counted exactly."""

import pytest
import torch
from torch import Tensor, nn

from d2nas.nn.operations import OPERATIONS, build_candidate
from d2nas.nn.units import keep_everything

CHANNELS = 6


def images() -> Tensor:
    return torch.randn(4, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(1))


def kept_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes of storages kept for the backward, but for what lives on anyway: the unit's input and
    output, its parameters and buffers.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(x)
    alive = [x, output, *module.parameters(), *module.buffers()]
    for tensor in alive:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(kept.values())


# Feature maps kept beyond the two statistics, in units of the input's map, for a stride of 1 and
# equal channels: lean, lean and affine, by the modules. Indices of a maximum count twice: int64.
MAPS = {
    "skip_connect": (0, 0, None),
    "sep_conv_3x3": (3, 5, 6),
    "sep_conv_5x5": (3, 5, 6),
    "dil_conv_3x3": (1, 2, 3),
    "dil_conv_5x5": (1, 2, 3),
    "max_pool_3x3": (2, None, 3),
    "avg_pool_3x3": (0, None, 1),
}


def operation(name: str, affine: bool, stride: int = 1) -> nn.Module:
    return (
        OPERATIONS[name](CHANNELS, stride, True)
        if affine
        else build_candidate(name, CHANNELS, stride)
    )


@pytest.mark.parametrize("name", MAPS)
def test_what_is_kept_is_counted_exactly(name: str) -> None:
    x = images()
    one_map = x.numel() * 4
    lean, lean_affine, everything = MAPS[name]
    for affine, maps in ((False, lean), (True, lean_affine)):
        if maps is not None:
            module = operation(name, affine)
            norms = sum(isinstance(child, nn.BatchNorm2d) for child in module.modules())
            statistics = norms * 2 * CHANNELS * 4
            assert kept_bytes(module, x) == maps * one_map + statistics
    if everything is not None:
        module = operation(name, False)
        keep_everything(module)
        assert kept_bytes(module, x) == everything * one_map + statistics


def test_control_without_the_hand_written_backward_all_is_kept() -> None:
    x = images()
    for name in ("sep_conv_3x3", "dil_conv_5x5", "max_pool_3x3", "avg_pool_3x3"):
        module = operation(name, False)
        lean = kept_bytes(module, x)
        keep_everything(module)
        assert kept_bytes(module, x) > 1.4 * lean


def test_a_factorized_skip_keeps_its_statistics_alone() -> None:
    x = images()
    module = operation("skip_connect", False, stride=2)
    assert kept_bytes(module, x) == 2 * CHANNELS * 4
    keep_everything(module)
    assert kept_bytes(module, x) == 2 * CHANNELS * 4 + x.numel() * 4 + x.numel() // 4 * 4
