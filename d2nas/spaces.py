"""Operation names, the edges of a cell and the search spaces S0 to S4, as data.

A cell has two inputs (0: output of the cell before the previous one, 1: of the previous one) and
intermediate nodes from 2 on, in these spaces four, 2 to 5; its output concatenates them. S0 is
DARTS's space (arXiv 1806.09055, 3.1) without ``none``; S1 to S4 are those of R-DARTS (arXiv
1909.09656, section 4).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, shown_value
from .registry import Registry

if TYPE_CHECKING:
    from torch import nn

NUM_INPUTS = 2
NODES = (2, 3, 4, 5)
"""Intermediate nodes of DARTS's cells, those of S0 to S4."""

NODE_COUNTS = range(2, 9)
"""How many intermediate nodes the cells of a space of one's own may have."""

EDGES_PER_NODE = 2
"""In-degree of a derived node, and of a sampled one."""

CELL_TYPES = ("normal", "reduce")

OPERATION_NAMES = (
    "none",
    "noise",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_7x1_1x7",
)
"""d2nas's own operations; ``none`` may be searched but never stands in a genotype."""

_PARAMETERLESS = frozenset({"none", "noise", "max_pool_3x3", "avg_pool_3x3", "skip_connect"})


@dataclass(frozen=True, slots=True)
class OwnOperation:
    """An operation that somebody registered, see ``register_operation``."""

    build: "Callable[[int, int, bool], nn.Module]"
    parameterless: bool


own_operations: Registry[OwnOperation] = Registry("operation", group="d2nas.operations", joint="_")


def register_operation(
    name: str, build: "Callable[[int, int, bool], nn.Module]", *, parameterless: bool = False
) -> None:
    """Register an operation for spaces and genotypes.

    ``build(channels, stride, affine)`` returns a module that maps (N, channels, H, W) to
    (N, channels, ceil(H / stride), ceil(W / stride)), for strides 1 and 2; ``affine`` is False in
    a supernet, whose batch norms have no parameters. Initial weights are drawn anew for ``Conv2d``,
    ``Linear`` and ``BatchNorm2d``; other parameters keep what ``build`` gives them.
    ``parameterless`` says that it has no weights. Whoever changes what an operation computes gives
    it another name: finished stages go by names. Raises ``ConfigError`` for a name that is taken or
    not of a to z, digits and underscores, and for a ``build`` that cannot be called.
    """
    if name in OPERATION_NAMES:
        raise ConfigError(f"the operation {name} is one of d2nas's")
    if not callable(build):
        raise ConfigError(f"the operation {name}: build={build!r} cannot be called")
    own_operations.add(name, OwnOperation(build, parameterless))


def find_operation(name: str) -> OwnOperation | None:
    """Return a registered operation, None for one of d2nas's.

    Raises ``ConfigError`` for one that is neither, and where its code cannot be loaded.
    """
    if name in OPERATION_NAMES:
        return None
    found = own_operations.get(name)
    if found is None:
        known = ", ".join((*OPERATION_NAMES, *own_operations.names()))
        raise ConfigError(
            f"unknown operation {shown_value(name)}: neither built in nor registered here, by "
            "d2nas.register_operation or an entry point d2nas.operations",
            hint=f"known: {known}",
        )
    return found


def is_parameterless(name: str) -> bool:
    """Whether an operation is known to have no weights: what the paper's "Num" counts in a normal
    cell (a stride-2 skip does have some). Any text may be a name. Raises ``ConfigError`` where its
    code cannot be loaded.
    """
    own = None if name in OPERATION_NAMES else own_operations.get(name)
    return name in _PARAMETERLESS if own is None else own.parameterless


EdgeOperations = tuple[tuple[str, ...], ...]


@cache
def edges_of(num_nodes: int) -> tuple[tuple[int, int], ...]:
    """Return (predecessor, node) of the edges of a cell with so many intermediate nodes, in the
    order of the rows of the architecture logits.
    """
    nodes = range(NUM_INPUTS, NUM_INPUTS + num_nodes)
    return tuple((source, node) for node in nodes for source in range(node))


@cache
def node_edges(num_edges: int) -> tuple[range, ...]:
    """Return, by node, the rows of the edges that enter it, in a cell of so many edges."""
    rows = [range(NUM_INPUTS)]
    while rows[-1].stop < num_edges:
        rows.append(range(rows[-1].stop, rows[-1].stop + len(rows[-1]) + 1))
    return tuple(rows)


EDGES = edges_of(len(NODES))
"""The 14 edges of DARTS's cells."""


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The candidate operations on each edge of both cell types, which have as many nodes.

    ``normal[e]`` and ``reduce[e]`` name the candidates of ``edges[e]``; their order is the column
    order of the operation logits. Raises ``ConfigError`` for a space that cannot be searched.
    """

    name: str
    normal: EdgeOperations
    reduce: EdgeOperations

    def __post_init__(self) -> None:
        possible = [len(edges_of(count)) for count in NODE_COUNTS]
        if len(self.normal) not in possible or len(self.reduce) != len(self.normal):
            raise ConfigError(
                f"space {self.name}: cells of {len(self.normal)} and {len(self.reduce)} edges are "
                "not supported",
                hint=f"both have {', '.join(map(str, possible))}: {NODE_COUNTS[0]} to "
                f"{NODE_COUNTS[-1]} nodes, each with an edge from all before it",
            )
        for cell_type in CELL_TYPES:
            for index, operations in enumerate(self.candidates(cell_type)):
                self._check_edge(f"{cell_type} edge {index}", operations)

    def _check_edge(self, where: str, operations: tuple[str, ...]) -> None:
        for operation in operations:
            try:
                find_operation(operation)
            except ConfigError as error:
                raise ConfigError(f"space {self.name}: {where}: {error}", hint=error.hint) from None
        if len(set(operations)) != len(operations):
            raise ConfigError(f"space {self.name}: {where} lists an operation twice")
        if not set(operations) - {"none"}:
            raise ConfigError(f"space {self.name}: {where} has no operation to choose")

    @property
    def nodes(self) -> range:
        """The intermediate nodes of its cells."""
        return range(NUM_INPUTS, NUM_INPUTS + len(node_edges(len(self.normal))))

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(Predecessor, node) of each edge of its cells, in the order of the logits' rows."""
        return edges_of(len(self.nodes))

    def candidates(self, cell_type: str) -> EdgeOperations:
        """Return the candidates on each edge of the ``"normal"`` or ``"reduce"`` cell."""
        return self.normal if cell_type == "normal" else self.reduce

    def num_columns(self, cell_type: str) -> int:
        """Columns of the operation logits: the largest number of candidates of any edge."""
        return max(len(operations) for operations in self.candidates(cell_type))

    def with_none(self) -> "SearchSpace":
        """Return the space with ``none`` first on every edge: what DARTS and GDAS search."""

        def prepend(edges: EdgeOperations) -> EdgeOperations:
            return tuple(("none", *(op for op in edge if op != "none")) for edge in edges)

        return SearchSpace(self.name, prepend(self.normal), prepend(self.reduce))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: what ``from_dict`` reads."""
        return {
            "name": self.name,
            "normal": [list(operations) for operations in self.normal],
            "reduce": [list(operations) for operations in self.reduce],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, what: str = "search space") -> "SearchSpace":
        """Build a user's own space. ``normal`` and ``reduce`` are either one list of operation
        names, used on every edge, or one list for each; ``nodes`` says how many intermediate nodes
        a cell has, by default four. Raises ``ConfigError``.
        """
        unknown = set(values) - {"name", "nodes", "normal", "reduce"}
        if unknown:
            raise ConfigError(f"{what}: unknown key {shown_value(min(unknown))}")
        name = values.get("name", "custom")
        if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= 64:
            raise ConfigError(f"{what}: name must be text of 1 to 64 printable characters")
        nodes = values.get("nodes")
        if nodes is not None and (type(nodes) is not int or nodes not in NODE_COUNTS):
            first, last = NODE_COUNTS[0], NODE_COUNTS[-1]
            raise ConfigError(f"{what}: nodes must be a number from {first} to {last}")
        return cls(
            name,
            _read_edges(values.get("normal"), nodes, f"{what}: normal"),
            _read_edges(values.get("reduce", values.get("normal")), nodes, f"{what}: reduce"),
        )


def _read_edges(value: Any, nodes: int | None, what: str) -> EdgeOperations:
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return (tuple(value),) * len(edges_of(nodes or len(NODES)))
    if not isinstance(value, list) or not all(
        isinstance(item, list) and all(isinstance(name, str) for name in item) for item in value
    ):
        raise ConfigError(f"{what} must be a list of operations, or one such list for each edge")
    if nodes is not None and len(value) != len(edges_of(nodes)):
        raise ConfigError(
            f"{what} has {len(value)} edges, but a cell of {nodes} nodes {len(edges_of(nodes))}"
        )
    return tuple(tuple(item) for item in value)


def _uniform(name: str, operations: Iterable[str]) -> SearchSpace:
    edges = (tuple(operations),) * len(EDGES)
    return SearchSpace(name, edges, edges)


_S1_NORMAL = (
    ("skip_connect", "dil_conv_3x3"),
    ("skip_connect", "dil_conv_5x5"),
    ("skip_connect", "dil_conv_5x5"),
    ("skip_connect", "sep_conv_3x3"),
    ("skip_connect", "dil_conv_3x3"),
    ("max_pool_3x3", "skip_connect"),
    ("skip_connect", "sep_conv_3x3"),
    ("skip_connect", "sep_conv_3x3"),
    ("skip_connect", "dil_conv_3x3"),
    ("skip_connect", "sep_conv_3x3"),
    ("max_pool_3x3", "skip_connect"),
    ("skip_connect", "dil_conv_3x3"),
    ("dil_conv_3x3", "dil_conv_5x5"),
    ("dil_conv_3x3", "dil_conv_5x5"),
)
_S1_REDUCE = (
    ("max_pool_3x3", "avg_pool_3x3"),
    ("max_pool_3x3", "dil_conv_3x3"),
    ("max_pool_3x3", "avg_pool_3x3"),
    ("max_pool_3x3", "avg_pool_3x3"),
    ("skip_connect", "dil_conv_5x5"),
    ("max_pool_3x3", "avg_pool_3x3"),
    ("max_pool_3x3", "sep_conv_3x3"),
    ("skip_connect", "dil_conv_3x3"),
    ("skip_connect", "dil_conv_5x5"),
    ("max_pool_3x3", "avg_pool_3x3"),
    ("max_pool_3x3", "avg_pool_3x3"),
    ("skip_connect", "dil_conv_5x5"),
    ("skip_connect", "dil_conv_5x5"),
    ("skip_connect", "dil_conv_5x5"),
)

SPACES: Mapping[str, SearchSpace] = MappingProxyType(
    {
        "S0": _uniform(
            "S0",
            (
                "max_pool_3x3",
                "avg_pool_3x3",
                "skip_connect",
                "sep_conv_3x3",
                "sep_conv_5x5",
                "dil_conv_3x3",
                "dil_conv_5x5",
            ),
        ),
        "S1": SearchSpace("S1", _S1_NORMAL, _S1_REDUCE),
        "S2": _uniform("S2", ("skip_connect", "sep_conv_3x3")),
        "S3": _uniform("S3", ("none", "skip_connect", "sep_conv_3x3")),
        "S4": _uniform("S4", ("noise", "sep_conv_3x3")),
    }
)
