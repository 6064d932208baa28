"""A genotype as a picture: both cells as SVG, nodes left to right, edges named by operation."""

from html import escape

from d2nas.genotype import Genotype
from d2nas.spaces import CELL_TYPES, EDGES_PER_NODE, NODES, PARAMETERLESS

_COLUMN = 190
_BOX_WIDTH, _BOX_HEIGHT = 64, 30
_CELL_HEIGHT = 330
_TOP = 46
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1a1a2e }
.title { font-size: 15px; font-weight: 600 }
.edge { fill: none; stroke: #33658a; stroke-width: 1.6 }
.plain { stroke: #8d99ae; stroke-dasharray: 5 4 }
.box { fill: #eef4ed; stroke: #33658a }
.label { fill: #ffffff; fill-opacity: .88 }
"""


def draw_genotype(genotype: Genotype) -> str:
    """Return a self-contained SVG; dashed edges are operations without weights."""
    width = _COLUMN * (len(NODES) + 1) + 2 * _BOX_WIDTH + 40
    height = _CELL_HEIGHT * len(CELL_TYPES)
    cells = "".join(
        f'<g transform="translate(0 {_CELL_HEIGHT * index})">{_draw_cell(genotype, cell)}</g>'
        for index, cell in enumerate(CELL_TYPES)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="genotype">'
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{cells}</svg>\n'
    )


def _draw_cell(genotype: Genotype, cell_type: str) -> str:
    centres = {0: (20.0, 100.0), 1: (20.0, 240.0)}
    # Nodes zigzag so that edges between distant nodes do not run through the ones between.
    for index, node in enumerate(NODES):
        centres[node] = (20.0 + _COLUMN * (index + 0.9), 110.0 if index % 2 == 0 else 230.0)
    title = "normal cell" if cell_type == "normal" else "reduction cell"
    parts = [f'<text class="title" x="20" y="28">{title}</text>']
    edges, labels = [], []
    for index, (operation, source) in enumerate(genotype.cell(cell_type)):
        node = NODES[index // EDGES_PER_NODE]
        path, label = _draw_edge(centres[source], centres[node], operation, index)
        edges.append(path)
        labels.append(label)
    concat = genotype.normal_concat if cell_type == "normal" else genotype.reduce_concat
    output = (20.0 + _COLUMN * (len(NODES) + 0.8), 170.0)
    for node in concat:
        start_x, start_y = centres[node]
        edges.append(
            f'<path class="edge" stroke-opacity=".35" d="M{start_x + _BOX_WIDTH:.0f} {start_y:.0f} '
            f'L{output[0]:.0f} {output[1]:.0f}"/>'
        )
    names = {0: "c(k-2)", 1: "c(k-1)", **{node: f"node {node}" for node in NODES}}
    boxes = [_draw_box(*centres[node], name) for node, name in names.items()]
    return "".join([*parts, *edges, *boxes, _draw_box(*output, "output"), *labels])


def _draw_edge(
    start: tuple[float, float], end: tuple[float, float], operation: str, index: int
) -> tuple[str, str]:
    start_x, end_x = start[0] + _BOX_WIDTH, end[0]
    bend = (index % EDGES_PER_NODE) * 24 - 12 + (start[1] - end[1]) * 0.25
    middle_x, middle_y = (start_x + end_x) / 2, (start[1] + end[1]) / 2 + 2 * bend
    css = "edge plain" if operation in PARAMETERLESS else "edge"
    path = (
        f'<path class="{css}" d="M{start_x:.0f} {start[1]:.0f} '
        f'Q{middle_x:.0f} {middle_y:.0f} {end_x:.0f} {end[1]:.0f}"/>'
    )
    label_x, label_y = 0.35 * start_x + 0.65 * end_x, 0.3 * start[1] + 0.7 * end[1] + bend
    width = 7 * len(operation)
    label = (
        f'<rect class="label" x="{label_x - width / 2:.0f}" y="{label_y - 12:.0f}" '
        f'width="{width}" height="16" rx="4"/>'
        f'<text x="{label_x:.0f}" y="{label_y:.0f}" text-anchor="middle">{escape(operation)}</text>'
    )
    return path, label


def _draw_box(left: float, middle: float, text: str) -> str:
    top = middle - _BOX_HEIGHT / 2
    return (
        f'<rect class="box" x="{left:.0f}" y="{top:.0f}" width="{_BOX_WIDTH}" '
        f'height="{_BOX_HEIGHT}" rx="6"/>'
        f'<text x="{left + _BOX_WIDTH / 2:.0f}" y="{middle + 4:.0f}" '
        f'text-anchor="middle">{escape(text)}</text>'
    )
