"""Few-shot NAS on cells: parts of a space, what each begins with and samples, and what is kept."""

import itertools
from typing import Any

import pytest
import torch
from searches import CHEAP, continued, finish, run_with_states, same_end, search_by
from torch import Tensor

from d2nas import SPACES, Genotype
from d2nas.genotype import choices
from d2nas.methods.few_shot import EDGE, FewShot, parts_of, restricted, stage_starts
from d2nas.methods.spos import Score, Spos
from d2nas.train.search import Search

EPOCHS = 4
"""Two of one supernet, one for each of the two operations that ``CHEAP`` has on the split edge."""


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> dict[Genotype, Score]:
    """Scores of all cells that are compared: no images, the first operation of the split edge."""
    found: dict[Genotype, Score] = {}

    def judged(self: Spos, cell: Genotype, end: object) -> Score:
        found[cell] = float(cell.normal[0][0] != "noise"), len(found) / 1000
        return found[cell]

    monkeypatch.setattr(Spos, "judged", judged)
    return found


def few_shot(epochs: int = EPOCHS) -> Search:
    return search_by("few-shot", f"search.epochs={epochs}", space=CHEAP)


def weights_of(search: Search) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in search.supernet.state_dict().items()}


def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("space", SPACES)
def test_every_operation_of_the_split_edge_is_in_one_part(space: str) -> None:
    names = choices(SPACES[space], "normal", 0, 2)
    for epochs in range(1, 30):
        parts, starts = parts_of(SPACES[space], epochs // 2), stage_starts(epochs, SPACES[space])
        assert [name for part in parts for name in part] == (names if epochs > 1 else [])
        assert len(parts) == min(len(names), epochs // 2)
        assert starts[0] == 0
        assert starts[-1] == epochs
        lengths = [end - start for start, end in itertools.pairwise(starts)]
        assert len(lengths) == 1 + len(parts)
        assert lengths[0] >= sum(lengths[1:])
        assert not lengths[1:] or max(lengths[1:]) - min(lengths[1:]) <= 1 <= min(lengths[1:])


def test_each_part_begins_with_the_one_supernet_and_samples_its_own_cells(
    scores: dict[Genotype, Score], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[tuple[int, int]] = []
    real = FewShot.run

    def noted(self: FewShot, batch: Any, draws: Any, generators: Any) -> Any:
        (draw,) = draws
        assert draw.normal.edges[0] == EDGE
        sampled.append((len(search.metrics), draw.normal.operations[0]))
        return real(self, batch, draws, generators)

    monkeypatch.setattr(FewShot, "run", noted)
    search, after, rates = few_shot(), [], []
    for report in search.run():
        if report.metrics is not None:
            after.append(weights_of(search))
            rates.append(report.metrics["weight_lr"])
    assert alike(after[1], after[2])  # the second part's begins as the first one's
    assert not alike(after[0], after[1])
    columns = [{column for epoch, column in sampled if epoch == of} for of in range(EPOCHS)]
    assert columns[2:] == [{0}, {1}]
    assert rates[0] == rates[2] == rates[3] > rates[1]


@pytest.mark.parametrize("wanted", ["noise", "dil_conv_3x3"])
def test_the_best_cell_of_all_parts_is_derived_with_its_supernet(
    wanted: str, scores: dict[Genotype, Score], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Spos.judged

    def judged(self: Spos, cell: Genotype, end: Any) -> Score:
        real(self, cell, end)
        scores[cell] = float(cell.normal[0][0] != wanted), scores[cell][1]
        return scores[cell]

    monkeypatch.setattr(Spos, "judged", judged)
    search = few_shot()
    method = search.method
    assert isinstance(method, FewShot)
    trained: list[dict[str, Tensor]] = []
    close = FewShot.close_epoch

    def noted(self: FewShot, end: Any) -> int:
        trained.append(weights_of(search))
        return close(self, end)

    monkeypatch.setattr(FewShot, "close_epoch", noted)
    finish(search)
    assert {cell.normal[0][0] for cell in scores} == {"noise", "dil_conv_3x3"}
    best = min(scores, key=scores.__getitem__)
    assert method.derive() == best
    assert best.normal[0][0] == wanted
    assert tuple(method.memory.score.tolist()) == scores[best]
    kept = [alike(one, weights_of(search)) for one in trained]
    assert kept == ([False, False, True, False] if wanted == "noise" else [False] * 3 + [True])


@pytest.mark.parametrize("epochs", [1, 2, 3, EPOCHS])
def test_all_passes_are_counted_beforehand(epochs: int, scores: dict[Genotype, Score]) -> None:
    search = few_shot(epochs)
    planned = search.num_passes
    finish(search)
    assert search.num_passes == planned == 2 * epochs + len(scores) * 2 * 2


def test_a_part_is_all_cells_with_its_operations() -> None:
    part = restricted(SPACES["S0"], ("skip_connect", "sep_conv_3x3"))
    assert part.normal[EDGE] == ("skip_connect", "sep_conv_3x3")
    assert part.normal[1:] == SPACES["S0"].normal[1:]
    assert part.reduce == SPACES["S0"].reduce


def test_it_resumes_to_the_last_bit_between_and_in_its_stages() -> None:
    whole = few_shot()
    states = run_with_states(whole)
    for step in (3, 4, 5, 6, 7):
        assert same_end(whole, continued(few_shot(), states[step])), step
    other = few_shot()
    states[6].tensors["method.score"] = torch.zeros(2, dtype=torch.float64)  # control
    assert not same_end(whole, continued(other, states[6]))
