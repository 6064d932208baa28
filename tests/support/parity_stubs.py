"""Answers and sessions by hand, for the tests of the parity gate."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]
Answer = Callable[[Images], Any]

MIXING = np.random.default_rng(5).standard_normal((12, 4)).astype(np.float32)
IMAGES = np.random.default_rng(6).standard_normal((150, 3, 2, 2)).astype(np.float32)


def linear(images: Images) -> Images:
    return images.reshape(len(images), MIXING.shape[0]) @ MIXING


def first_row(value: float) -> Answer:
    """Right but for one number."""

    def change(images: Images) -> Images:
        logits = linear(images)
        logits[0, 0] = value
        return logits

    return change


@dataclass
class Stub:
    """A session that answers with a function and records the batch sizes it was given."""

    answer: Answer
    sizes: list[int] = field(default_factory=list)
    provider_checks: int = 0

    def run(self, images: Images) -> Any:
        self.sizes.append(len(images))
        return self.answer(images)

    def check_provider(self) -> None:
        self.provider_checks += 1
