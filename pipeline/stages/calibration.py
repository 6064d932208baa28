"""Training images that the ranges of a quantised model's features are taken from."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from d2nas.data.subsample import spread_sample

from .stage import Context, Facts
from .unseen import require_unseen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from d2nas.data.images import Images, Normalizer

PURPOSE = "calibration"
BATCH = 32
"""Images in memory at a time."""


@dataclass
class Calibration:
    """Images of all classes, drawn by seed from the training images, those that patience holds out
    among them.

    It is given no others, so that none of the test can be among them.
    """

    images: "Images"
    normalizer: "Normalizer | None"
    """None where the model normalises pixels itself."""
    digest: str | None = None
    """SHA-256 of the pixels in the order drawn; known after ``batches`` was read."""

    def batches(self) -> Iterator["NDArray[Any]"]:
        """Yield the images as the model takes them, a few at a time."""
        found = hashlib.sha256()
        for start in range(0, len(self.images), BATCH):
            pixels = self.images.pixels(slice(start, start + BATCH)).cpu()
            found.update(pixels.contiguous().numpy().tobytes())
            if self.normalizer is None:
                yield pixels.permute(0, 2, 3, 1).contiguous().numpy()
            else:
                yield self.normalizer(pixels).numpy()
        self.digest = found.hexdigest()

    def facts(self) -> Facts:
        """Return which images these were, for the manifest."""
        return {"images": len(self.images), "digest": self.digest}


def calibration_images(context: Context, normalizer: "Normalizer") -> Calibration:
    """Draw the images. Raises ``ConfigError`` as ``require_unseen`` does."""
    import torch

    config, data = context.config, context.data()
    require_unseen(context, data)
    chosen = spread_sample(
        len(data.train),
        config.export.calibration_images,
        purpose=PURPOSE,
        seed=config.run.seed,
        labels=data.train.labels_N.tolist(),
    )
    images = data.train.select(torch.tensor(chosen))
    return Calibration(images, None if config.export.input == "uint8" else normalizer)
