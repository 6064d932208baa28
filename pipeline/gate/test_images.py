"""The test images as an exported model takes them, and PyTorch's answers to the same images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2nas.data.images import ImageData, Normalizer
from d2nas.nn.network import Network
from d2nas.train.loop import resolve_device

from ..onnx_io.devices import CpuDevice
from ..onnx_io.model_file import ModelDescription
from ..onnx_io.session import OnnxSession

Logits = NDArray[np.float32]


class TestImages:
    """Rows [N, *array_shape] as the model takes them, prepared when a part is looked at."""

    __test__ = False  # no test class, whatever pytest thinks of the name

    def __init__(self, data: ImageData, description: ModelDescription) -> None:
        self._images, self._pixels = data.test, description.input_type == "uint8"
        self._normalizer = Normalizer(data.mean, data.std)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, part: slice, /) -> NDArray[Any]:
        pixels = self._images.pixels(part)
        if self._pixels:
            return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
        inputs: NDArray[np.float32] = self._normalizer(pixels).numpy()
        return inputs

    def to_inputs(self, images: NDArray[Any]) -> Tensor:
        """Return what the network is called with: float32 [N, channels, height, width]."""
        if not self._pixels:
            return torch.from_numpy(images)
        return self._normalizer(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())


def torch_answer(
    network: Network, images: TestImages, session: OnnxSession
) -> Callable[[NDArray[Any]], Logits]:
    """Return the network in float32 as a function of the model's inputs, on the same device."""
    # Full float32 on both sides: TF32 is torch's default for convolutions on CUDA.
    torch.backends.cudnn.allow_tf32 = False
    own = session.device
    device = resolve_device("cpu" if isinstance(own, CpuDevice) else f"cuda:{own.index}")
    network.to(device)

    def answer(inputs: NDArray[Any]) -> Logits:
        with torch.no_grad():
            logits = network(images.to_inputs(inputs).to(device))
        assert isinstance(logits, Tensor)  # evaluation mode: no auxiliary logits
        answered: Logits = logits.cpu().numpy()
        return answered

    return answer


class Recorded:
    """Keeps what a function answered, so that the test images are not run twice."""

    def __init__(self, answer: Callable[[NDArray[Any]], Logits]) -> None:
        self.answer = answer
        self.answers: list[Logits] = []

    def __call__(self, images: NDArray[Any]) -> Logits:
        """Answer, and keep the answer."""
        self.answers.append(self.answer(images))
        return self.answers[-1]
