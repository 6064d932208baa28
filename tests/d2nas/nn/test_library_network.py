"""Networks of torchvision and timm: built, adapted, refused."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from d2nas.config import build_config
from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.nn.library_network import (
    LibraryNetwork,
    build_library_network,
    check_network_takes,
    check_takes,
    describe_library_network,
)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_has_the_channels_and_classes_asked_for(channels: int) -> None:
    network = LibraryNetwork("torchvision:resnet18", num_classes=7, in_channels=channels).eval()
    assert network(torch.zeros(2, channels, 32, 32)).shape == (2, 7)
    assert network.drop_factors(None, 2, None) is None
    described = describe_library_network(network.name, num_classes=7, in_channels=channels)
    again = build_library_network(described, what="here")
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes


def test_a_network_of_timm_has_the_channels_and_classes_asked_for() -> None:
    pytest.importorskip("timm", reason="timm is an extra: d2nas[timm]")
    network = LibraryNetwork("timm:resnet10t", num_classes=7, in_channels=1).eval()
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(ConfigError, match="timm has no network resnet10x") as error:
        LibraryNetwork("timm:resnet10x", num_classes=7, in_channels=1)
    assert "resnet10t" in str(error.value.hint)


def test_published_weights_are_kept_and_a_grey_image_means_what_it_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = models.resnet18(weights=None).eval()
    file = models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(published.state_dict(), tmp_path / "hub" / "checkpoints" / file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = LibraryNetwork("torchvision:resnet18", num_classes=4, in_channels=1, pretrained=True)
    body = network.eval().body
    assert isinstance(body, models.ResNet)
    assert torch.equal(body.layer4[1].conv2.weight, published.layer4[1].conv2.weight)
    assert body.fc.out_features == 4
    grey = torch.rand(2, 1, 32, 32)
    body.fc, published.fc = nn.Identity(), nn.Identity()
    torch.testing.assert_close(network(grey), published(grey.expand(2, 3, 32, 32)))


def test_a_size_that_a_network_does_not_take_is_told_before_training() -> None:
    check_takes("torchvision:resnet18", (3, 32, 32), 10)
    with pytest.raises(ConfigError, match="alexnet does not take images of 32 x 32 pixels") as e:
        check_takes("torchvision:alexnet", (3, 32, 32), 10)
    assert "data.image_size" in str(e.value.hint)
    # Published weights may be of another size than the network without them.
    network = LibraryNetwork("torchvision:vit_b_16", num_classes=3, in_channels=3)
    with pytest.raises(ConfigError, match="vit_b_16 does not take images of 32 x 32 pixels"):
        check_network_takes(network, (3, 32, 32))
    check_network_takes(network, (3, 224, 224))
    assert next(network.parameters()).device.type == "cpu"
    with pytest.raises(ConfigError, match="does not return one row of logits"):
        check_takes("torchvision:googlenet", (3, 64, 64), 10)


@pytest.mark.parametrize("name", ["resnet18", "keras:resnet18", "timm:", "timm:a/b", "timm:a b"])
def test_a_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="timm:NAME or torchvision:NAME"):
        build_config({"derive": {"model": name}})
    with pytest.raises(ConfigError, match="names no network of a library"):
        LibraryNetwork(name, num_classes=2, in_channels=3)


def test_an_unknown_name_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="torchvision has no network resnet19") as error:
        LibraryNetwork("torchvision:resnet19", num_classes=2, in_channels=3)
    assert "resnet18" in str(error.value.hint)


@pytest.mark.parametrize("change", [{"num_classes": 0}, {"in_channels": "3"}, {"more": 1}])
def test_a_damaged_description_is_refused(change: dict[str, object]) -> None:
    described = describe_library_network("torchvision:resnet18", num_classes=2, in_channels=3)
    with pytest.raises(DamagedArtifactError):
        build_library_network({**described, **change}, what="here")


def test_random_layers_draw_from_the_generator_they_are_given() -> None:
    network = LibraryNetwork("torchvision:mobilenet_v3_small", num_classes=3, in_channels=3)
    images = torch.rand(4, 3, 32, 32)

    def answer(seed: int) -> torch.Tensor:
        network.generator = torch.Generator().manual_seed(seed)
        return network.train()(images)

    before = torch.random.get_rng_state()
    first, other = answer(1), answer(2)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)  # whatever others draw
    assert torch.equal(answer(1), first)
    assert not torch.equal(other, first)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"derive": {"model": "timm:a", "genotype": "DARTS_V2"}}, "exclude each other"),
        ({"derive": {"model": "timm:a", "candidates": 3}}, "derive.model is given"),
        ({"retrain": {"pretrained": True}}, "needs derive.model"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    values: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(values)
