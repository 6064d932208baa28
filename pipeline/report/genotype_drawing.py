"""A genotype as a picture: both cells as SVG, every edge a line from its source to its operation.

Nodes stand on a diagonal. What a node hands on goes straight down from it, what a node reads comes
from the left in two rows of its own, so that no line runs through a box and lines only cross at
right angles; a dot says where one branches off.
"""

from d2nas.genotype import Genotype
from d2nas.spaces import CELL_TYPES, EDGES_PER_NODE, NUM_INPUTS, is_parameterless

from . import svg

_INPUTS = {38: "c(k-2)", 104: "c(k-1)"}
_INPUT_Y = 60
_COLUMN, _ROW, _LANE = 143, 72, 32
"""Distance of two nodes to the right and downwards, and of a node's two operations, in pixels."""
_FIRST_LANE = 106
_RADIUS = 15
_BOX_WIDTH, _BOX_HEIGHT = 58, 26
_OPERATION_WIDTH = 98
_ARROW = 16
_RIGHT_MARGIN, _BOTTOM_MARGIN = 30, 38
_RULES = """
text { font: 12px system-ui, sans-serif; fill: $ink; text-anchor: middle }
.title { font-size: 15px; font-weight: 600; text-anchor: start }
.legend { fill: $soft; text-anchor: end }
.paper { fill: $paper }
.edge, .plain, .out { fill: none; stroke: $accent; stroke-width: 1.6 }
.plain { stroke: $middle; stroke-dasharray: 5 4 }
.out { stroke: $faint; stroke-width: 1.2 }
.dot { fill: $accent }
.box { fill: $tint; stroke: $middle }
.operation { fill: $wash; stroke: $accent }
.free { fill: $paper; stroke: $middle; stroke-dasharray: 5 4 }
"""
_DARK_RULES = """
text { fill: $ink }
.legend { fill: $soft }
.paper { fill: $paper }
.edge, .operation { stroke: $accent }
.plain, .free, .box { stroke: $middle }
.out { stroke: $faint }
.dot { fill: $accent }
.box { fill: $tint }
.operation { fill: $wash }
.free { fill: $paper }
"""


def draw_genotype(genotype: Genotype) -> str:
    """Return a self-contained SVG; dashed are operations without weights."""
    height = _output_y(genotype) + _BOTTOM_MARGIN
    cells = "".join(
        f'<g transform="translate(0 {height * index})">{_draw_cell(genotype, cell)}</g>'
        for index, cell in enumerate(CELL_TYPES)
    )
    return svg.document(
        _width(genotype), height * len(CELL_TYPES), "genotype", _RULES, _DARK_RULES, cells
    )


def _draw_cell(genotype: Genotype, cell_type: str) -> str:
    title = "Normal cell" if cell_type == "normal" else "Reduction cell"
    concat = genotype.normal_concat if cell_type == "normal" else genotype.reduce_concat
    edges = [
        (operation, source, index)
        for index, (operation, source) in enumerate(genotype.cell(cell_type))
    ]
    legend = "dashed: operations without weights"
    return "".join(
        [
            f'<text class="title" x="9" y="26">{title}</text>',
            f'<text class="legend" x="{_width(genotype) - 9}" y="26">{legend}</text>',
            *(_draw_output_line(node, _output_y(genotype)) for node in concat),
            *(_draw_trunk(source, edges) for source in range(genotype.nodes.stop)),
            *(_draw_edge(*edge) for edge in edges),
            *(_draw_box(x, _INPUT_Y, name) for x, name in _INPUTS.items()),
            *(_draw_node(node) for node in genotype.nodes),
            _draw_output(genotype, concat),
        ]
    )


def _width(genotype: Genotype) -> int:
    return _centre(genotype.nodes[-1])[0] + _RIGHT_MARGIN


def _output_y(genotype: Genotype) -> int:
    """Height of the output, below the lowest node."""
    return _lane(len(genotype.normal)) - _LANE // 4


def _centre(source: int) -> tuple[int, int]:
    """Position of an input or a node."""
    if source < NUM_INPUTS:
        return list(_INPUTS)[source], _INPUT_Y
    index = source - NUM_INPUTS
    return max(_INPUTS) + _COLUMN * (index + 1), _FIRST_LANE + _ROW * index + _LANE // 2


def _lane(index: int) -> int:
    """Height of the row of the edge with this index."""
    return _FIRST_LANE + _ROW * (index // EDGES_PER_NODE) + _LANE * (index % EDGES_PER_NODE)


def _draw_trunk(source: int, edges: list[tuple[str, int, int]]) -> str:
    """Draw the line down from a source to the last operation that reads it."""
    lanes = [_lane(index) for _, read, index in edges if read == source]
    if not lanes:
        return ""
    x, y = _centre(source)
    dots = "".join(f'<circle class="dot" cx="{x}" cy="{lane}" r="3"/>' for lane in lanes)
    return f'<path class="edge" d="M{x} {y} V{max(lanes)}"/>{dots}'


def _draw_edge(operation: str, source: int, index: int) -> str:
    start, lane = _centre(source)[0], _lane(index)
    end, middle = _centre(NUM_INPUTS + index // EDGES_PER_NODE)
    right = end - _RADIUS - _ARROW
    left = right - _OPERATION_WIDTH
    line, box = ("plain", "free") if is_parameterless(operation) else ("edge", "operation")
    bend = right + _ARROW // 2
    return (
        f'<path class="{line}" d="M{start} {lane} H{left}"/>'
        f'<path class="{line}" d="M{right} {lane} Q{bend} {lane} {end} {middle}"/>'
        f'<rect class="{box}" x="{left}" y="{lane - _BOX_HEIGHT // 2}" width="{_OPERATION_WIDTH}" '
        f'height="{_BOX_HEIGHT}" rx="13"/>'
        f'<text x="{left + _OPERATION_WIDTH // 2}" y="{lane + 4}">{svg.text(operation)}</text>'
    )


def _draw_box(x: int, y: int, text: str) -> str:
    return (
        f'<rect class="box" x="{x - _BOX_WIDTH // 2}" y="{y - _BOX_HEIGHT // 2}" '
        f'width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="5"/>'
        f'<text x="{x}" y="{y + 4}">{svg.text(text)}</text>'
    )


def _draw_node(node: int) -> str:
    x, y = _centre(node)
    return (
        f'<circle class="box" cx="{x}" cy="{y}" r="{_RADIUS}"/>'
        f'<text x="{x}" y="{y + 4}">{node}</text>'
    )


def _draw_output_line(node: int, output_y: int) -> str:
    x, y = _centre(node)
    return f'<path class="out" d="M{x} {y} V{output_y}"/>'


def _draw_output(genotype: Genotype, concat: tuple[int, ...]) -> str:
    left, right = _centre(genotype.nodes[0])[0] - 20, _centre(genotype.nodes[-1])[0] + 20
    y = _output_y(genotype)
    names = ", ".join(str(node) for node in concat)
    return (
        f'<rect class="box" x="{left}" y="{y - _BOX_HEIGHT // 2}" width="{right - left}" '
        f'height="{_BOX_HEIGHT}" rx="5"/>'
        f'<text x="{(left + right) // 2}" y="{y + 4}">output: {names} concatenated</text>'
    )
