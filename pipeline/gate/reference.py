"""PyTorch's answers to the test images, which an exported model is judged by."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from d2nas.data.images import ImageData, Normalizer
from d2nas.train.loop import torch_device

from ..onnx_io.model_file import ModelDescription
from ..onnx_io.session import OnnxSession
from .judge import Reference
from .parity import in_batches


class ModelInputs:
    """Test images as rows [N, *array_shape] that the model takes, prepared when looked at."""

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

    def to_network(self, images: NDArray[Any]) -> Tensor:
        """Return the network's input for such rows: float32 [N, channels, height, width]."""
        if not self._pixels:
            return torch.from_numpy(images)
        return self._normalizer(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())


def torch_reference(
    network: nn.Module, data: ImageData, session: OnnxSession, batch: int
) -> Reference:
    """Return the test images as ``session`` takes them, with the logits of ``network``.

    It answers in float32, ``batch`` images at a time, on the session's device, where it stays.
    """
    # Full float32 on both sides: TF32 is torch's default for convolutions on CUDA.
    torch.backends.cudnn.allow_tf32 = False
    device = torch_device(session.device.address)
    network.to(device)
    images = ModelInputs(data, session.description)

    def answer(rows: NDArray[Any]) -> NDArray[np.float32]:
        with torch.no_grad():
            logits = network(images.to_network(rows).to(device))
        assert isinstance(logits, Tensor)  # evaluation mode: no auxiliary logits
        answered: NDArray[np.float32] = logits.cpu().numpy()
        return answered

    return Reference(images, data.test.labels_N.numpy(), in_batches(answer, images, batch))
