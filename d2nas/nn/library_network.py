"""Networks of torchvision and timm, by name: ordinary ones that a found network is compared with.

    network = LibraryNetwork("torchvision:resnet18", num_classes=10, in_channels=3)
    logits = network(images)

A network is what its library builds, with a classifier of the number of classes and a first
convolution of the number of channels. Whether it takes images of a size, ``check_takes`` says.
"""

import copy
import difflib
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config.section import LIBRARY_NETWORK
from ..errors import ConfigError, DamagedArtifactError, brief_reason
from ..randomness import globally_seeded
from ..telemetry import disable_hub_telemetry

_SIZES = ("num_classes", "in_channels")


class LibraryNetwork(nn.Module):
    """The network ``LIBRARY:NAME``, in training as the cells' networks are.

    Weights are drawn by the library from PyTorch's generator, or are its published ones with
    ``pretrained``, which the library downloads where they are not kept yet. Raises ``ConfigError``
    for an unknown name, published weights that do not exist, or a network that cannot be adapted;
    ``ImportError`` where the library is not installed.
    """

    num_droppable = 0
    """Drop-path is of cells; what a library's network drops is its own."""

    def __init__(
        self, name: str, *, num_classes: int, in_channels: int, pretrained: bool = False
    ) -> None:
        super().__init__()
        library, short = split_name(name)
        self.name, self.num_classes, self.in_channels = name, num_classes, in_channels
        build = _timm if library == "timm" else _torchvision
        self.body = build(short, num_classes, in_channels, pretrained)
        self.generator: torch.Generator | None = None
        """What its random layers (dropout, stochastic depth) draw from in a training step; None:
        PyTorch's own generator."""

    def forward(self, x: Tensor, *, drop_path: Any = None) -> Tensor:
        """Return logits (N, classes) of (N, in_channels, H, W), normalised."""
        if not self.training or self.generator is None:
            logits: Tensor = self.body(x)
            return logits
        seed = torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        with globally_seeded(int(seed), x.device):
            logits = self.body(x)
        return logits

    def drop_factors(self, *_: Any) -> None:
        """Return None: there is no drop-path to draw."""


def split_name(name: str) -> tuple[str, str]:
    """Return library and name of ``LIBRARY:NAME``. Raises ``ConfigError``."""
    match = re.fullmatch(LIBRARY_NETWORK, name)
    if match is None:
        raise ConfigError(
            f"{name[:80]!r} names no network of a library",
            hint="timm:NAME or torchvision:NAME, for example torchvision:resnet18",
        )
    return match[1], match[2]


def describe_library_network(name: str, *, num_classes: int, in_channels: int) -> dict[str, Any]:
    """Return what ``build_library_network`` needs to build it again."""
    return {"model": name, "num_classes": num_classes, "in_channels": in_channels}


def build_library_network(description: dict[str, Any], *, what: str) -> LibraryNetwork:
    """Build the network of ``describe_library_network``. Raises ``DamagedArtifactError``, and
    ``ConfigError`` where the library has it no more.
    """
    if set(description) != {"model", *_SIZES}:
        raise DamagedArtifactError(f"{what}: not a network description")
    for key in _SIZES:
        if type(description[key]) is not int or not 1 <= description[key] <= 100_000:
            raise DamagedArtifactError(f"{what}: {key}={description[key]!r} is not a size")
    sizes = {key: description[key] for key in _SIZES}
    with torch.random.fork_rng(devices=[]):
        return LibraryNetwork(str(description["model"]), **sizes)


def check_takes(name: str, shape: tuple[int, int, int], num_classes: int) -> None:
    """Raise ``ConfigError`` unless the network maps two images of a shape (channels, height,
    width) to logits alone, in training and out of it. Nothing is computed.
    """
    with torch.device("meta"):
        network = LibraryNetwork(name, num_classes=num_classes, in_channels=shape[0])
    check_network_takes(network, shape)


def check_network_takes(network: LibraryNetwork, shape: tuple[int, int, int]) -> None:
    """Raise as ``check_takes`` for a network that was built: with published weights some take
    images of another size. The network's weights are not used, nor changed.
    """
    name, num_classes = network.name, network.num_classes
    network = copy.deepcopy(network).to("meta")
    images = torch.zeros(2, *shape, device="meta")
    for training in (True, False):
        try:
            output = network.train(training)(images)
        except Exception as error:  # whatever the library raises for a size that does not fit
            raise ConfigError(
                f"{name} does not take images of {shape[1]} x {shape[2]} pixels: "
                f"{brief_reason(error)}",
                hint="data.image_size sets another size",
            ) from error
        if not isinstance(output, Tensor) or output.shape != (2, num_classes):
            raise ConfigError(
                f"{name} is not supported: it does not return one row of logits for each image",
                hint="choose a classification network without auxiliary classifiers",
            )


def _timm(name: str, num_classes: int, in_channels: int, pretrained: bool) -> nn.Module:
    disable_hub_telemetry()
    import timm

    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    try:
        network = timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels
        )
    except RuntimeError as error:
        raise ConfigError(f"timm:{name} cannot be built: {brief_reason(error)}") from error
    assert isinstance(network, nn.Module)
    return network


def _torchvision(name: str, num_classes: int, in_channels: int, pretrained: bool) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    if not pretrained:
        network = models.get_model(name, weights=None, num_classes=num_classes)
        _take_channels(network, in_channels, kept=False)
    else:
        network = models.get_model(name, weights="DEFAULT")
        _take_channels(network, in_channels, kept=True)
        _classify(network, num_classes)
    assert isinstance(network, nn.Module)
    return network


def _unknown(library: str, name: str, known: Sequence[str]) -> ConfigError:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or ["resnet18"]
    return ConfigError(f"{library} has no network {name}", hint=f"it has {', '.join(close)}, ...")


def _take_channels(network: nn.Module, in_channels: int, *, kept: bool) -> None:
    """Give the first convolution ``in_channels`` inputs; ``kept`` weights are those of the colours
    added up, repeated and divided, so that a grey image means what it meant.
    """
    path, first = next(
        (path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d)
    )
    if first.in_channels == in_channels:
        return
    changed = nn.Conv2d(
        in_channels,
        first.out_channels,
        _pair(first.kernel_size),
        _pair(first.stride),
        first.padding if isinstance(first.padding, str) else _pair(first.padding),
        _pair(first.dilation),
        bias=first.bias is not None,
    )
    if kept:
        with torch.no_grad():
            grey = first.weight.sum(dim=1, keepdim=True) / in_channels
            changed.weight.copy_(grey.expand_as(changed.weight))
            if first.bias is not None and changed.bias is not None:
                changed.bias.copy_(first.bias)
    _replace(network, path, changed)


def _classify(network: nn.Module, num_classes: int) -> None:
    """Replace the last linear layer, which classifies, by one of ``num_classes``."""
    found = [(path, each) for path, each in network.named_modules() if isinstance(each, nn.Linear)]
    if not found:
        raise ConfigError(
            "the network has no linear classifier to replace",
            hint="choose another network, or leave out --pretrained",
        )
    path, last = found[-1]
    _replace(network, path, nn.Linear(last.in_features, num_classes, bias=last.bias is not None))


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    height, width = values
    return height, width
