"""Explanation of how a graph differs from the cell that its genotype claims."""

from collections.abc import Sequence

from d2nas.genotype import Pair
from d2nas.spaces import EDGES_PER_NODE, NUM_INPUTS

from .expressions import Value
from .layout import DEPLOYED_OPERATIONS, CellLayout, fit_node, lay, node_values, operation_layers

Names = dict[int, tuple[int, ...]]
"""The states of a cell that a value, by its number, is; several if the graph merged them."""


def explain_cell(layout: CellLayout, output: Value, previous: Value | None) -> str:
    """Say in one line why ``layout`` does not fit ``output``; ``previous``: the cell before it.

    The first node that differs is named, with what the graph computes in its place.
    """
    cell = f"cell{layout.position:02d}"
    states = node_values(layout, output)
    if states is None:
        return (
            f"{cell}: its output is {describe_value(output)}, not {len(layout.concat)} nodes of "
            f"{layout.channels} channels"
        )
    names = _name_states(layout, states, previous)
    for node in layout.concat:
        position = node - NUM_INPUTS
        edges = slice(EDGES_PER_NODE * position, EDGES_PER_NODE * (position + 1))
        claimed, operands = layout.pairs[edges], states[node].inputs
        if not _agrees(layout, claimed, operands, names):
            return (
                f"{cell}/node{node}: the graph computes "
                f"{_join(_recognise(layout, operand, names) for operand in operands)}, the "
                f"{layout.cell_type} cell of its genotype {_join(claimed)}"
            )
        if not list(fit_node(layout, states, position)):
            return f"{cell}/node{node}: its operations read other states than the genotype says"
    return f"{cell}: reads other inputs, or shares weights between operations"


def describe_value(value: Value) -> str:
    """Return a layer in words, ``conv 3x3, stride 2, 16 channels (node 'stem/conv')``."""
    words = [value.kind.replace("_", " ")]
    if value.kind in ("conv", "max_pool", "avg_pool"):
        kernel, strides, dilations, *_ = value.settings
        words[0] += " " + "x".join(map(str, kernel))
        for name, sizes in (("stride", strides), ("dilation", dilations)):
            if set(sizes) != {1}:
                words.append(f"{name} {'x'.join(map(str, sorted(set(sizes))))}")
        if value.kind == "conv" and value.settings[4] != 1:
            words.append(f"{value.settings[4]} groups")
    if value.kind == "concat":
        words.append(f"{len(value.inputs)} parts")
    words.append(f"{value.shape[0]} channels")
    return f"{', '.join(words)} (node {value.node[:60]!r})"


def _name_states(layout: CellLayout, states: dict[int, Value], previous: Value | None) -> Names:
    names: Names = {}
    for node, value in states.items():
        names[value.number] = (*names.get(value.number, ()), node)
    inputs = [
        (leaf, found.leaf, which)
        for leaf in _leaves(layout, states)
        for which in range(NUM_INPUTS)
        if leaf.number not in names and (found := lay(layout.preprocess(which), leaf)) is not None
    ]
    # Without knowing it, the output of the cell before is what took most layers.
    deepest = max((source.depth for _, source, _ in inputs), default=0)
    for leaf, source, which in inputs:
        is_previous = source.depth == deepest if previous is None else source is previous
        shared = layout.position == 0 and layout.preprocess(0) == layout.preprocess(1)
        if shared or is_previous == (which == 1):
            names[leaf.number] = (*names.get(leaf.number, ()), which)
    return names


def _leaves(layout: CellLayout, states: dict[int, Value]) -> list[Value]:
    """Return what the operations of the nodes can read, if they are known operations."""
    found: dict[int, Value] = {}
    for node in states.values():
        for operand in node.inputs:
            for name in DEPLOYED_OPERATIONS:
                for stride in (1, 2):
                    fit = lay(operation_layers(name, layout.channels, stride), operand)
                    if fit is not None:
                        found[fit.leaf.number] = fit.leaf
    return list(found.values())


def _candidates(layout: CellLayout, operand: Value, names: Names) -> list[Pair]:
    """Return the operations on known states that ``operand`` can be."""
    return [
        (name, source)
        for name in DEPLOYED_OPERATIONS
        for stride in (1, 2)
        if (fit := lay(operation_layers(name, layout.channels, stride), operand)) is not None
        for source in names.get(fit.leaf.number, ())
        if layout.stride(source) == stride
    ]


def _agrees(
    layout: CellLayout, claimed: Sequence[Pair], operands: Sequence[Value], names: Names
) -> bool:
    first, second = (_candidates(layout, operand, names) for operand in operands)
    return any(
        one in first and other in second for one, other in (tuple(claimed), tuple(claimed[::-1]))
    )


def _recognise(layout: CellLayout, operand: Value, names: Names) -> Pair | str:
    found = _candidates(layout, operand, names)
    if found:
        return found[0]
    for name in DEPLOYED_OPERATIONS:
        if name == "skip_connect":
            continue
        for stride in (1, 2):
            if lay(operation_layers(name, layout.channels, stride), operand) is not None:
                return f"{name} with stride {stride} of something that is no state it can read"
    return f"no known operation, {describe_value(operand)}"


def _join(operations: object) -> str:
    assert hasattr(operations, "__iter__")
    return " + ".join(
        operation if isinstance(operation, str) else f"{operation[0]}({operation[1]})"
        for operation in operations
    )
