"""Preparation of a training's images for its teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from d2nas.data.images import ImageData, Normalizer
from d2nas.errors import ConfigError

COLOURS = (1, 3)
Layout = Literal["NCHW", "NHWC"]


@dataclass(frozen=True)
class Input:
    """Input of a teacher: images of ``channels`` and of ``size`` (height, width), None: of any.

    ``dtype``: uint8 are pixels 0 to 255; floats are (value - ``mean``) / ``std`` by channel, of
    values 0 to 1.
    """

    layout: Layout
    channels: int
    size: tuple[int, int] | None
    dtype: Literal["float32", "float16", "uint8"]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def layout_of(axes: Sequence[int | None], what: str) -> tuple[Layout, int, tuple[int, int] | None]:
    """Return layout, channels and size that an input's last three axes say, None where one is free.

    Raises ``ConfigError`` where channels are neither first nor last, or could be either.
    """
    first, last = axes[0] in COLOURS, axes[2] in COLOURS
    if first == last:
        shape = ", ".join("?" if axis is None else str(axis) for axis in axes)
        raise ConfigError(
            f"{what}: its input is [batch, {shape}]: which axis has the 1 or 3 channels?",
            hint="export it with fixed channels, [batch, channels, height, width] or channels last",
        )
    channels, height, width = axes if first else (axes[2], axes[0], axes[1])
    assert channels is not None
    size = None if height is None or width is None else (height, width)
    return ("NCHW" if first else "NHWC"), channels, size


class Preparation:
    """Turns images that are normalised for the network in training into a teacher's input.

    What was done to them, augmentation and mixing, stays. Raises ``ConfigError`` where the input
    does not fit the data, or its normalisation is not known.
    """

    def __init__(self, wanted: Input, data: ImageData, what: str) -> None:
        self.wanted, self._repeats = wanted, wanted.channels // data.channels
        if wanted.channels < data.channels:
            raise ConfigError(f"{what}: it takes grey images, the data's have colours")
        own = Normalizer(data.mean, data.std)
        self._own = _by_channel(own.mean), _by_channel(own.std)
        if wanted.dtype == "uint8":
            if wanted.mean is not None:
                raise ConfigError(
                    f"{what}: it takes pixels, which nothing is subtracted from",
                    hint="leave out retrain.teacher_mean and retrain.teacher_std",
                )
        elif wanted.mean is None or wanted.std is None:
            raise ConfigError(
                f"{what}: it does not say how its images are normalised: "
                "retrain.teacher_mean and retrain.teacher_std are missing",
                hint="by channel, of values 0 to 1; ImageNet's are "
                "[0.485, 0.456, 0.406] and [0.229, 0.224, 0.225]",
            )
        elif not len(wanted.mean) == len(wanted.std) == wanted.channels:
            raise ConfigError(
                f"{what}: it takes {wanted.channels} channels, retrain.teacher_mean has "
                f"{len(wanted.mean)} numbers"
            )
        self._is_own = self._repeats == 1 and (wanted.mean, wanted.std) == (own.mean, own.std)
        self._size = None if wanted.size == (data.image_size,) * 2 else wanted.size
        self._data_size = data.image_size

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Return a teacher's input, float32 or uint8 N x channels x height x width."""
        if not self._is_own:
            mean, std = (one.to(images_NCHW.device) for one in self._own)
            images_NCHW = (images_NCHW * std + mean).repeat(1, self._repeats, 1, 1)
        if self._size is not None:
            images_NCHW = F.interpolate(
                images_NCHW, self._size, mode="bilinear", align_corners=False, antialias=True
            )
        if self.wanted.dtype == "uint8":
            return (images_NCHW * 255).round().clamp(0, 255).to(torch.uint8)
        if self._is_own:
            return images_NCHW
        assert self.wanted.mean is not None
        assert self.wanted.std is not None
        mean, std = (
            _by_channel(one).to(images_NCHW.device) for one in (self.wanted.mean, self.wanted.std)
        )
        return (images_NCHW - mean) / std

    def describe(self) -> str:
        """Return in words what the teacher takes, and what is done for that."""
        wanted = self.wanted
        height, width = wanted.size or (self._data_size,) * 2
        axes = {"NCHW": (wanted.channels, height, width), "NHWC": (height, width, wanted.channels)}
        shape = " x ".join(map(str, axes[wanted.layout]))
        done = [] if self._size is None else [f"resized from {self._data_size}"]
        done += ["grey repeated"] if self._repeats > 1 else []
        return ", ".join([f"{wanted.dtype} {wanted.layout} {shape}", *done])


def _by_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[None, :, None, None]
