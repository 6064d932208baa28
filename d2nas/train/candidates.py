"""A selection step after the search: compare several cells in place of trusting one (ours).

The candidates are the most probable cell and samples of the learned distribution. They are ranked
on the architecture half, under the supernet's own weights or after a short training of each, by
calibrated loss: it tells cells apart where accuracy does not (measured: benchmarks/ranking.json).
The paper has no such step, and it is off by default.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..config import DataConfig, RetrainConfig
from ..data.batches import channels_last
from ..data.images import ImageData, Images, Normalizer
from ..data.splits import epoch_order
from ..genotype import Genotype
from ..measure.calibration import calibrated_loss
from ..methods.derivation import derive_genotype, draw_of, genotype_of
from ..nn.operations import noises_in, set_noise_generator
from ..nn.probability import tempered
from ..nn.sampling import ArchLogits, Draw, draw_noise, sample_cell
from ..nn.supernet import Supernet
from ..randomness import generator
from .loop import EVALUATION_BATCH, accuracy, finite_logits, predict
from .retrain import Retraining

MAX_ATTEMPTS = 100
"""Draws per wanted candidate before a distribution counts as having no more different cells."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A genotype, and its accuracy (a fraction) and calibrated loss on the architecture half."""

    genotype: Genotype
    accuracy: float
    calibrated_loss: float


def sample_candidates(
    logits: ArchLogits, count: int, *, seed: int, temperature: float = 1.0
) -> list[Genotype]:
    """Return the most probable genotype and then different samples of the logits divided by
    ``temperature``, ``count`` in all.

    Fewer where the distribution is so narrow that no others turn up.
    """
    found = [derive_genotype(logits, logits.space)]
    logits = tempered(logits, temperature)
    for attempt in range(count * MAX_ATTEMPTS):
        if len(found) == count:
            break
        draws = generator(seed, "candidate", attempt)
        cells = [
            sample_cell(logits, cell, 1.0, draw_noise(logits.ops(cell), draws))
            for cell in ("normal", "reduce")
        ]
        genotype = genotype_of(Draw(*cells), logits.space)
        if genotype not in found:
            found.append(genotype)
    return found


def rank_by_supernet(
    supernet: Supernet,
    genotypes: Sequence[Genotype],
    images: Images,
    normalizer: Normalizer,
    *,
    seed: int,
) -> Iterator[Candidate]:
    """Yield each genotype with what it reaches under the supernet's weights.

    Batch norm uses each batch's own statistics: the running ones mix all sub-networks. So images
    are taken in drawn order: a batch of a sorted folder would be of one class. Raises
    ``NonFiniteError``.
    """
    images = images.select(epoch_order(len(images), seed=seed, purpose="candidate-images", epoch=0))
    supernet.train()
    for number, genotype in enumerate(genotypes):
        draw = draw_of(genotype, supernet.space)
        set_noise_generator(noises_in(supernet), generator(seed, "candidate-noise"))
        parts = []
        for start in range(0, len(images), EVALUATION_BATCH):
            batch = normalizer(images.pixels(slice(start, start + EVALUATION_BATCH)))
            with torch.no_grad():
                parts.append(supernet(channels_last(batch), draw))
        logits = finite_logits(torch.cat(parts), of=f"candidate {number} in the supernet")
        yield _judged(genotype, logits, images)


def rank_by_training(
    config: RetrainConfig,
    epochs: int,
    genotypes: Sequence[Genotype],
    data: ImageData,
    *,
    seed: int,
    device: torch.device,
    augmentation: DataConfig,
) -> Iterator[Candidate]:
    """Yield each genotype with what it reaches after ``epochs`` on the weight half, by the recipe
    of ``config`` otherwise.
    """
    config = short_recipe(config, epochs)
    half = replace(data, train=data.weight_half)
    for genotype in genotypes:
        training = Retraining(
            config, genotype, half, seed=seed, device=device, augmentation=augmentation
        )
        for _ in training.run():
            pass
        yield judge(training, genotype, data)


def short_recipe(config: RetrainConfig, epochs: int) -> RetrainConfig:
    """Return the settings of a training of so many epochs that is like a longer one's, but that it
    does not stop before and has no teacher: cells are told apart at equal length, without one.
    """
    warmup = min(config.warmup_epochs, epochs - 1)
    left_out = {"patience": None, "teacher": None}
    short = {"epochs": epochs, "warmup_epochs": warmup, **left_out}
    return config.model_copy(update=short)


def judge(training: Retraining, genotype: Genotype, data: ImageData) -> Candidate:
    """Return what a finished training reaches on the architecture half."""
    network: nn.Module = training.deployed_network().eval()
    images = data.arch_half.to(training.device)
    logits = predict(network, images, Normalizer(data.mean, data.std))
    return _judged(genotype, logits, data.arch_half)


def _judged(genotype: Genotype, logits_NC: Tensor, images: Images) -> Candidate:
    labels_N = images.labels_N.cpu()
    loss, _ = calibrated_loss(logits_NC, labels_N)
    return Candidate(genotype, accuracy(logits_NC, labels_N), loss)


def best(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate of the lowest calibrated loss; of equal ones the first, which is more
    probable.
    """
    return min(candidates, key=lambda candidate: candidate.calibrated_loss)
