"""Graphs that are built without torch: ONNX Runtime makes the same kernels of an export."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from servings import PLAIN
from torch import nn

from d2nas.data.images import Normalizer
from d2nas.genotype import PUBLISHED, Genotype, uniform
from d2nas.nn.network import Network
from d2nas.nn.operations import plan_cells
from d2nas.spaces import SPACES
from pipeline.identity.check import check_identity
from pipeline.identity.layout import Claim
from pipeline.latency.graphs import cell_graph, is_known, network_graph, outside_graph
from pipeline.latency.parts import Serving, network_cells, operations_in
from pipeline.onnx_io.export import export_onnx
from pipeline.onnx_io.latency import timing_images
from pipeline.onnx_io.session import open_session

EVERYTHING = (
    ("max_pool_3x3", 0),
    ("avg_pool_3x3", 1),
    ("skip_connect", 0),
    ("sep_conv_3x3", 2),
    ("sep_conv_5x5", 0),
    ("dil_conv_3x3", 1),
    ("dil_conv_5x5", 3),
    ("conv_7x1_1x7", 0),
)
SETTINGS = {
    "imagenet": replace(PLAIN, image_size=64, stem="imagenet", opset=18),
    "pixels": replace(PLAIN, image_size=15, in_channels=1, input_type="uint8"),
    "half": replace(PLAIN, precision="fp16"),
}


def claim_of(genotype: Genotype, serving: Serving, cells: int = 3, channels: int = 8) -> Claim:
    sizes = (serving.num_classes, serving.in_channels, serving.stem)
    return Claim(genotype, cells, channels, *sizes)


def exported(claim: Claim, serving: Serving) -> bytes:
    network = Network(
        claim.genotype,
        num_cells=claim.num_cells,
        init_channels=claim.init_channels,
        num_classes=claim.num_classes,
        in_channels=claim.in_channels,
        stem=claim.stem,
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if trained: nothing is 0 or 1
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    channels = serving.in_channels
    return export_onnx(
        network.eval(),
        input_shape=(channels, serving.image_size, serving.image_size),
        opset=serving.opset,
        metadata={},
        pixels=Normalizer((0.5,) * channels, (0.25,) * channels)
        if serving.input_type == "uint8"
        else None,
        precision="fp16" if serving.precision == "fp16" else "fp32",
    )


def kernels(model: bytes, folder: Path) -> "Counter[tuple[object, ...]]":
    """Return what ONNX Runtime runs: operators with the shapes of their weights."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return Counter(
        (node.domain, node.op_type, *(shapes.get(name) for name in node.input))
        for node in graph.node
    )


@pytest.mark.parametrize("serving", SETTINGS.values(), ids=SETTINGS)
def test_the_runtime_makes_the_same_kernels_of_an_export(serving: Serving, tmp_path: Path) -> None:
    claim = claim_of(Genotype(EVERYTHING, EVERYTHING), serving)
    built = kernels(network_graph(claim, serving), tmp_path)
    assert built == kernels(exported(claim, serving), tmp_path)
    # Control: another operation on one edge is told apart.
    other = Genotype((*EVERYTHING[:-1], ("sep_conv_7x7", 0)), EVERYTHING)
    assert built != kernels(network_graph(claim_of(other, serving), serving), tmp_path)


@pytest.mark.parametrize("space", SPACES)
def test_the_identity_check_finds_the_genotype(space: str) -> None:
    numbers = random.Random(0)
    for _ in range(3):
        genotype = uniform(SPACES[space], numbers)
        if is_known(genotype):
            found = check_identity(network_graph(claim_of(genotype, PLAIN), PLAIN))
            assert (found.genotype_digest, found.unknown) == (genotype.digest, ())


def test_published_cells_are_built() -> None:
    for name in PUBLISHED:
        genotype = Genotype.published(name)
        if is_known(genotype):
            check_identity(network_graph(claim_of(genotype, PLAIN), PLAIN))
    assert is_known(Genotype.published("DARTS_V2"))
    assert not is_known(Genotype((*EVERYTHING[:-1], ("noise", 0)), EVERYTHING))


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("num_cells", [1, 2, 3, 5, 8, 20])
def test_the_shapes_of_cells_are_those_of_the_network(stem: str, num_cells: int) -> None:
    genotype = Genotype(EVERYTHING, EVERYTHING)
    claim = claim_of(genotype, replace(PLAIN, stem=stem), num_cells)
    plans = plan_cells(
        num_cells,
        8,
        stem=stem,
        stem_width=24 if stem == "cifar" else 8,
        outputs={"normal": 4, "reduce": 4},
    )
    network = Network(genotype, num_cells=num_cells, init_channels=8, stem=stem).eval()
    sizes: list[tuple[int, int]] = []
    for cell in network.cells:
        cell.register_forward_hook(
            lambda _cell, given, _output: sizes.append(
                (given[0].value.shape[-1], given[1].value.shape[-1])
            )
        )
    with torch.no_grad():
        network(torch.zeros(1, 3, 71, 71))
    shapes = [shape for shape, _ in network_cells(claim, 71)]
    assert [
        (shape.cell_type, shape.channels, shape.input_channels, shape.after_reduction)
        for shape in shapes
    ] == [
        (plan.cell_type, plan.channels, plan.input_channels, plan.after_reduction) for plan in plans
    ]
    assert [shape.input_sizes for shape in shapes] == sizes


def test_poolings_of_one_state_are_one(tmp_path: Path) -> None:
    pool, skip = "max_pool_3x3", "skip_connect"
    first = ((pool, 0), (pool, 1), (pool, 0), (skip, 2))
    cells = (*first, (pool, 0), (pool, 3), (skip, 2), (skip, 3))
    claim = claim_of(Genotype(cells, cells), PLAIN, 3)
    counted = sum(
        part.operation == pool
        for shape, layout in network_cells(claim, PLAIN.image_size)
        for part in operations_in(shape, layout)
    )
    assert counted == 3 * 3
    made = kernels(network_graph(claim, PLAIN), tmp_path)
    assert sum(count for kind, count in made.items() if kind[1] == "MaxPool") == counted


def test_a_cell_is_run_between_made_inputs_and_a_classifier() -> None:
    claim = claim_of(Genotype(EVERYTHING, EVERYTHING), PLAIN, 8)
    for shape, layout in network_cells(claim, PLAIN.image_size):
        with_cell, without = (
            cell_graph(shape, one, replace(PLAIN, input_type="uint8")) for one in (layout, None)
        )
        for model in (with_cell, without):
            session = open_session(model, device="cpu", num_threads=1)
            logits = session.run(timing_images(2, session.description))
            assert logits.shape == (2, 10)
            assert np.isfinite(logits).all()
        kinds = [node.op_type for node in onnx.load_from_string(without).graph.node]
        assert kinds.count("Conv") == 2
        assert not {"MaxPool", "Add"} & {*kinds}


def test_outside_of_the_cells_are_stem_and_classifier() -> None:
    for stem, convolutions in (("cifar", 1), ("imagenet", 3)):
        serving = replace(PLAIN, stem=stem, input_type="uint8")
        claim = claim_of(Genotype(EVERYTHING, EVERYTHING), serving)
        kinds = [
            node.op_type for node in onnx.load_from_string(outside_graph(claim, serving)).graph.node
        ]
        assert kinds.count("Conv") == convolutions
        assert (kinds[0], kinds[-1]) == ("Cast", "Gemm")
