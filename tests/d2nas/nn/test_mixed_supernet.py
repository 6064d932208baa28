"""DARTS's and PC-DARTS's search networks and their derivation: equal to the published code."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from reference import architecture, fill, images, reference
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import get_total_norm

from d2nas import (
    SPACES,
    ArchLogits,
    DropPath,
    Genotype,
    MixedSupernet,
    SearchSpace,
    derive_darts,
    peak_memory,
)
from d2nas.errors import ConfigError, NonFiniteError
from d2nas.nn.mixed_supernet import MixedOperation, mixture_weights
from d2nas.nn.operations import initialize, noises_in, set_noise_generator
from d2nas.nn.sampling import choice_probabilities, choosable

S0 = SPACES["S0"].with_none()
RAGGED = SearchSpace(
    "ragged",
    (("skip_connect", "dil_conv_3x3", "none"), *[("max_pool_3x3",)] * 13),
    (("skip_connect", "dil_conv_3x3"),) * 14,
)
# One operation of each kind.
KINDS = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5")
ONE_OF_EACH = SearchSpace("one of each", (KINDS,) * 14, (KINDS,) * 14)
K4 = {"channel_divisor": 4}
IMAGENET_K2 = {"channel_divisor": 2, "stem": "imagenet"}
LABELS = torch.arange(4)
VALUE_TOLERANCE, NORM_TOLERANCE = 1e-9, 1e-8

# Measured with the published code of PC-DARTS, less its GPU calls: its search networks for CIFAR
# (K = 4) and ImageNet (K = 2), 3 cells x 16 channels, 10 classes, float64, training mode, fill and
# targets of the other reference values. arch_grad_l2: alphas normal, reduce; betas normal, reduce.
PC_DARTS: dict[str, dict[str, Any]] = {
    "K4": {
        "setting": K4,
        "size": 32,
        "train_loss": 2.39915420335,
        "train_logits_sample0": [
            *(1.16857371619, -0.044782377369, -0.520788555853, -0.649730774809, -1.46780091778),
            *(0.694963712374, -0.393617476551, -0.378779407186, -0.334985744304, 0.234840222294),
        ],
        "arch_grad_l2": [0.00800160946187, 0.010684086032, 0.00437967979198, 0.0344254861961],
        "weight_grad_l2": 5.18270177977,
    },
    "imagenet_K2": {
        "setting": IMAGENET_K2,
        "size": 64,
        "train_loss": 2.33895092059,
        "train_logits_sample0": [
            *(0.611171922181, -0.0603240274898, -0.350564040879, -1.02243444974, -0.481579987433),
            *(0.724630383633, -0.95186836764, -0.499081563289, -0.54280260287, -0.324504686897),
        ],
        "arch_grad_l2": [0.079727005453, 0.0819006865474, 0.139954710498, 0.120183346304],
        "weight_grad_l2": 8.15473751737,
    },
}
# The same code's own derivation from the reference architecture tensors.
PC_DARTS_NORMAL = "avg@0 avg@1 avg@1 avg@2 sep5@1 sep5@2 sep3@3 sep3@4"
PC_DARTS_REDUCE = "avg@0 avg@1 avg@1 sep5@2 sep5@0 sep5@1 sep3@3 sep3@4"
PUBLISHED = {"DARTS_S0_8ops_8x16": S0, "RobustDARTS_s1_8x16": SPACES["S1"]}


def reference_logits(space: SearchSpace, scale: float = 1.0) -> ArchLogits:
    logits = ArchLogits(space).double()
    values = architecture([parameter.shape for parameter in logits.parameters()])
    with torch.no_grad():
        for parameter, value in zip(logits.parameters(), values, strict=True):
            parameter.copy_(scale * value)
    return logits


def gradients_of(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def errors(supernet: MixedSupernet, size: int, expected: Mapping[str, Any]) -> dict[str, float]:
    """Run the reference step; distances from the expected values in units of their tolerance."""
    logits = reference_logits(supernet.space)
    fill(supernet).train()
    prediction = supernet(images(4, 3, size, size), logits)
    loss = F.cross_entropy(prediction, LABELS)
    loss.backward()
    found = {}
    architecture_gradients = gradients_of(logits)
    rows = expected.get("arch_grad_first_row", [])
    for name, value, target in (
        ("loss", loss, expected["train_loss"]),
        ("logits", prediction[0], expected["train_logits_sample0"]),
        *((f"row of {i}", architecture_gradients[i][0], row) for i, row in enumerate(rows)),
    ):
        difference = value.detach() - torch.tensor(target, dtype=torch.float64)
        found[name] = float(difference.abs().max()) / VALUE_TOLERANCE
    groups = [*([gradient] for gradient in architecture_gradients), gradients_of(supernet)]
    targets = [*expected["arch_grad_l2"], expected["weight_grad_l2"]]
    for index, (group, target) in enumerate(zip(groups, targets, strict=True)):
        found[f"gradient {index}"] = abs(float(get_total_norm(group)) / target - 1) / NORM_TOLERANCE
    return found


def pc_darts_errors(case: str) -> dict[str, float]:
    expected = PC_DARTS[case]
    return errors(MixedSupernet(S0, num_cells=3, **expected["setting"]), expected["size"], expected)


@pytest.mark.parametrize("case", sorted(PUBLISHED))
def test_darts_is_the_published_network(case: str) -> None:
    expected = reference()["reference_values"]["supernets"][case]
    found = errors(MixedSupernet(PUBLISHED[case]), 32, expected)
    assert max(found.values()) <= 1, found


@pytest.mark.parametrize("case", sorted(PC_DARTS))
def test_pc_darts_is_the_published_network(case: str) -> None:
    assert max(pc_darts_errors(case).values()) <= 1


def weights_without_none(logits: ArchLogits, cell_type: str) -> tuple[Tensor, Tensor]:
    mask = choosable(logits.space, cell_type)
    return choice_probabilities(logits.ops(cell_type), logits.edges(cell_type), mask)


def weights_without_edges(logits: ArchLogits, cell_type: str) -> tuple[Tensor, Tensor]:
    # Equal weights for a node's edges. The zero keeps the gradient of the edge logits defined.
    operations, _ = mixture_weights(logits, cell_type)
    mask = torch.ones(operations.shape, dtype=torch.bool)
    return operations, choice_probabilities(operations, 0 * logits.edges(cell_type), mask)[1]


@pytest.mark.parametrize("slip", ["no shuffle", "none left out", "edge weights ignored"])
def test_control_a_wiring_slip_leaves_the_tolerance(
    slip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if slip == "no shuffle":
        monkeypatch.setattr(F, "channel_shuffle", lambda x, _groups: x)
    else:
        slipped = weights_without_none if slip == "none left out" else weights_without_edges
        monkeypatch.setattr("d2nas.nn.mixed_supernet.mixture_weights", slipped)
    found = pc_darts_errors("K4")
    assert min(found["loss"], found["logits"]) > 1e5


COUNTED: dict[str, tuple[SearchSpace, dict[str, Any]]] = {
    "DARTS_S0_8ops_8x16_c10": (S0, {}),
    "DARTS_S0_8ops_8x16_c100": (S0, {"num_classes": 100}),
    "DARTS_S0_8ops_5x16_c10": (S0, {"num_cells": 5}),
    "DARTS_S0_8ops_3x4_c10": (S0, {"num_cells": 3, "init_channels": 4}),
    "PC_DARTS_K4_8x16_c10": (S0, K4),
    "PC_DARTS_imagenet_K2_8x16_c1000": (S0, {**IMAGENET_K2, "num_classes": 1000}),
    **{
        f"RobustDARTS_s{k}_8x16_c{classes}": (
            S0 if k == 5 else SPACES[f"S{k}"],
            {"num_classes": classes},
        )
        for k in range(1, 6)
        for classes in (10, 100)
    },
}


@pytest.mark.parametrize("case", sorted(reference()["supernets"]))
def test_weight_and_architecture_counts_are_exact(case: str) -> None:
    expected, (space, setting) = reference()["supernets"][case], COUNTED[case]
    supernet = MixedSupernet(space, **setting)
    assert sum(parameter.numel() for parameter in supernet.parameters()) == expected["weights"]
    shapes = [list(parameter.shape) for parameter in ArchLogits(space).parameters()]
    assert shapes[: len(expected["arch"])] == expected["arch"]


def pairs_by_node(pairs: Sequence[Sequence[Any]]) -> list[set[tuple[str, int]]]:
    """Order inside a node differs: the published code lists the stronger edge first."""
    return [{tuple(pairs[i]), tuple(pairs[i + 1])} for i in range(0, len(pairs), 2)]


@pytest.mark.parametrize("case", sorted(PUBLISHED))
def test_darts_derives_the_published_genotype(case: str) -> None:
    expected = reference()["reference_values"]["supernets"][case]["genotype"]
    logits = reference_logits(PUBLISHED[case])
    with torch.no_grad():
        logits.normal_edges.zero_()
        logits.reduce_edges.zero_()
    genotype = derive_darts(logits, PUBLISHED[case])
    for cell_type in ("normal", "reduce"):
        assert pairs_by_node(genotype.cell(cell_type)) == pairs_by_node(expected[cell_type])


def pairs_of(text: str) -> tuple[tuple[str, int], ...]:
    short = ("none", "max", "avg", "skip", "sep3", "sep5", "dil3", "dil5")
    names = dict(zip(short, S0.normal[0], strict=True))
    words = (word.split("@") for word in text.split())
    return tuple((names[operation], int(source)) for operation, source in words)


def test_pc_darts_derives_the_published_genotype() -> None:
    genotype = derive_darts(reference_logits(S0), S0)
    assert genotype == Genotype(pairs_of(PC_DARTS_NORMAL), pairs_of(PC_DARTS_REDUCE))


# Rows 2, 3 and 4 enter node 3; columns: 0 none, 1 max, 2 avg, 3 skip, 4 sep3, 5 sep5.
# Case: operation logits {(row, column): value}, edge logits {row: value}, node 3's two pairs.
# Summed from left to right, the exponentials of row 2 come out a rounding larger than the others'.
SAME_LOGITS = {
    2: (1.1, -0.9, 1.2, -2.0, 0.0, 1.3),
    3: (0.0, -2.0, 1.3, 1.1, -0.9, 1.2),
    4: (1.3, 1.1, 1.2, 0.0, -2.0, -0.9),
}
PERMUTED = {(row, k + 1): v for row, values in SAME_LOGITS.items() for k, v in enumerate(values)}
DERIVED: dict[str, tuple[dict[tuple[int, int], float], dict[int, float], str]] = {
    "all equal: smaller indices": ({}, {}, "max@0 max@1"),
    "best operation ranks its edge": ({(4, 4): 2, (3, 3): 1}, {}, "skip@1 sep3@2"),
    "tied operations: smaller column": ({(4, 4): 2, (4, 3): 2}, {}, "max@0 skip@2"),
    "strong none lowers its edge": ({(2, 4): 1, (2, 0): 5}, {}, "max@1 max@2"),
    "none is never chosen": (
        {(row, column): value for row in (2, 3, 4) for column, value in ((0, 5), (4, 1))},
        {},
        "sep3@0 sep3@1",
    ),
    "edge weights multiply": ({(2, 4): 1}, {2: -3, 3: 0.5, 4: 1}, "max@1 max@2"),
    "operation outweighs its edge": ({(2, 4): 4}, {2: -0.5, 3: 0.5, 4: 1}, "sep3@0 max@2"),
    "equal edges change nothing": ({(4, 4): 2, (3, 3): 1}, {2: 7, 3: 7, 4: 7}, "skip@1 sep3@2"),
    "weights too small for float32": ({}, {2: -400, 3: -300, 4: 0}, "max@1 max@2"),
    "same logits in another order tie": (PERMUTED, {}, "dil3@0 skip@1"),
}


@pytest.mark.parametrize("case", sorted(DERIVED))
@pytest.mark.parametrize("cell_type", ["normal", "reduce"])
def test_derivation_table(case: str, cell_type: str) -> None:
    operations, edges, expected = DERIVED[case]
    logits = reference_logits(S0, scale=0)
    with torch.no_grad():
        for place, value in operations.items():
            logits.ops(cell_type)[place] = value
        for row, value in edges.items():
            logits.edges(cell_type)[row] = value
    assert derive_darts(logits, S0).cell(cell_type)[2:4] == pairs_of(expected)


def test_noise_may_be_derived() -> None:
    genotype = derive_darts(reference_logits(SPACES["S4"], scale=0), SPACES["S4"])
    assert {operation for operation, _ in genotype.normal} == {"noise"}


def test_derivation_is_strict() -> None:
    logits = reference_logits(S0, scale=0)
    with pytest.raises(ConfigError, match="space"):
        derive_darts(logits, SPACES["S0"])
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            logits.reduce_edges[3] = value
        with pytest.raises(NonFiniteError, match="reduce_edges"):
            derive_darts(logits, S0)


def small(space: SearchSpace, **setting: Any) -> tuple[MixedSupernet, ArchLogits]:
    setting = {"num_cells": 3, "init_channels": 8, **setting}
    supernet = MixedSupernet(space, **setting).double()
    initialize(supernet, torch.Generator().manual_seed(0))
    set_noise_generator(noises_in(supernet), torch.Generator().manual_seed(1))
    return supernet, reference_logits(space)


@pytest.mark.parametrize("with_none", [False, True])
@pytest.mark.parametrize("divisor", [1, 4])
@pytest.mark.parametrize("name", sorted(SPACES))
def test_every_space_runs_and_derives(name: str, divisor: int, with_none: bool) -> None:
    space = SPACES[name].with_none() if with_none else SPACES[name]
    supernet, logits = small(space, channel_divisor=divisor)
    F.cross_entropy(supernet(images(4, 3, 8, 8), logits), LABELS).backward()
    for cell_type in ("normal", "reduce"):
        assert torch.isfinite(logits.ops(cell_type).grad).all()
        assert logits.ops(cell_type).grad.abs().sum() > 0
    genotype = derive_darts(logits, space)
    assert Genotype.from_dict(genotype.to_dict()) == genotype


@pytest.mark.parametrize("divisor", [1, 2])
@pytest.mark.parametrize("size", [7, 9, 16])
def test_any_image_size_runs(divisor: int, size: int) -> None:
    supernet, logits = small(S0, channel_divisor=divisor)
    assert supernet(images(2, 3, size, size), logits).shape == (2, 10)


def test_columns_past_the_last_candidate_weigh_nothing() -> None:
    supernet, logits = small(RAGGED)
    before, genotype = supernet(images(4, 3, 8, 8), logits), derive_darts(logits, RAGGED)
    F.cross_entropy(before, LABELS).backward()
    assert not logits.normal_ops.grad[1:].any()  # one candidate: its weight is 1 whatever
    assert logits.normal_ops.grad[0].all()
    with torch.no_grad():
        logits.normal_ops[1::2, 1:] += 30
    assert torch.equal(supernet(images(4, 3, 8, 8), logits), before)
    assert derive_darts(logits, RAGGED) == genotype


def test_control_a_plain_softmax_would_give_weight_to_missing_columns() -> None:
    logits = reference_logits(RAGGED)
    assert (mixture_weights(logits, "normal")[0][1:, 0] == 1).all()
    assert (logits.normal_ops.softmax(dim=1)[1:, 0] < 0.9).all()


def test_edge_logits_act_with_partial_channels_only() -> None:
    for divisor, used in ((1, False), (2, True)):
        supernet, logits = small(S0, channel_divisor=divisor)
        before = supernet(images(4, 3, 8, 8), logits)
        F.cross_entropy(before, LABELS).backward()
        assert (logits.normal_edges.grad is not None) == used
        with torch.no_grad():
            logits.normal_edges[3] += 1
        assert torch.equal(supernet(images(4, 3, 8, 8), logits), before) != used


@pytest.mark.parametrize(("size", "stride"), [(8, 1), (8, 2), (7, 2)])
def test_channels_past_the_first_part_bypass_the_candidates(size: int, stride: int) -> None:
    operation = MixedOperation(("none",), 8, stride, channel_divisor=4)
    x = images(2, 8, size, size)
    output = operation(x, torch.ones(1), torch.tensor(0.5))
    bypass = x[:, 2:] if stride == 1 else F.max_pool2d(x[:, 2:], 2, ceil_mode=True)
    # Shuffled: channel g * 2 + i of the four groups of two goes to place i * 4 + g.
    for channel in range(8):
        place = (channel % 2) * 4 + channel // 2
        wanted = 0.5 * bypass[:, channel - 2] if channel >= 2 else torch.zeros_like(bypass[:, 0])
        assert torch.equal(output[:, place], wanted), channel


def step(supernet: MixedSupernet, logits: ArchLogits) -> dict[str, Tensor]:
    F.cross_entropy(supernet(images(4, 3, 8, 8), logits), LABELS).backward()
    parameters = [*supernet.named_parameters(), *logits.named_parameters()]
    return {name: p.grad for name, p in parameters if p.grad is not None}


@cache
def kept_step(space: SearchSpace, divisor: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradients and the statistics of a step that keeps everything."""
    supernet, logits = small(space, channel_divisor=divisor)
    return step(supernet, logits), dict(supernet.named_buffers())


@pytest.mark.parametrize("recompute", ["cell", "op"])
@pytest.mark.parametrize("divisor", [1, 4])
@pytest.mark.parametrize("space", [S0, SPACES["S4"].with_none()], ids=["S0", "S4"])
def test_recomputed_gradients_equal_the_kept_ones(
    recompute: str, divisor: int, space: SearchSpace
) -> None:
    supernet, logits = small(space, channel_divisor=divisor, recompute=recompute)
    (kept, kept_statistics), again = kept_step(space, divisor), step(supernet, logits)
    assert kept.keys() == again.keys()
    for name in kept:
        torch.testing.assert_close(again[name], kept[name], rtol=0, atol=1e-12)
    statistics = dict(supernet.named_buffers())
    for name, buffer in kept_statistics.items():
        assert torch.equal(buffer, statistics[name]), name


def test_control_unfrozen_state_counts_twice_and_draws_other_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("d2nas.nn.recomputation._frozen_statistics", lambda *_: nullcontext())
    supernet, logits = small(SPACES["S4"], recompute="op")
    gradients = step(supernet, logits)
    norms = [m for m in supernet.cells.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {int(m.num_batches_tracked) for m in norms if m.num_batches_tracked is not None} == {2}
    kept = step(*small(SPACES["S4"]))
    assert (gradients["normal_ops"] - kept["normal_ops"]).abs().max() > 1e-6


@pytest.mark.parametrize("divisor", [1, 4])
def test_recomputing_needs_less_memory(divisor: int) -> None:
    peaks = {}
    for mode in ("none", "cell", "op"):
        supernet, logits = small(ONE_OF_EACH, num_cells=6, channel_divisor=divisor, recompute=mode)

        def activations(supernet: MixedSupernet = supernet, logits: ArchLogits = logits) -> None:
            loss = F.cross_entropy(supernet(images(4, 3, 16, 16), logits), LABELS)
            torch.autograd.grad(loss, [logits.normal_ops])  # weight gradients are the same in all

        peaks[mode] = peak_memory(activations)
    assert peaks["cell"] < 0.6 * peaks["none"]
    assert peaks["op"] < 0.8 * peaks["cell"]


def test_impossible_supernets_are_refused() -> None:
    for setting, word in (
        ({"channel_divisor": 3}, "channel_divisor=3"),
        ({"channel_divisor": 0}, "channel_divisor=0"),
        ({"channel_divisor": 16, "num_cells": 1, "init_channels": 8}, "even number"),
        ({"num_cells": 0}, "num_cells"),
        ({"stem": "mnist"}, "stem"),
        ({"recompute": "everything"}, "recompute"),
    ):
        with pytest.raises(ConfigError, match=word):
            MixedSupernet(S0, **setting)


def test_logits_of_another_space_are_refused() -> None:
    with pytest.raises(ConfigError, match="space"):
        small(S0)[0](images(1, 3, 8, 8), ArchLogits(SPACES["S0"]))


# --- weights given, further operations, drop-path -----------------------------------------------


def weights_of(logits: ArchLogits) -> dict[str, tuple[Tensor, Tensor | None]]:
    return {cell: mixture_weights(logits, cell) for cell in ("normal", "reduce")}


@pytest.mark.parametrize("recompute", ["none", "cell", "op"])
@pytest.mark.parametrize("space", [S0, RAGGED], ids=["S0", "ragged"])
def test_weights_given_are_those_of_the_logits(space: SearchSpace, recompute: str) -> None:
    for divisor in (1, 4):
        supernet, logits = small(space, channel_divisor=divisor, recompute=recompute)
        x, given = images(4, 3, 8, 8), weights_of(logits)
        wanted = supernet(x, logits)
        assert torch.equal(supernet(x, given), wanted) == (divisor == 4)
        if divisor == 1:  # edges weigh 1
            given = {cell: (ops, None) for cell, (ops, _) in given.items()}
            assert torch.equal(supernet(x, given), wanted)
        leaves = {
            cell: (ops.detach().requires_grad_(), edges) for cell, (ops, edges) in given.items()
        }
        F.cross_entropy(supernet(x, leaves), LABELS).backward()
        assert all(ops.grad is not None and ops.grad.any() for ops, _ in leaves.values())


def test_weights_of_another_shape_are_refused() -> None:
    supernet, logits = small(S0)
    for normal in (torch.ones(14, 7), torch.ones(13, 8), torch.ones(14)):
        given = weights_of(logits) | {"normal": (normal.double(), None)}
        with pytest.raises(ConfigError, match="normal weights of shape"):
            supernet(images(2, 3, 8, 8), given)
    ops, _ = weights_of(logits)["reduce"]
    given = weights_of(logits) | {"reduce": (ops, torch.ones(8))}
    with pytest.raises(ConfigError, match="reduce weights of shape"):
        supernet(images(2, 3, 8, 8), given)


@pytest.mark.parametrize("space", [SPACES["S2"], RAGGED], ids=["S2", "ragged"])
def test_a_further_operation_adds_its_share_on_every_edge(space: SearchSpace) -> None:
    plain, logits = small(space)
    supernet = MixedSupernet(space, num_cells=3, init_channels=8, extra=("skip_connect",)).double()
    initialize(supernet, torch.Generator().manual_seed(0))
    supernet.load_state_dict(plain.state_dict(), strict=False)
    x = images(2, 3, 8, 8)

    def given(share: float) -> dict[str, tuple[Tensor, Tensor | None]]:
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        for cell, (ops, _) in weights_of(logits).items():
            wide = torch.cat([ops, torch.zeros_like(ops[:, :1])], dim=1)
            for row, names in enumerate(space.candidates(cell)):
                wide[row, len(names)] = share
            found[cell] = (wide, None)
        return found

    assert torch.equal(supernet(x, given(0.0)), plain(x, logits))
    assert not torch.equal(supernet(x, given(0.5)), plain(x, logits))  # control
    edge, bare = supernet.cells[0].edges[3], plain.cells[0].edges[3]
    state, (wide, _) = images(2, 8, 8, 8), given(0.5)["normal"]
    narrow = weights_of(logits)["normal"][0]
    assert torch.allclose(edge(state, wide[3], None), bare(state, narrow[3], None) + 0.5 * state)
    with pytest.raises(ConfigError, match="cannot weigh"):
        supernet(x, logits)


class Halves(DropPath):
    """Drops every edge of the first half of the images, keeps the others' as they are."""

    def factors(self, num_outputs: int, num_images: int, device: torch.device) -> Tensor:
        kept = (torch.arange(num_images) >= num_images // 2).float()
        return kept.expand(num_outputs, -1)[:, :, None, None, None]


@pytest.mark.parametrize("recompute", ["none", "cell", "op"])
def test_drop_path_takes_the_mixture_of_an_edge_from_an_image(recompute: str) -> None:
    supernet, logits = small(SPACES["S2"], recompute=recompute)
    x = images(4, 3, 8, 8)
    drop = Halves(0.5, torch.Generator())
    found = supernet(x, logits, drop)
    assert torch.equal(found[0], found[1])  # nothing of the image is left
    assert not torch.equal(found[2], found[3])
    F.cross_entropy(found, LABELS).backward()
    evaluated = supernet.eval()(x, logits, drop)
    assert torch.equal(evaluated, supernet(x, logits))
    assert not torch.equal(evaluated[0], evaluated[1])


def test_drop_path_of_no_probability_draws_nothing() -> None:
    supernet, logits = small(SPACES["S2"])
    x, numbers = images(4, 3, 8, 8), torch.Generator().manual_seed(3)
    before = numbers.get_state()
    assert torch.equal(supernet(x, logits, DropPath(0.0, numbers)), supernet(x, logits))
    assert torch.equal(numbers.get_state(), before)
    assert not torch.equal(supernet(x, logits, DropPath(0.5, numbers)), supernet(x, logits))
