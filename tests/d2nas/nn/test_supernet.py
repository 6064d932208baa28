"""The disentangled supernet: what is computed, where gradients go, what stays in memory."""

import contextlib
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from d2nas import SPACES, ArchLogits, Genotype, Network, Supernet, peak_memory, sample
from d2nas.errors import ConfigError
from d2nas.nn.operations import initialize, noises_in, set_noise_generator
from d2nas.nn.sampling import CellDraw, Draw
from d2nas.spaces import EDGES, node_edges

CELLS = 6


def supernet_of(branch_length: int, recompute: str = "none", space: str = "S0") -> Supernet:
    supernet = Supernet(
        SPACES[space],
        num_cells=CELLS,
        init_channels=4,
        branch_length=branch_length,
        recompute=recompute,
    )
    initialize(supernet, torch.Generator().manual_seed(0))
    return supernet


def draw_of(seed: int = 0, space: str = "S0") -> Draw:
    return sample(ArchLogits(SPACES[space]), 1.0, torch.Generator().manual_seed(seed))


def convolution_draw() -> Draw:
    """The heaviest draw: all separable 3x3."""
    edges = tuple(edge for rows in node_edges(14) for edge in (rows[0], rows[1]))
    cell = CellDraw(edges, (3,) * 8, None)
    return Draw(cell, cell)


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(9))
LABELS = torch.arange(4)


def touched_cells(supernet: Supernet) -> list[int]:
    return [
        position
        for position, cell in enumerate(supernet.cells)
        if any(parameter.grad is not None for parameter in cell.parameters())
    ]


@pytest.mark.parametrize("branch_length", [1, 2, 4, CELLS])
def test_gradients_stay_inside_their_branch(branch_length: int) -> None:
    supernet = supernet_of(branch_length)
    first = 0
    positions = []
    for branch in supernet.branches(IMAGES, draw_of()):
        supernet.zero_grad()
        F.cross_entropy(branch.logits, LABELS).backward()
        assert touched_cells(supernet) == list(range(first, branch.position + 1))
        stem_touched = supernet.stem.convs[0].weight.grad is not None
        assert stem_touched == (first == 0)
        first = branch.position + 1
        positions.append(branch.position)
    assert positions[-1] == CELLS - 1
    lengths = [b - a for a, b in zip([-1, *positions], positions, strict=False)]
    assert all(length == branch_length for length in lengths[:-1])
    assert 1 <= lengths[-1] <= branch_length


def test_control_entangled_gradients_cross_every_border() -> None:
    supernet = supernet_of(CELLS)
    (branch,) = supernet.branches(IMAGES, draw_of())
    F.cross_entropy(branch.logits, LABELS).backward()
    assert touched_cells(supernet) == list(range(CELLS))
    assert supernet.stem.convs[0].weight.grad is not None


def test_prediction_does_not_depend_on_where_gradients_are_cut() -> None:
    """Cutting is about gradients only: the features that flow forward are the same."""
    cut, whole = supernet_of(1), supernet_of(CELLS)
    whole.stem.load_state_dict(cut.stem.state_dict())
    whole.cells.load_state_dict(cut.cells.state_dict())
    whole.heads[-1].load_state_dict(cut.heads[-1].state_dict())
    assert torch.equal(cut(IMAGES, draw_of()), whole(IMAGES, draw_of()))


def test_only_the_eight_sampled_edges_are_computed() -> None:
    supernet = supernet_of(1)
    ran: list[tuple[int, int, int]] = []
    for position, cell in enumerate(supernet.cells):
        for edge, candidates in enumerate(cell.candidates):
            for column, operation in enumerate(candidates):
                operation.register_forward_hook(
                    lambda *_, key=(position, edge, column): ran.append(key)
                )
    draw = draw_of(3)
    supernet(IMAGES, draw)
    expected = [
        (position, edge, column)
        for position, cell in enumerate(supernet.cells)
        for edge, column in zip(
            draw.cell(cell.cell_type).edges, draw.cell(cell.cell_type).operations, strict=True
        )
    ]
    assert ran == expected
    assert len(ran) == 8 * CELLS


def test_a_sampled_cell_is_the_derived_cell_of_its_genotype() -> None:
    """One draw of the entangled supernet computes the network of the corresponding genotype (in
    evaluation mode and with the supernet's weights; only affine batch norm and the pools'
    normalisation differ, so the check uses convolutions and skips).
    """
    space = SPACES["S2"]
    draw = draw_of(1, "S2")
    supernet = Supernet(space, num_cells=3, init_channels=4, branch_length=3)
    pairs = {
        cell_type: tuple(
            (space.candidates(cell_type)[edge][column], EDGES[edge][0])
            for edge, column in zip(
                draw.cell(cell_type).edges, draw.cell(cell_type).operations, strict=True
            )
        )
        for cell_type in ("normal", "reduce")
    }
    network = Network(Genotype(pairs["normal"], pairs["reduce"]), num_cells=3, init_channels=4)
    network.stem.load_state_dict(supernet.stem.state_dict())
    network.classifier.load_state_dict(supernet.heads[0].state_dict())
    for ours, theirs in zip(network.cells, supernet.cells, strict=True):
        cell_draw = draw.cell(theirs.cell_type)
        blocks = [
            (ours.preprocess0, theirs.preprocess0),
            (ours.preprocess1, theirs.preprocess1),
            *(
                (ours.operations[index], theirs.candidates[edge][column])
                for index, (edge, column) in enumerate(
                    zip(cell_draw.edges, cell_draw.operations, strict=True)
                )
            ),
        ]
        for block, source in blocks:
            block.load_state_dict(source.state_dict(), strict=False)
    supernet.eval()
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(IMAGES), supernet(IMAGES, draw), rtol=0, atol=1e-5)


def test_logits_and_weights_are_disjoint_parameter_sets() -> None:
    supernet, logits = supernet_of(1), ArchLogits(SPACES["S0"])
    weights = {id(parameter) for parameter in supernet.parameters()}
    architecture = {id(parameter) for parameter in logits.parameters()}
    assert weights
    assert architecture
    assert not weights & architecture
    assert not any("logit" in name for name, _ in supernet.named_parameters())


def test_one_branch_is_alive_at_a_time() -> None:
    """When a branch is yielded, the output of the previous one's operations is gone."""
    supernet = supernet_of(1)
    alive: list[list[weakref.ref[torch.Tensor]]] = [[] for _ in range(CELLS)]
    for position, cell in enumerate(supernet.cells):
        for module in cell.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(
                    lambda _m, _i, output, p=position: alive[p].append(weakref.ref(output))
                )
    for branch in supernet.branches(IMAGES, convolution_draw()):
        gc.collect()
        for position in range(branch.position):
            assert all(reference() is None for reference in alive[position])
        assert alive[branch.position]
        F.cross_entropy(branch.logits, LABELS).backward()
        del branch


def step_memory(num_cells: int, branch_length: int) -> int:
    supernet = Supernet(
        SPACES["S0"], num_cells=num_cells, init_channels=4, branch_length=branch_length
    )

    def step() -> None:
        for branch in supernet.branches(IMAGES, convolution_draw()):
            loss = F.cross_entropy(branch.logits, LABELS)
            torch.autograd.grad(loss, list(supernet.heads.parameters()), allow_unused=True)

    return peak_memory(step)


def test_activation_memory_does_not_grow_with_depth() -> None:
    assert step_memory(14, 1) <= 1.1 * step_memory(7, 1)


def test_control_entangled_memory_grows_with_depth() -> None:
    assert step_memory(14, 14) >= 1.7 * step_memory(7, 7)


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


@pytest.mark.parametrize("recompute", ["cell", "op"])
@pytest.mark.parametrize("branch_length", [1, CELLS])
@pytest.mark.parametrize("space", ["S0", "S4"])
def test_recomputed_gradients_equal_the_kept_ones(
    recompute: str, branch_length: int, space: str
) -> None:
    """Bit-equal gradients of weights and logits; statistics count the batch once."""
    results = []
    for mode in ("none", recompute):
        supernet = supernet_of(branch_length, mode, space)
        logits = ArchLogits(SPACES[space], generator=torch.Generator().manual_seed(2))
        draw = sample(logits, 1.0, torch.Generator().manual_seed(5))
        set_noise_generator(noises_in(supernet), torch.Generator().manual_seed(6))
        for branch in supernet.branches(IMAGES, draw):
            F.cross_entropy(branch.logits, LABELS).backward()
        gradients = {
            name: parameter.grad
            for module in (supernet, logits)
            for name, parameter in module.named_parameters()
            if parameter.grad is not None
        }
        results.append((gradients, statistics(supernet)))
    (kept, kept_statistics), (again, again_statistics) = results
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert all(torch.equal(kept_statistics[n], again_statistics[n]) for n in kept_statistics)


def test_control_unfrozen_statistics_would_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet = supernet_of(1, "op")
    monkeypatch.setattr(
        "d2nas.nn.recomputation._frozen_statistics", lambda *_: contextlib.nullcontext()
    )
    for branch in supernet.branches(IMAGES, draw_of()):
        F.cross_entropy(branch.logits, LABELS).backward()
    counts = {int(b) for n, b in supernet.named_buffers() if n.endswith("num_batches_tracked")}
    assert 2 in counts


def test_recomputing_needs_less_memory() -> None:
    peaks = {}
    for mode in ("none", "cell", "op"):
        supernet = Supernet(
            SPACES["S0"], num_cells=CELLS, init_channels=8, branch_length=CELLS, recompute=mode
        )

        def step(supernet: Supernet = supernet) -> None:
            (branch,) = supernet.branches(IMAGES, convolution_draw())
            F.cross_entropy(branch.logits, LABELS).backward()

        peaks[mode] = peak_memory(step)
    assert peaks["cell"] < 0.6 * peaks["none"]
    assert peaks["op"] < 0.6 * peaks["none"]


def test_impossible_supernets_are_refused() -> None:
    with pytest.raises(ConfigError, match="branch_length"):
        Supernet(SPACES["S0"], num_cells=4, branch_length=5)
    with pytest.raises(ConfigError, match="recompute"):
        Supernet(SPACES["S0"], recompute="everything")
    with pytest.raises(ConfigError, match="stem"):
        Supernet(SPACES["S0"], stem="mnist")


def test_imagenet_stem_searches_at_an_eighth() -> None:
    supernet = Supernet(SPACES["S0"], num_cells=3, init_channels=4, stem="imagenet")
    logits = supernet(torch.randn(2, 3, 64, 64), draw_of())
    assert logits.shape == (2, 10)


def test_a_separable_head_stands_before_all_but_the_last_border() -> None:
    """The prediction's head is the network's own; memory stays flat in depth with either."""
    supernet = Supernet(SPACES["S0"], num_cells=4, init_channels=4, branch_head="separable")
    kinds = [type(body).__name__ for body in supernet.head_bodies]
    assert kinds == ["Sequential"] * 3 + ["Identity"]
    for branch in supernet.branches(IMAGES, draw_of()):
        supernet.zero_grad()
        F.cross_entropy(branch.logits, LABELS).backward()
        bodies = [
            any(parameter.grad is not None for parameter in body.parameters())
            for body in supernet.head_bodies
        ]
        assert bodies == [position == branch.position and position < 3 for position in range(4)]
    with pytest.raises(ConfigError, match="branch_head"):
        Supernet(SPACES["S0"], branch_head="transformer")
