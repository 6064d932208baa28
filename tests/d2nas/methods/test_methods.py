"""Every search method in every space: what it moves, derives and reports, and that it resumes."""

import math
from dataclasses import replace
from typing import Any

import campaigns
import pytest
import torch
from rivals import make_cheap
from searches import CHEAP, continued, finish, run_with_states, same_end, search_by
from torch import Tensor, nn
from torch.nn import functional as F

from d2nas import SPACES, Genotype, SearchSpace, Supernet, sample
from d2nas.config.registry import search_methods
from d2nas.genotype import places_of
from d2nas.methods.passes import frozen
from d2nas.nn.operations import initialize
from d2nas.nn.sampling import ArchLogits
from d2nas.spaces import CELL_TYPES, node_edges
from d2nas.train.search import Search, architecture_step, weight_step

METHOD_NAMES = search_methods.names()
TRAINED = [name for name in METHOD_NAMES if name != "random"]
WEIGHTS_ALONE = {
    *("best-of-n", "fairnas", "few-shot", "local-search", "regularized-evolution"),
    *("rsws", "spos"),
}
TWO_HALVES = [name for name in TRAINED if name not in {"snas", *WEIGHTS_ALONE}]
SECOND_ORDER = {"darts-second-order", "r-darts-es", "r-darts-ada"}
MIXED_EDGES_WEIGH_ONE = {
    *("darts", "beta-darts", "darts-minus", "darts-plus", "fair-darts", "p-darts", "sdarts-rs"),
    *("sdarts-adv", "snas", "zarts"),
    *SECOND_ORDER,
}
WITHOUT_EDGE_LOGITS = {"gdas", *MIXED_EDGES_WEIGH_ONE}
WITHOUT_NONE = {
    *("d2nas", "entangled", *WEIGHTS_ALONE),
    *("beta-darts", "darts-pt", "fair-darts", "sdarts-rs", "sdarts-adv", "zarts"),
}
MEANS = {
    "arch_loss",
    "arch_accuracy",
    "weight_loss",
    "weight_accuracy",
    "branch_loss",
    "clip_rate",
    "peak_bytes",
}
ALWAYS = {
    "epoch",
    "step",
    "temperature",
    "weight_lr",
    "op_entropy",
    "edge_entropy",
    "parameterless_normal",
    "genotype",
}


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    make_cheap(monkeypatch)


def copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def moved(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {
        n for n, parameter in module.named_parameters() if not torch.equal(before[n], parameter)
    }


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers_in(item)]
    return [] if value is None else [float(value)]


def assert_lies_in(genotype: Genotype, space: str) -> None:
    for cell_type in CELL_TYPES:
        candidates = SPACES[space].candidates(cell_type)
        for place, (operation, source) in enumerate(genotype.cell(cell_type)):
            row = node_edges(14)[place // 2].start + source
            assert operation in candidates[row]
            assert operation != "none"
            assert operation != "noise" or space == "S4"


def test_every_method_is_found_by_its_name() -> None:
    sampled = {"d2nas", "entangled", "gdas", "random", *WEIGHTS_ALONE}
    mixed = {"darts-pt", "pc-darts-4", "pc-darts-2", *MIXED_EDGES_WEIGH_ONE}
    assert set(METHOD_NAMES) == sampled | mixed
    assert [search_methods.find(name).name for name in METHOD_NAMES] == list(METHOD_NAMES)


# S0 has most operations: there the suite searches by one of each family.
FAMILIES = ("d2nas", "entangled", "gdas", "random", "darts", "pc-darts-4", "spos", "best-of-n")
SEARCHED = [
    (method, space)
    for method in METHOD_NAMES
    for space in SPACES
    if campaigns.LONG or space != "S0" or method in FAMILIES
]


@pytest.mark.long
@pytest.mark.parametrize(("method", "space"), SEARCHED)
def test_a_method_searches_a_space(method: str, space: str) -> None:
    search = search_by(method, "search.epochs=1", "search.batch_size=16", space=space)
    logits, weights = copies(search.logits), copies(search.supernet)
    finish(search)
    operations, edges = {"normal_ops", "reduce_ops"}, {"normal_edges", "reduce_edges"}
    wanted = operations if method in WITHOUT_EDGE_LOGITS else operations | edges
    assert moved(logits, search.logits) == (set() if method == "random" else wanted)
    assert bool(moved(weights, search.supernet)) == (method != "random")
    if method in WITHOUT_EDGE_LOGITS:
        assert all(not torch.count_nonzero(search.logits.edges(cell)) for cell in CELL_TYPES)
    learns_edges = method not in WITHOUT_EDGE_LOGITS
    edge_entropies = search.describe_epoch(0, dict.fromkeys(MEANS, 0.0))["edge_entropy"].values()
    assert all((value is not None) == learns_edges for value in edge_entropies)
    genotype = search.method.derive()
    assert_lies_in(genotype, space)
    assert search_methods.find(method).genotype_of(search.logits) == genotype
    (row,) = search.metrics
    assert Genotype.from_dict(row["genotype"]) == genotype
    own = search.method.describe().keys()
    assert row.keys() - own == (ALWAYS if method == "random" else ALWAYS | MEANS)
    reported = {key: value for key, value in row.items() if key != "genotype"}
    assert all(torch.tensor(numbers_in(reported)).isfinite())
    assert row["parameterless_normal"] == genotype.parameterless_normal
    if method != "random":
        assert row["peak_bytes"] > sum(value.nbytes for value in weights.values())
        assert 0 <= row["weight_accuracy"] <= 1
        assert 0 <= row["clip_rate"] <= 1
        assert row["branch_loss"] > 0
    if method in TWO_HALVES:
        assert 0 <= row["arch_accuracy"] <= 1


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_method_searches_cells_of_five_nodes(method: str) -> None:
    values = {"normal": ["noise", "skip_connect"], "reduce": ["max_pool_3x3", "skip_connect"]}
    space = SearchSpace.from_dict({"name": "five", "nodes": 5, **values})
    search = finish(search_by(method, "search.epochs=1", "search.batch_size=16", space=space))
    genotype = search.method.derive()
    assert genotype.nodes == range(2, 7)
    assert all(len(places_of(genotype, space, cell)) == 10 for cell in CELL_TYPES)
    assert all(len(search.logits.edges(cell)) == 20 for cell in CELL_TYPES)
    assert Genotype.from_dict(search.metrics[-1]["genotype"]) == genotype


def test_what_a_warm_up_does_not_measure_is_none() -> None:
    search = finish(search_by("d2nas", "search.warmup_epochs=1"))
    first, second = search.metrics
    assert first["arch_loss"] is first["arch_accuracy"] is None
    assert second["arch_loss"] > 0
    assert first["weight_loss"] > 0


@pytest.mark.parametrize("method", TRAINED)
def test_the_entropy_is_that_of_what_a_method_chooses_from(method: str) -> None:
    search = search_by(method, space="S0")
    choices = 7 if method in WITHOUT_NONE else 8
    entropies = search.describe_epoch(0, dict.fromkeys(MEANS, 0.0))["op_entropy"]
    assert list(entropies.values()) == pytest.approx([math.log(choices)] * 2, abs=1e-3)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_none_is_searched_where_the_published_code_does(method: str) -> None:
    has_none = "none" in search_methods.find(method).searched_space(SPACES["S0"]).normal[0]
    assert has_none == (method not in WITHOUT_NONE | {"random"})
    for name in ("S1", "S2", "S3", "S4"):
        assert search_methods.find(method).searched_space(SPACES[name]) == SPACES[name]


# --- resume -------------------------------------------------------------------------------------


def searching(method: str) -> Search:
    # Else darts-plus stops after the first epoch: half of the edges are skips in any case.
    sets = ("search.warmup_epochs=1",) if method == "darts-plus" else ()
    return search_by(method, *sets, space=CHEAP)


@pytest.mark.long
@pytest.mark.parametrize("method", TRAINED)
def test_a_search_stopped_at_any_step_ends_bit_equal(method: str) -> None:
    """In the suite at one step of the three, another for each method. And a control: without its
    moments it does not.
    """
    whole = searching(method)
    states = run_with_states(whole)
    del states[0]  # which is a search from its beginning
    assert sorted(states) == [1, 2, 3]
    one = 1 + sorted(TRAINED).index(method) % 3
    for stop, state in states.items() if campaigns.LONG else [(one, states[one])]:
        torch.rand(stop)  # whoever draws from the global generator will not find it where it was
        assert same_end(whole, continued(searching(method), state)), stop
    state = states[3]
    forgotten = {
        name: torch.zeros_like(tensor) if name.startswith(("adam.", "sgd.")) else tensor
        for name, tensor in state.tensors.items()
    }
    assert not same_end(whole, continued(searching(method), replace(state, tensors=forgotten)))


def test_random_search_resumes_to_its_own_draw() -> None:
    first = search_by("random", seed=1)
    state = first.capture(0)
    finish(first)
    other = search_by("random", seed=2)
    assert other.method.derive() != first.method.derive()
    for _ in other.run(state):
        pass
    assert same_end(first, other) == (first.metrics == other.metrics)
    assert other.method.derive() == first.method.derive()


@pytest.mark.parametrize(
    ("method", "recompute"),
    [
        *((method, "none") for method in METHOD_NAMES),
        *((method, kept) for method in ("d2nas", "darts") for kept in ("cell", "op")),
    ],
)
def test_no_method_draws_from_the_global_generator(method: str, recompute: str) -> None:
    before = torch.random.get_rng_state()
    search = search_by(method, f'search.recompute="{recompute}"', space=CHEAP)
    search.take_step(0)
    assert torch.equal(before, torch.random.get_rng_state())


# --- what each half leaves alone ----------------------------------------------------------------


@pytest.mark.parametrize("method", TWO_HALVES)
def test_each_half_leaves_the_others_parameters_alone(method: str) -> None:
    search = search_by(method, space="S1")
    logits, weights = copies(search.logits), copies(search.supernet)
    architecture_step(search, 0)
    assert all(parameter.grad is None for parameter in search.supernet.parameters())
    assert all(parameter.requires_grad for parameter in search.supernet.parameters())
    assert moved(weights, search.supernet) == set()
    assert moved(logits, search.logits)
    search.arch_optimizer.zero_grad()
    logits = copies(search.logits)
    weight_step(search, 0)
    assert all(parameter.grad is None for parameter in search.logits.parameters())
    assert all(parameter.requires_grad for parameter in search.logits.parameters())
    assert moved(logits, search.logits) == set()
    assert moved(weights, search.supernet)


# --- the stem shared by the draws ---------------------------------------------------------------

IMAGES = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
BIG = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
LABELS = torch.arange(4)
NUM_SHARED = 2


def supernet_of(branch_length: int, recompute: str, stem: str) -> Supernet:
    supernet = Supernet(
        SPACES["S2"],
        num_cells=4,
        init_channels=2,
        stem=stem,
        branch_length=branch_length,
        recompute=recompute,
    ).double()
    initialize(supernet, torch.Generator().manual_seed(0))
    return supernet


def gate_gradients(supernet: Supernet, given: list[Any]) -> list[Tensor]:
    """The gradients of each draw's gates, a draw on each of ``given``: images, or shared inputs."""
    found = []
    for seed, x in enumerate(given):
        draw = sample(ArchLogits(SPACES["S2"]), 1.0, torch.Generator().manual_seed(seed))
        gates = [torch.ones(8, dtype=torch.float64, requires_grad=True) for _ in CELL_TYPES]
        with frozen(list(supernet.parameters())):
            for branch in supernet.branches(x, draw.with_gates(*gates)):
                F.cross_entropy(branch.logits, LABELS).backward()
        found += [gate.grad for gate in gates]
    return found


@pytest.mark.parametrize(
    ("branch_length", "recompute", "stem"),
    [
        *((length, mode, "cifar") for length in (1, 2, 4) for mode in ("none", "cell", "op")),
        (1, "none", "imagenet"),
        (2, "op", "imagenet"),
    ],
)
def test_a_stem_run_once_gives_every_draw_the_gradients_of_its_own(
    branch_length: int, recompute: str, stem: str
) -> None:
    images = IMAGES if stem == "cifar" else BIG
    supernet = supernet_of(branch_length, recompute, stem)
    with torch.no_grad():
        shared = supernet.share(images)
        other = supernet.share(images + 0.1)
    got = gate_gradients(supernet, [shared] * NUM_SHARED)
    wanted = gate_gradients(supernet, [images] * NUM_SHARED)
    assert max((g - w).abs().max() for g, w in zip(got, wanted, strict=True)) <= 1e-10
    assert min(w.abs().max() for w in wanted) > 1e-6
    slipped = gate_gradients(supernet, [other] * NUM_SHARED)  # control
    assert max((g - w).abs().max() for g, w in zip(slipped, wanted, strict=True)) > 1e-6


def test_the_weight_half_runs_the_stem_for_each_draw_so_that_it_learns() -> None:
    search = search_by("d2nas", "search.draws=3")
    counts = search.supernet.stem.norm.num_batches_tracked
    assert int(counts) == 0
    architecture_step(search, 0)
    assert int(counts) == 1
    weight_step(search, 0)
    assert int(counts) == 4
    assert search.supernet.stem.convs[0].weight.grad is not None


def test_control_a_shared_stem_learns_nothing() -> None:
    supernet = supernet_of(1, "none", "cifar")
    for share, learns in ((True, False), (False, True)):
        given = supernet.share(IMAGES) if share else IMAGES
        draw = sample(ArchLogits(SPACES["S2"]), 1.0, torch.Generator().manual_seed(0))
        for branch in supernet.branches(given, draw.with_gates(None, None)):
            F.cross_entropy(branch.logits, LABELS).backward()
        assert (supernet.stem.convs[0].weight.grad is not None) == learns
        assert (supernet.cells[0].preprocess1.convs[0].weight.grad is not None) == learns


# --- GDAS ---------------------------------------------------------------------------------------
