"""Interface of a search method: facts on itself, a supernet, logits, and two gradients.

The loop (``train.search``) owns data, optimizers, schedules and checks. A method says how a batch
of the architecture half becomes a gradient of the logits, and one of the weight half a gradient of
the weights. One sub-network's forward and backward on one batch is a *pass*, the unit in which
searches of different methods are compared. Hooks with defaults let a method do more: look at images
after an epoch, stop, go back, continue with another supernet. Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from ..config import SearchConfig
from ..config.registry import search_methods
from ..errors import ConfigError
from ..genotype import Genotype, places_of
from ..spaces import CELL_TYPES, SPACES, SearchSpace

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..nn.sampling import ArchLogits

_R_DARTS_SPACES = tuple(SPACES[name] for name in ("S1", "S2", "S3", "S4"))

D2NAS_KEYS = (
    "draws",
    "branch_length",
    "branch_head",
    "edge_gate_scale",
    "clip",
    "estimator",
    "reward",
    "recipe",
)
"""Keys of ``search.*`` that only D2NAS and its entangled form read."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Normalised images (N, C, H, W), labels (N,), and the weight of each image in the loss (N,);
    None: 1.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor | None = None

    def first(self, number: int) -> Batch:
        """Return the batch's first images."""
        weights = None if self.weights is None else self.weights[:number]
        return Batch(self.images[:number], self.labels[:number], weights)


@dataclass(frozen=True, slots=True)
class StepContext:
    """Context of one half of a step: all that a method may use besides the half's batch.

    ``draws(k)``: the generator of the half's k-th sub-network, k from 0 on (``ValueError`` below);
    no other k, half or step has the same one, also where k is ``search.draws`` or more.
    ``weight_batch()``, the step's batch of the weight half, or ``weight_batch(k)``, that of k steps
    later, ``weight_lr`` and ``weight_optimizer`` are for methods that look weight steps ahead.
    ``epoch`` of ``epochs``, from 0 on: after a roll-back again the earlier one.
    """

    temperature: float
    draws: Callable[[int], torch.Generator]
    weight_batch: Callable[..., Batch]
    weight_lr: float
    weight_optimizer: torch.optim.Optimizer
    epoch: int = 0
    epochs: int = 1


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """Context of the end of an epoch: all that a method may use between two epochs.

    ``epoch`` of ``epochs``, from 0 on, has ended; it had ``steps`` steps. ``arch_batch(k)`` and
    ``weight_batch(k)``: a half's k-th batch of it, augmented as in the steps; from k = ``steps`` on
    batches of epochs to come. ``draws(k)``: generators, which no step and no other end has.
    ``keep(slot)`` keeps weights, statistics, logits and both optimizers' moments;
    ``bring_back(slot)`` makes them what was kept. Slots count from 0, below
    ``Method.kept_states``, else ``ValueError``; every checkpoint holds them.
    ``restart_weight_optimizer()`` makes its moments zero, as before the first step.
    """

    epoch: int
    epochs: int
    steps: int
    arch_batch: Callable[[int], Batch]
    weight_batch: Callable[[int], Batch]
    draws: Callable[[int], torch.Generator]
    keep: Callable[[int], None]
    bring_back: Callable[[int], None]
    restart_weight_optimizer: Callable[[], None] = lambda: None

    @property
    def is_last(self) -> bool:
        """Whether the search ends here unless the method goes back."""
        return self.epoch + 1 == self.epochs


@dataclass(frozen=True, slots=True)
class Measured:
    """Means over a half's sub-networks, as 0-dimensional tensors on the device.

    ``loss`` and ``accuracy`` (a fraction) are of the sub-network's prediction, ``branch_loss`` is
    the mean over all branches.
    """

    loss: Tensor
    accuracy: Tensor
    branch_loss: Tensor


@dataclass(frozen=True, slots=True)
class Sizes:
    """The layout of a supernet; see ``Supernet``."""

    num_cells: int
    init_channels: int
    num_classes: int
    in_channels: int
    stem: str


class Method:
    """One way to search: base of all. The facts are set in the class."""

    name = ""
    """As in ``search.method``; given by ``register_method``."""
    revision = 1
    """Grows when its results change, so that its old ones are not used again."""
    passes: tuple[int, int]
    """Sub-network passes of a step's architecture and weight half; with none for the architecture
    its half does not take place."""
    architecture_interval = 1
    """The architecture half takes place in an epoch's first step and every so many steps after."""
    weights_first = False
    """Whether the weight half comes first."""
    warms_up = False
    """Whether by default the architecture rests at first."""
    searches_none = False
    """Whether ``none`` is among the candidates, as in DARTS's own S0."""
    learns_edges = True
    """Whether the edge logits take part; those of other methods stay as they began."""
    learns_distribution = False
    """Whether sub-networks can be sampled from the logits, as ``derive.candidates`` does."""
    keeps_limits = False
    """Whether its logits can be held to a limit on latency, multiply-adds or parameters: softmaxes
    of them say what is kept (see ``choice_scores``)."""
    several_processes = True
    """Whether it can search on several processes."""
    precisions: Collection[str] = ("fp32", "tf32", "bf16")
    """Those of ``search.precision`` that it can compute in."""
    recipe: Mapping[str, Any] = {}
    """Defaults of ``search.*`` where its own differ from d2nas's."""
    unread: Collection[str] = ()
    """Keys of ``search.*`` that it does not read."""
    kept_states = 0
    """How many states of weights, logits and optimizers it keeps (``EpochEnd.keep``)."""

    supernet: nn.Module
    logits: ArchLogits
    memory: nn.Module | None = None
    """Own state: its buffers, of fixed shapes, are part of every checkpoint."""

    @property
    def gradients_summed(self) -> int:
        """How many losses' gradients are added in a weight half: of each draw and branch."""
        return 1

    @classmethod
    def settings(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the ``search.*`` that a user gave over the method's own defaults.

        A recipe's learning rate of the weights is SGD's. Raises ``ValueError`` for what contradicts
        the method.
        """
        rest = {} if cls.warms_up else {"warmup_epochs": 0}
        recipe = dict(cls.recipe)
        if given.get("weight_optimizer", "sgd") != recipe.get("weight_optimizer", "sgd"):
            recipe.pop("weight_lr", None)
        return {**rest, **recipe, **given}

    @classmethod
    def searched_space(cls, space: SearchSpace) -> SearchSpace:
        """Return the space that it searches in: with ``none``, where it searches that.

        S1 to S4 are searched by every method as R-DARTS published them.
        """
        with_none = cls.searches_none and space not in _R_DARTS_SPACES
        return space.with_none() if with_none else space

    @classmethod
    def branch_cells(cls, config: SearchConfig) -> int | None:
        """Return how many cells one branch spans; None for a method without branches."""
        return None

    @classmethod
    def build(
        cls, config: SearchConfig, space: SearchSpace, sizes: Sizes, generator: torch.Generator
    ) -> Method:
        """Return the method before its first step; ``generator`` draws the logits' start.

        ``space`` is a searched one. The weights are initialized by the caller.
        """
        raise NotImplementedError

    @classmethod
    def genotype_of(cls, logits: ArchLogits) -> Genotype:
        """Return the genotype that logits stand for by the method's own rule."""
        raise NotImplementedError

    @classmethod
    def choice_scores(cls, logits: ArchLogits, cell_type: str) -> tuple[Tensor, Tensor]:
        """Return the scores of choices whose sum over a cell is largest for the cell that its rule
        derives: of each pair of edges as in ``nn.probability.node_pairs``, (P,), and of each
        operation on each edge, (E, O), -inf where there is none.

        For methods that keep limits: the best cell within one has the largest sum.
        """
        raise NotImplementedError

    def architecture_halves(self, steps: int) -> int:
        """Return how many of an epoch's ``steps`` have an architecture half, after the warm-up."""
        return -(-steps // self.architecture_interval)

    @cached_property
    def weights(self) -> list[nn.Parameter]:
        """The supernet's weights, listed once: walking its modules takes as long as several cells,
        most of them not sampled.
        """
        return list(self.supernet.parameters())

    def architecture_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Fill the gradients of the logits, which are empty before."""
        raise NotImplementedError

    def weight_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Fill the gradients of the supernet's weights, which are empty before."""
        raise NotImplementedError

    def update_logits(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the logits by their gradients, which are finite: a step of Adam."""
        optimizer.step()

    def schedule(self, epoch: int, epochs: int) -> tuple[int, int]:
        """Return the epoch, and of how many, that learning rate, temperature and warm-up follow.

        Those of the whole search, unless its stages have schedules of their own.
        """
        return epoch, epochs

    def weight_lr(self, scheduled: float, epoch: int, epochs: int) -> float:
        """Return the learning rate of the weights in an epoch; ``scheduled``: the cosine's."""
        return scheduled

    def weight_decay(self, given: float) -> float:
        """Return the weight decay of the next step; ``given``: ``search.weight_decay``."""
        return given

    def close_epoch(self, end: EpochEnd) -> int:
        """Do what follows an epoch, and return the epoch that comes next.

        ``end.epochs`` stops the search, an earlier epoch repeats its schedules from there on (with
        other batches and draws; see ``EpochEnd.bring_back``). In the last epoch the logits may be
        written so that they derive to the wanted cell. See also ``replace``.
        """
        return end.epoch + 1

    def closing_passes(self, epoch: int, epochs: int, steps: int) -> int:
        """Return how many passes ``close_epoch`` makes after an epoch of ``steps`` steps; forward
        passes alone count, too.
        """
        return 0

    def describe(self) -> dict[str, Any]:
        """Return what the row of the epoch that ``close_epoch`` has closed holds besides losses."""
        return {}

    def replace(self, supernet: nn.Module, logits: ArchLogits) -> None:
        """Continue with another supernet and other logits; the optimizers begin anew.

        For ``close_epoch`` and ``rebuild``.
        """
        self.supernet, self.logits = supernet, logits
        self.__dict__.pop("weights", None)

    def rebuild(self) -> None:
        """Make supernet and logits those that ``memory`` stands for, as a checkpoint filled it.

        Their values come from the checkpoint. Only for methods that ``replace`` them.
        """

    @classmethod
    def derive_from(cls, logits: ArchLogits) -> Genotype:
        """Return ``genotype_of``. Raises ``ConfigError`` where that is no cell of the space."""
        genotype = cls.genotype_of(logits)
        if not isinstance(genotype, Genotype):
            raise ConfigError(f"the search method {cls.name} derives {genotype!r}, no Genotype")
        try:
            for cell_type in CELL_TYPES:
                places_of(genotype, logits.space, cell_type)
        except ConfigError as error:
            raise ConfigError(f"the search method {cls.name} derives {error}") from None
        return genotype

    def derive(self) -> Genotype:
        """Return the genotype of its logits as they are. Raises as ``derive_from``."""
        return self.derive_from(self.logits)


def _problems_of(kind: type[Method]) -> Iterator[str]:
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        yield f"{kind!r} is no subclass of Method"
        return
    fields = set(SearchConfig.model_fields)
    for fact, words, known in (
        ("recipe", kind.recipe, fields),
        ("unread", kind.unread, fields),
        ("precisions", kind.precisions, {"fp32", "tf32", "bf16"}),
    ):
        valid = isinstance(words, Collection) and not isinstance(words, str)
        if not valid or not all(isinstance(word, str) for word in words):
            yield f"invalid {fact}: {words!r}"
        elif set(words) - known:
            yield f"invalid {fact}: {min(set(words) - known)} is not known"
    if not isinstance(kind.recipe, Mapping):
        yield f"invalid recipe: {kind.recipe!r}"
    if not kind.precisions:
        yield "invalid precisions: none"
    if not isinstance(kind.kept_states, int) or kind.kept_states < 0:
        yield f"invalid kept_states: {kind.kept_states!r}"
    if not isinstance(kind.architecture_interval, int) or kind.architecture_interval < 1:
        yield f"invalid architecture_interval: {kind.architecture_interval!r}"
    passes = getattr(kind, "passes", None)
    # Where it depends on the configuration it is set in the instance, or a property.
    if not (passes is None or isinstance(passes, property)) and not (
        isinstance(passes, tuple)
        and len(passes) == 2
        and all(isinstance(number, int) and number >= 0 for number in passes)
    ):
        yield f"invalid passes: {passes!r}"


_MethodClass = TypeVar("_MethodClass", bound=type[Method])


def register_method(name: str) -> Callable[[_MethodClass], _MethodClass]:
    """Register the class that follows as a search method.

    Raises ``ConfigError`` for an invalid name, for one that is taken, for what is no subclass of
    ``Method`` and for facts that are invalid.
    """

    def register(kind: _MethodClass) -> _MethodClass:
        for problem in _problems_of(kind):
            raise ConfigError(f"the search method {name}: {problem}")
        if not kind.__module__.startswith("d2nas.methods."):
            search_methods.names()  # so that those of d2nas itself are there, and taken
        search_methods.add(name, kind)
        kind.name = name
        return kind

    return register
