"""Full training of a derived network, from scratch, on all training images.

The recipe is by default DARTS's (arXiv 1806.09055, 3.2): SGD, cosine learning rate, drop-path that
rises linearly, an auxiliary head, gradient clipping. The last epoch's weights are the result, or
their moving average, or with ``patience`` those of the best epoch by training images that are held
out; the test images are not seen here.

    retraining = Retraining(
        config, genotype, data, seed=0, device=torch.device("cpu"), augmentation=DataConfig()
    )
    for report in retraining.run():
        ...

``retrain`` does all of it in one call.
"""

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import DataConfig, RetrainConfig
from ..data.augmentation import cutout_pixels
from ..data.batches import Batches, channels_last
from ..data.batches import steps_per_epoch as count_steps
from ..data.images import ImageData, Images, Normalizer
from ..data.mixing import mix
from ..data.sizes import stem_for
from ..data.splits import stratified_split
from ..errors import ConfigError
from ..genotype import Genotype
from ..nn.library_network import LibraryNetwork, check_network_takes
from ..nn.network import DropPath, Network, auxiliary_fits
from ..nn.operations import Draws, initialize, noises_in, set_noise_generator
from ..nn.units import keep_everything
from ..parallel import ALONE, Ranks, unsynchronized
from ..randomness import derive_seed, generator, globally_seeded
from .class_weights import class_weights
from .distillation import Answers, Teacher, soft_losses
from .loop import (
    EVALUATION_BATCH,
    FiniteCheck,
    Loop,
    accuracy,
    adamw,
    predict,
    sgd,
    step_if_finite,
    to_device,
    torch_device,
)
from .precision import LossScale, arithmetic_of, compute_type, resolve_precision
from .schedules import linear, linear_by_epoch, warmup_cosine
from .state import StepSums, Trained, TrainState
from .weight_average import WeightAverage

_COMPILER_MODULES = ("torch._dynamo", "torch._inductor")
_SUMS = ("loss", "accuracy", "clip_rate")


def check_auxiliary(config: RetrainConfig, image_size: int) -> None:
    """Raise ``ConfigError`` if an auxiliary head is wanted that does not fit the images.

    Cheap, so that it can be asked before a search is spent.
    """
    stem = stem_for(config.stem, image_size)
    if config.auxiliary is True and not auxiliary_fits(image_size, stem):
        raise ConfigError(
            f"the auxiliary head does not fit {image_size}-pixel images with the {stem} stem",
            hint="set retrain.auxiliary=auto (here: none), or data.image_size=32",
        )


def has_auxiliary(config: RetrainConfig, image_size: int) -> bool:
    """Return whether a network for square images of this size is trained with an auxiliary head."""
    if config.auxiliary != "auto":
        return config.auxiliary
    fits = auxiliary_fits(image_size, stem_for(config.stem, image_size))
    return fits and config.num_cells > 1 and config.micro_batch > 1


def retrain(
    genotype: Genotype,
    data: ImageData,
    config: RetrainConfig | None = None,
    *,
    seed: int = 0,
    augmentation: DataConfig | None = None,
    teacher: Teacher | None = None,
    on_epoch: Callable[[Mapping[str, Any]], object] | None = None,
) -> Network:
    """Train the network of a genotype from scratch; return it on the CPU, ready to evaluate.

    ``config`` names depth, width, device and length; its defaults are the paper's. ``teacher``
    gives logits to learn from besides the labels (``train.distillation.Teacher``). ``on_epoch`` is
    called with the row of each finished epoch. Raises ``ConfigError`` for settings that do not fit
    the data, ``NonFiniteError``, ``OutOfMemoryError``.
    """
    config = config or RetrainConfig()
    retraining = Retraining(
        config,
        genotype,
        data,
        seed=seed,
        device=torch_device(config.device),
        augmentation=augmentation or DataConfig(),
        teacher=teacher,
    )
    for report in retraining.run():
        if on_epoch is not None and report.metrics is not None:
            on_epoch(report.metrics)
    network = _of_cells(config, genotype, data)
    network.load_state_dict(retraining.deployed_weights())
    return network.eval()


class Retraining(Loop):
    """A retraining in progress: network, optimizer and data, and a teacher where there is one.

    ``architecture`` is a genotype, or the name of a library's network (``LibraryNetwork``), to
    which the settings of cells do not apply. Raises ``ConfigError`` where the auxiliary head does
    not fit the image size, and for a ``config.teacher`` that was not opened.
    """

    network: Network | LibraryNetwork
    precision: str
    model: nn.Module
    """What is called: the network, or what compiles it."""

    def __init__(
        self,
        config: RetrainConfig,
        architecture: Genotype | str,
        data: ImageData,
        *,
        seed: int,
        device: torch.device,
        augmentation: DataConfig,
        teacher: Teacher | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        if isinstance(architecture, Genotype):
            check_auxiliary(config, data.image_size)
        if config.teacher is not None and teacher is None:
            raise ConfigError(
                "retrain.teacher is opened by d2nas run and d2nas retrain",
                hint="give the function that answers as teacher, and leave the key out",
            )
        if ranks.size > 1 and config.mixes:
            raise ConfigError(
                "retrain.mixup and retrain.cutmix are for one process: each would mix with its own "
                "images only",
                hint="leave out --nproc, or set both to 0",
            )
        self.config, self.seed, self.device, self.ranks = config, seed, device, ranks
        self.batch_size = config.batch_size
        self.validation: Images | None = None
        if config.patience is not None:
            data, held_out = hold_out(data, config.validation_fraction, seed=seed)
            self.validation = held_out.to(device)
        self.normalizer = Normalizer(data.mean, data.std)
        self.batches = Batches(
            data.train.to(device),
            self.normalizer,
            augmentation,
            config.batch_size,
            cutout_size=cutout_pixels(config.cutout, data.image_size),
            seed=seed,
            purpose="retrain",
            trivial=config.augment == "trivial",
            erasing=config.erasing,
            ranks=ranks,
        )
        self.network = _new_network(config, architecture, data, seed)
        self.micro_batches = self._micro_batches()
        to_device(self.network, device)
        self.precision = resolve_precision(config.precision, device)
        self.arithmetic = arithmetic_of(self.precision, device)
        self.loss_scale = LossScale().to(device) if self.precision == "fp16" else None
        # Listed once: to walk the modules at every step takes as long as a cell.
        self.noises: Sequence[Draws] = (
            [self.network] if isinstance(self.network, LibraryNetwork) else noises_in(self.network)
        )
        if ranks.size > 1:
            self._freeze_unused_weights(data)
        self.model = ranks.wrap(self._compiled() if config.compile else self.network)
        self.weights = list(self.network.parameters())
        self.watch = FiniteCheck(device)
        weights_C = class_weights(config.class_weights, [*data.class_counts().values()])
        self.class_weights = None if weights_C is None else weights_C.to(device)
        self.answers = None
        if teacher is not None:
            num_classes = len(data.class_names)
            self.answers = Answers(teacher, self.batches, num_classes, mixes=config.mixes)
        self.optimizer = self._optimizer()
        self.average = None if config.ema is None else WeightAverage(self.network, config.ema)
        self.steps_per_epoch = count_steps(len(data.train), config.batch_size)
        self.metrics = []
        self._count_steps()
        scales = {} if self.loss_scale is None else {"loss_scale": self.loss_scale}
        averages = {} if self.average is None else {"average": self.average}
        self.best: Network | LibraryNetwork | None = None
        if self.validation is not None:
            self.best = copy.deepcopy(self._newest_network()).requires_grad_(False)
        best = {} if self.best is None else {"best": self.best}
        self.trained = Trained(
            modules={"network": self.network, **averages, **scales, **best},
            optimizers={config.optimizer: self.optimizer},
            sums=StepSums(_SUMS, device),
        )

    def _micro_batches(self) -> list[slice]:
        """Return the parts of this rank's images of a step, whose sizes differ by at most one."""
        own, count = self.batches.order.part.own, self.config.accumulate
        num_images = own.stop - own.start
        is_plain = isinstance(self.network, Network) and self.network.auxiliary_head is None
        least = 1 if is_plain else 2  # what a batch norm on a map of one pixel needs
        if count > 1 and num_images // count < least:
            raise ConfigError(
                f"retrain.accumulate={count} is too much for the {num_images} images of a step",
                hint=f"choose at most {max(1, num_images // least)}",
            )
        ends = [num_images * number // count for number in range(count + 1)]
        return [slice(*pair) for pair in itertools.pairwise(ends)]

    def _optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        if config.optimizer == "adamw":
            return adamw(self.network, lr=config.lr, weight_decay=config.weight_decay)
        return sgd(
            self.network,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )

    def _freeze_unused_weights(self, data: ImageData) -> None:
        """Turn the gradient off for weights that never get one: what only noise reads, or no node.

        The other ranks would wait for it for ever. One process leaves such weights alone, too.
        """
        size = data.image_size
        images = torch.zeros((2, data.channels, size, size), device=self.device)
        with _buffers_kept(self.network):
            set_noise_generator(self.noises, generator(self.seed, "unused"))
            output = self.network.train()(channels_last(images))
            outputs = output if isinstance(output, tuple) else (output,)
            weights = list(self.network.parameters())
            total = torch.stack([part.sum() for part in outputs]).sum()
            # Before the statistics are put back: PyTorch's own batch norm, of the auxiliary head,
            # keeps them for its backward and refuses one after they were written.
            found = torch.autograd.grad(total, weights, allow_unused=True)
        for weight, gradient in zip(weights, found, strict=True):
            weight.requires_grad_(gradient is not None)

    def prepare(self) -> None:
        """With other ranks, run a pass that changes nothing before the first step.

        After its first backward a process groups its messages anew, by the order in which gradients
        came, and sums of three numbers or more depend on the grouping: without the pass, the first
        step after a resume would not be the uninterrupted training's to the last bit.
        """
        if self.ranks.size == 1:
            return
        images, labels = self.batches.blank()
        batch = _as_trained(self, 0, images.to(self.weights[0].dtype), labels)
        with _buffers_kept(self.network):
            _, total, _ = _forward(self, batch, self.micro_batches[0])
            torch.autograd.backward(total)
        self.optimizer.zero_grad()

    def _compiled(self) -> nn.Module:
        # PyTorch's own backward, which a compiler understands and fuses.
        keep_everything(self.network)
        compiled = torch.compile(self.network)
        assert isinstance(compiled, nn.Module)
        return compiled

    def streams(self) -> tuple[Batches, ...]:
        """Return where its batches come from."""
        return (self.batches,)

    def take_step(self, step: int) -> None:
        """Run ``train_step``. Raises ``ConfigError`` where the network cannot be compiled."""
        try:
            train_step(self, step)
        except RuntimeError as error:
            if not type(error).__module__.startswith(_COMPILER_MODULES):
                raise
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(
                f"torch.compile fails here: {reason[0][:200]}",
                hint="set retrain.compile=false; on a CPU it needs a C++ compiler",
            ) from error

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
            self.steps_per_epoch * self.config.epochs,
            self.config.warmup_epochs * self.steps_per_epoch,
            self.config.lr,
            self.config.lr_min,
        )

    def drop_path_at(self, step: int) -> float:
        """Return the drop-path probability of a step: linear by epoch from 0."""
        epoch = step // self.steps_per_epoch
        return linear(epoch / self.config.epochs, 0.0, self.config.drop_path)

    @property
    def best_epoch(self) -> int | None:
        """Epoch of the lowest loss on the images held out, from 0; of equal ones the first. None
        where none are held out.
        """
        losses = [row["validation_loss"] for row in self.metrics if "validation_loss" in row]
        return losses.index(min(losses)) if losses else None

    def _count_steps(self) -> None:
        """Count the steps: fewer after a stop."""
        best, patience, done = self.best_epoch, self.config.patience, len(self.metrics)
        is_stopped = best is not None and patience is not None and done - 1 - best >= patience
        self.num_steps = self.steps_per_epoch * (done if is_stopped else self.config.epochs)

    def restore(self, state: TrainState) -> None:
        """Continue from ``state``; after a stop, there is nothing more to do."""
        super().restore(state)
        self._count_steps()

    def end_epoch(self, step: int) -> None:
        """Measure the epoch on the images held out, if any, keep the best, and stop if it is time.

        Raises ``NonFiniteError``.
        """
        if self.validation is None or self.best is None:
            return
        row, images = self.metrics[-1], self.validation
        found = self.ranks.decide(
            f"the loss on {len(images)} images after step {step}", lambda: self._validate(images)
        )
        row |= dict(zip(("validation_loss", "validation_accuracy"), found, strict=True))
        if self.best_epoch == row["epoch"]:
            self.best.load_state_dict(self._newest_network().state_dict())
        self._count_steps()

    def _validate(self, images: Images) -> tuple[float, float]:
        """Return loss and accuracy on images, of the weights that would be deployed now."""
        network = self._newest_network().eval()
        size = min(EVALUATION_BATCH, self.micro_batches[-1].stop - self.micro_batches[-1].start)
        logits = predict(network, images, self.normalizer, size)
        self.network.train()
        labels = images.labels_N.cpu()
        losses_N = F.cross_entropy(logits.double(), labels, reduction="none")
        if self.class_weights is not None:
            losses_N = losses_N * self.class_weights.cpu()[labels]
        return float(losses_N.mean()), accuracy(logits, labels)

    def deployed_network(self) -> Network | LibraryNetwork:
        """Return the network in training, or its average where there is one; or of the best epoch,
        where images are held out.
        """
        return self._newest_network() if self.best is None else self.best

    def _newest_network(self) -> Network | LibraryNetwork:
        if self.average is None:
            return self.network
        network = self.average.network
        assert isinstance(network, Network | LibraryNetwork)
        return network

    def deployed_weights(self) -> dict[str, Tensor]:
        """Return the weights, or their average, without the training-only auxiliary head, as CPU
        copies.
        """
        return {
            name: value.detach().to("cpu", copy=True).contiguous()
            for name, value in self.deployed_network().state_dict().items()
            if not name.startswith("auxiliary_head.")
        }

    def describe_epoch(self, step: int, means: dict[str, float]) -> dict[str, Any]:
        """Return loss, training accuracy, clip rate, learning rate and drop-path probability."""
        return {
            **means,
            "lr": self.lr_at(step),
            "drop_path": self.drop_path_at(step),
        }


def _new_network(
    config: RetrainConfig, architecture: Genotype | str, data: ImageData, seed: int
) -> Network | LibraryNetwork:
    """Return the network with its first weights, which the seed decides."""
    with globally_seeded(derive_seed(seed, "network-weights"), torch.device("cpu")):
        if isinstance(architecture, str):
            own = LibraryNetwork(
                architecture,
                num_classes=len(data.class_names),
                in_channels=data.channels,
                pretrained=config.pretrained,
            )
            check_network_takes(own, (data.channels, data.image_size, data.image_size))
            return own
        auxiliary = has_auxiliary(config, data.image_size)
        network = _of_cells(config, architecture, data, auxiliary=auxiliary)
    initialize(network, generator(seed, "network-weights"))
    return network


def _of_cells(
    config: RetrainConfig, genotype: Genotype, data: ImageData, *, auxiliary: bool = False
) -> Network:
    return Network(
        genotype,
        num_cells=config.num_cells,
        init_channels=config.init_channels,
        num_classes=len(data.class_names),
        in_channels=data.channels,
        stem=stem_for(config.stem, data.image_size),
        auxiliary=auxiliary,
    )


def hold_out(data: ImageData, fraction: float, *, seed: int) -> tuple[ImageData, Images]:
    """Return the data without ``fraction`` of each class's training images, and those.

    At least one image of a class stays, and one of each with more is held out. Test images, mean
    and standard deviation are as before. Raises ``ConfigError`` where every class has only one.
    """
    kept, held = stratified_split(
        data.train.labels_N, fraction, keep=1, seed=seed, purpose="retrain-validation"
    )
    if not len(held):
        raise ConfigError(
            "retrain.patience: no class has a training image to be held out", hint="leave it out"
        )
    return replace(data, train=data.train.select(kept)), data.train.select(held)


@contextlib.contextmanager
def _buffers_kept(network: nn.Module) -> Iterator[None]:
    """Put every buffer back afterwards: running statistics, and how many batches they are of."""
    kept = [buffer.clone() for buffer in network.buffers()]
    yield
    with torch.no_grad():
        for buffer, before in zip(network.buffers(), kept, strict=True):
            buffer.copy_(before)


def train_step(retraining: Retraining, step: int) -> None:
    """Run one step. An update that is not finite is not made; ``NonFiniteError`` names the step,
    at once on the CPU, else at the next checkpoint or end of an epoch.
    """
    images, labels = retraining.batches.batch(step)
    for group in retraining.optimizer.param_groups:
        group["lr"] = retraining.lr_at(step)
    retraining.optimizer.zero_grad()
    # The same numbers on all ranks, so that all stop where one has to.
    means = retraining.ranks.mean(_add_gradients(retraining, step, images, labels))
    loss, total, correct = means.unbind()
    finite = retraining.watch.add(step, "the training loss", total)
    norm = _clip(retraining)
    finite = finite & _watch_norm(retraining, step, norm)
    clipped = norm > retraining.config.clip_norm
    retraining.trained.sums.add(loss=loss, accuracy=correct, clip_rate=clipped)
    step_if_finite(retraining.optimizer, finite)
    if retraining.average is not None:
        retraining.average.update(retraining.network, step)
    retraining.watch.check_if_synchronous()


class _Batch(NamedTuple):
    """A rank's part of a step's batch, all of whose random numbers are drawn."""

    images: Tensor
    labels: Tensor
    labels_of: Sequence[tuple[float, Tensor]]
    """What the images are of, by shares: more than ``labels`` where they are mixed."""
    drop_factors: Tensor | None
    answers: Tensor | None
    """A teacher's, to all of the images."""


def _add_gradients(retraining: Retraining, step: int, images: Tensor, labels: Tensor) -> Tensor:
    """Add up the gradients of a step's micro-batches, each by its share of the images.

    Returns three means over the images: the loss, the loss with the auxiliary head's part, and the
    share of right answers.
    """
    batch = _as_trained(retraining, step, images, labels)
    scale, found = retraining.loss_scale, []
    for part in retraining.micro_batches:
        is_last = part is retraining.micro_batches[-1]
        with contextlib.nullcontext() if is_last else unsynchronized(retraining.model):
            loss, total, correct = _forward(retraining, batch, part)
            share = (part.stop - part.start) / len(images)
            own = total if share == 1.0 else share * total
            torch.autograd.backward(own if scale is None else own * scale.scale)
        found.append(share * torch.stack([loss.detach(), total.detach(), correct]))
    return torch.stack(found).sum(dim=0)


def _as_trained(retraining: Retraining, step: int, images: Tensor, labels: Tensor) -> _Batch:
    """Return the batch, mixed as configured, with drop-path's factors."""
    config, device = retraining.config, retraining.device
    draws = generator(retraining.seed, "drop-path", step)
    part = retraining.batches.order.part
    factors = retraining.network.drop_factors(
        DropPath(retraining.drop_path_at(step), draws), part.num_whole, device
    )
    if factors is not None:
        factors = factors[:, part.own]
    # Micro-batches draw their noise one after another.
    number = step * retraining.ranks.size + retraining.ranks.rank
    set_noise_generator(retraining.noises, generator(retraining.seed, "noise", number))
    labels_of = [(1.0, labels)]
    if config.mixes:
        draws = generator(retraining.seed, "mix", step)
        mixed = mix(images, mixup=config.mixup, cutmix=config.cutmix, generator=draws)
        images = channels_last(mixed.images)
        labels_of = [(mixed.share, labels), (1.0 - mixed.share, labels[mixed.partners])]
    answers = None if retraining.answers is None else retraining.answers.of(step, images)
    return _Batch(images, labels, labels_of, factors, answers)


def _forward(retraining: Retraining, batch: _Batch, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of a micro-batch, the loss with the auxiliary head's part, and the share of
    right answers.
    """
    config, device = retraining.config, retraining.device
    dtype = compute_type(retraining.precision, device)
    factors = None if batch.drop_factors is None else batch.drop_factors[:, part]
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        output = retraining.model(batch.images[part], drop_path=factors)
    logits, auxiliary = output if isinstance(output, tuple) else (output, None)
    labels, labels_of = batch.labels[part], [(one, of[part]) for one, of in batch.labels_of]
    answers = None if batch.answers is None else batch.answers[part]
    loss = total = _loss(retraining, logits, labels_of, answers)
    if auxiliary is not None:
        total = loss + config.auxiliary_weight * _loss(retraining, auxiliary, labels_of, answers)
    return loss, total, (logits.detach().argmax(dim=1) == labels).double().mean()


def _loss(
    retraining: Retraining,
    logits: Tensor,
    labels_of: Sequence[tuple[float, Tensor]],
    answers: Tensor | None,
) -> Tensor:
    """Return the mean cross-entropy in float32, smoothed and weighed as configured, of each image's
    classes by their shares; with a teacher's ``answers`` its part of the loss is theirs.
    """
    parts = [share * _cross_entropy(retraining, logits, labels) for share, labels in labels_of]
    hard = parts[0] if len(parts) == 1 else torch.stack(parts).sum()
    if answers is None:
        return hard
    weight, weights_C = retraining.config.teacher_weight, retraining.class_weights
    soft_N = soft_losses(logits.float(), answers, retraining.config.teacher_temperature)
    if weights_C is not None:  # an image weighs the same in both parts
        soft_N = soft_N * torch.stack([share * weights_C[own] for share, own in labels_of]).sum(0)
    return (1.0 - weight) * hard + weight * soft_N.mean()


def _cross_entropy(retraining: Retraining, logits: Tensor, labels: Tensor) -> Tensor:
    smoothing, weights_C = retraining.config.label_smoothing, retraining.class_weights
    if weights_C is None:
        return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    losses_N = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="none")
    return (losses_N * weights_C[labels]).mean()


def _clip(retraining: Retraining) -> Tensor:
    """Undo the loss scale, clip the gradients, and return their norm before that."""
    if retraining.loss_scale is not None:
        gradients = [weight.grad for weight in retraining.weights if weight.grad is not None]
        retraining.loss_scale.unscale(gradients)
    return torch.nn.utils.clip_grad_norm_(retraining.weights, retraining.config.clip_norm)


def _watch_norm(retraining: Retraining, step: int, norm: Tensor) -> Tensor:
    """Return whether the gradients are finite (0-d), which they must be.

    In float16 they may overflow now and then: such a step is left out and the scale halved.
    """
    scale = retraining.loss_scale
    if scale is None:
        return retraining.watch.add(step, "the gradient norm", norm)
    finite = torch.isfinite(norm)
    overflow = torch.where(scale.usable(finite), torch.zeros_like(norm), norm)
    retraining.watch.add(step, "the gradient norm", overflow)
    scale.update(finite)
    return finite
