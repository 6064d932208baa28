"""Full training of a derived network, from scratch, on all training images.

The recipe is DARTS's (arXiv 1806.09055, 3.2): SGD, cosine learning rate, drop-path that rises
linearly, an auxiliary head, gradient clipping. The last epoch's weights are the result; the test
images are not seen here.

    retraining = Retraining(config, genotype, data, seed=0, device=torch.device("cpu"))
    for report in retraining.run():
        ...
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .batches import Batches
from .config import DataConfig, RetrainConfig
from .data import ImageData, Normalizer
from .data import steps_per_epoch as count_steps
from .errors import ConfigError
from .genotype import Genotype
from .network import DropPath, Network, auxiliary_fits
from .ops import initialize, noises_in, set_noise_generator
from .randomness import generator
from .schedules import linear, linear_by_epoch, warmup_cosine
from .state import Trainee
from .training import FiniteWatch, Loop, place, sgd, stem_for, step_if_finite

_SUMS = ("loss", "accuracy", "clip_rate")


def check_auxiliary(config: RetrainConfig, image_size: int) -> None:
    """Raise ``ConfigError`` if an auxiliary head is wanted that does not fit the images.

    Cheap, so that it can be asked before a search is spent.
    """
    stem = stem_for(config.stem, image_size)
    if config.auxiliary and not auxiliary_fits(image_size, stem):
        raise ConfigError(
            f"the auxiliary head does not fit {image_size}-pixel images with the {stem} stem",
            hint="set retrain.auxiliary=false, or data.image_size=32",
        )


class Retraining(Loop):
    """A retraining in progress: network, optimizer and data.

    Raises ``ConfigError`` where the auxiliary head does not fit the image size.
    """

    def __init__(
        self,
        config: RetrainConfig,
        genotype: Genotype,
        data: ImageData,
        *,
        seed: int,
        device: torch.device,
        augmentation: DataConfig,
    ) -> None:
        check_auxiliary(config, data.image_size)
        self.config, self.seed, self.device = config, seed, device
        self.batch_size = config.batch_size
        self.batches = Batches(
            data.train.to(device),
            Normalizer(data.mean, data.std),
            augmentation,
            config.batch_size,
            cutout_size=config.cutout,
            seed=seed,
            purpose="retrain",
        )
        with torch.random.fork_rng(devices=[]):
            self.network = Network(
                genotype,
                num_cells=config.num_cells,
                init_channels=config.init_channels,
                num_classes=len(data.class_names),
                in_channels=data.channels,
                stem=stem_for(config.stem, data.image_size),
                auxiliary=config.auxiliary,
            )
        initialize(self.network, generator(seed, "network-weights"))
        place(self.network, device)
        # Listed once: to walk the modules at every step takes as long as a cell.
        self.weights, self.noises = list(self.network.parameters()), noises_in(self.network)
        self.watch = FiniteWatch(device)
        self.optimizer = sgd(
            self.network,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        self.steps_per_epoch = count_steps(len(data.train), config.batch_size)
        self.num_steps = self.steps_per_epoch * config.epochs
        self.metrics = []
        self.trainee = Trainee(
            modules={"network": self.network},
            optimizers={"sgd": self.optimizer},
            sums=torch.zeros(len(_SUMS), dtype=torch.float64, device=device),
        )

    def take_step(self, step: int) -> None:
        """Run ``train_step``."""
        train_step(self, step)

    def check(self) -> None:
        """Raise ``NonFiniteError`` for the first step whose update was not finite."""
        self.watch.check()

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step: a warm-up, then the schedule of the configuration."""
        if self.config.lr_schedule == "linear":
            return linear_by_epoch(
                step // self.steps_per_epoch,
                self.config.epochs,
                self.config.warmup_epochs,
                self.config.lr,
            )
        return warmup_cosine(
            step,
            self.num_steps,
            self.config.warmup_epochs * self.steps_per_epoch,
            self.config.lr,
            self.config.lr_min,
        )

    def drop_path_at(self, step: int) -> float:
        """Return the drop-path probability of a step: linear by epoch from 0."""
        epoch = step // self.steps_per_epoch
        return linear(epoch / self.config.epochs, 0.0, self.config.drop_path)

    def deployed_weights(self) -> dict[str, Tensor]:
        """Return the weights without the training-only auxiliary head, as CPU copies."""
        return {
            name: value.detach().to("cpu", copy=True).contiguous()
            for name, value in self.network.state_dict().items()
            if not name.startswith("auxiliary_head.")
        }

    def describe_epoch(self, step: int, means: list[float]) -> dict[str, Any]:
        """Return loss, training accuracy, clip rate, learning rate and drop-path probability."""
        return {
            **dict(zip(_SUMS, means, strict=True)),
            "lr": self.lr_at(step),
            "drop_path": self.drop_path_at(step),
        }


def train_step(retraining: Retraining, step: int) -> None:
    """Run one step. An update that is not finite is not made; ``NonFiniteError`` names the step,
    at once on the CPU, else at the next checkpoint or end of an epoch.
    """
    config, network = retraining.config, retraining.network
    images, labels = retraining.batches.batch(step)
    for group in retraining.optimizer.param_groups:
        group["lr"] = retraining.lr_at(step)
    draws = generator(retraining.seed, "drop-path", step)
    set_noise_generator(retraining.noises, generator(retraining.seed, "noise", step))
    output = network(images, drop_path=DropPath(retraining.drop_path_at(step), draws))
    logits, auxiliary = output if isinstance(output, tuple) else (output, None)
    loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    total = loss
    if auxiliary is not None:
        total = loss + config.auxiliary_weight * F.cross_entropy(
            auxiliary, labels, label_smoothing=config.label_smoothing
        )
    retraining.optimizer.zero_grad()
    torch.autograd.backward(total)
    norm = torch.nn.utils.clip_grad_norm_(retraining.weights, config.clip_norm)
    retraining.trainee.sums[0] += loss.detach()
    retraining.trainee.sums[1] += (logits.detach().argmax(dim=1) == labels).double().mean()
    retraining.trainee.sums[2] += norm > config.clip_norm
    finite = retraining.watch.add(step, "the training loss", total.detach())
    finite = finite & retraining.watch.add(step, "the gradient norm", norm)
    step_if_finite(retraining.optimizer, finite)
    retraining.watch.check_if_free()
