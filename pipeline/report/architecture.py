"""The page's sections on the network: both cells, what they cost, how they were trained."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from d2nas.spaces import EDGES_PER_NODE, NODES, PARAMETERLESS

from .facts import Content, model_file, origin_of
from .html import Html, bullets, count, definitions, image, join, scrolling, table, tag

_CELLS = (("normal", "normal"), ("reduce", "reduction"))
_INPUT_NAMES = {0: "c(k-2)", 1: "c(k-1)"}


def architecture_section(content: Content) -> Html:
    """Return the drawing of both cells, their operations counted, and what the network costs."""
    genotype = content.get("genotype")
    parts: list[object] = [
        definitions(
            [
                ("Origin", origin_of(content)),
                ("Network", _network(content)),
                ("Parameters", _counted(content.get("params"))),
                ("Multiply-adds", _cost(content)),
                ("Model file", model_file(content)),
            ]
        )
    ]
    if content.genotype_svg is not None:
        drawing = image(content.genotype_svg, _spoken(genotype))
        parts.append(
            tag(
                "figure",
                scrolling("Drawing of both cells", drawing),
                tag(
                    "figcaption", "Both cells. c(k-1) and c(k-2): outputs of the two cells before."
                ),
                class_="genotype",
            )
        )
    if isinstance(genotype, Mapping):
        parts += [_operations(genotype), _edges(genotype)]
    return join(parts)


def _network(content: Content) -> str | None:
    cells, channels = content.get("retrain", "num_cells"), content.get("retrain", "init_channels")
    return None if cells is None else f"{cells} cells, {channels} channels at the start"


def _counted(value: int | None) -> str | None:
    return None if value is None else count(value)


def _cost(content: Content) -> str | None:
    macs, convention = content.get("macs"), content.get("macs_convention")
    if macs is None:
        return None
    return count(macs) + (f" ({convention})" if convention else "")


def _pairs(genotype: Mapping[str, Any], cell: str) -> list[tuple[str, int]]:
    return [(str(operation), int(source)) for operation, source in genotype.get(cell) or []]


def _nodes(genotype: Mapping[str, Any], cell: str) -> list[list[tuple[str, int]]]:
    pairs = _pairs(genotype, cell)
    return [pairs[start : start + EDGES_PER_NODE] for start in range(0, len(pairs), EDGES_PER_NODE)]


def _source_name(source: int) -> str:
    return _INPUT_NAMES.get(source, f"node {source}")


def _spoken(genotype: Any) -> str:
    if not isinstance(genotype, Mapping):
        return "Drawing of the normal cell and the reduction cell"
    cells = []
    for key, name in _CELLS:
        nodes = [
            f"node {number}: "
            + " and ".join(f"{operation} of {_source_name(source)}" for operation, source in pair)
            for number, pair in enumerate(_nodes(genotype, key), start=NODES[0])
        ]
        cells.append(f"{name.capitalize()} cell: {'; '.join(nodes)}.")
    return " ".join(cells)


def _operations(genotype: Mapping[str, Any]) -> Html:
    counters = [Counter(operation for operation, _ in _pairs(genotype, key)) for key, _ in _CELLS]
    names = sorted(counters[0] + counters[1], key=lambda n: (n in PARAMETERLESS, n))
    rows: list[Sequence[object]] = [
        [
            tag("code", name),
            *(str(counter[name]) for counter in counters),
            "no" if name in PARAMETERLESS else "yes",
        ]
        for name in names
    ]
    without = [sum(c[name] for name in PARAMETERLESS) for c in counters]
    rows.append(
        [
            "without weights",
            *(f"{n} of {c.total()}" for n, c in zip(without, counters, strict=True)),
            "",
        ]
    )
    note = "Counted by name, as the papers do; a skip_connect of stride 2 has weights, too."
    return join(
        (
            table("Operations counted", ("operation", "normal", "reduction", "weights"), rows),
            bullets([note], "notes"),
        )
    )


def _edges(genotype: Mapping[str, Any]) -> Html:
    cells = [_nodes(genotype, key) for key, _ in _CELLS]
    rows = [
        [
            str(number),
            *(
                _written(cell[number - NODES[0]]) if number - NODES[0] < len(cell) else ""
                for cell in cells
            ),
        ]
        for number in range(NODES[0], NODES[0] + max(len(cell) for cell in cells))
    ]
    return table(
        "What each node reads", ("node", "normal cell", "reduction cell"), rows, class_="words"
    )


def _written(pair: Sequence[tuple[str, int]]) -> Html:
    lines = [
        tag("span", tag("code", operation), f" of {_source_name(source)}", class_="line")
        for operation, source in pair
    ]
    return join(lines)


def training_section(content: Content) -> Html:
    """Return the curves of the search and of the final training, where they exist."""
    names = {"search": "Search", "retrain": "Final training"}
    figures = [
        tag(
            "figure",
            image(
                content.curves[stage],
                f"{name}: loss and accuracy by epoch. {_ended(content, stage)}",
            ),
            tag("figcaption", f"{name}. {_ended(content, stage)}"),
        )
        for stage, name in names.items()
        if stage in content.curves
    ]
    return tag("div", *figures, class_="pair") if figures else Html("")


def _ended(content: Content, stage: str) -> str:
    key = "train_accuracy" if stage == "retrain" else "arch_accuracy"
    value = content.made(stage, "facts", key)
    if value is None:
        return "Accuracy is on training images."
    where = "training images" if stage == "retrain" else "the architecture half"
    return f"Last epoch: {100 * value:.1f} % on {where}."
