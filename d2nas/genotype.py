"""The genotype: which operation reads which predecessor in each node of both cells.

A frozen value with canonical JSON and a digest. It is parsed strictly and never evaluated, from
JSON and from what published codes print.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError, DamagedArtifactError, shown_value
from .files.printed_genotype import is_printed, parse_printed
from .files.strict_json import canonical_json, digest, parse_json
from .files.text_files import read_text
from .spaces import (
    CELL_TYPES,
    EDGES_PER_NODE,
    NODE_COUNTS,
    NODES,
    NUM_INPUTS,
    SearchSpace,
    find_operation,
    is_parameterless,
)

Pair = tuple[str, int]
_ALL: Any = object()
"""In place of a concatenation: of all nodes."""
_KEYS = ("normal", "normal_concat", "reduce", "reduce_concat")


@dataclass(frozen=True, slots=True)
class Genotype:
    """A pair of cells.

    ``normal`` and ``reduce``: pairs ``(operation, predecessor)``, two per node, in node order: 8
    in DARTS's cells; the order inside a node is kept (DARTS emits the stronger edge first).
    ``normal_concat`` and ``reduce_concat``: the nodes that form the cell's output, ascending; by
    default all. Raises ``ConfigError`` for anything that is not such a pair of cells: an unknown
    operation or ``none``, a predecessor out of range, another number of pairs, and, in cells of
    four nodes, both edges of a node from the same predecessor. (Cells of DARTS's space never are;
    of other spaces, such as NASNet's, they are.)
    """

    normal: tuple[Pair, ...]
    reduce: tuple[Pair, ...]
    normal_concat: tuple[int, ...] = _ALL
    reduce_concat: tuple[int, ...] = _ALL

    def __post_init__(self) -> None:
        for cell_type in CELL_TYPES:
            object.__setattr__(self, cell_type, _check_pairs(cell_type, getattr(self, cell_type)))
        if len(self.normal) != len(self.reduce):
            raise ConfigError(
                f"normal has {len(self.normal)} edges, not {len(self.reduce)} as reduce: cells of "
                "different numbers of nodes are not supported"
            )
        for name in ("normal_concat", "reduce_concat"):
            nodes = getattr(self, name)
            concat = tuple(self.nodes) if nodes is _ALL else _check_concat(name, nodes, self.nodes)
            object.__setattr__(self, name, concat)

    @property
    def nodes(self) -> range:
        """The intermediate nodes of both cells."""
        return range(NUM_INPUTS, NUM_INPUTS + len(self.normal) // EDGES_PER_NODE)

    def cell(self, cell_type: str) -> tuple[Pair, ...]:
        """Return the pairs of ``"normal"`` or ``"reduce"``."""
        return self.normal if cell_type == "normal" else self.reduce

    @property
    def parameterless_normal(self) -> int:
        """Operations without weights in the normal cell (the paper's "Num")."""
        return sum(is_parameterless(operation) for operation, _ in self.normal)

    @property
    def has_noise(self) -> bool:
        """Whether an operation of either cell is ``noise``: it trains, but cannot be exported."""
        return any(operation == "noise" for operation, _ in (*self.normal, *self.reduce))

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the canonical JSON."""
        return digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as the field writes genotypes."""
        return {
            "normal": [list(pair) for pair in self.normal],
            "normal_concat": list(self.normal_concat),
            "reduce": [list(pair) for pair in self.reduce],
            "reduce_concat": list(self.reduce_concat),
        }

    def to_json(self) -> str:
        """Return the canonical JSON text (one line)."""
        return canonical_json(self.to_dict()).decode()

    def describe(self, cell_type: str) -> str:
        """Return one cell as text, ``2: sep_conv_3x3(0) + skip_connect(1); 3: ...``."""
        pairs = self.cell(cell_type)
        return "; ".join(
            f"{node}: "
            + " + ".join(
                f"{operation}({source})"
                for operation, source in pairs[EDGES_PER_NODE * i : EDGES_PER_NODE * (i + 1)]
            )
            for i, node in enumerate(self.nodes)
        )

    @classmethod
    def from_dict(cls, values: Any, *, what: str = "genotype") -> "Genotype":
        """Parse plain data strictly; concat lists default to all nodes.

        Raises ``ConfigError`` naming ``what`` and the place.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{what}: must be an object with {', '.join(_KEYS)}")
        for key in values:
            if key not in _KEYS:
                raise ConfigError(f"{what}: unknown key {str(key)[:40]!r}")
        for key in CELL_TYPES:
            if key not in values:
                raise ConfigError(f"{what}: {key} is missing")
        try:
            return cls(
                **{key: values[key] for key in _KEYS if key in values},
            )
        except ConfigError as error:
            raise ConfigError(f"{what}: {error}", hint=error.hint) from None

    @classmethod
    def from_json(cls, text: str | bytes, *, what: str = "genotype") -> "Genotype":
        """Parse JSON text. Raises ``DamagedArtifactError`` for text that is not strict JSON,
        ``ConfigError`` for JSON that is not a genotype.
        """
        return cls.from_dict(parse_json(text, what=what), what=what)

    @classmethod
    def from_string(cls, text: str, *, what: str = "genotype") -> "Genotype":
        """Parse what published codes print: ``Genotype(normal=[('sep_conv_3x3', 1), ...], ...)``.

        A ``NAME =`` before it, comments, lists or tuples, and arguments without names are taken.
        Raises ``ConfigError`` naming ``what`` and what is invalid, missing or not supported.
        """
        return cls.from_dict(parse_printed(text, what=what)[1], what=what)

    @classmethod
    def published(cls, name: str) -> "Genotype":
        """Return a published genotype. Raises ``ConfigError`` for another name."""
        if name not in PUBLISHED:
            raise ConfigError(
                f"no published genotype {shown_value(name)}",
                hint="published: " + ", ".join(PUBLISHED),
            )
        (normal, normal_concat), (reduce, reduce_concat) = map(_read_short, PUBLISHED[name])
        return cls(normal, reduce, normal_concat, reduce_concat)


def read_genotype(given: str) -> Genotype:
    """Return a published genotype by its name, that of a file, or a printed one.

    A file named ``.json`` holds JSON, another one what published codes print. Raises
    ``ConfigError``.
    """
    form = f"one is written {Genotype.published('DARTS_V2').to_json().strip()}"
    if given in PUBLISHED:
        return Genotype.published(given)
    if is_printed(given):
        return Genotype.from_string(given)
    if not given.endswith(".json"):
        if not is_genotype_file(given):
            return Genotype.published(given)
        return _read_printed(given)
    try:
        return Genotype.from_json(read_text(Path(given)), what=given)
    except DamagedArtifactError as error:
        # A file that the user wrote, not an artifact.
        raise ConfigError(str(error), hint=form) from None
    except ConfigError as error:
        raise ConfigError(str(error), hint=error.hint or form) from None


def _read_printed(path: str) -> Genotype:
    text = read_text(Path(path))
    if text.lstrip().startswith("{"):
        raise ConfigError(
            f"{path}: a genotype in JSON is not supported in a file of this name",
            hint="name it .json",
        )
    return Genotype.from_string(text, what=path)


def is_genotype_file(given: str) -> bool:
    """Whether a genotype is given by the path of a file that is there, or of one named .json."""
    if given in PUBLISHED or is_printed(given):
        return False
    try:
        return given.endswith(".json") or Path(given).is_file()
    except (OSError, ValueError):  # no path at all
        return False


def genotype_name(given: str) -> str:
    """Return a short name: a published one's, a file's without its ending, the one to which a
    printed genotype is assigned, or the beginning of its digest. Raises ``ConfigError``.
    """
    if not is_printed(given):
        return given if given in PUBLISHED else Path(given).stem
    name, values = parse_printed(given, what="genotype")
    return name or f"cell-{Genotype.from_dict(values).digest[:8]}"


def places_of(genotype: Genotype, space: SearchSpace, cell_type: str) -> list[tuple[int, int]]:
    """Return the row of the space's ``edges`` and the column of each of a cell's pairs, in their
    order.

    Raises ``ConfigError`` for a genotype outside of the space.
    """
    if genotype.nodes != space.nodes:
        raise ConfigError(
            f"a cell of {len(genotype.nodes)} nodes, not of {len(space.nodes)} as the space "
            f"{space.name}"
        )
    places = dict[int, int]()
    for index, (operation, source) in enumerate(genotype.cell(cell_type)):
        node = space.nodes[index // EDGES_PER_NODE]
        row = space.edges.index((source, node))
        candidates = space.candidates(cell_type)[row]
        if operation not in candidates or row in places:
            raise ConfigError(
                f"{operation} from {source} to {node} in the {cell_type} cell, which the space "
                f"{space.name} has not"
            )
        places[row] = candidates.index(operation)
    return [*places.items()]


def neighbour(genotype: Genotype, space: SearchSpace, numbers: random.Random) -> Genotype:
    """Return a genotype of ``space`` that differs by one change, drawn by ``numbers``: another
    operation, or another predecessor, on one edge.

    The genotype must be of the space. A predecessor's edge may lack the operation among its
    candidates: then one of these is drawn. Pairs stay in their places, in whatever order that
    leaves the predecessors of a node.
    """
    cells = {cell_type: list(genotype.cell(cell_type)) for cell_type in CELL_TYPES}
    while True:  # nodes behind the first always have another predecessor
        cell_type = numbers.choice(CELL_TYPES)
        pairs, candidates = cells[cell_type], space.candidates(cell_type)
        index = numbers.randrange(len(pairs))
        operation, source = pairs[index]
        node, sibling = space.nodes[index // EDGES_PER_NODE], pairs[index ^ 1][1]
        free = [each for each in range(node) if each not in (source, sibling)]
        if free and numbers.random() < 0.5:
            source = numbers.choice(free)
            offered = [op for op in candidates[space.edges.index((source, node))] if op != "none"]
            pairs[index] = (operation if operation in offered else numbers.choice(offered), source)
            break
        edge = candidates[space.edges.index((source, node))]
        others = [each for each in edge if each not in (operation, "none")]
        if others:
            pairs[index] = (numbers.choice(others), source)
            break
    return Genotype(tuple(cells["normal"]), tuple(cells["reduce"]))


def neighbours(genotype: Genotype, space: SearchSpace) -> list[Genotype]:
    """Return every genotype of ``space`` that ``neighbour`` may return, each network once; pairs of
    a node are ordered by predecessor.
    """
    found = []
    for cell_type in CELL_TYPES:
        for index, (operation, source) in enumerate(genotype.cell(cell_type)):
            node = space.nodes[index // EDGES_PER_NODE]
            _, taken = genotype.cell(cell_type)[index ^ 1]
            for other in range(node):
                offered = choices(space, cell_type, other, node)
                if other == source:
                    offered = [each for each in offered if each != operation]
                elif operation in offered:
                    offered = [operation]
                if other != taken:
                    found += [_with(genotype, cell_type, index, (each, other)) for each in offered]
    return found


def uniform(space: SearchSpace, numbers: random.Random) -> Genotype:
    """Return a genotype of ``space`` drawn by ``numbers``: two predecessors per node, in order, and
    an operation on each edge, all equally probable.
    """

    def cell(cell_type: str) -> tuple[Pair, ...]:
        return tuple(
            (numbers.choice(choices(space, cell_type, source, node)), source)
            for node in space.nodes
            for source in sorted(numbers.sample(range(node), EDGES_PER_NODE))
        )

    return Genotype(cell("normal"), cell("reduce"))


def choices(space: SearchSpace, cell_type: str, source: int, node: int) -> list[str]:
    """Return the operations that a genotype may have on an edge: the candidates but ``none``."""
    candidates = space.candidates(cell_type)[space.edges.index((source, node))]
    return [operation for operation in candidates if operation != "none"]


def _with(genotype: Genotype, cell_type: str, index: int, pair: Pair) -> Genotype:
    """Return a genotype with another pair, and each node's pairs ordered by predecessor."""
    cells = {each: list(genotype.cell(each)) for each in CELL_TYPES}
    cells[cell_type][index] = pair
    normal, reduce = (
        tuple(
            pair
            for first in range(0, len(pairs), EDGES_PER_NODE)
            for pair in sorted(pairs[first : first + EDGES_PER_NODE], key=lambda each: each[1])
        )
        for pairs in cells.values()
    )
    return Genotype(normal, reduce)


def _check_pairs(where: str, pairs: Any) -> tuple[Pair, ...]:
    if not _is_list(pairs):
        raise ConfigError(f"{where} must be a list of [operation, predecessor] pairs")
    num_nodes, rest = divmod(len(pairs), EDGES_PER_NODE)
    if rest or num_nodes not in NODE_COUNTS:
        raise ConfigError(
            f"{where} has {len(pairs)} edges: other than {NODE_COUNTS[0]} to {NODE_COUNTS[-1]} "
            f"nodes of {EDGES_PER_NODE} edges each are not supported"
        )
    return tuple(
        _check_pair(
            f"{where}[{index}]",
            NUM_INPUTS + index // EDGES_PER_NODE,
            pair,
            sibling=pairs[index ^ 1] if num_nodes == len(NODES) else None,
        )
        for index, pair in enumerate(pairs)
    )


def _check_pair(where: str, node: int, pair: Any, sibling: Any) -> Pair:
    if not _is_list(pair) or len(pair) != 2:
        raise ConfigError(f"{where} must be an [operation, predecessor] pair")
    operation, source = pair
    if operation == "none":
        raise ConfigError(f"{where}: none is not supported: it is the lack of an edge")
    if not isinstance(operation, str):
        raise ConfigError(f"{where}: unknown operation {shown_value(operation)}")
    try:
        find_operation(operation)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}", hint=error.hint) from None
    if type(source) is not int or not 0 <= source < node:
        raise ConfigError(
            f"{where}: predecessor {shown_value(source)} of node {node} is not in 0..{node - 1}"
        )
    if _is_list(sibling) and len(sibling) == 2 and sibling[1] == source:
        raise ConfigError(f"{where}: both edges of node {node} read predecessor {source}")
    return operation, source


def _check_concat(where: str, nodes: Any, known: range) -> tuple[int, ...]:
    if (
        not _is_list(nodes)
        or not nodes
        or any(type(node) is not int or node not in known for node in nodes)
        or list(nodes) != sorted(set(nodes))
    ):
        raise ConfigError(f"{where} must list nodes out of {list(known)}, ascending, each once")
    return tuple(nodes)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


_SHORT_NAMES = {
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "skip": "skip_connect",
    "sep3": "sep_conv_3x3",
    "sep5": "sep_conv_5x5",
    "sep7": "sep_conv_7x7",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
    "1x7": "conv_7x1_1x7",
}

# Published cells, "operation@predecessor" in node order, after a bar the nodes of the output where
# these are not all: quark0/darts, yuhuixu1993/PC-DARTS, D-X-Y/AutoDL-Projects, chenxin061/pdarts.
# Those of five nodes: NASNet-A and AmoebaNet-A as quark0/darts has them, PNASNet-5 as TensorFlow's
# slim, ENAS as melodyguan/enas. In our cells they differ from their own networks in what is around
# these operations; NASNet's own normal cell hands on its input 0, too.
PUBLISHED: Mapping[str, tuple[str, str]] = {
    "DARTS_V1": (
        "sep3@1 sep3@0 skip@0 sep3@1 skip@0 sep3@1 sep3@0 skip@2",
        "max@0 max@1 skip@2 max@0 max@0 skip@2 skip@2 avg@0",
    ),
    "DARTS_V2": (
        "sep3@0 sep3@1 sep3@0 sep3@1 sep3@1 skip@0 skip@0 dil3@2",
        "max@0 max@1 skip@2 max@1 max@0 skip@2 skip@2 max@1",
    ),
    "PC_DARTS_cifar": (
        "sep3@1 skip@0 sep3@0 dil3@1 sep5@0 sep3@1 avg@0 dil3@1",
        "sep5@1 max@0 sep5@1 sep5@2 sep3@0 sep3@3 sep3@1 sep3@2",
    ),
    "PC_DARTS_image": (
        "skip@1 sep3@0 sep3@0 skip@1 sep3@1 sep3@3 sep3@1 dil5@4",
        "sep3@0 skip@1 dil5@2 max@1 sep3@2 sep3@1 sep5@0 sep3@3",
    ),
    "GDAS_V1": (
        "skip@0 skip@1 skip@0 sep5@2 sep3@3 skip@0 sep5@4 sep3@3",
        "sep5@0 sep3@1 sep5@2 sep5@1 dil5@2 sep3@1 sep5@0 sep5@1",
    ),
    "PDARTS": (
        "skip@0 dil3@1 skip@0 sep3@1 sep3@1 sep3@3 sep3@0 dil5@4",
        "avg@0 sep5@1 sep3@0 dil5@2 max@0 dil3@1 dil3@1 dil5@3",
    ),
    "NASNet_A": (
        "sep5@1 sep3@0 sep5@0 sep3@0 avg@1 skip@0 avg@0 avg@0 sep3@1 skip@1",
        "sep5@1 sep7@0 max@1 sep7@0 avg@1 sep5@0 skip@3 avg@2 sep3@2 max@1 | 4 5 6",
    ),
    "AmoebaNet_A": (
        "avg@0 max@1 sep3@0 sep5@2 sep3@0 avg@3 sep3@1 skip@1 skip@0 avg@1 | 4 5 6",
        "avg@0 sep3@1 max@0 sep7@2 sep7@0 avg@1 max@0 max@1 1x7@0 sep3@5 | 3 4 6",
    ),
    "PNAS": (
        "sep5@0 max@0 sep7@1 max@1 sep5@1 sep3@1 sep3@4 max@1 sep3@0 skip@1",
        "sep5@0 max@0 sep7@1 max@1 sep5@1 sep3@1 sep3@4 max@1 sep3@0 skip@1",
    ),
    "ENAS": (
        "avg@0 sep3@0 skip@0 sep5@0 skip@0 sep5@1 sep3@1 sep5@0 avg@0 sep5@1",
        "sep3@1 sep3@1 max@0 avg@0 sep5@1 sep5@3 sep3@1 skip@0 max@0 sep5@1 | 2 4 5 6",
    ),
}


def _read_short(cell: str) -> tuple[tuple[Pair, ...], tuple[int, ...]]:
    edges, _, output = cell.partition(" | ")
    pairs = (word.split("@") for word in edges.split())
    concat = tuple(map(int, output.split())) or _ALL
    return tuple((_SHORT_NAMES[operation], int(source)) for operation, source in pairs), concat
