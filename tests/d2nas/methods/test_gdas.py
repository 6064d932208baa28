"""GDAS: every edge runs, and its logits get the gradient of the relaxed sampling."""

import pytest
import torch
from differences import central_difference
from searches import search_by
from torch import Tensor
from torch.nn import functional as F

from d2nas import SPACES
from d2nas.methods.base import Batch, Sizes
from d2nas.methods.d2nas import D2nas
from d2nas.methods.darts import Darts, DartsSecondOrder
from d2nas.methods.gdas import Gdas
from d2nas.nn.operations import initialize
from d2nas.nn.sampling import (
    CellDraw,
    Draw,
    choice_probabilities,
    choosable,
    draw_noise,
    sample_operations,
)
from d2nas.randomness import generator
from d2nas.spaces import CELL_TYPES
from d2nas.train.search import _context

IMAGES = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
LABELS = torch.arange(4)


def gdas_of(space: str = "S0") -> Gdas:
    sizes = Sizes(num_cells=3, init_channels=2, num_classes=4, in_channels=3, stem="cifar")
    searched = Gdas.searched_space(SPACES[space])
    method = Gdas(searched, sizes, torch.Generator().manual_seed(1), recompute="none")
    initialize(method.supernet, torch.Generator().manual_seed(1))
    method.supernet.double()
    method.logits.double()
    with torch.no_grad():
        for parameter in method.logits.parameters():
            numbers = torch.Generator().manual_seed(len(parameter))
            parameter.copy_(torch.randn(parameter.shape, generator=numbers))
    return method


def test_gdas_runs_every_edge_once_and_none_among_them() -> None:
    method = gdas_of()
    ran: list[tuple[int, int, int]] = []
    for position, cell in enumerate(method.supernet.cells):
        for edge, candidates in enumerate(cell.candidates):
            for column, operation in enumerate(candidates):
                operation.register_forward_hook(
                    lambda *_, key=(position, edge, column): ran.append(key)
                )
    draws = [method.sample(1.0, torch.Generator().manual_seed(seed)) for seed in range(4)]
    drawn = {draw.cell(cell).operations for draw in draws for cell in CELL_TYPES}
    assert any(0 in operations for operations in drawn)  # the column of none
    assert method.logits.space.normal[0][0] == "none"
    for draw in draws:
        ran.clear()
        method.supernet(IMAGES, draw)
        assert len(ran) == 3 * 14
        for position, cell in enumerate(method.supernet.cells):
            operations = draw.cell(cell.cell_type).operations
            own = {(edge, column) for where, edge, column in ran if where == position}
            assert own == set(enumerate(operations))


def test_gdas_gradients_are_those_of_the_relaxed_loss() -> None:
    """Central differences of L(1 + soft(logits) - soft(logits0)), noise and operations fixed."""
    method, tau = gdas_of("S2"), 2.0
    logits, space = method.logits, method.logits.space
    draw = sample_operations(logits, tau, torch.Generator().manual_seed(4))
    (branch,) = method.supernet.branches(IMAGES, draw)
    F.cross_entropy(branch.logits, LABELS).backward()
    numbers = torch.Generator().manual_seed(4)
    noise = {cell: draw_noise(method.logits.ops(cell), numbers) for cell in CELL_TYPES}

    def soft(cell: str) -> Tensor:
        mask = choosable(space, cell, none_too=True)
        return choice_probabilities(logits.ops(cell), logits.edges(cell), mask, noise[cell], tau)[0]

    with torch.no_grad():
        start = {cell: soft(cell).clone() for cell in CELL_TYPES}

    def relaxed_loss() -> float:
        cells = []
        for cell in CELL_TYPES:
            edges, operations = draw.cell(cell).edges, draw.cell(cell).operations
            gates = 1 + (soft(cell) - start[cell])[list(edges), list(operations)]
            cells.append(CellDraw(edges, operations, gates))
        return float(F.cross_entropy(method.supernet(IMAGES, Draw(*cells)), LABELS))

    large = 0
    for cell in CELL_TYPES:
        parameter = logits.ops(cell)
        for index, gradient in enumerate(parameter.grad.view(-1).tolist()):
            numeric = central_difference(relaxed_loss, parameter, index)
            assert gradient == pytest.approx(numeric, rel=2e-5, abs=1e-8)
            large += abs(numeric) > 1e-6
        assert not torch.count_nonzero(logits.edges(cell).grad)
    assert large > 40  # of 2 x 14 x 2


def test_gdas_sends_these_gradients_through_the_loops_gates() -> None:
    """The half of a step gives what one backward through the sampling gives (gates are fp32)."""
    method, tau = gdas_of("S2"), 2.0
    draw = sample_operations(method.logits, tau, generator(0, "architecture-draw", 0))
    (branch,) = method.supernet.branches(IMAGES, draw)
    F.cross_entropy(branch.logits, LABELS).backward()
    wanted = {name: p.grad for name, p in method.logits.named_parameters()}
    method.logits.zero_grad()
    method.supernet.zero_grad()
    search = search_by("gdas", f"search.temperature_start={tau}")
    method.architecture_gradients(Batch(IMAGES, LABELS), _context(search, 0, "architecture-draw"))
    for name, parameter in method.logits.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-7)
    assert all(parameter.grad is None for parameter in method.supernet.parameters())


def test_gdas_moves_the_weights_first() -> None:
    assert Gdas.weights_first
    assert not any(kind.weights_first for kind in (D2nas, Darts, DartsSecondOrder))
