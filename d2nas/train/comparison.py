"""Comparison of cells by a budget of short trainings (ours), resumable at any step.

Which cells are trained is ``halving``'s; each training is one of ``rank_by_training``.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from ..config import DataConfig, RetrainConfig
from ..data.batches import Batches
from ..data.images import ImageData
from ..errors import ConfigError
from ..genotype import Genotype, neighbour
from ..methods.derivation import derive_genotype, draw_of, genotype_of
from ..nn.probability import log_probability, temperature_of
from ..nn.sampling import ArchLogits
from ..randomness import derive_seed
from .candidates import judge, sample_candidates, short_recipe
from .halving import Arm, Halving, schedule
from .loop import Loop, StepReport, memory_errors
from .retrain import Retraining
from .state import TrainState

KEPT_SHARE = 0.5
"""Part of the most probable cell's edges that a sample is expected to have.

Were effects of edges to add up, samples that keep a part k would keep that part of what the search
has found, m standard deviations of random cells, and vary by sqrt(1 - k) of these. A budget that
gains g among random cells then ends at m k + g sqrt(1 - k), which is most at 1 - k = (g / 2 m)^2:
with m = 1, as measured, and g = 1.1, 1.4, 1.7 for 12, 24, 48 trainings, as simulated
(benchmarks/README.md), k = 0.7, 0.5, 0.3. Searches end with logits that are nearly flat or nearly
certain, so it is the share that is held, and no temperature.
"""


def halving_of(
    logits: ArchLogits, budget: int, *, seed: int, temperature: float | None
) -> tuple[Halving[Genotype], float]:
    """Return the comparison of a learned distribution's cells, and the temperature of its samples;
    none given: that of ``KEPT_SHARE``.
    """
    plan, space = schedule(budget), logits.space
    numbers = random.Random(derive_seed(seed, "neighbour"))

    def probability(genotype: Genotype) -> float:
        return log_probability(logits, draw_of(genotype, space))

    def changed(genotype: Genotype) -> Genotype:
        # Predecessors in order, so that equal networks are equal genotypes.
        return genotype_of(draw_of(neighbour(genotype, space, numbers), space), space)

    if temperature is None:
        most_probable = draw_of(derive_genotype(logits, space), space)
        temperature = temperature_of(logits, most_probable, KEPT_SHARE)
    cells = sample_candidates(logits, plan.sampled, seed=seed, temperature=temperature)
    return Halving(plan, cells, log_probability=probability, neighbour=changed), temperature


def seed_of_round(seed: int, number: int) -> int:
    """Return the seed of a round's trainings, as ``retrain.seed`` takes it."""
    return derive_seed(seed, "derive-budget", number) % 2**31


class Comparison(Loop):
    """A comparison in progress, whose epochs are trainings: all of equally many steps.

    A row of its metrics is a training: its round and seed, the candidate's number, its accuracy and
    calibrated loss on the architecture half.
    """

    def __init__(
        self,
        halving: Halving[Genotype],
        config: RetrainConfig,
        epochs: int,
        data: ImageData,
        *,
        num_trainings: int,
        seed: int,
        device: torch.device,
        augmentation: DataConfig,
    ) -> None:
        self.halving, self.seed, self.device = halving, seed, device
        self.config, self.data = short_recipe(config, epochs), data
        self.augmentation, self.batch_size = augmentation, config.batch_size
        self.metrics = []
        self._half = replace(data, train=data.weight_half)
        self._begin(halving.arms[0].cell, seed_of_round(seed, 0))
        self.steps_per_epoch = self.training.num_steps
        self.num_steps = self.steps_per_epoch * num_trainings

    def _begin(self, genotype: Genotype, seed: int) -> None:
        """Make a training the one in progress."""
        with memory_errors(self.batch_size, self.device):
            self.training = Retraining(
                self.config,
                genotype,
                self._half,
                seed=seed,
                device=self.device,
                augmentation=self.augmentation,
            )
        self.network, self.trained = self.training.network, self.training.trained
        self.precision, self.arithmetic = self.training.precision, self.training.arithmetic

    def streams(self) -> tuple[Batches, ...]:
        """Return where the batches of the training in progress come from."""
        return self.training.streams()

    def run(self, state: TrainState | None = None) -> Iterator[StepReport]:
        """Run every step of every training, from ``state`` on if given; yields after each step.

        Raises what a training raises, and ``ConfigError`` for a state of other cells.
        """
        if state is not None:
            self._check_kind(state)
            self.metrics = list(state.metrics)
        finished = len(self.metrics)
        for number, (candidate, trained_in) in enumerate(self.halving.trainings()):
            arm, seed = self.halving.arms[candidate], seed_of_round(self.seed, trained_in)
            place = {
                "training": number,
                "round": trained_in,
                "seed": seed,
                "candidate": candidate,
                "genotype_digest": arm.cell.digest,
            }
            if number < finished:
                arm.losses.append(_known(self.metrics[number], place))
                continue
            stalled = self.training.batches.stalled
            self._begin(arm.cell, seed)
            self.training.batches.stalled = stalled
            first = number * self.steps_per_epoch
            begun = None
            if state is not None and state.step > first:
                begun = replace(state, step=state.step - first, metrics=[])
            for report in self.training.run(begun):
                row = None
                if report.step + 1 == self.steps_per_epoch:
                    row = place | self._judged(arm)
                    self.metrics.append(row)
                yield StepReport(first + report.step, row)

    def _judged(self, arm: Arm[Genotype]) -> dict[str, Any]:
        with memory_errors(self.batch_size, self.device):
            found = judge(self.training, arm.cell, self.data)
        arm.losses.append(found.calibrated_loss)
        return {"accuracy": found.accuracy, "calibrated_loss": found.calibrated_loss}

    def capture(self, step: int) -> TrainState:
        """Return the state with which the comparison continues at ``step``: what finished trainings
        reached, and the state of one in progress. Raises ``NonFiniteError``.
        """
        begun = step - len(self.metrics) * self.steps_per_epoch
        state = self.training.capture(begun)
        tensors = state.tensors if begun else {}
        return replace(state, step=step, tensors=tensors, metrics=list(self.metrics))


def _known(row: dict[str, Any], place: dict[str, Any]) -> float:
    """Return the loss of a training that was finished before."""
    if place.items() <= row.items():
        return float(row["calibrated_loss"])
    raise ConfigError(
        f"the checkpoint's training {place['training']} is of another cell or seed than now",
        hint="other versions of the libraries draw other cells; start over with --fresh",
    )
