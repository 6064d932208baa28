"""The network that a genotype stands for, laid over what a graph computes.

The rules of ``d2nas.nn.network`` and ``d2nas.nn.operations`` stand here again, as data and without
torch: a check that shared their code would share their mistakes.

A cell is laid over the graph from its output down. Nodes are found by their place in the cell's
concatenation, operations layer by layer. Where the graph leaves a choice, all are followed, so that
a cell fits if, and only if, there is a way to give the genotype's layers the graph's values. Why
that proves that the graph is the genotype's network: every layer of the network, from the images
on, is given a value with the same settings that reads the values given to the layer's own inputs.
So, layer by layer, the graph computes what the network computes with the graph's weights. Unlike
layers, parts without weights may share a value (two poolings of one state are one); a convolution
of the network must have weights of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from d2nas.genotype import Genotype, Pair
from d2nas.spaces import EDGES_PER_NODE, NUM_INPUTS, OPERATION_NAMES

from .expressions import Value


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer and the settings that its value must have; ``channels`` None: those of its input."""

    kind: str
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: int = 1
    depthwise: bool = False
    channels: int | None = None
    scaled: bool = False

    def fits(self, value: Value) -> bool:
        """Say whether ``value`` is this layer's."""
        if value.kind != self.kind:
            return False
        if self.kind == "relu":
            return True
        height, width = (self.dilation * (size // 2) for size in self.kernel)
        pads, dilations = (height, width, height, width), (self.dilation, self.dilation)
        window = (self.kernel, self.stride, dilations, pads)
        if self.kind != "conv":
            return value.settings == (*window, False)
        groups = value.inputs[0].shape[0] if self.depthwise else 1
        return (
            value.settings == (*window, groups)
            and value.shape[0] == self.channels
            # A scale that changes nothing may be gone; one that nobody asked for may not be there.
            and (self.scaled or not value.learned.scaled)
        )


@dataclass(frozen=True, slots=True)
class Factorized:
    """The stride-2 skip: ReLU, two 1x1 convolutions side by side, the second of the moved input."""

    channels: int


Layers = tuple[Layer | Factorized, ...]


def _depthwise_unit(channels: int, kernel: int, stride: int, dilation: int) -> Layers:
    spatial = Layer(
        "conv",
        (kernel, kernel),
        (stride, stride),
        dilation,
        depthwise=True,
        channels=channels,
    )
    return (Layer("relu"), spatial, Layer("conv", channels=channels, scaled=True))


def operation_layers(name: str, channels: int, stride: int) -> Layers:
    """Return an operation's layers, first to last. Raises ``KeyError`` for an unknown name."""
    separable = {f"sep_conv_{size}x{size}": size for size in (3, 5, 7)}
    dilated = {f"dil_conv_{size}x{size}": size for size in (3, 5)}
    if name in separable:
        first = _depthwise_unit(channels, separable[name], stride, 1)
        return (*first, *_depthwise_unit(channels, separable[name], 1, 1))
    if name in dilated:
        return _depthwise_unit(channels, dilated[name], stride, 2)
    others: dict[str, Layers] = {
        "max_pool_3x3": (Layer("max_pool", (3, 3), (stride, stride)),),
        "avg_pool_3x3": (Layer("avg_pool", (3, 3), (stride, stride)),),
        "skip_connect": () if stride == 1 else (Factorized(channels),),
        "conv_7x1_1x7": (
            Layer("relu"),
            Layer("conv", (1, 7), (1, stride), channels=channels),
            Layer("conv", (7, 1), (stride, 1), channels=channels, scaled=True),
        ),
    }
    return others[name]


DEPLOYED_OPERATIONS = tuple(name for name in OPERATION_NAMES if name not in ("none", "noise"))
"""What an exported network can hold: neither ``none`` nor ``noise``."""


@dataclass(frozen=True, slots=True)
class CellLayout:
    """Layout that one cell must have."""

    position: int
    cell_type: str
    channels: int
    pairs: tuple[Pair, ...]
    concat: tuple[int, ...]
    after_reduction: bool

    def operation(self, edge: int) -> Layers:
        """Return the layers of one of the edges."""
        name, source = self.pairs[edge]
        return operation_layers(name, self.channels, self.stride(source))

    def stride(self, source: int) -> int:
        """Return the stride of operations on ``source``."""
        return 2 if self.cell_type == "reduce" and source < NUM_INPUTS else 1

    def preprocess(self, which: int) -> Layers:
        """Return the layers that bring input ``which`` to the cell's width."""
        if which == 0 and self.after_reduction:
            return (Factorized(self.channels),)
        return (Layer("relu"), Layer("conv", channels=self.channels, scaled=True))


@dataclass(frozen=True, slots=True)
class Claim:
    """Claim of a model about its own network."""

    genotype: Genotype
    num_cells: int
    init_channels: int
    num_classes: int
    in_channels: int
    stem: str

    def cells(self) -> list[CellLayout]:
        """Return what each cell must be: reductions at a third and two thirds of the depth."""
        layouts: list[CellLayout] = []
        channels, after_reduction = self.init_channels, self.stem == "imagenet"
        for position in range(self.num_cells):
            reduces = position in (self.num_cells // 3, 2 * self.num_cells // 3)
            channels *= 2 if reduces else 1
            genotype = self.genotype
            layouts.append(
                CellLayout(
                    position,
                    "reduce" if reduces else "normal",
                    channels,
                    genotype.reduce if reduces else genotype.normal,
                    genotype.reduce_concat if reduces else genotype.normal_concat,
                    after_reduction,
                )
            )
            after_reduction = reduces
        return layouts

    def stem_layers(self) -> tuple[Layers, Layers]:
        """Return the layers from the images to cell 0's input 0, and from there to input 1."""

        def conv(channels: int, stride: int) -> Layer:
            return Layer("conv", (3, 3), (stride, stride), channels=channels, scaled=True)

        width = self.init_channels
        if self.stem == "cifar":
            return (conv(3 * width, 1),), ()
        relu = Layer("relu")
        return (conv(width // 2, 2), relu, conv(width, 2)), (relu, conv(width, 2))


@dataclass(frozen=True, slots=True)
class Fit:
    """Layers laid over a value: the value that the first one reads, and their convolutions."""

    leaf: Value
    convs: tuple[Value, ...] = ()


def lay(layers: Layers, value: Value) -> Fit | None:
    """Lay ``layers`` over ``value``, the output of the last one; None if they do not fit."""
    convs: list[Value] = []
    for layer in reversed(layers):
        if isinstance(layer, Factorized):
            found = _lay_factorized(layer, value)
            if found is None:
                return None
            value, halves = found.leaf, found.convs
            convs += halves
            continue
        if not layer.fits(value):
            return None
        if layer.kind == "conv":
            convs.append(value)
        (value,) = value.inputs
    return Fit(value, tuple(convs))


def _lay_factorized(layer: Factorized, value: Value) -> Fit | None:
    half = Layer("conv", stride=(2, 2), channels=layer.channels // 2, scaled=True)
    if value.kind != "concat" or len(value.inputs) != 2:
        return None
    even, odd = value.inputs
    if not (half.fits(even) and half.fits(odd)) or odd.inputs[0].kind != "window":
        return None
    # Sizes agree, or the halves could not be concatenated: only then may a row of zeros be missing.
    taken, zeros = odd.inputs[0].settings[:2], odd.inputs[0].settings[2:]
    (relu,) = even.inputs
    if taken != (1, 1) or not set(zeros) <= {0, 1} or odd.inputs[0].inputs != (relu,):
        return None
    return Fit(relu.inputs[0], (even, odd)) if relu.kind == "relu" else None


@dataclass(frozen=True, slots=True)
class CellFit:
    """A cell laid over a value: the values of its two inputs, and its convolutions."""

    inputs: tuple[Value, Value]
    convs: tuple[Value, ...]


def fit_cell(layout: CellLayout, output: Value) -> list[CellFit]:
    """Return the ways to lay a cell over ``output``, one for each pair of inputs; [] if none."""
    states = node_values(layout, output)
    found: dict[tuple[int, ...], CellFit] = {}
    last = len(layout.pairs) // EDGES_PER_NODE - 1
    for assigned, convs in _fit_nodes(layout, states or {}, last, ()):
        fits = [lay(layout.preprocess(which), assigned[which]) for which in range(NUM_INPUTS)]
        first, second = fits
        if first is None or second is None:
            continue
        everything = (*first.convs, *second.convs, *convs)
        inputs = (first.leaf, second.leaf)
        if not shared_weights(everything):
            found[first.leaf.number, second.leaf.number] = CellFit(inputs, everything)
    return list(found.values())


def node_values(layout: CellLayout, output: Value) -> dict[int, Value] | None:
    """Return the values of the nodes that ``output`` concatenates; None if it is no such cell's."""
    # One node is not concatenated with anything.
    parts = output.inputs if output.kind == "concat" else (output,)
    if len(parts) != len(layout.concat) or any(part.kind != "add" for part in parts):
        return None
    if any(part.shape[0] != layout.channels for part in parts):
        return None
    return dict(zip(layout.concat, parts, strict=True))


def _fit_nodes(
    layout: CellLayout, states: dict[int, Value], position: int, convs: tuple[Value, ...]
) -> Iterator[tuple[dict[int, Value], tuple[Value, ...]]]:
    """Yield (values of the cell's states, convolutions) for the nodes up to ``position``."""
    if position < 0:
        if all(which in states for which in range(NUM_INPUTS)):
            yield states, convs
        return
    if NUM_INPUTS + position not in states:  # neither concatenated nor read: not in the graph
        yield from _fit_nodes(layout, states, position - 1, convs)
        return
    for fitted, more in fit_node(layout, states, position):
        yield from _fit_nodes(layout, fitted, position - 1, (*convs, *more))


def fit_node(
    layout: CellLayout, states: dict[int, Value], position: int
) -> Iterator[tuple[dict[int, Value], tuple[Value, ...]]]:
    """Yield (values of the states known then, convolutions) for each way to lay one node."""
    value = states[NUM_INPUTS + position]
    if value.kind != "add":
        return
    edges = range(EDGES_PER_NODE * position, EDGES_PER_NODE * (position + 1))
    first, second = value.inputs
    # Operands are added in any order.
    for operands in [(first, second), (second, first)][: 1 if first is second else 2]:
        known = dict(states)
        convs: list[Value] = []
        for edge, operand in zip(edges, operands, strict=True):
            fit = lay(layout.operation(edge), operand)
            source = layout.pairs[edge][1]
            if fit is None or known.setdefault(source, fit.leaf) is not fit.leaf:
                break
            convs += fit.convs
        else:
            yield known, tuple(convs)


def shared_weights(layers: Sequence[Value]) -> tuple[Value, Value] | None:
    """Return two of ``layers`` with the same weights: a network's layers have weights of their own.

    Layers whose weights are all one number may be equal by coincidence.
    """
    seen: dict[str, Value] = {}
    for layer in layers:
        weights = layer.learned.weights
        if weights in seen and not layer.learned.uniform:
            return seen[weights], layer
        seen[weights] = layer
    return None
