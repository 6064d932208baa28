"""The search loop: any method's two halves per step, architecture first unless the method says.

A whole search, step by step:

    search = Search(
        config, SPACES["S0"], data, seed=0, device=torch.device("cpu"), augmentation=DataConfig()
    )
    for report in search.run():
        ...
    genotype = search.derive()

``search`` does all of it in one call.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..config import DataConfig, SearchConfig
from ..config.registry import search_methods
from ..costs import CellCosts
from ..data.batches import Batches
from ..data.batches import steps_per_epoch as count_steps
from ..data.images import ImageData, Images, Normalizer
from ..data.sizes import stem_for
from ..data.splits import stratified_choice
from ..errors import ConfigError
from ..files.text_files import read_space
from ..genotype import Genotype
from ..measure.cost import LiveBytes
from ..methods.base import Batch, EpochEnd, Measured, Method, Sizes, StepContext
from ..methods.within_budget import best_within, least_cost
from ..nn.expected_cost import ExpectedCost
from ..nn.network import load_weights
from ..nn.operations import initialize
from ..parallel import ALONE, Ranks
from ..randomness import generator
from ..spaces import CELL_TYPES, SearchSpace
from .class_weights import class_weights
from .cost_limit import CostLimit, add_cost_gradient
from .loop import FiniteCheck, Loop, adam, sgd, step_if_finite, to_device, torch_device
from .precision import arithmetic_of, compute_type
from .rmsprop import RmsProp
from .schedules import cosine, temperature
from .state import StepSums, Trained, TrainState, fill_in, memory_tensors

_SUMS = (
    "arch_loss",
    "arch_accuracy",
    "weight_loss",
    "weight_accuracy",
    "branch_loss",
    "clip_rate",
    "peak_bytes",
)


NEXT_EPOCH = "next_epoch"
"""In the row of an epoch: the one that comes next, where that is not the following one."""


def search(
    data: ImageData,
    config: SearchConfig | None = None,
    *,
    seed: int = 0,
    augmentation: DataConfig | None = None,
    method: Method | None = None,
    costs: CellCosts | None = None,
    on_epoch: Callable[[Mapping[str, Any]], object] | None = None,
) -> Genotype:
    """Search an architecture on images and return the genotype that the method derives.

    ``config`` names method, space, device and length; its defaults are the paper's. ``method`` is
    searched by in place of the one it names; ``costs`` are what its limit, if any, is about.
    ``on_epoch`` is called with the row of each finished epoch (losses, entropies, the genotype so
    far). Raises ``ConfigError`` for settings that do not fit the data, ``NonFiniteError``,
    ``OutOfMemoryError``.
    """
    config = config or SearchConfig()
    searched = Search(
        config,
        read_space(config.space),
        data,
        seed=seed,
        device=torch_device(config.device),
        augmentation=augmentation or DataConfig(),
        method=method,
        costs=costs,
    )
    for report in searched.run():
        if on_epoch is not None and report.metrics is not None:
            on_epoch(report.metrics)
    return searched.derive()


class Search(Loop):
    """A search in progress: a method's supernet and logits, both optimizers, and the data.

    Logits and weights are disjoint: Adam moves the former, SGD the latter. ``method`` takes the
    place of the one that ``config`` names, with the weights and in the space that it comes with.
    ``costs`` of cells are what ``config.limit`` or ``config.latency_weight`` is about.
    """

    def __init__(
        self,
        config: SearchConfig,
        space: SearchSpace,
        data: ImageData,
        *,
        seed: int,
        device: torch.device,
        augmentation: DataConfig,
        method: Method | None = None,
        costs: CellCosts | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.method = method or build_method(config, data, space, seed=seed)
        checked = _checked(costs, config, self.method)
        self._expected_cost = None if checked is None else ExpectedCost(checked)
        if ranks.size > 1 and not self.method.several_processes:
            raise ConfigError(
                f"{self.method.name} searches in one process", hint="leave out --nproc"
            )
        self.config, self.seed, self.device, self.ranks = config, seed, device, ranks
        self.batch_size = config.batch_size
        self.num_classes = len(data.class_names)
        weights = class_weights(config.class_weights, [*data.class_counts().values()])
        self._class_weights = None if weights is None else weights.to(device)
        self.weight_batches, self.arch_batches = (
            Batches(
                half.to(device),
                Normalizer(data.mean, data.std),
                augmentation,
                config.batch_size,
                cutout_size=config.cutout,
                seed=seed,
                purpose=purpose,
                ranks=ranks,
            )
            for half, purpose in _halves(config, data, seed)
        )
        self.input_type = compute_type(config.precision, device)
        self.arithmetic = arithmetic_of(config.precision, device)
        self.watch = FiniteCheck(device)
        # A method without passes has nothing to train: one step closes its only epoch.
        self.trains = sum(self.method.passes) > 0
        epoch = count_steps(len(self.weight_batches.images), config.batch_size)
        self.steps_per_epoch = epoch if self.trains else 1
        self.metrics = []
        self._sums = StepSums(_SUMS, device)
        self._cost_limit = self._limit_on_costs()
        self._price: float | None = None
        self._take_supernet()
        self._count_steps()

    def _limit_on_costs(self) -> CostLimit | None:
        if self._expected_cost is None or self.config.limit is None:
            return None
        edges = self.method.learns_edges
        return CostLimit(self._expected_cost, self.config.limit.value, edges=edges)

    @contextlib.contextmanager
    def priced(self) -> Iterator[None]:
        """Let the logits be those that keep the limit, if there is one."""
        if self._cost_limit is None:
            yield
            return
        if self._price is None:
            self._price = self._cost_limit.price(self.logits)
        with self._cost_limit.priced(self.logits, self._price):
            yield

    def derive(self) -> Genotype:
        """Return the genotype of the logits as they are, within the limit.

        Raises ``ConfigError`` where no cell keeps it.
        """
        if self._cost_limit is None:
            return self.method.derive()
        costs, limit = self._cost_limit.expected.costs, self._cost_limit.limit
        return best_within(type(self.method), self.logits, costs, limit)

    @property
    def learned_logits(self) -> list[nn.Parameter]:
        """The logits that the method learns: all, or those of operations."""
        return [
            parameter
            for name, parameter in self.logits.named_parameters()
            if self.method.learns_edges or not name.endswith("_edges")
        ]

    def _take_supernet(self) -> None:
        """Train the method's supernet and logits from now on, with fresh optimizers."""
        self.supernet, self.logits = self.method.supernet, self.method.logits
        self.space = self.logits.space
        self.network = to_device(self.supernet, self.device)
        self._price = None
        trained = Trained(
            modules={"supernet": self.supernet, "logits": self.logits},
            optimizers=self._optimizers() if self.trains else {},
            sums=self._sums,
            memory=self.method.memory,
        )
        self.trained = trained.with_room_for(self.method.kept_states)

    def _count_steps(self) -> None:
        """Count the steps: more after a roll-back, fewer after a stop."""
        epochs = self.config.epochs + self._repeated
        self.num_steps = self.steps_per_epoch * epochs if self.trains else 1

    @property
    def _repeated(self) -> int:
        """How many epochs roll-backs repeat; after a stop, less those that do not take place."""
        for row in reversed(self.metrics):
            if NEXT_EPOCH in row:
                difference: int = row["epoch"] + 1 - row[NEXT_EPOCH]
                return difference
        return 0

    def epoch_at(self, step: int) -> int:
        """Return the epoch, as schedules count, of a step that is still to come or has just been:
        after a roll-back again an earlier one.
        """
        return step // self.steps_per_epoch - self._repeated

    def _schedule_at(self, step: int) -> tuple[int, int]:
        return self.method.schedule(self.epoch_at(step), self.config.epochs)

    def learns_architecture(self, epoch: int) -> bool:
        """Whether the architecture half takes place in an epoch, as schedules count."""
        scheduled, _ = self.method.schedule(epoch, self.config.epochs)
        return self.method.passes[0] > 0 and scheduled >= self.config.warmup_epochs

    def restore(self, state: TrainState) -> None:
        """Continue from ``state``, with the supernet that it was made of."""
        fill_in(memory_tensors(self.method.memory), state.tensors)
        self.method.rebuild()
        if self.method.supernet is not self.supernet:
            self._take_supernet()
        super().restore(state)
        self._price = None
        self._count_steps()

    def end_epoch(self, step: int) -> None:
        """Let the method close the epoch: stop, roll back, or continue with another supernet.

        Raises ``ConfigError`` where it names an epoch that is none of the search.
        """
        if not self.trains:
            return
        epoch, epochs, row = self.epoch_at(step), self.config.epochs, self.metrics[-1]
        following = self.method.close_epoch(self._epoch_end(step))
        self._price = None
        if type(following) is not int or not 0 <= following <= epochs:
            raise ConfigError(
                f"the search method {self.method.name}: invalid next epoch: {following!r}"
            )
        if self.method.supernet is not self.supernet:
            self._take_supernet()
        row |= self.method.describe()
        if following != epoch + 1:
            row[NEXT_EPOCH] = following
        self._count_steps()
        if step + 1 == self.num_steps:
            row |= self._describe_logits()

    def _epoch_end(self, step: int) -> EpochEnd:
        first = step + 1 - self.steps_per_epoch
        purpose = f"epoch-end-draw/{step // self.steps_per_epoch}"
        return EpochEnd(
            epoch=self.epoch_at(step),
            epochs=self.config.epochs,
            steps=self.steps_per_epoch,
            arch_batch=lambda index: self.batch(self.arch_batches, first + index),
            weight_batch=lambda index: self.batch(self.weight_batches, first + index),
            draws=lambda index: generator(self.seed, purpose, index),
            keep=self.trained.keep,
            bring_back=self.trained.bring_back,
            restart_weight_optimizer=self._restart_weight_optimizer,
        )

    @torch.no_grad()
    def _restart_weight_optimizer(self) -> None:
        for moments in self.weight_optimizer.state.values():
            for moment in moments.values():
                moment.zero_()

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        config = self.config
        self.weight_optimizer = weight_optimizer(config, self.supernet)
        self.arch_optimizer = adam(
            list(self.logits.parameters()),
            lr=config.arch_lr,
            betas=(config.arch_beta1, config.arch_beta2),
            weight_decay=config.arch_weight_decay,
        )
        return {"sgd": self.weight_optimizer, "adam": self.arch_optimizer}

    def move_logits(self) -> None:
        """Move the logits by their gradients, and by what they cost where that has a weight."""
        weight = self.config.latency_weight
        if weight is not None and self._expected_cost is not None:
            add_cost_gradient(self.logits, self.learned_logits, self._expected_cost, weight)
        self.method.update_logits(self.arch_optimizer)
        self._price = None

    def streams(self) -> tuple[Batches, ...]:
        """Return where its batches come from."""
        return self.weight_batches, self.arch_batches

    def take_step(self, step: int) -> None:
        """Run ``search_step``; in the first step of an epoch also measure its peak memory."""
        if not self.trains:
            return
        if step % self.steps_per_epoch:
            search_step(self, step)
        elif self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            search_step(self, step)
            self._record_peak(torch.cuda.max_memory_allocated(self.device))
        else:
            with LiveBytes(self.resident()) as live:
                search_step(self, step)
            self._record_peak(live.peak)

    def _record_peak(self, peak: int) -> None:
        # Kept with the sums, which a checkpoint holds; they are divided by the steps.
        self.trained.sums["peak_bytes"] = float(peak * self.steps_per_epoch)

    def resident(self) -> list[torch.Tensor]:
        """Return what is alive between two steps: weights, buffers, moments."""
        modules, optimizers = self.trained.modules.values(), self.trained.optimizers.values()
        moments = [moment for one in optimizers for moment in one.state.values()]
        return [
            *(value for module in modules for value in module.state_dict().values()),
            *(value for kept in self.trained.kept for value in kept.values()),
            *(value for moment in moments for value in moment.values() if torch.is_tensor(value)),
        ]

    @property
    def num_passes(self) -> int:
        """Sub-network passes of the whole search, as it went so far: the warm-up has no
        architecture half, a roll-back repeats epochs, a stop leaves some out.
        """
        architecture, weights = self.method.passes
        epoch, total = 0, 0
        for number in range(self.num_steps // self.steps_per_epoch):
            total += self.steps_per_epoch * weights
            if self.learns_architecture(epoch):
                total += self.method.architecture_halves(self.steps_per_epoch) * architecture
            total += self.method.closing_passes(epoch, self.config.epochs, self.steps_per_epoch)
            row = self.metrics[number] if number < len(self.metrics) else {}
            epoch = row.get(NEXT_EPOCH, epoch + 1)
        return total

    def temperature_at(self, step: int) -> float:
        """Return the Gumbel-softmax temperature of a step."""
        epoch, epochs = self._schedule_at(step)
        return temperature(
            epoch, epochs, self.config.temperature_start, self.config.temperature_end
        )

    def weight_lr_at(self, step: int) -> float:
        """Return SGD's learning rate of a step: cosine by epoch, as DARTS, unless the method has
        another.
        """
        epoch, epochs = self._schedule_at(step)
        scheduled = cosine(epoch / epochs, self.config.weight_lr, self.config.weight_lr_min)
        return self.method.weight_lr(scheduled, self.epoch_at(step), self.config.epochs)

    def batch(self, batches: Batches, step: int) -> Batch:
        """Return the step's batch in the type that is computed in."""
        images, labels = batches.batch(step)
        weights = None if self._class_weights is None else self._class_weights[labels]
        return Batch(images.to(self.input_type), labels, weights)

    def check(self) -> None:
        """Raise ``NonFiniteError`` for the first step whose update was not finite."""
        self.watch.check()

    def cautions(self, row: Mapping[str, Any]) -> Iterator[str]:
        """Yield a warning where the architecture begins to learn from a supernet that is no better
        than chance.
        """
        warmup, chance = self.config.warmup_epochs, math.log(self.num_classes)
        if (
            self.method.passes[0] == 0
            or len(self.metrics) != max(1, warmup)
            or row["weight_loss"] < chance
        ):
            return
        when = "as the architecture begins to learn" if warmup else "in the first epoch, in which"
        then = "" if warmup else " the architecture learns"
        keys = ["search.warmup_epochs", "search.epochs"]
        if self.method.gradients_summed > 1 and self.config.clip == "sum":
            keys.append("search.clip=branch")
        yield (
            f"the supernet's loss is {row['weight_loss']:.2f} {when}{then}, that of chance is "
            f"{chance:.2f}: it says little of any operation ({', '.join(keys)})"
        )

    def describe_epoch(self, step: int, means: dict[str, float]) -> dict[str, Any]:
        """Return losses, accuracies, temperature, entropies, memory and the genotype so far.

        None stands for what was not measured: the architecture half of an epoch of the warm-up,
        the edge entropy of a method that learns no edges.
        """
        trained: dict[str, Any] = {**means} if self.trains else {}
        if trained:
            trained["peak_bytes"] = round(trained["peak_bytes"])
            halves = self.method.architecture_halves(self.steps_per_epoch)
            learns = self.learns_architecture(self.epoch_at(step))
            for name in ("arch_loss", "arch_accuracy"):
                mean = trained[name] * (self.steps_per_epoch / halves)
                trained[name] = mean if learns else None
        return {
            **trained,
            "temperature": self.temperature_at(step),
            "weight_lr": self.weight_lr_at(step),
            **self._describe_logits(),
        }

    def _describe_logits(self) -> dict[str, Any]:
        genotype = self.derive()
        entropies = {
            cell: self.logits.entropy(cell, none_too=self.method.searches_none)
            for cell in CELL_TYPES
        }
        edges = {
            cell: entropies[cell][1] if self.method.learns_edges else None for cell in CELL_TYPES
        }
        return {
            "op_entropy": {cell: entropies[cell][0] for cell in CELL_TYPES},
            "edge_entropy": edges,
            "parameterless_normal": genotype.parameterless_normal,
            "genotype": genotype.to_dict(),
            **self._describe_costs(genotype),
        }

    def _describe_costs(self, genotype: Genotype) -> dict[str, float]:
        """Return the expected cost, the derived cell's and the price, where costs are looked at."""
        if self._expected_cost is None:
            return {}
        costs = self._expected_cost.costs
        with torch.no_grad(), self.priced():
            expected = float(self._expected_cost(self.logits))
        return {
            f"expected_{costs.quantity}": expected,
            f"derived_{costs.quantity}": costs.of(genotype),
            **({} if self._price is None else {"price": self._price}),
        }


def _checked(costs: CellCosts | None, config: SearchConfig, method: Method) -> CellCosts | None:
    """Return the costs that a search looks at; None where it looks at none.

    Raises ``ConfigError`` for costs of something else, and for a limit that no cell keeps.
    """
    limit, weight = config.limit, config.latency_weight
    if limit is None and weight is None:
        return None
    key = "search.latency_weight" if limit is None else limit.key
    quantity = "latency_ms" if limit is None else limit.quantity
    if not method.keeps_limits:
        raise ConfigError(f"{key} is not supported for {method.name}")
    if costs is None or costs.quantity != quantity:
        raise ConfigError(f"{key} needs the {quantity} of cells (the argument costs)")
    if costs.space != method.logits.space:
        raise ConfigError(
            f"costs of space {costs.space.name} are none of {method.logits.space.name}"
        )
    if limit is not None:
        least_cost(costs, limit)
    return costs


def weight_optimizer(config: SearchConfig, supernet: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a supernet's weights, which are on their device already."""
    if config.weight_optimizer == "rmsprop":
        return RmsProp(supernet, lr=config.weight_lr, weight_decay=config.weight_decay)
    return sgd(
        supernet,
        lr=config.weight_lr,
        momentum=config.weight_momentum,
        weight_decay=config.weight_decay,
    )


def _halves(config: SearchConfig, data: ImageData, seed: int) -> list[tuple[Images, str]]:
    """Return the images of both halves that the search sees, and what their batches are for."""
    return [
        (_part(half, config.image_fraction, seed, purpose), purpose)
        for half, purpose in ((data.weight_half, "weights"), (data.arch_half, "architecture"))
    ]


def _part(half: Images, fraction: float, seed: int, purpose: str) -> Images:
    """Return ``fraction`` of the images, at least one of each class."""
    if fraction == 1.0:
        return half
    labels = half.labels_N.cpu()
    count = max(round(fraction * len(half)), len(set(labels.tolist())))
    chosen, _ = stratified_choice(
        labels, count, least=1, seed=seed, purpose=f"{purpose}-image-fraction"
    )
    return half.select(chosen)


def build_method(config: SearchConfig, data: ImageData, space: SearchSpace, *, seed: int) -> Method:
    """Return a search's method before its first step, with fresh weights and logits."""
    sizes = Sizes(
        num_cells=config.num_cells,
        init_channels=config.init_channels,
        num_classes=len(data.class_names),
        in_channels=data.channels,
        stem=stem_for(config.stem, data.image_size),
    )
    kind = search_methods.find(config.method)
    logits_generator = generator(seed, "architecture-logits")
    with torch.random.fork_rng(devices=[]):
        method = kind.build(config, kind.searched_space(space), sizes, logits_generator)
    initialize(method.supernet, generator(seed, "supernet-weights"))
    return method


def build_trained_supernet(
    config: SearchConfig,
    data: ImageData,
    space: SearchSpace,
    weights: dict[str, torch.Tensor],
    *,
    device: torch.device,
    what: str,
) -> nn.Module:
    """Return the supernet of a finished search with its ``weights``, on ``device``.

    ``what`` names them in errors. Raises ``DamagedArtifactError`` where they do not fit.
    """
    supernet = build_method(config, data, space, seed=0).supernet
    load_weights(supernet, weights, what=what)
    return to_device(supernet, device)


def search_step(search: Search, step: int) -> None:
    """Run one step: both halves in the method's order, the architecture's after the warm-up.

    An update that is not finite is not made; ``NonFiniteError`` then names the step, at once on
    the CPU, else when the host next hears from the device.
    """
    halves = [weight_step]
    in_turn = step % search.steps_per_epoch % search.method.architecture_interval == 0
    if in_turn and search.learns_architecture(search.epoch_at(step)):
        halves.insert(1 if search.method.weights_first else 0, architecture_step)
    for half in halves:
        half(search, step)


def architecture_step(search: Search, step: int) -> None:
    """Update the logits by the method's gradient on one batch of the architecture half."""
    search.arch_optimizer.zero_grad()
    batch = search.batch(search.arch_batches, step)
    context = _context(search, step, "architecture-draw")
    with search.priced():
        measured = search.method.architecture_gradients(batch, context)
    search.ranks.mean_gradients(search.logits.parameters())
    measured = _over_ranks(search, measured)
    search.trained.sums.add(arch_loss=measured.loss, arch_accuracy=measured.accuracy)
    # The logits' gradients have just come from the device: the one place a step waits for it.
    search.watch.add(step, "the validation loss", measured.loss)
    for name, parameter in search.logits.named_parameters():
        if parameter.grad is not None:
            search.watch.add(step, f"the gradient of {name}", parameter.grad)
    search.watch.check()
    search.move_logits()


def weight_step(search: Search, step: int) -> None:
    """Update the weights by the method's gradient on one batch of the weight half.

    Weights that no draw sampled keep their value and momentum (ROME v2, Eq. 12; ours where the
    paper is silent: no decay either). The clip norm is that of all gradients together, or, with
    ``clip="branch"``, of one draw and branch. Branches share no weights, and draws few (heads,
    stem, operations where there are few), so that the gradients that are added are not far from
    right angles: the norm of n of them is sqrt(n) times that of one, or up to 1.4 times as much.
    """
    config = search.config
    limit = config.clip_norm
    if config.clip == "branch":
        limit *= search.method.gradients_summed**0.5
    search.weight_optimizer.zero_grad()
    batch = search.batch(search.weight_batches, step)
    context = _context(search, step, "weight-draw")
    with search.priced():
        measured = search.method.weight_gradients(batch, context)
    if step == 0 and not any(weight.grad is not None for weight in search.method.weights):
        raise ConfigError(f"the search method {search.method.name} gives no weight a gradient")
    search.ranks.mean_gradients(search.method.weights)
    measured = _over_ranks(search, measured)
    norm = nn.utils.clip_grad_norm_(search.method.weights, limit)
    search.trained.sums.add(
        weight_loss=measured.loss,
        weight_accuracy=measured.accuracy,
        branch_loss=measured.branch_loss,
        clip_rate=norm > limit,
    )
    finite = search.watch.add(step, "the training loss", measured.loss)
    finite = finite & search.watch.add(step, "the gradient norm", norm)
    step_if_finite(search.weight_optimizer, finite)
    search.watch.check_if_synchronous()


def _context(search: Search, step: int, purpose: str) -> StepContext:
    for group in search.weight_optimizer.param_groups:  # also for who looks a weight step ahead
        group["lr"] = search.weight_lr_at(step)
        group["weight_decay"] = search.method.weight_decay(search.config.weight_decay)
    return StepContext(
        temperature=search.temperature_at(step),
        draws=lambda index: _draw_generator(search, step, purpose, index),
        weight_batch=lambda later=0: search.batch(search.weight_batches, step + later),
        weight_lr=search.weight_lr_at(step),
        weight_optimizer=search.weight_optimizer,
        epoch=search.epoch_at(step),
        epochs=search.config.epochs,
    )


def _draw_generator(search: Search, step: int, purpose: str, index: int) -> torch.Generator:
    if index < 0:
        raise ValueError(f"draws({index}): sub-networks count from 0")
    draws = search.config.draws
    if index < draws:
        return generator(search.seed, purpose, step * draws + index)
    # Past search.draws that number is the next step's: a purpose of the step's own keeps apart.
    return generator(search.seed, f"{purpose}/{step}", index)


def _over_ranks(search: Search, measured: Measured) -> Measured:
    """Return the means over the ranks: the same numbers on all, so that all stop where one must."""
    if search.ranks.size == 1:
        return measured
    values = torch.stack([measured.loss, measured.accuracy, measured.branch_loss])
    return Measured(*search.ranks.mean(values).unbind())
