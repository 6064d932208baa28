"""The science is exact: counts, logits, losses and gradients of the published code."""

import pytest
import torch
from reference import fill, images, reference
from torch import nn
from torch.nn import functional as F

from d2nas import SPACES, Genotype, Network, Supernet, count_cost
from d2nas.errors import ConfigError
from d2nas.nn.network import auxiliary_fits
from d2nas.nn.operations import (
    OPERATIONS,
    FactorizedReduce,
    ReLUConvBN,
    build_operation,
    reduction_positions,
)
from d2nas.spaces import EDGES

LOGIT_TOLERANCE = 1e-9
NORM_TOLERANCE = 1e-8
GENOTYPES = sorted(reference()["genotypes"])
COUNTED = [
    (name, config)
    for name in GENOTYPES
    for config in reference()["genotypes"][name].get("counts", {})
    if config in reference()["configs"] and not config.startswith("fashion")
]
MEASURED = [
    (name, config)
    for name, configs in reference()["reference_values"]["fixed_networks"].items()
    for config in configs
]


def genotype_of(name: str) -> Genotype:
    entry = reference()["genotypes"][name]
    keys = ("normal", "normal_concat", "reduce", "reduce_concat")
    return Genotype.from_dict({key: entry[key] for key in keys})


def network_of(name: str, config: str, *, auxiliary: bool) -> Network:
    setting = reference()["configs"][config]
    return Network(
        genotype_of(name),
        num_cells=setting["layers"],
        init_channels=setting["init_channels"],
        num_classes=setting["classes"],
        stem=setting["model"].lower(),
        auxiliary=auxiliary,
    )


@pytest.mark.parametrize("name", [n for n in GENOTYPES if not n.startswith("all_")])
def test_published_genotypes_are_those_of_their_authors(name: str) -> None:
    assert Genotype.published(name) == genotype_of(name)


@pytest.mark.parametrize(("name", "config"), COUNTED)
def test_counts_are_exact(name: str, config: str) -> None:
    expected = reference()["genotypes"][name]["counts"][config]
    shape = reference()["configs"][config]["input"]
    plain = network_of(name, config, auxiliary=False)
    cost = count_cost(plain, shape)
    assert (cost.params, cost.macs) == (expected["params"], expected["macs"])
    buffers = sum(buffer.numel() for buffer in plain.buffers())
    assert buffers == expected["bn_buffer_elements"]
    linear = sum(m.in_features * m.out_features for m in plain.modules() if type(m) is nn.Linear)
    assert linear == expected["linear_macs"]

    headed = network_of(name, config, auxiliary=True)
    headed_cost = count_cost(headed, shape)
    assert headed_cost.params == expected["params_with_aux"]
    assert headed_cost.macs == expected["macs"]  # the head runs in training only
    width = headed.auxiliary_head.features[2].in_channels
    head_cost = count_cost(headed.auxiliary_head, (width, *((8, 8) if shape[1] == 32 else (7, 7))))
    assert (head_cost.params, head_cost.macs) == (expected["aux_params"], expected["aux_macs"])


@pytest.mark.parametrize("name", [n for n, config in COUNTED if config == "imagenet_14x48"])
def test_imagenet_outputs_give_the_papers_second_flops_convention(name: str) -> None:
    expected = reference()["genotypes"][name]["counts"]["imagenet_14x48"]
    network = network_of(name, "imagenet_14x48", auxiliary=False).to("meta").eval()
    outputs = {nn.BatchNorm2d: 0, nn.ReLU: 0}
    for layer in network.modules():
        if type(layer) in outputs:
            layer.register_forward_hook(
                lambda layer, _, out: outputs.__setitem__(
                    type(layer), outputs[type(layer)] + out.numel()
                )
            )
    network(torch.empty(1, 3, 224, 224, device="meta"))
    assert outputs[nn.BatchNorm2d] == expected["bn_outputs"]
    assert outputs[nn.ReLU] == expected["relu_outputs"]
    total = expected["macs"] + 2 * outputs[nn.BatchNorm2d] + outputs[nn.ReLU]
    assert total == expected["conv_linear_2bn_relu"]


@pytest.mark.parametrize("name", ["DARTS_V1", "DARTS_V2", "PC_DARTS_cifar"])
@pytest.mark.parametrize("setting", [(8, 16), (20, 16), (20, 36)])
def test_one_channel_counts_are_exact(name: str, setting: tuple[int, int]) -> None:
    cells, channels = setting
    expected = reference()["genotypes"][name]["counts"][f"fashion_1ch_{cells}x{channels}"]
    network = Network(genotype_of(name), num_cells=cells, init_channels=channels, in_channels=1)
    assert count_cost(network, (1, 28, 28)).macs == expected["macs_28x28"]
    assert count_cost(network, (1, 32, 32)).macs == expected["macs_32x32"]
    assert count_cost(network, (1, 32, 32)).params == expected["params"]


@pytest.mark.parametrize(("name", "config"), MEASURED)
def test_evaluation_logits_are_exact(name: str, config: str) -> None:
    expected = reference()["reference_values"]["fixed_networks"][name][config]
    network = fill(network_of(name, config, auxiliary=False)).eval()
    batch = 1 if config.startswith("imagenet") else 2
    with torch.no_grad():
        logits = network(images(batch, *reference()["configs"][config]["input"]))
    target = torch.tensor(expected["eval_logits_first10"], dtype=torch.float64)
    assert (logits[:, :10] - target).abs().max() <= LOGIT_TOLERANCE


@pytest.mark.parametrize(
    ("name", "config"), [case for case in MEASURED if case[1] != "imagenet_14x48"]
)
def test_training_losses_and_gradients_are_exact(name: str, config: str) -> None:
    expected = reference()["reference_values"]["fixed_networks"][name][config]
    network = fill(network_of(name, config, auxiliary=True)).train()
    logits, auxiliary = network(images(4, 3, 32, 32))
    targets = torch.arange(4)
    loss, auxiliary_loss = F.cross_entropy(logits, targets), F.cross_entropy(auxiliary, targets)
    total = loss + 0.4 * auxiliary_loss
    total.backward()
    squares = sum(parameter.grad.square().sum() for parameter in network.parameters())
    for key, value in (
        ("train_logits_sample0", logits[0]),
        ("train_aux_logits_sample0", auxiliary[0]),
        ("train_loss", loss),
        ("train_aux_loss", auxiliary_loss),
        ("train_total_loss_aux04", total),
    ):
        target = torch.tensor(expected[key], dtype=torch.float64)
        assert (value - target).abs().max() <= LOGIT_TOLERANCE, key
    assert float(squares.sqrt()) == pytest.approx(
        expected["grad_l2_all_params"], rel=NORM_TOLERANCE
    )


@pytest.mark.parametrize("case", sorted(reference()["unit_ops_16ch_32x32"]))
def test_unit_operations_are_exact(case: str) -> None:
    expected = reference()["unit_ops_16ch_32x32"][case]
    channels, size = (64, 32) if case.endswith("64to16") else (16, 32)
    if case.startswith("relu_conv_bn"):
        module, plain = (ReLUConvBN(channels, 16, affine=a) for a in (True, False))
    elif case.startswith("factorized_reduce"):
        module, plain = (FactorizedReduce(channels, 16, affine=a) for a in (True, False))
    else:
        name, stride = case.rsplit("_s", 1)
        module = build_operation(name, 16, int(stride))
        plain = OPERATIONS[name](16, int(stride), False)
    cost = count_cost(module, (channels, size, size))
    params = expected.get("params_affine", expected.get("params"))
    assert (cost.params, cost.macs) == (params, expected["macs"])
    if "params_search" in expected:
        assert count_cost(plain, (channels, size, size)).params == expected["params_search"]
    assert list(module(torch.zeros(1, channels, size, size)).shape) == expected["out"]


SUPERNETS = {
    "DARTS_S0_8ops_8x16_c10": ("S0", 8, 16, 10),
    "DARTS_S0_8ops_8x16_c100": ("S0", 8, 16, 100),
    "DARTS_S0_8ops_5x16_c10": ("S0", 5, 16, 10),
    "DARTS_S0_8ops_3x4_c10": ("S0", 3, 4, 10),
    **{
        f"RobustDARTS_s{k}_8x16_c{classes}": (f"S{k % 5}", 8, 16, classes)
        for k in range(1, 6)
        for classes in (10, 100)
    },
}


@pytest.mark.parametrize("case", sorted(SUPERNETS))
def test_entangled_supernet_holds_the_weights_of_the_published_search_network(case: str) -> None:
    space, cells, channels, classes = SUPERNETS[case]
    supernet = Supernet(
        SPACES[space],
        num_cells=cells,
        init_channels=channels,
        num_classes=classes,
        branch_length=cells,
    )
    weights = sum(parameter.numel() for parameter in supernet.parameters())
    assert weights == reference()["supernets"][case]["weights"]


def test_reduction_cells_stand_at_a_third_and_two_thirds() -> None:
    for layers, positions in reference()["reduction_cells_by_layers"].items():
        assert list(reduction_positions(int(layers))) == positions


def test_edge_order() -> None:
    assert EDGES[:5] == ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    assert EDGES[-1] == (4, 5)
    assert len(EDGES) == 14


@pytest.mark.parametrize("broken", ["count_include_pad", "eps", "dilation"])
def test_control_a_wiring_slip_leaves_the_tolerance(broken: str) -> None:
    """The reference values can fail: each of three classic slips is seen."""
    name = "all_avg_pool_3x3" if broken == "count_include_pad" else "DARTS_V2"
    network = fill(network_of(name, "cifar10_8x16", auxiliary=False)).eval()
    for layer in network.modules():
        if broken == "count_include_pad" and isinstance(layer, nn.AvgPool2d):
            layer.count_include_pad = True
        elif broken == "eps" and isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-3
        elif broken == "dilation" and isinstance(layer, nn.Conv2d) and layer.dilation == (2, 2):
            layer.dilation, layer.padding = (1, 1), (1, 1)
    expected = reference()["reference_values"]["fixed_networks"][name]["cifar10_8x16"]
    with torch.no_grad():
        logits = network(images(2, 3, 32, 32))
    target = torch.tensor(expected["eval_logits_first10"], dtype=torch.float64)
    assert (logits - target).abs().max() > 1e-3


@pytest.mark.parametrize("size", [7, 8, 9, 13, 28, 30, 33])
def test_any_image_size_runs(size: int) -> None:
    network = Network(Genotype.published("DARTS_V1"), num_cells=4, init_channels=4).eval()
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 10)


def test_factorized_reduce_on_even_sizes_equals_the_sliced_form() -> None:
    module = fill(FactorizedReduce(8, 6, affine=True)).eval()
    x = images(2, 8, 6, 10)
    halves = (module.conv_even(x.relu()), module.conv_odd(x.relu()[:, :, 1:, 1:]))
    assert torch.equal(module(x), module.norm(torch.cat(halves, dim=1)))


def test_shallow_network_keeps_its_logits_with_the_auxiliary_head_on() -> None:
    torch.manual_seed(0)
    network = Network(
        Genotype.published("DARTS_V1"), num_cells=3, init_channels=4, auxiliary=True
    ).train()
    x = torch.randn(2, 3, 32, 32)
    logits, _ = network(x)
    network.auxiliary_head = None
    assert torch.equal(network(x), logits)


def test_auxiliary_head_fits_exactly_where_it_runs() -> None:
    for size in range(16, 65, 4):
        network = Network(
            Genotype.published("DARTS_V1"), num_cells=3, init_channels=4, auxiliary=True
        ).train()
        try:
            network(torch.zeros(2, 3, size, size))
            runs = True
        except RuntimeError:
            runs = False
        assert auxiliary_fits(size, "cifar") == runs, size
    assert auxiliary_fits(224, "imagenet")
    assert not auxiliary_fits(28, "cifar")


def test_odd_widths_are_refused() -> None:
    with pytest.raises(ConfigError, match="even"):
        FactorizedReduce(8, 5, affine=True)
    with pytest.raises(ConfigError, match="even"):
        Network(Genotype.published("DARTS_V1"), init_channels=7, stem="imagenet")
