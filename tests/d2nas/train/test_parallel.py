"""Two processes that train one network, against one that sees both halves of every batch."""

import datetime
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from children import ForkServer
from processes import on_processes, save
from searches import CPU, config_of, made_images
from torch import Tensor, distributed
from torch.nn import functional as F

from d2nas import parallel
from d2nas.config import build_config
from d2nas.data.batches import Batches
from d2nas.data.images import Normalizer
from d2nas.errors import ConfigError, LostRankError, StorageError
from d2nas.genotype import Genotype
from d2nas.methods.base import Measured
from d2nas.nn.network import DropPath
from d2nas.parallel import ALONE, Ranks, connected, environment_ranks, local_size
from d2nas.randomness import generator
from d2nas.spaces import SPACES
from d2nas.train.retrain import Retraining
from d2nas.train.search import Search

OnTwo = Callable[..., list[dict[str, Tensor]]]
RETRAIN_STEPS, SEARCH_STEPS = 20, 10
HALVES = (Ranks(0, 2), Ranks(1, 2))
RETRAIN = (
    "retrain.num_cells=3", "retrain.init_channels=4", "retrain.batch_size=8", "retrain.epochs=5",
    "retrain.auxiliary=false", "retrain.drop_path=0.3", "retrain.cutout=3", "retrain.lr=0.1",
)  # fmt: skip


def retraining_of(ranks: Ranks = ALONE) -> Retraining:
    """20 steps in float64."""
    config = config_of("d2nas", *RETRAIN)
    data = made_images(half=16)
    retraining = Retraining(
        config.retrain,
        Genotype.published("DARTS_V2"),
        data,
        seed=0,
        device=CPU,
        augmentation=config.data,
        ranks=ranks,
    )
    in_double(retraining.network, retraining.optimizer, retraining.batches)
    retraining.model = ranks.wrap(retraining.network)
    retraining.network.train()
    return retraining


def search_of(words: str, ranks: Ranks = ALONE) -> Search:
    """Ten steps in float64, of a method and its settings."""
    method, *settings = words.split()
    size = ("search.epochs=5", "search.batch_size=8", "search.arch_lr=0.1")
    config = config_of(method, *size, *settings)
    search = Search(
        config.search,
        SPACES["S2"],
        made_images(),
        seed=0,
        device=CPU,
        augmentation=config.data,
        ranks=ranks,
    )
    in_double(search.supernet, search.weight_optimizer, search.weight_batches, search.arch_batches)
    search.input_type = torch.float64
    search.supernet.train()
    return search


def in_double(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, *batches: Batches
) -> None:
    network.double()
    for moments in optimizer.state.values():
        for name in moments.keys() & {"momentum_buffer", "square_avg"}:
            moments[name] = moments[name].double()
    for one in batches:
        exact = one.batch
        one.batch = lambda step, exact=exact: (  # type: ignore[method-assign]
            exact(step)[0].double(),
            exact(step)[1],
        )


def run_all(loop: Retraining | Search) -> dict[str, Tensor]:
    for _ in loop.run():
        pass
    assert loop.num_steps == (RETRAIN_STEPS if isinstance(loop, Retraining) else SEARCH_STEPS)
    return loop.capture(loop.num_steps).tensors


# What two ranks do, in one process: the halves one after the other, each normalised on its own.


def retrained_by_halves() -> dict[str, Tensor]:
    whole = retraining_of()
    parts = [retraining_of(ranks=ranks_without_messages(ranks)) for ranks in HALVES]
    network, optimizer = whole.network, whole.optimizer
    for step in range(RETRAIN_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = whole.lr_at(step)
        optimizer.zero_grad()
        drop_path = DropPath(whole.drop_path_at(step), generator(0, "drop-path", step))
        factors = network.drop_factors(drop_path, 8, CPU)
        for part in parts:
            images, labels = part.batches.batch(step)
            own = None if factors is None else factors[:, part.batches.order.part.own]
            loss = F.cross_entropy(network(images, drop_path=own), labels) / 2
            loss.backward()
        torch.nn.utils.clip_grad_norm_(whole.weights, whole.config.clip_norm)
        optimizer.step()
    return whole.capture(RETRAIN_STEPS).tensors


def ranks_without_messages(ranks: Ranks) -> Ranks:
    """A rank that only knows which part of a batch is its own."""

    class Quiet(Ranks):
        def wrap(self, network: torch.nn.Module) -> torch.nn.Module:
            return network

        def mean(self, values: Tensor) -> Tensor:
            return values

    return Quiet(ranks.rank, ranks.size)


def searched_by_halves(words: str) -> dict[str, Tensor]:
    whole = search_of(words)
    parts = [search_of(words, ranks=ranks_without_messages(ranks)) for ranks in HALVES]

    def halved(kind: str) -> Any:
        single = getattr(whole.method, kind)
        batches = "arch_batches" if kind.startswith("arch") else "weight_batches"

        def gradients(_batch: Any, context: Any) -> Measured:
            found = [
                single(part.batch(getattr(part, batches), halved.step), context) for part in parts
            ]
            for parameter in (*whole.logits.parameters(), *whole.method.weights):
                if parameter.grad is not None:
                    parameter.grad /= 2
            return found[0]

        return gradients

    for kind in ("architecture_gradients", "weight_gradients"):
        setattr(whole.method, kind, halved(kind))
    take = whole.take_step

    def counted(step: int) -> None:
        halved.step = step
        take(step)

    whole.take_step = counted  # type: ignore[method-assign]
    return run_all(whole)


def retrain_here(ranks: Ranks, folder: str) -> None:
    save(folder, ranks, run_all(retraining_of(ranks)))


def search_here(ranks: Ranks, folder: str, words: str) -> None:
    save(folder, ranks, run_all(search_of(words, ranks)))


def messages_here(ranks: Ranks, folder: str) -> None:
    """What ranks tell each other, checked on both."""
    mean = ranks.mean(torch.tensor([1.0, 4.0 * ranks.rank]))
    assert mean.tolist() == [1.0, 2.0]
    assert ranks.largest("both", 3 - ranks.rank, 5 * ranks.rank) == [3, 5]
    assert ranks.decide("a value", lambda: {"a": [ranks.rank, None, "b"]}) == {"a": [0, None, "b"]}
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2).double())]
    unused = torch.nn.Parameter(torch.zeros(4))
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 2.0 * ranks.rank)
    ranks.mean_gradients([*parameters, unused])
    assert all((parameter.grad == 1.0).all() for parameter in parameters)
    assert unused.grad is None
    save(folder, ranks, {"mean": mean})


def long_preparation_here(ranks: Ranks, folder: str) -> None:
    """Rank 0 downloads for longer than ranks wait for each other in training."""
    short = datetime.timedelta(seconds=1)
    training = distributed.distributed_c10d._get_default_group()
    training._get_backend(CPU)._set_default_timeout(short)

    def prepare() -> dict[str, int]:
        time.sleep(3)
        return {"images": 1}

    assert ranks.decide("the images", prepare) == {"images": 1}
    ranks.largest("together again", 0)
    # Control: with the patience of training, a rank would have given up.
    parallel._connection()._group = training
    if ranks.rank == 0:
        time.sleep(3)
        save(folder, ranks, {"waited": torch.ones(1)})
        return
    with pytest.raises(LostRankError, match=r"[Tt]imed out"):
        ranks.decide("the images", prepare)
    save(folder, ranks, {"waited": torch.ones(1)})


def mistakes_here(ranks: Ranks, folder: str) -> None:
    """A rank that decides once more or once less than the other; the last one is noticed late."""
    for first, second in (("a", "more"), ("less", "b")):
        own = (first, second)[ranks.rank]
        with pytest.raises(LostRankError, match=f"rank 0 is at '{first}', rank 1 at '{second}'"):
            ranks.decide(own, lambda: 1)
    with pytest.raises(LostRankError, match="rank 0 is at 'step 3', rank 1 at 'more'"):
        ranks.largest("step 3", 0) if ranks.rank == 0 else ranks.decide("more", lambda: 1)
    # Control: without a look at the names a rank takes what was decided on something else.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "_require_same", lambda _: None)
        assert ranks.decide(("a", "more")[ranks.rank], lambda: "of a") == "of a"
    # One waits for a mean, the other for a decision, each in a group of its own.
    parallel.FIRST_WORD, parallel._SLICE = 0.1, datetime.timedelta(milliseconds=50)
    with pytest.raises(LostRankError, match="rank 0 is at 'a mean over the ranks', rank 1 at 'm"):
        ranks.mean(torch.ones(1)) if ranks.rank == 0 else ranks.decide("more", lambda: 1)
    save(folder, ranks, {"ended": torch.ones(1)})


def failure_here(ranks: Ranks, folder: str, told: str) -> None:
    """Rank 0 cannot decide. Where it does not tell (the control) the others lose it."""
    if told == "untold":
        parallel._Connection.end = lambda *_: None  # type: ignore[method-assign]

    def fail() -> None:
        raise StorageError("the disk is full")

    save(folder, ranks, {"ended": torch.ones(1)})
    if ranks.rank == 0:
        with pytest.raises(StorageError, match="the disk is full"):
            ranks.decide("the version", fail)
    elif told == "told":
        with pytest.raises(SystemExit) as caught:
            ranks.decide("the version", fail)
        assert caught.value.code == StorageError.exit_code
    else:
        with pytest.raises(LostRankError):
            ranks.decide("the version", fail)


@pytest.fixture
def on_two_processes(fork_server: ForkServer, tmp_path: Path) -> OnTwo:
    """What runs a function of this module on two ranks and returns what each wrote."""

    def run(function: str, *arguments: str) -> list[dict[str, Tensor]]:
        name = f"test_parallel.{function}"
        return on_processes(2, name, tmp_path, *arguments, fork_server=fork_server)

    return run


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Weights, logits and moments; statistics are each rank's own, sums are compared elsewhere."""
    names = [name for name in wanted if not is_statistic(name) and name != "sums"]
    assert len(names) > 20
    for name in names:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-5, atol=1e-5, msg=name)


def is_statistic(name: str) -> bool:
    return "running" in name or "num_batches" in name


def test_ranks_tell_each_other_the_same(on_two_processes: OnTwo) -> None:
    first, second = on_two_processes("messages_here")
    assert torch.equal(first["mean"], second["mean"])


def test_ranks_wait_long_for_what_the_first_prepares(on_two_processes: OnTwo) -> None:
    on_two_processes("long_preparation_here")


def test_ranks_that_are_out_of_step_end_and_name_both_meetings(on_two_processes: OnTwo) -> None:
    on_two_processes("mistakes_here")


@pytest.mark.parametrize("told", ["told", "untold"])
def test_what_fails_on_rank_0_ends_the_others_with_its_code(
    on_two_processes: OnTwo, told: str
) -> None:
    on_two_processes("failure_here", told)


class Slow:
    """A message that takes some time of a clock that it moves."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def wait(self, timeout: datetime.timedelta = datetime.timedelta()) -> None:
        self.now += timeout.total_seconds()
        if not self.is_completed():
            raise RuntimeError("Operation timed out!")

    def is_completed(self) -> bool:
        return self.now >= self.seconds


def lines_of(rank: int, seconds: float, waiting: dict[int, tuple[int, str]]) -> list[str]:
    """What a rank of four says in a wait for a step; ``waiting``: where other ranks are."""
    work, said = Slow(seconds), list[str]()
    places: Any = distributed.HashStore()
    for other, place in waiting.items():
        places.set(f"d2nas/waits/{other}", json.dumps(place))
    group: Any = None
    made = parallel._Connection(Ranks(rank, 4), group, places, said.append, lambda: work.now)
    made.finish(work, "step 7")  # type: ignore[arg-type]
    return said


def test_a_rank_that_waits_says_so_within_a_minute_for_whom_and_for_what() -> None:
    here = {1: (1, "step 7"), 2: (1, "step 7")}
    assert lines_of(0, 29.0, here) == []
    assert lines_of(0, 59.0, here) == ["rank 0 has waited 30 s for rank 3: step 7"]
    # At growing intervals.
    told = [line.split(" for ")[0] for line in lines_of(0, 600.0, here)]
    assert told == [f"rank 0 has waited {seconds} s" for seconds in (30, 60, 120, 240, 480)]
    # Rank 0 decides, and has come to nothing yet, or only to what was before.
    for earlier in ({}, {0: (0, "step 6")}):
        assert lines_of(1, 40.0, earlier) == ["rank 1 has waited 30 s for ranks 0, 2, 3: step 7"]
    # One of those that wait speaks for all.
    assert lines_of(2, 600.0, here) == []
    # All have come: only the message is slow.
    assert lines_of(0, 600.0, here | {3: (1, "step 7")}) == []
    with pytest.raises(LostRankError, match="rank 0 is at 'step 7', rank 3 at 'step 8'"):
        lines_of(0, 600.0, here | {3: (1, "step 8")})


def test_retraining_on_two_processes_is_that_of_one(on_two_processes: OnTwo) -> None:
    first, second = on_two_processes("retrain_here")
    for name in first:
        if not is_statistic(name):
            assert torch.equal(first[name], second[name]), name
    wanted = retrained_by_halves()
    assert_close(first, wanted)
    # The control: whole batches normalised together are another training.
    whole = run_all(retraining_of())
    with pytest.raises(AssertionError):
        assert_close(first, whole)


SCORE = "d2nas search.estimator=score search.draws=4 search.weight_optimizer=rmsprop"


@pytest.mark.parametrize("words", ["d2nas", "darts", SCORE])
def test_a_search_on_two_processes_is_that_of_one(on_two_processes: OnTwo, words: str) -> None:
    first, second = on_two_processes("search_here", words)
    for name in first:
        if not is_statistic(name) and name != "sums":  # peaks of memory are each rank's own
            assert torch.equal(first[name], second[name]), name
    assert_close(first, searched_by_halves(words))


def test_two_parts_are_the_whole_batch() -> None:
    config = build_config({"data": {"crop_padding": 2}}).data
    data = made_images()
    grey = Normalizer((0.5,) * 3, (0.25,) * 3)

    def batches(ranks: Ranks) -> Batches:
        return Batches(
            data.train, grey, config, 8, cutout_size=3, seed=1, purpose="test", ranks=ranks
        )

    whole, parts = batches(ALONE), [batches(ranks) for ranks in HALVES]
    for step in (0, 3, 17):
        images, labels = zip(*(part.batch(step) for part in parts), strict=True)
        assert torch.equal(torch.cat(images), whole.batch(step)[0])
        assert torch.equal(torch.cat(labels), whole.batch(step)[1])


def test_batches_that_cannot_be_shared_are_refused() -> None:
    assert [Ranks(rank, 3).part(9) for rank in range(3)] == [slice(0, 3), slice(3, 6), slice(6, 9)]
    with pytest.raises(ConfigError, match="8 images of a batch cannot be shared equally by 3"):
        Ranks(0, 3).part(8)
    with pytest.raises(ConfigError, match="searches in one process"):
        search_of("darts-second-order", Ranks(0, 2))


def test_the_place_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert environment_ranks() == ALONE
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="all or none"):
        environment_ranks()
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert environment_ranks() == Ranks(3, 4, 1)
    monkeypatch.setenv("RANK", "three")
    with pytest.raises(ConfigError, match="must be numbers"):
        environment_ranks()


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Ranks(5, 8, 1).device(torch.device("cuda:0")) == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]
    assert Ranks(5, 8, 1).device(CPU) == CPU
    assert ALONE.device(torch.device("cuda:2")) == torch.device("cuda:2")
    with pytest.raises(ConfigError, match="process 3 of this machine has no GPU: there are 2"):
        Ranks(2, 3, 2).device(torch.device("cuda:0"))


def test_several_processes_take_a_gpu_each_and_no_certain_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [Ranks(1, 2, 1).own_name(name) for name in ("auto", "cuda", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "cpu",
    ]
    assert ALONE.own_name("cuda:3") == "cuda:3"
    with pytest.raises(ConfigError, match="device=cuda:3 is one GPU, for 2 processes"):
        Ranks(0, 2, 0).own_name("cuda:3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Ranks(1, 2, 1).own_name("auto") == "cpu"


@pytest.mark.parametrize(
    "place", [("2", "2", "0"), ("-1", "2", "0"), ("0", "0", "0"), ("0", "2", "-1")]
)
def test_a_place_that_cannot_be_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, place: tuple[str, str, str]
) -> None:
    for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), place, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="no place among processes"):
        environment_ranks()


def test_the_workers_of_a_machine_are_shared_by_its_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert local_size() == 1
    for told, wanted in (("8", 8), ("0", 1), ("x", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", told)
        assert local_size() == wanted


def test_a_port_that_is_taken_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(holder.getsockname()[1]))
        with (
            pytest.raises(ConfigError, match=r"did not meet.*EADDRINUSE"),
            connected(Ranks(0, 2, 0)),
        ):
            pass


def test_processes_that_are_not_told_where_to_meet_are_a_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="MASTER_ADDR"), connected(Ranks(0, 2, 0)):
        pass
