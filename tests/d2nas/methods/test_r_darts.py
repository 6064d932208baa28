"""R-DARTS: eigenvalue, stop and roll-back are those of the published code; both search for real."""

from dataclasses import replace
from typing import Any

import campaigns
import pytest
import torch
from reference import fill
from rivals import (
    SIZES,
    TOLERANCE,
    batch_of,
    built,
    context_of,
    distance,
    logit_distances,
    outer_product,
    rivals,
    space_of,
    weight_norm,
)
from searches import final_state, search_by
from torch import Tensor, nn
from torch.nn import functional as F

from d2nas.config import build_config
from d2nas.errors import NonFiniteError
from d2nas.methods import r_darts
from d2nas.methods.base import EpochEnd
from d2nas.methods.curvature import largest_eigenvalue, num_operation_logits, operation_hessian
from d2nas.methods.darts import Darts
from d2nas.methods.passes import frozen
from d2nas.methods.r_darts import RDartsAda, RDartsEarlyStopping, epoch_before_growth, has_look
from d2nas.nn.units import MemorySaving
from d2nas.spaces import CELL_TYPES, EDGES, NODES, SearchSpace
from d2nas.train.loop import sgd
from d2nas.train.search import Search

CASES: dict[str, Any] = rivals()["r_darts"]
EPOCHS, DECAY = 50, 3e-4
TWO = SearchSpace.from_dict({"name": "two", "normal": ["skip_connect", "max_pool_3x3"]})
ARCH_DECAY = 1e-3

# --- the eigenvalue -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(CASES["hessian"]))
def test_the_hessian_is_the_published_one(case: str) -> None:
    expected = CASES["hessian"][case]
    method = built(Darts, space_of(case, with_none=True))
    batch = batch_of("architecture")

    def loss() -> Tensor:
        return F.cross_entropy(method.supernet(batch.images, method.logits), batch.labels)

    with frozen(method.weights):
        hessian = operation_hessian(method.supernet, method.logits, loss)
    assert len(hessian) == num_operation_logits(method.logits) == expected["n"]
    decayed = hessian + ARCH_DECAY * torch.eye(len(hessian), dtype=torch.float64)
    assert float(loss().detach()) == pytest.approx(expected["loss"], rel=TOLERANCE)
    for found, name in (
        (largest_eigenvalue(hessian) + ARCH_DECAY, "dominant"),
        (-largest_eigenvalue(-hessian) + ARCH_DECAY, "smallest"),
        (float(decayed.trace()), "trace"),
        (float(decayed.norm()), "frobenius"),
        (float(decayed[0, 0]), "corner_0_0"),
    ):
        assert found == pytest.approx(expected[name], rel=1e-8), name
    # What training uses is as before, and no parameter has a gradient.
    units = [one for one in method.supernet.modules() if isinstance(one, MemorySaving)]
    assert units
    assert all(unit.saves_memory for unit in units)
    assert all(p.grad is None for p in (*method.weights, *method.logits.parameters()))


@pytest.mark.parametrize("recompute", ["none", "cell", "op"])
def test_rows_of_cells_and_candidates_that_are_not_there_are_zeros_or_left_out(
    recompute: str,
) -> None:
    """And recomputing changes no row. One cell is a reduction cell."""
    ragged = SearchSpace("ragged", (("skip_connect", "max_pool_3x3"), ("skip_connect",)) * 7, (
        ("max_pool_3x3", "skip_connect"), ("skip_connect",)) * 7)  # fmt: skip
    found = []
    for mode in ("none", recompute):
        sizes = replace(SIZES, num_cells=1)
        method = Darts(ragged, sizes, torch.Generator().manual_seed(0), recompute=mode)
        for parameter in method.weights:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        method.supernet.double()
        method.logits.double()
        batch = batch_of("weights")
        found.append(
            operation_hessian(
                method.supernet,
                method.logits,
                lambda method=method, batch=batch: F.cross_entropy(
                    method.supernet(batch.images, method.logits), batch.labels
                ),
            )
        )
    assert found[0].shape == (42, 42)
    assert torch.equal(*found)
    assert not found[0][:21].any()
    assert found[0][21:, 21:].any()


def test_a_hessian_that_is_not_finite_is_told() -> None:
    with pytest.raises(NonFiniteError, match="Hessian"):
        largest_eigenvalue(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))


# --- the supernet -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(CASES["architecture_step"]))
def test_the_step_of_the_logits_is_the_published_one(case: str) -> None:
    """After one clipped step of SGD on the other batch, so that momentum counts."""
    expected, (space, _, order) = CASES["architecture_step"][case], case.split()
    kind = RDartsEarlyStopping if order == "2" else Darts
    method = built(kind, space_of(space, with_none=True))
    optimizer = sgd(method.supernet, lr=0.025, momentum=0.9, weight_decay=DECAY)
    context = replace(context_of(0, EPOCHS), weight_optimizer=optimizer)
    method.weight_gradients(batch_of("weights"), context)
    nn.utils.clip_grad_norm_(method.weights, 5.0)
    optimizer.step()
    optimizer.zero_grad()
    method.architecture_gradients(batch_of("architecture"), context)
    assert max(logit_distances(method, expected["gradient"])) < TOLERANCE
    adam = torch.optim.Adam(
        method.logits.parameters(), lr=3e-4, betas=(0.5, 0.999), weight_decay=ARCH_DECAY
    )
    method.update_logits(adam)
    for cell, wanted in zip(CELL_TYPES, expected["alphas_after"], strict=True):
        assert distance(method.logits.ops(cell), wanted) < TOLERANCE


@pytest.mark.parametrize("number", range(len(CASES["discrete"])))
def test_a_discrete_cell_is_a_mixture_of_zeros_and_ones(number: int) -> None:
    case = CASES["discrete"][number]
    method = built(Darts, space_of(case["space"], with_none=True))
    space, weights = method.logits.space, {}
    for cell in CELL_TYPES:
        ops = torch.zeros(14, space.num_columns(cell), dtype=torch.float64)
        for place, word in enumerate(case[cell].split()):
            operation, source = word.split("@")
            row = EDGES.index((int(source), NODES[place // 2]))
            ops[row, space.candidates(cell)[row].index(operation)] = 1.0
        weights[cell] = (ops, None)
    batch = batch_of("weights")
    loss = F.cross_entropy(method.supernet(batch.images, weights), batch.labels)
    assert float(loss.detach()) == pytest.approx(case["loss_train_mode"], rel=TOLERANCE)
    loss.backward()
    assert weight_norm(method) == pytest.approx(case["weight_grad_l2"], rel=TOLERANCE)
    fill(method.supernet).eval()  # the running statistics of before
    loss = F.cross_entropy(method.supernet(batch.images, weights), batch.labels)
    assert float(loss.detach()) == pytest.approx(case["loss_eval_mode"], rel=TOLERANCE)


# --- the rule -----------------------------------------------------------------------------------


def sequence(name: str) -> dict[int, float]:
    values = CASES["early_stop"][name]["eigenvalues"]
    return {int(epoch): value for epoch, value in values.items()}


class Driven:
    """A method whose eigenvalues are given, closing epochs as a search would."""

    def __init__(self, kind: type[RDartsEarlyStopping], first: str, later: str) -> None:
        self.sequences = [sequence(first), sequence(later)]
        self.method = kind(TWO, replace(SIZES, num_cells=3), torch.Generator(), recompute="none")
        self.method.eigenvalue = self.eigenvalue  # type: ignore[method-assign]
        self.kept: dict[int, int] = {}
        self.brought_back: list[int] = []
        self.rollbacks: list[tuple[int, int]] = []

    def eigenvalue(self, end: EpochEnd) -> float:
        return self.sequences[bool(self.rollbacks)][end.epoch]

    def run(self) -> int:
        """Close all epochs; return the last one."""
        epoch = 0
        while True:
            marks = torch.full((), float(epoch))
            with torch.no_grad():
                self.method.logits.normal_ops.fill_(marks)
            end = EpochEnd(
                epoch, EPOCHS, 1, *[lambda _: None] * 3,
                keep=lambda slot, epoch=epoch: self.kept.update({slot: epoch}),
                bring_back=lambda slot: self.brought_back.append(self.kept[slot]),
            )  # type: ignore[arg-type]  # fmt: skip
            following = self.method.close_epoch(end)
            if following <= epoch:
                self.rollbacks.append((epoch, following - 1))
            if following == EPOCHS:
                return epoch
            epoch = following


@pytest.mark.parametrize("name", sorted(CASES["early_stop"]))
def test_early_stopping_stops_where_the_published_code_does(name: str) -> None:
    expected = CASES["early_stop"][name]
    driven = Driven(RDartsEarlyStopping, name, name)
    last = driven.run()
    noticed = expected["noticed_at_epoch"]
    assert last == (EPOCHS - 1 if noticed is None else noticed)
    # The genotype is that of the logits which the epoch of the stop had.
    assert torch.all(driven.method.logits.normal_ops == expected["stop_epoch"])
    looks = [value for epoch, value in sequence(name).items() if epoch <= min(last, 48)]
    averages = r_darts.local_averages(looks)
    assert averages == pytest.approx(expected["local_averages"][: len(averages)], rel=TOLERANCE)


@pytest.mark.parametrize("case", sorted(CASES["ada"]))
def test_adaptive_decay_rolls_back_as_the_published_rule_with_a_clean_start(case: str) -> None:
    expected = CASES["ada"][case]["clean"]
    driven = Driven(RDartsAda, *case.split(" then "))
    assert driven.run() == EPOCHS - 1
    wanted = [(one["noticed_at"], one["rolled_back_to"]) for one in expected["rollbacks"]]
    assert driven.rollbacks == wanted
    assert driven.brought_back == [epoch for _, epoch in wanted]
    assert driven.method.weight_decay(DECAY) == expected["final_weight_decay"]


def test_control_looks_of_before_a_roll_back_would_count_as_in_the_published_code() -> None:
    """There "late then flat" rolls back a second time although nothing rises."""
    case = CASES["ada"]["late then flat"]
    first, second = case["as published"]["rollbacks"]
    assert len(case["clean"]["rollbacks"]) == 1
    before = [value for epoch, value in sequence("late").items() if epoch <= first["noticed_at"]]
    after = [
        value
        for epoch, value in sequence("flat").items()
        if first["rolled_back_to"] < epoch <= second["noticed_at"]
    ]
    flat_alone = [value for epoch, value in sequence("flat").items() if epoch <= 24]
    assert epoch_before_growth([*before, *after], second["noticed_at"]) is not None
    assert epoch_before_growth(flat_alone, 24) is None


def test_growth_from_an_eigenvalue_of_zero_is_growth_and_of_nothing_is_none() -> None:
    flat = [0.0] * 8
    assert epoch_before_growth([*flat, 1.0, 1.0, 1.0, 1.0], 22) == 10
    assert epoch_before_growth([*flat, 0.0, 0.0, 0.0, 0.0], 22) is None
    assert epoch_before_growth([*flat, -1.0, -1.0, -1.0, -1.0], 22) is None


@pytest.mark.parametrize(
    ("decay", "largest"),
    [(0.03, True), (3e-4 * 10 * 10, True), (0.027, True), (0.0304, True), (0.09, False),
     (0.0081, False), (0.081, False), (0.27, False), (3e-3, False), (1.0, False), (0.0, False),
     (3.0, False)],
)  # fmt: skip
def test_a_decay_at_which_nothing_stops_is_the_published_one(decay: float, largest: bool) -> None:
    assert r_darts.is_largest_decay(decay) is largest
    kind, name = RDartsEarlyStopping, "late"
    driven = Driven(kind, name, name)
    driven.method.given_decay = decay
    assert driven.run() == (
        EPOCHS - 1 if largest else CASES["early_stop"][name]["noticed_at_epoch"]
    )


def test_looks_are_every_second_epoch_and_the_last() -> None:
    assert [epoch for epoch in range(6) if has_look(epoch, 6)] == [0, 2, 4, 5]
    assert [epoch for epoch in range(5) if has_look(epoch, 5)] == [0, 2, 4]


def test_the_published_recipe_is_the_default() -> None:
    for name in ("r-darts-es", "r-darts-ada"):
        config = build_config({}, [f"search.method={name}"]).search
        assert (config.epochs, config.batch_size, config.num_cells, config.init_channels) == (
            50, 64, 8, 16,
        )  # fmt: skip
        assert (config.weight_lr, config.weight_lr_min, config.weight_decay) == (0.025, 1e-3, DECAY)
        assert (config.arch_lr, config.arch_weight_decay) == (3e-4, ARCH_DECAY)
        assert (config.arch_beta1, config.arch_beta2) == (0.5, 0.999)
        assert (config.clip_norm, config.warmup_epochs, config.drop_path) == (5.0, 0, 0.0)


# --- searches -----------------------------------------------------------------------------------


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short searches go back, too: from any growth, two epochs, looking at three means."""
    for name, value in (("FIRST_EPOCH", 0), ("WINDOW", 1), ("BACK", 1), ("SPAN", 2)):
        monkeypatch.setattr(r_darts, name, value)
    monkeypatch.setattr(r_darts, "GROWTH", -1e9)
    monkeypatch.setattr(RDartsEarlyStopping, "searches_none", False)  # fewer rows


def searched(method: str, state: Any = None) -> tuple[Search, dict[int, Any]]:
    sets = ("search.epochs=4", "search.init_channels=2", "search.drop_path=0.3")
    search = search_by(method, *sets, space=TWO)
    states = {}
    for report in search.run(state):
        if report.step + 1 < search.num_steps:
            states[report.step + 1] = search.capture(report.step + 1)
    return search, states


@pytest.mark.long
@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("method", ["r-darts-es", "r-darts-ada"])
def test_a_search_that_goes_back_resumes_bit_equal(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == "r-darts-ada":  # the other one has the Hessian
        monkeypatch.setattr(r_darts, "operation_hessian", outer_product)
    whole, states = searched(method)
    looks = [row["eigenvalue"] for row in whole.metrics]
    following = [row.get("next_epoch") for row in whole.metrics]
    passes = 57 * sum(look is not None for look in looks) + whole.num_steps * 5
    assert whole.num_passes == passes
    if method == "r-darts-es":
        assert whole.num_steps == 2 * 3
        assert following == [None, None, 4]
        assert [look is None for look in looks] == [False, True, False]
        for cell in CELL_TYPES:  # the logits of the first epoch's end
            name, end = f"logits.{cell}_ops", whole.logits.ops(cell)
            assert torch.equal(end, states[2].tensors[name])
            assert not torch.equal(end, states[5].tensors[name])
        assert whole.metrics[-1]["genotype"] == whole.method.derive().to_dict()
    else:
        assert following == [None, None, 1, None, 1, None, None, None]
        assert [row["weight_decay"] for row in whole.metrics] == pytest.approx(
            [DECAY] * 2 + [10 * DECAY] * 2 + [100 * DECAY] * 4
        )
        assert (
            whole.weight_optimizer.param_groups[0]["weight_decay"]
            == (whole.metrics[-1]["weight_decay"])
        )
    ends = final_state(whole)
    for stop in (3, 5) if campaigns.LONG else (3,):
        again, _ = searched(method, states[stop])
        other = final_state(again)
        assert all(torch.equal(ends[name], other[name]) for name in ends), stop
        assert whole.metrics == again.metrics
        assert whole.method.derive() == again.method.derive()
