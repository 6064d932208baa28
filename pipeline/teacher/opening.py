"""Opening a teacher for a training, and asking it about some training images first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from d2nas.config import RetrainConfig
from d2nas.data.batches import channels_last
from d2nas.data.images import ImageData, Normalizer
from d2nas.data.subsample import spread_sample
from d2nas.errors import ConfigError
from d2nas.measure.scores import wilson_interval

from .classes import order_of
from .models import open_model
from .preparation import Preparation
from .source import LABELS_FILE, source_of

ASKED_IMAGES = 512
"""Training images that a teacher answers before it teaches, the classes by turns."""
_BATCH = 64
_TOLERANCE = 1e-2
"""Of probabilities' sum, for models that compute in float16 too."""
_SAME_CLASSES = "a teacher must have been trained on the same classes"


@dataclass(frozen=True)
class OpenedTeacher:
    """A teacher that suits the data: ``answer`` is what a training calls, ``facts`` are JSON."""

    answer: Callable[[Tensor], Tensor]
    facts: dict[str, Any]

    def __str__(self) -> str:
        found = self.facts
        return (
            f"teacher {found['name']}: right for {100 * found['accuracy']:.1f} % of "
            f"{found['images']} training images; takes {found['input']}; gives {found['answers']}; "
            f"classes {found['classes']}"
        )


def open_teacher(config: RetrainConfig, data: ImageData, device: torch.device) -> OpenedTeacher:
    """Open ``config.teacher`` on the device of a training, for its images and classes.

    Raises ``ConfigError`` where input, preparation or classes do not suit the data, and where its
    answers to training images are no better than chance; and as ``source_of``, ``open_model``.
    """
    assert config.teacher is not None
    source = source_of(config.teacher)
    what, classes = f"retrain.teacher: {source.name}", data.class_names
    model = open_model(source, config, device, len(classes))
    preparation = Preparation(model.input, data, what)
    order = None
    if model.class_names is not None:
        order = order_of(model.class_names, classes, what)

    def ask(images_NCHW: Tensor) -> Tensor:
        with torch.no_grad():
            return model.answer(preparation(images_NCHW))

    answers_NC, labels_N = _asked(ask, data, device)
    if answers_NC.shape[1] != len(classes):
        outputs = f"{answers_NC.shape[1]} outputs, the data {len(classes)} classes"
        raise ConfigError(f"{what}: it has {outputs}", hint=_SAME_CLASSES)
    if not torch.isfinite(answers_NC).all():
        raise ConfigError(f"{what}: its answers to training images are not finite")
    gives_probabilities = are_probabilities(answers_NC)

    def as_logits(found_NC: Tensor) -> Tensor:
        found_NC = found_NC if order is None else found_NC[:, order]
        if not gives_probabilities:
            return found_NC
        return found_NC.clamp_min(torch.finfo(torch.float32).tiny).log()

    accuracy = _checked_accuracy(as_logits(answers_NC), labels_N, what)
    if model.class_names is None:
        mapping = "not named, taken to be in the data's order"
    else:
        mapping = "of the same names" + ("" if order is None else ", in another order")
    facts = {
        "name": source.name,
        "digest": model.digest,
        "temperature": config.teacher_temperature,
        "weight": config.teacher_weight,
        "accuracy": accuracy,
        "images": len(labels_N),
        "input": preparation.describe(),
        "answers": "probabilities" if gives_probabilities else "logits",
        "classes": mapping,
    }
    return OpenedTeacher(lambda images_NCHW: as_logits(ask(images_NCHW)), facts)


def are_probabilities(answers_NC: Tensor) -> bool:
    """Whether every row has no negative number and the sum 1, which logits have by chance only."""
    sums_N = answers_NC.sum(dim=1)
    return bool((answers_NC >= 0).all() and ((sums_N - 1).abs() <= _TOLERANCE).all())


def _asked(
    ask: Callable[[Tensor], Tensor], data: ImageData, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the answers to some training images as they are, and the labels, on the device."""
    labels = data.train.labels_N.tolist()
    chosen = spread_sample(len(labels), ASKED_IMAGES, purpose="teacher", labels=labels)
    images, normalizer = data.train.select(torch.tensor(chosen)), Normalizer(data.mean, data.std)
    parts = []
    for start in range(0, len(images), _BATCH):
        pixels = images.pixels(slice(start, start + _BATCH)).to(device)
        parts.append(ask(channels_last(normalizer(pixels))))
    return torch.cat(parts), images.labels_N.to(device)


def _checked_accuracy(logits_NC: Tensor, labels_N: Tensor, what: str) -> float:
    """Return the share of right answers. Raises ``ConfigError`` where it may be chance: the lower
    end of its 95 % interval is not above the share of the largest class.
    """
    accuracy = float((logits_NC.argmax(dim=1) == labels_N).double().mean())
    chance = float(labels_N.bincount().max()) / len(labels_N)
    if wilson_interval(accuracy, len(labels_N))[0] <= chance:
        raise ConfigError(
            f"{what}: right for {100 * accuracy:.1f} % of {len(labels_N)} training images, which "
            f"may be chance ({100 * chance:.1f} %)",
            hint="its images may be prepared otherwise (retrain.teacher_mean, teacher_std), or its "
            f"classes be in another order ({LABELS_FILE} beside it)",
        )
    return accuracy
