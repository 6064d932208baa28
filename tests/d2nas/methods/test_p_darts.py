"""P-DARTS: stages, dropped candidates, networks and cells are those of the published code."""

from dataclasses import replace
from typing import Any

import campaigns
import pytest
import torch
from rivals import (
    ALPHA_SALTS,
    SIZES,
    TOLERANCE,
    batch_of,
    built,
    context_of,
    distance,
    logit_distances,
    random_values,
    rivals,
    weight_norm,
)
from searches import continued, run_with_states, same_end, search_by

from d2nas import SPACES, ArchLogits
from d2nas.config import build_config
from d2nas.methods import p_darts
from d2nas.methods.p_darts import (
    DroppedSkip,
    PDarts,
    derive_with_few_skips,
    num_kept,
    skip_dropout,
    stage_of,
    stage_starts,
    strongest,
    without_columns,
)
from d2nas.spaces import CELL_TYPES, SearchSpace
from d2nas.train.search import Search

CASES: dict[str, Any] = rivals()["p_darts"]
S0 = SPACES["S0"].with_none()
SMALL = SearchSpace.from_dict(
    {"name": "small", "normal": ["none", "skip_connect", "max_pool_3x3", "dil_conv_3x3"]}
)

# --- the published numbers ----------------------------------------------------------------------


def logits_of(case: dict[str, Any], stage: int, space: SearchSpace) -> ArchLogits:
    logits = ArchLogits(space).double()
    for index, cell in enumerate(CELL_TYPES):
        salt = 1000 + 10 * case["number"] + 2 * stage + index
        values = random_values(salt, case["scale"] / 2, logits.ops(cell).shape)
        for row, names in enumerate(space.candidates(cell)):
            if cell == "normal" and "skip_connect" in names:
                values[row, names.index("skip_connect")] += case["skips_pushed_up_by"]
        with torch.no_grad():
            logits.ops(cell).copy_(values)
    return logits


@pytest.mark.parametrize("number", range(len(CASES["sets"])))
def test_stages_drop_the_published_candidates_and_end_in_the_published_cells(number: int) -> None:
    case = CASES["sets"][number]
    space, memory = S0, p_darts._Stages(S0)
    for stage, expected in enumerate(case["stages"]):
        logits = logits_of(case, stage, space)
        left = [num_kept(names, stage + 1) for names in S0.normal]
        memory.drop({cell: strongest(logits, cell, left) for cell in CELL_TYPES})
        space = without_columns(S0, memory.kept())
        for cell in CELL_TYPES:
            assert [list(names) for names in space.candidates(cell)] == expected[f"kept_{cell}"]
    logits = logits_of(case, 2, space)
    for limit, expected in case["genotypes_by_skip_limit"].items():
        genotype = derive_with_few_skips(logits, 8 if limit == "unlimited" else int(limit))
        for cell in CELL_TYPES:
            words = (word.split("@") for word in expected[cell].split())
            assert genotype.cell(cell) == tuple((name, int(source)) for name, source in words)
    assert PDarts.genotype_of(logits) == derive_with_few_skips(logits, 2)


@pytest.mark.parametrize("stage", range(3))
def test_a_stages_network_is_the_published_one(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, space = CASES["networks"][stage], S0
    if stage:
        kept = CASES["sets"][0]["stages"][stage - 1]
        space = SearchSpace(
            "S0", *(tuple(tuple(names) for names in kept[f"kept_{c}"]) for c in CELL_TYPES)
        )
    monkeypatch.setattr(p_darts, "SKIP_DROPOUT", (0.0, 0.0, 0.0))
    sizes = replace(SIZES, num_cells=expected["cells"])
    method = built(PDarts, space, expected["alpha_salts"], sizes)
    assert sum(weight.numel() for weight in method.weights) == expected["weights"]
    batch, context = batch_of("architecture"), context_of(0, 75)
    measured = method.architecture_gradients(batch, context)
    assert float(measured.loss) == pytest.approx(expected["loss"], rel=TOLERANCE)
    assert max(logit_distances(method, expected["arch_grad"])) < TOLERANCE
    adam = torch.optim.Adam(
        method.logits.parameters(), lr=6e-4, betas=(0.5, 0.999), weight_decay=1e-3
    )
    logits = {cell: method.logits.ops(cell).detach().clone() for cell in CELL_TYPES}
    method.weight_gradients(batch, context)
    assert weight_norm(method) == pytest.approx(expected["weight_grad_l2"], rel=TOLERANCE)
    assert all(torch.equal(logits[cell], method.logits.ops(cell)) for cell in CELL_TYPES)
    method.update_logits(adam)
    for cell, wanted in zip(CELL_TYPES, expected["alphas_after_one_adam_step"], strict=True):
        assert distance(method.logits.ops(cell), wanted) < TOLERANCE


def test_the_rates_of_dropout_are_the_published_ones() -> None:
    for stage, expected in enumerate(CASES["skip_dropout"]):
        found = [skip_dropout(stage, epoch, 25, 10) for epoch in range(25)]
        assert found == pytest.approx(expected, rel=TOLERANCE)


def test_a_large_gradient_of_the_logits_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def norm() -> float:
        method = built(PDarts, SMALL, ALPHA_SALTS)
        method.architecture_gradients(batch_of("architecture"), context_of(0, 75))
        gradients = [method.logits.ops(cell).grad for cell in CELL_TYPES]
        return float(torch.nn.utils.get_total_norm(gradients))

    plain = norm()
    monkeypatch.setattr(p_darts, "LARGEST_LOGIT_GRADIENT", plain / 2)
    assert norm() == pytest.approx(plain / 2, rel=1e-4)


# --- parts --------------------------------------------------------------------------------------


def test_a_dropped_skip_keeps_the_mean_and_passes_all_in_evaluation() -> None:
    skip, x = DroppedSkip(), torch.ones(8, 4, 16, 16)
    assert skip(x) is x
    skip.rate, skip.generator = 0.4, torch.Generator().manual_seed(0)
    dropped = skip(x)
    assert set(dropped.unique().tolist()) == {0.0, x.new_tensor(1 / 0.6).item()}
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.03)
    assert skip.eval()(x) is x


def test_stages_are_thirds_of_any_number_of_epochs() -> None:
    assert stage_starts(75) == [0, 25, 50, 75]
    assert [stage_of(epoch, 75) for epoch in (0, 24, 25, 49, 50, 74)] == [0, 0, 1, 1, 2, 2]
    assert [stage_of(epoch, 2) for epoch in range(2)] == [0, 1]
    assert [num_kept(S0.normal[0], stage) for stage in range(3)] == [8, 5, 3]
    assert [num_kept(SPACES["S2"].normal[0], stage) for stage in range(3)] == [2, 2, 1]


def test_an_edge_is_never_left_with_none_alone() -> None:
    space = SearchSpace.from_dict({"name": "two", "normal": ["none", "skip_connect"]})
    logits = ArchLogits(space)
    with torch.no_grad():
        logits.normal_ops[:, 0] = 5.0
    kept = strongest(logits, "normal", [1] * 14)
    assert kept.tolist() == [[False, True]] * 14


def test_skips_that_no_other_candidate_can_replace_stay() -> None:
    logits = ArchLogits(SearchSpace.from_dict({"name": "one", "normal": ["skip_connect"]}))
    assert {name for name, _ in derive_with_few_skips(logits).normal} == {"skip_connect"}


@pytest.mark.parametrize("seed", range(5))
def test_skips_that_can_go_do_although_weaker_ones_cannot(seed: int) -> None:
    """Edges into the first node are always kept: with a skip alone they hold on to it."""
    edges = [["skip_connect"]] * 2 + [["skip_connect", "sep_conv_3x3"]] * 12
    logits = ArchLogits(SearchSpace.from_dict({"name": "held", "normal": edges}))
    with torch.no_grad():
        logits.normal_ops.copy_(torch.randn(14, 2, generator=torch.Generator().manual_seed(seed)))
        logits.normal_ops[2:, 0] += 9.0
    found = [name for name, _ in derive_with_few_skips(logits).normal]
    assert found == ["skip_connect"] * 2 + ["sep_conv_3x3"] * 6
    assert [name for name, _ in derive_with_few_skips(logits, 8).normal] == ["skip_connect"] * 8


def test_of_equal_candidates_and_edges_the_last_stay() -> None:
    logits = ArchLogits(S0.with_none())
    with torch.no_grad():
        for each in logits.parameters():
            each.zero_()
    kept = strongest(logits, "normal", [5] * 14)
    assert kept.tolist() == [[False] * 3 + [True] * 5] * 14
    found = derive_with_few_skips(logits)
    assert {name for name, _ in found.normal} == {"dil_conv_5x5"}
    assert [source for _, source in found.normal] == [0, 1, 1, 2, 2, 3, 3, 4]


def test_the_published_recipe_is_the_default() -> None:
    config = build_config({}, ["search.method=p-darts"]).search
    assert (config.epochs, config.num_cells, config.batch_size) == (75, 5, 96)
    assert (config.warmup_epochs, config.arch_lr) == (10, 6e-4)
    assert (config.weight_lr, config.weight_lr_min) == (0.025, 0.0)
    other = build_config({}, ["search.method=p-darts", "search.warmup_epochs=3"]).search
    assert other.warmup_epochs == 3


# --- a search of three stages -------------------------------------------------------------------


def searching() -> Search:
    search = search_by("p-darts", "search.epochs=6", "search.init_channels=2", space=SMALL)
    assert search.config.warmup_epochs == 0
    return search


@pytest.mark.long
def test_a_search_goes_through_its_stages_and_resumes_bit_equal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(p_darts, "FURTHER_CELLS", (0, 1, 2))
    whole = searching()
    states = run_with_states(whole)
    assert len(whole.supernet.cells) == 3 + 2
    assert {len(names) for names in whole.space.normal} == {2}
    assert any(skip.rate > 0 for skip in whole.method._skips)  # type: ignore[attr-defined]
    rates = [row["weight_lr"] for row in whole.metrics]
    assert rates[0] == rates[2] == rates[4] > rates[1] == rates[3] == rates[5]
    # In a stage, at its end, in the next one.
    for stop in (3, 4, 7) if campaigns.LONG else (4,):
        assert same_end(whole, continued(searching(), states[stop])), stop
