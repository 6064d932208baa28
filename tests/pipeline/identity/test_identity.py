"""A graph is the network of the genotype it names, or it is refused, saying where it differs."""

import random
from dataclasses import replace
from typing import Any

import campaigns
import onnx
import pytest
from architectures import EVERY_OPERATION, MERGED, exported, random_genotype

from d2nas.errors import DamagedArtifactError, ValidationFailedError
from d2nas.files.strict_json import canonical_json
from d2nas.genotype import Genotype
from d2nas.nn.operations import plan_cells
from d2nas.spaces import CELL_TYPES, EDGES_PER_NODE, NODES, SPACES
from pipeline.identity import check as identity
from pipeline.identity.check import GENOTYPE_KEY, NETWORK_KEY, check_identity, fit_network
from pipeline.identity.expressions import Value
from pipeline.identity.graph_reader import read_graph
from pipeline.identity.layout import DEPLOYED_OPERATIONS, Claim, Layer
from pipeline.onnx_io.model_file import check_model, lineage

FIVE_NODES = ("NASNet_A", "AmoebaNet_A")
"""Both edges of a node read one predecessor, twice by the same operation; nodes are left out."""
CASES: dict[str, tuple[Genotype, dict[str, Any]]] = {
    **{name: (Genotype.published(name), {"cells": 3}) for name in FIVE_NODES},
    # Odd sizes pad the shifted path of a factorized reduction.
    "every operation": (EVERY_OPERATION, {"opset": 18, "size": 15}),
    "merged nodes": (MERGED, {}),
    "DARTS_V2, imagenet stem": (
        Genotype.published("DARTS_V2"),
        {"stem": "imagenet", "opset": 21, "size": 32},
    ),
    "PC_DARTS_cifar": (Genotype.published("PC_DARTS_cifar"), {"cells": 3}),
    # Only some nodes are concatenated: the others are found through those that read them.
    "two nodes of four": (
        replace(EVERY_OPERATION, normal_concat=(4, 5), reduce_concat=(5,)),
        {"opset": 21},
    ),
    **{
        f"random {seed}": (
            random_genotype(seed),
            {"stem": ("cifar", "imagenet")[seed % 2], "opset": 18 + seed % 4, "size": 16 + seed},
        )
        for seed in range(campaigns.count(2, 4))
    },
}
_NOT_FULL = ("two nodes of four", "PC_DARTS_cifar", *FIVE_NODES)
FULL = [name for name in CASES if name not in _NOT_FULL]
"""Cells whose nodes are all in the output, in networks with two cells of each type."""


def data_of(name: str) -> bytes:
    genotype, options = CASES[name]
    return exported(genotype, **options)


def read(name: str) -> tuple[Claim, Value]:
    model = check_model(data_of(name), what=name)
    return identity.read_claim(lineage(model)), read_graph(model)


def accepts(claim: Claim, logits: Value) -> bool:
    try:
        fit_network(claim, logits)
    except ValidationFailedError:
        return False
    return True


@pytest.mark.parametrize("name", CASES)
def test_what_is_exported_is_the_network_of_its_genotype(name: str) -> None:
    genotype, options = CASES[name]
    report = check_identity(data_of(name))
    assert report.genotype_digest == genotype.digest
    assert report.num_cells == options.get("cells", 4)
    types = [node.op_type for node in onnx.ModelProto.FromString(data_of(name)).graph.node]
    assert report.num_convolutions == types.count("Conv")
    # Two poolings of sums that differ in the order of their operands count once.
    pools = sum(kind.endswith("Pool") for kind in types)
    assert report.num_pools == pools - (2 if name == "merged nodes" else 0)
    assert report.to_dict()["verdict"] == "passed"


def test_the_operations_are_those_of_all_spaces() -> None:
    in_spaces = {
        operation
        for space in SPACES.values()
        for cell in CELL_TYPES
        for edge in space.candidates(cell)
        for operation in edge
    }
    assert in_spaces - {"none", "noise"} <= set(DEPLOYED_OPERATIONS)
    used = {operation for operation, _ in EVERY_OPERATION.normal + EVERY_OPERATION.reduce}
    assert used == set(DEPLOYED_OPERATIONS)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_the_layout_is_that_of_the_network(stem: str) -> None:
    for num_cells in range(1, 25):
        claim = Claim(EVERY_OPERATION, num_cells, 16, 10, 3, stem)
        outputs = {"normal": 4, "reduce": 4}
        plans = plan_cells(num_cells, 16, stem=stem, stem_width=48, outputs=outputs)
        assert [
            (cell.cell_type, cell.channels, cell.after_reduction, cell.stride(0), cell.stride(2))
            for cell in claim.cells()
        ] == [
            (plan.cell_type, plan.channels, plan.after_reduction, plan.stride(0), plan.stride(2))
            for plan in plans
        ]


def with_edges(genotype: Genotype, cell: str, edge: int, *new: tuple[str, int]) -> Genotype:
    pairs = genotype.cell(cell)
    return replace(genotype, **{cell: (*pairs[:edge], *new, *pairs[edge + len(new) :])})


def test_every_other_operation_on_every_edge_is_refused() -> None:
    refused, edges = 0, 0
    for name in (*FULL, *FIVE_NODES):
        claim, logits = read(name)
        for cell in CELL_TYPES:
            edges += len(claim.genotype.cell(cell))
            for edge, (operation, source) in enumerate(claim.genotype.cell(cell)):
                for other in DEPLOYED_OPERATIONS:
                    changed = with_edges(claim.genotype, cell, edge, (other, source))
                    fits = accepts(replace(claim, genotype=changed), logits)
                    assert fits is (other == operation), (name, cell, edge, other)
                    refused += not fits
    assert refused == edges * (len(DEPLOYED_OPERATIONS) - 1)


def meanings(genotype: Genotype, cell: str) -> list[Any]:
    """What the states of a cell are as functions: equal only if no weights tell them apart."""
    states: list[Any] = [0, 1]
    for position in range(len(NODES)):
        terms: list[str] = []
        for edge in range(EDGES_PER_NODE * position, EDGES_PER_NODE * (position + 1)):
            operation, source = genotype.cell(cell)[edge]
            strided = cell == "reduce" and source < 2
            own = operation == "skip_connect" and not strided
            if own or operation.endswith("pool_3x3"):
                terms.append(repr((operation, strided, states[source])))
            else:
                terms.append(repr(edge))
        states.append(tuple(sorted(terms)))
    return states


def test_every_other_predecessor_of_every_edge_is_refused_unless_it_is_the_same_value() -> None:
    outcomes = []
    for name in FULL:
        claim, logits = read(name)
        for cell in CELL_TYPES:
            states = meanings(claim.genotype, cell)
            for edge, (operation, source) in enumerate(claim.genotype.cell(cell)):
                sibling = claim.genotype.cell(cell)[edge ^ 1][1]
                for other in range(NODES[edge // EDGES_PER_NODE]):
                    if other in (source, sibling):
                        continue
                    changed = with_edges(claim.genotype, cell, edge, (operation, other))
                    fits = accepts(replace(claim, genotype=changed), logits)
                    assert fits is (states[other] == states[source]), (name, cell, edge, other)
                    outcomes.append(fits)
    assert outcomes.count(False) > 20 * len(FULL)
    assert outcomes.count(True) == 1  # one of two merged nodes for the other


def test_exchanged_sources_are_refused_and_exchanged_edges_are_not() -> None:
    outcomes = []
    for name in FULL:
        claim, logits = read(name)
        for cell in CELL_TYPES:
            states = meanings(claim.genotype, cell)
            for edge in range(0, 8, EDGES_PER_NODE):
                (one, first), (two, second) = claim.genotype.cell(cell)[edge : edge + 2]
                turned = with_edges(claim.genotype, cell, edge, (two, second), (one, first))
                assert accepts(replace(claim, genotype=turned), logits)
                crossed = with_edges(claim.genotype, cell, edge, (one, second), (two, first))
                fits = accepts(replace(claim, genotype=crossed), logits)
                assert fits is (one == two or states[first] == states[second]), (name, cell, edge)
                outcomes.append(fits)
    assert outcomes.count(False) > 30


def test_random_genotypes_fit_no_graph_but_their_own() -> None:
    draw = random.Random(0)
    for name in FULL:
        claim, logits = read(name)
        for _ in range(40):
            other = random_genotype(draw.randrange(10**6))
            assert not accepts(replace(claim, genotype=other), logits)
        assert accepts(claim, logits)


@pytest.mark.parametrize("name", FULL)
def test_other_sizes_and_stems_are_refused(name: str) -> None:
    claim, logits = read(name)
    other_stem = "cifar" if claim.stem == "imagenet" else "imagenet"
    changes: list[dict[str, Any]] = [
        {"num_cells": 3},
        {"num_cells": 5},
        {"init_channels": 8},
        {"num_classes": 4},
        {"in_channels": 1},
        {"stem": other_stem},
        {"genotype": replace(claim.genotype, normal_concat=(2, 3, 4))},
        {"genotype": replace(claim.genotype, reduce_concat=(2, 3, 5))},
        {"genotype": Genotype(claim.genotype.reduce, claim.genotype.normal)},
    ]
    for change in changes:
        assert not accepts(replace(claim, **change), logits), change


def test_the_difference_is_named() -> None:
    claim, logits = read("every operation")
    wrong = with_edges(claim.genotype, "normal", 4, ("sep_conv_3x3", 0))
    with pytest.raises(ValidationFailedError) as caught:
        fit_network(replace(claim, genotype=wrong), logits)
    assert str(caught.value) == (
        "identity: cell03/node4: the graph computes conv_7x1_1x7(0) + avg_pool_3x3(2), "
        "the normal cell of its genotype sep_conv_3x3(0) + avg_pool_3x3(2)"
    )
    assert caught.value.exit_code == 3
    assert caught.value.hint is not None
    rewired = with_edges(claim.genotype, "reduce", 7, ("dil_conv_3x3", 2))
    with pytest.raises(ValidationFailedError, match=r"cell02/node5: .*dil_conv_3x3\(3\).*\(2\)"):
        fit_network(replace(claim, genotype=rewired), logits)


def metadata_of(data: bytes, **changes: str | None) -> onnx.ModelProto:
    model = onnx.ModelProto.FromString(data)
    values = {entry.key: entry.value for entry in model.metadata_props}
    values |= {f"d2nas.{key}": value for key, value in changes.items() if value is not None}
    removed = {f"d2nas.{key}" for key, value in changes.items() if value is None}
    del model.metadata_props[:]
    for key in sorted(values.keys() - removed):
        model.metadata_props.add(key=key, value=values[key])
    return model


def network_text(**changes: Any) -> str:
    sizes = {"num_cells": 4, "init_channels": 4, "num_classes": 5, "in_channels": 3}
    network = {"genotype": EVERY_OPERATION.to_dict(), "stem": "cifar", **sizes, **changes}
    return canonical_json(network).decode()


@pytest.fixture
def sound() -> bytes:
    return data_of("every operation")


def test_metadata_that_claims_nothing_or_two_things_is_refused(sound: bytes) -> None:
    published = Genotype.published("DARTS_V1")
    wrong: list[tuple[dict[str, str | None], str]] = [
        ({"genotype": None}, f"no {GENOTYPE_KEY}"),
        ({"network": None}, f"no {NETWORK_KEY}"),
        ({"network": "[]"}, "no description of a network"),
        ({"network": network_text(depth=1)}, "no description of a network"),
        ({"genotype": published.to_json()}, "differ"),
        ({"network": network_text(genotype=published.to_dict())}, "differ"),
        ({"network": network_text(num_cells=10**9)}, "not a size"),
        ({"network": network_text(num_classes=True)}, "not a size"),
        ({"network": network_text(stem="svhn")}, "unknown stem"),
        ({"genotype": "{}"}, "normal is missing"),
    ]
    for changes, reason in wrong:
        with pytest.raises(ValidationFailedError, match=reason):
            check_identity(metadata_of(sound, **changes))
    with pytest.raises(DamagedArtifactError):
        check_identity(metadata_of(sound, genotype="{"))
    with pytest.raises(DamagedArtifactError):
        check_identity(b"no model")
    assert check_identity(metadata_of(sound, network=network_text())).num_cells == 4


def test_a_genotype_with_noise_is_never_what_was_exported(sound: bytes) -> None:
    noisy = with_edges(EVERY_OPERATION, "normal", 0, ("noise", 0))
    model = metadata_of(
        sound, genotype=noisy.to_json(), network=network_text(genotype=noisy.to_dict())
    )
    with pytest.raises(ValidationFailedError, match="noise is never exported"):
        check_identity(model)


def test_control_without_the_layers_settings_a_wrong_kernel_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claim, logits = read("every operation")
    wrong = replace(claim, genotype=with_edges(claim.genotype, "normal", 0, ("sep_conv_5x5", 0)))
    assert not accepts(wrong, logits)
    monkeypatch.setattr(Layer, "fits", lambda layer, value: value.kind == layer.kind)
    assert accepts(wrong, logits)
