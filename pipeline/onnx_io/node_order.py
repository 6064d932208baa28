"""Order of a graph's nodes: ONNX wants each after what it reads."""

from collections.abc import Sequence

import onnx


def order_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Make ``nodes`` those of ``graph``: each after what it reads, and otherwise in their order."""
    made_by = {name: at for at, node in enumerate(nodes) for name in node.output}
    order: dict[int, None] = {}
    for at in range(len(nodes)):
        waiting = [at]
        while waiting:
            sources = (made_by.get(name, -1) for name in nodes[waiting[-1]].input)
            needed = [source for source in sources if source >= 0 and source not in order]
            if needed:
                waiting.extend(needed)
            else:
                order.setdefault(waiting.pop())
    ordered = [nodes[at] for at in order]
    del graph.node[:]
    graph.node.extend(ordered)
