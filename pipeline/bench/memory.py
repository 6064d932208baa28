"""Measures the peak memory of a search step of any method.

The peak is that of the whole step, both halves; weights, the gradients of *all* weights (after
some draws nearly all exist) and the optimizers' state included. Sampled sub-networks run one after
the other, so one draw per half has the peak of K.

Without CUDA nothing is computed: the step's operations only allocate, and the live bytes are
counted. With CUDA it runs, and the allocator's peak is read.
"""

import contextlib
import functools
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from torch import Tensor, nn

from d2nas.config.registry import search_methods
from d2nas.measure.allocation import AllocateOnly
from d2nas.measure.cost import LiveBytes
from d2nas.methods.base import Batch, EpochEnd, Sizes, StepContext
from d2nas.methods.curvature import hessian_rows
from d2nas.methods.darts import Darts
from d2nas.methods.p_darts import PDarts, stage_starts
from d2nas.methods.passes import frozen, measure
from d2nas.methods.r_darts import RDartsEarlyStopping
from d2nas.methods.sdarts import SdartsAdversarial
from d2nas.methods.single_path import SinglePath
from d2nas.methods.zarts import Zarts
from d2nas.nn.sampling import ArchLogits, CellDraw, Draw, sample, sample_operations
from d2nas.nn.units import keep_everything
from d2nas.randomness import generator
from d2nas.spaces import CELL_TYPES, SPACES, SearchSpace
from d2nas.train.loop import to_device
from d2nas.train.precision import compute_type
from d2nas.train.search import weight_optimizer

from .memory_cases import HEAVIEST, HEAVY, LOOK, RANDOM, Case, Measurement

IMAGE_SIZE, CLASSES, CHANNELS = 32, 10, 3
RANDOM_DRAWS = 16
_TEMPERATURE = 10.0
_MAX_PROCESSES = 8


def measure_all(cases: Sequence[Case], device: torch.device) -> Iterator[Measurement]:
    """Measure every case, in order; without CUDA in one process per core."""
    processes = min(len(cases), os.cpu_count() or 1, _MAX_PROCESSES)
    if device.type == "cuda" or processes < 2:
        yield from (measure_case(case, device) for case in cases)
        return
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_begin_process
    ) as pool:
        # What takes longest is begun first, so that no process is left alone with it.
        waiting = {
            case: pool.submit(measure_case, case, device)
            for case in sorted(cases, key=_effort, reverse=True)
        }
        yield from (waiting[case].result() for case in cases)


def _effort(case: Case) -> int:
    """Return how long a case takes, roughly: operations computed, twice with recomputation."""
    config = case.config
    operations = config.num_cells * (len(draws_of(case)) * 8 if case.is_sampled else 100)
    return operations * (1 if config.recompute == "none" else 2)


def _begin_process() -> None:
    # An interrupt ends all processes at once; the one that was asked says so, the others nothing.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)


def measure_case(case: Case, device: torch.device, *, computed: bool = False) -> Measurement:
    """Measure a case's draws on ``device``; ``computed``: with real tensors on the CPU too."""
    gc.collect()
    draws = draws_of(case)
    real = computed or device.type == "cuda"
    bench = _Bench(case, device)
    with contextlib.nullcontext() if real else _allocate_only():
        update = bench.peak(bench.update)
        peaks = {
            name: max(update, bench.peak(lambda draw=draw: bench.run_halves(draw)))  # type: ignore[misc]
            for name, draw in draws.items()
        }
        state_bytes = LiveBytes(bench.state).now
    counted = "live bytes" if real else "live bytes, nothing computed"
    measured_by = "CUDA allocator" if device.type == "cuda" else counted
    return Measurement(case, state_bytes, peaks, measured_by)


@functools.cache
def _allocate_only() -> AllocateOnly:
    # One for all cases: they have most operations and shapes in common. No loss decides what the
    # adversary, the tuned copies or the tests for finite numbers allocate.
    return AllocateOnly(zeros=True)


class _Bench:
    """A method with all gradients and optimizer state that it can have, and a batch."""

    def __init__(self, case: Case, device: torch.device) -> None:
        config, self.case, self.device = case.config, case, device
        self.epoch = 0
        kind = search_methods.find(config.method)
        space = kind.searched_space(SPACES[config.space])
        sizes = Sizes(config.num_cells, config.init_channels, CLASSES, CHANNELS, "cifar")
        with torch.random.fork_rng(devices=[]):
            self.method = kind.build(config, space, sizes, torch.Generator().manual_seed(0))
            if isinstance(self.method, Zarts):  # copies are alike, and so are the steps of each
                self.method.samples, self.method.tuning_steps = 2, 2
            self._begin_part()
        supernet = self.method.supernet.train()
        if case.published:
            keep_everything(supernet)
        to_device(supernet, device)
        self.optimizer = weight_optimizer(config, supernet)
        moments = [
            [value for value in of_one.values() if torch.is_tensor(value)]
            for of_one in self.optimizer.state.values()
        ]
        for parameter in supernet.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.state = [
            *supernet.state_dict().values(),
            *(parameter.grad for parameter in supernet.parameters()),
            *(moment for of_one in moments for moment in of_one),
            # The logits, their gradients and Adam's two moments.
            *(torch.zeros_like(p) for p in self.method.logits.parameters() for _ in range(4)),
        ]
        self.batch = self._make_batch()

    def _begin_part(self) -> None:
        """End epochs until a search's part begins: a stage of P-DARTS."""
        if isinstance(self.method, PDarts) and self.case.part is not None:
            starts = stage_starts(self.case.config.epochs)
            for start in starts[1 : int(self.case.part.removeprefix("stage "))]:
                self.epoch = start
                self.method.close_epoch(self._epoch_end(start - 1))

    def _epoch_end(self, epoch: int) -> EpochEnd:
        """Return the context of an epoch's end; nothing is kept or brought back."""

        def refuse(_slot: int) -> None:
            raise NotImplementedError("states are not kept here")

        return EpochEnd(
            epoch=epoch,
            epochs=self.case.config.epochs,
            steps=1,
            arch_batch=lambda _index: self.batch,
            weight_batch=lambda _index: self.batch,
            draws=lambda index: torch.Generator().manual_seed(index),
            keep=refuse,
            bring_back=refuse,
        )

    def _make_batch(self) -> Batch:
        config = self.case.config
        images = torch.zeros(
            (config.batch_size, CHANNELS, IMAGE_SIZE, IMAGE_SIZE),
            dtype=compute_type(config.precision, self.device),
            device=self.device,
        ).contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(config.batch_size, dtype=torch.int64, device=self.device)
        return Batch(images, labels)

    def peak(self, run: Callable[[], None]) -> int:
        """Return the most bytes that are alive while ``run()`` does."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            run()
            return torch.cuda.max_memory_allocated(self.device)
        with LiveBytes([*self.state, self.batch.images, self.batch.labels]) as live:
            run()
        return int(live.peak)

    def update(self) -> None:
        """Clip all gradients and take SGD's step."""
        nn.utils.clip_grad_norm_(self.method.supernet.parameters(), self.case.config.clip_norm)
        self.optimizer.step()

    def run_halves(self, draw: Draw | None) -> None:
        """Compute both halves' gradients."""
        method, batch = self.method, self.batch
        context = StepContext(
            temperature=_TEMPERATURE,
            draws=lambda index: torch.Generator().manual_seed(index),
            weight_batch=lambda _later=0: self._make_batch(),
            weight_lr=self.case.config.weight_lr,
            weight_optimizer=self.optimizer,
            epoch=self.epoch,
            epochs=self.case.config.epochs,
        )
        if self.case.part == LOOK:
            assert isinstance(method, RDartsEarlyStopping)
            # The gradient's graph, and the first of the backward passes through it: all are alike.
            loss = method.validation_loss(self._epoch_end(0))
            with frozen(method.weights):
                next(hessian_rows(method.supernet, method.logits, loss))
        elif self.case.published:
            self._run_as_published(draw, context)
        elif isinstance(method, SinglePath):
            assert draw is not None  # a method that samples
            generators = [torch.Generator().manual_seed(0)]
            if method.passes[0]:
                method.gate_gradients(batch, [draw], generators)
            method.run(batch, [draw], generators)
        else:
            if method.passes[0]:
                method.architecture_gradients(batch, context)
            method.weight_gradients(batch, context)

    def _run_as_published(self, draw: Draw | None, context: StepContext) -> None:
        """The published codes freeze nothing: their halves differ in the batch alone, and in what
        looks ahead.
        """
        method, batch = self.method, self.batch
        if isinstance(method, SinglePath):
            assert draw is not None  # a method that samples
            chosen = _with_open_gates(draw, self.device) if method.passes[0] else draw
            prediction = method.supernet(batch.images, chosen)
        else:
            assert isinstance(method, Darts)
            if method.passes[0]:
                method.architecture_gradients(batch, context)
            if isinstance(method, SdartsAdversarial):
                method.weight_gradients(batch, context)
                return
            prediction = method.predict(batch, context)
        loss, _ = measure(prediction, batch.labels)
        torch.autograd.backward(loss)


def _with_open_gates(draw: Draw, device: torch.device) -> Draw:
    def gates(cell: CellDraw) -> Tensor:
        return torch.ones(len(cell.edges), device=device, requires_grad=True)

    return draw.with_gates(gates(draw.normal), gates(draw.reduce))


def draws_of(case: Case) -> dict[str, Draw | None]:
    """Return the sub-networks to measure, without gates, by name.

    Each operation (or each heavy one) on all edges, these entering from the two inputs or making
    the deepest chain (GDAS runs all): there the worst is looked for. And 16 random ones, of
    which the mean is taken. A method that samples nothing has one entry, None.
    """
    kind = search_methods.find(case.config.method)
    if not issubclass(kind, SinglePath):
        return {"": None}
    space = kind.searched_space(SPACES[case.config.space])
    draws: dict[str, Draw | None] = {}
    if case.draws != "random":
        some = {"heavy": HEAVY, "heaviest": HEAVIEST}
        draws |= _uniform_draws(kind, space, some.get(case.draws))
    if case.draws != "heaviest":
        draws |= _random_draws(kind, space)
    return draws


def _uniform_draws(
    kind: type[SinglePath], space: SearchSpace, operations: Sequence[str] | None
) -> dict[str, Draw]:
    shapes = {
        "from the inputs": _entering(space, lambda node: (0, 1)),
        "in a chain": _entering(space, lambda node: (node - 2, node - 1)),
    }
    if kind.all_edges:
        shapes = {"on all edges": tuple(range(len(space.edges)))}
    known = dict.fromkeys(name for edge in space.normal for name in edge)
    return {
        f"{operation} {shape}": _uniform(space, operation, edges)
        for operation in operations or known
        for shape, edges in shapes.items()
    }


def _entering(space: SearchSpace, sources: Callable[[int], tuple[int, int]]) -> tuple[int, ...]:
    return tuple(
        space.edges.index((source, node)) for node in space.nodes for source in sources(node)
    )


def _uniform(space: SearchSpace, operation: str, edges: tuple[int, ...]) -> Draw:
    normal, reduce = (
        CellDraw(
            edges,
            tuple(space.candidates(cell_type)[edge].index(operation) for edge in edges),
            None,
        )
        for cell_type in CELL_TYPES
    )
    return Draw(normal, reduce)


def _random_draws(kind: type[SinglePath], space: SearchSpace) -> dict[str, Draw]:
    logits = ArchLogits(space, generator=generator(0, "architecture-logits"))
    draw = sample_operations if kind.all_edges else sample
    return {
        f"{RANDOM} {index}": draw(
            logits, _TEMPERATURE, generator(0, "bench-memory-draw", index)
        ).with_gates(None, None)
        for index in range(RANDOM_DRAWS)
    }
