"""Names of an exported graph's nodes that say cell, node and edge.

The exporter calls nodes ``node_Conv_829``, with numbers that move from model to model, but notes
the path of the module that each came from. Here the paths become names:

    stem/conv
    cell03/preprocess0/relu
    cell03/node2/edge1_sep_conv_3x3/conv_3      the second edge of node 2, its fourth convolution
    cell03/node2/add
    cell03/concat
    classifier/reducemean

Equal expressions are computed once in an exported graph (a ReLU that several operations read, two
equal poolings of one state, even a whole node). Such a node bears the name of its first user.
"""

import ast
from collections import Counter
from collections.abc import Iterator

import onnx
from torch import nn

from d2nas.genotype import Pair
from d2nas.nn.network import Cell, Network
from d2nas.nn.operations import reduction_positions
from d2nas.spaces import EDGES_PER_NODE, NUM_INPUTS

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""Metadata of a node: the modules around it from the outside in, then the traced call's name."""


def name_nodes(model: onnx.ModelProto, network: nn.Module) -> None:
    """Rename every node of ``model``, and the values between nodes, after ``network``'s modules.

    ``model`` must still have the exporter's metadata. Names are unique and depend on the network
    alone. Modules other than those of ``Network`` keep their path: ``stem/0/conv``. A node without
    metadata keeps its name. The graph's input, outputs and weights keep theirs.
    """
    places = _Places(network)
    nodes = list(model.graph.node)
    paths = [_module_path(node) for node in nodes]
    prefixes = [None if path is None else places.prefix(path) for path in paths]
    for index, prefix in _sums(nodes, paths, network):
        prefixes[index] = prefix
    _rename(model.graph, _numbered(nodes, prefixes))


class _Places:
    """The place in the architecture of every module, by its path."""

    def __init__(self, network: nn.Module) -> None:
        self._known: dict[str, str] = {}
        if not isinstance(network, Network):
            return
        # What the network computes itself lies between its last cell and the classifier.
        self._known[""] = "classifier"
        for index, cell in _cells(network):
            self._known[f"cells.{index}"] = _cell_name(index)
            for edge in range(len(cell.operations)):
                self._known[_edge_path(index, edge)] = _edge_name(network, index, edge)

    def prefix(self, path: str) -> str:
        """Return what the names of a module's nodes start with."""
        parts = path.split(".")
        # Layers inside an operation are told apart by type and number, which says more than the
        # index of a module in a list; inside other modules the path is kept.
        for length in range(len(parts), 0, -1):
            known = self._known.get(".".join(parts[:length]))
            if known is not None:
                is_edge = length > 2
                return "/".join([known] if is_edge else [known, *parts[length : length + 1]])
        if self._known:
            return parts[0]
        return path.replace(".", "/")


def _cells(network: Network) -> Iterator[tuple[int, Cell]]:
    for index, cell in enumerate(network.cells):
        assert isinstance(cell, Cell)
        yield index, cell


def _cell_name(index: int) -> str:
    return f"cell{index:02d}"


def _edge_path(cell: int, edge: int) -> str:
    return f"cells.{cell}.operations.{edge}"


def _edge_name(network: Network, index: int, edge: int) -> str:
    operation, _ = _pairs(network, index)[edge]
    node, which = NUM_INPUTS + edge // EDGES_PER_NODE, edge % EDGES_PER_NODE
    return f"{_cell_name(index)}/node{node}/edge{which}_{operation}"


def _pairs(network: Network, index: int) -> tuple[Pair, ...]:
    reductions = reduction_positions(len(network.cells))
    return network.genotype.cell("reduce" if index in reductions else "normal")


def _module_path(node: onnx.NodeProto) -> str | None:
    """Return the path of the innermost module that ``node`` was traced in, "" for the network."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES_KEY:
            scopes = ast.literal_eval(entry.value)
            return str(scopes[-2]) if len(scopes) > 1 else ""
    return None


def _sums(
    nodes: list[onnx.NodeProto], paths: list[str | None], network: nn.Module
) -> Iterator[tuple[int, str]]:
    """Yield (index, prefix) of the additions: they belong to no module but the cell's own.

    Which node of the cell an addition is, follows from what it adds: the outputs of the node's two
    operations. These are followed through the cell; an output that another, equal operation
    computes already is that one's.
    """
    if not isinstance(network, Network):
        return
    sums = {tuple(node.input): index for index, node in enumerate(nodes) if node.op_type == "Add"}
    named: set[int] = set()
    for index, _ in _cells(network):
        pairs = _pairs(network, index)
        states: list[str | None] = [
            _last_output(nodes, paths, f"cells.{index}.preprocess{which}")
            for which in range(NUM_INPUTS)
        ]
        outputs: dict[tuple[str, str | None], str | None] = {}
        for position, node in enumerate(network.genotype.nodes):
            operands = []
            for edge in range(EDGES_PER_NODE * position, EDGES_PER_NODE * (position + 1)):
                key = (pairs[edge][0], states[pairs[edge][1]])
                own = _last_output(nodes, paths, _edge_path(index, edge))
                outputs[key] = own or outputs.get(key, key[1])
                operands.append(outputs[key])
            first, second = operands
            # ``Cell`` adds the second operation's output and the first one's, in this order.
            found = sums.get((second, first), sums.get((first, second)))
            states.append(None if found is None else nodes[found].output[0])
            if found is not None and found not in named:
                named.add(found)
                yield found, f"{_cell_name(index)}/node{node}"


def _last_output(nodes: list[onnx.NodeProto], paths: list[str | None], module: str) -> str | None:
    for node, path in zip(reversed(nodes), reversed(paths), strict=True):
        if path is not None and (path == module or path.startswith(f"{module}.")):
            return str(node.output[0])
    return None


def _numbered(nodes: list[onnx.NodeProto], prefixes: list[str | None]) -> list[str]:
    """Return the nodes' names: prefix and type, with a number where several share both."""
    stems = [
        node.name if prefix is None else "/".join(filter(None, (prefix, node.op_type.lower())))
        for node, prefix in zip(nodes, prefixes, strict=True)
    ]
    several, seen = Counter(stems), Counter[str]()
    names = []
    for stem in stems:
        names.append(f"{stem}_{seen[stem]}" if several[stem] > 1 else stem)
        seen[stem] += 1
    return names


def _rename(graph: onnx.GraphProto, names: list[str]) -> None:
    """Name nodes, and after them the values that they hand on."""
    kept = {value.name for value in (*graph.input, *graph.output)}
    kept |= {tensor.name for tensor in graph.initializer}
    renamed: dict[str, str] = {}
    for node, name in zip(graph.node, names, strict=True):
        if node.name == name:
            continue
        node.name = name
        for position, output in enumerate(node.output):
            new = name if position == 0 else f"{name}:{position}"
            if output and output not in kept and new not in kept:
                renamed[output] = new
    for node in graph.node:
        node.input[:] = [renamed.get(value, value) for value in node.input]
        node.output[:] = [renamed.get(value, value) for value in node.output]
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)
