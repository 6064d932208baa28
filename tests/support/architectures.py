"""Exported networks of chosen and random genotypes, and edits of their graphs."""

import random
from collections.abc import Callable
from functools import cache

import onnx
import torch
from made_once import traced_once
from onnx import helper, numpy_helper

from d2nas.files.strict_json import canonical_json
from d2nas.genotype import Genotype, Pair
from d2nas.nn.network import Network, describe_network
from d2nas.nn.operations import initialize
from d2nas.randomness import generator
from d2nas.spaces import EDGES_PER_NODE, NODES
from pipeline.identity.check import GENOTYPE_KEY, NETWORK_KEY
from pipeline.identity.layout import DEPLOYED_OPERATIONS
from pipeline.onnx_io.export import export_onnx
from pipeline.onnx_io.model_file import check_model

EVERY_OPERATION = Genotype(
    normal=(
        ("sep_conv_3x3", 0),
        ("skip_connect", 1),
        ("max_pool_3x3", 0),
        ("dil_conv_5x5", 2),
        ("conv_7x1_1x7", 0),
        ("avg_pool_3x3", 2),
        ("dil_conv_3x3", 3),
        ("skip_connect", 0),
    ),
    reduce=(
        ("skip_connect", 0),
        ("sep_conv_5x5", 1),
        ("max_pool_3x3", 0),
        ("avg_pool_3x3", 1),
        ("sep_conv_7x7", 0),
        ("conv_7x1_1x7", 1),
        ("dil_conv_5x5", 1),
        ("dil_conv_3x3", 3),
    ),
)
"""All operations of S0 to S4 and both of the wider DARTS list, but noise, which is not exported."""

MERGED = Genotype(
    normal=(
        ("max_pool_3x3", 0),
        ("skip_connect", 1),
        ("skip_connect", 1),
        ("max_pool_3x3", 0),
        ("sep_conv_3x3", 2),
        ("skip_connect", 0),
        ("max_pool_3x3", 3),
        ("max_pool_3x3", 2),
    ),
    reduce=(
        ("max_pool_3x3", 0),
        ("avg_pool_3x3", 1),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
        ("sep_conv_3x3", 2),
        ("sep_conv_3x3", 3),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
    ),
)
"""Nodes 2 and 3 of the normal cell, and 3 and 5 of the reduction cell, are the same function."""


def random_genotype(seed: int) -> Genotype:
    """Any operations, on any two different predecessors."""
    draw = random.Random(seed)

    def cell() -> tuple[Pair, ...]:
        sources = [s for node in NODES for s in draw.sample(range(node), EDGES_PER_NODE)]
        return tuple((draw.choice(DEPLOYED_OPERATIONS), source) for source in sources)

    return Genotype(cell(), cell())


@cache
def exported(
    genotype: Genotype,
    *,
    stem: str = "cifar",
    opset: int = 20,
    size: int = 16,
    cells: int = 4,
    precision: str = "fp32",
) -> bytes:
    """A small network with random weights as the export stage writes it."""
    sizes = {"num_cells": cells, "init_channels": 4, "num_classes": 5, "in_channels": 3}
    network = Network(genotype, stem=stem, **sizes).eval()
    draw = generator(0, "architectures")
    initialize(network, draw)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5, generator=draw)
                norm.bias.uniform_(-0.2, 0.2, generator=draw)
    described = describe_network(genotype, stem=stem, **sizes)
    with traced_once():
        return export_onnx(
            network,
            input_shape=(3, size, size),
            opset=opset,
            metadata={
                GENOTYPE_KEY: genotype.to_json().strip(),
                NETWORK_KEY: canonical_json(described).decode().strip(),
            },
            precision=precision,
        )


def edited(data: bytes, edit: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    """An edited copy, which is still a valid model of the same interface."""
    model = onnx.ModelProto.FromString(data)
    edit(model)
    return check_model(model.SerializeToString(), what="edited")


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node of that name."""
    (found,) = (candidate for candidate in model.graph.node if candidate.name == name)
    return found


def set_attribute(changed: onnx.NodeProto, name: str, value: object) -> None:
    """Replace an attribute."""
    others = [attribute for attribute in changed.attribute if attribute.name != name]
    del changed.attribute[:]
    changed.attribute.extend([*others, helper.make_attribute(name, value)])


def weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """The initializer of that name."""
    (found,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    return found


def set_weight(model: onnx.ModelProto, name: str, values: object) -> None:
    """Replace a weight's values, and its shape with them."""
    weight(model, name).CopyFrom(numpy_helper.from_array(values, name))
    kept = [value for value in model.graph.value_info if value.name != name]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def insert(model: onnx.ModelProto, *nodes: onnx.NodeProto, before: str) -> None:
    """Put nodes before the one that is called ``before``."""
    every = list(model.graph.node)
    position = [candidate.name for candidate in every].index(before)
    del model.graph.node[:]
    model.graph.node.extend([*every[:position], *nodes, *every[position:]])
