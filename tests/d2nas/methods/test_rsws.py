"""Random search with weight sharing: what is trained, compared and written into the logits."""

import pytest
import torch
from searches import CHEAP, finish, search_by, spread_logits
from torch.nn import functional as F

from d2nas import SPACES, Genotype, derive_darts, derive_genotype, sample
from d2nas.config import build_config
from d2nas.errors import ConfigError
from d2nas.methods import rsws
from d2nas.methods.derivation import draw_of, genotype_of, write_genotype
from d2nas.nn.operations import noises_in, set_noise_generator
from d2nas.nn.sampling import ArchLogits
from d2nas.train.search import Search

# --- a genotype written into logits -------------------------------------------------------------


@pytest.mark.parametrize("name", [*sorted(SPACES), "cheap"])
def test_a_written_genotype_is_derived_by_both_rules(name: str) -> None:
    space = CHEAP if name == "cheap" else SPACES[name]
    for seed in range(10):
        draw = sample(ArchLogits(space), 1.0, torch.Generator().manual_seed(seed))
        genotype = genotype_of(draw, space)
        logits = spread_logits(space, seed)
        assert derive_genotype(logits, space) != genotype
        write_genotype(logits, genotype)
        assert derive_genotype(logits, space) == genotype
        assert derive_darts(logits, space) == genotype


def test_a_genotype_of_another_space_is_not_written() -> None:
    logits = spread_logits(SPACES["S2"])
    before = [logits.detach().clone() for logits in logits.parameters()]
    with pytest.raises(ConfigError, match="which the space S2 has not"):
        write_genotype(logits, Genotype.published("DARTS_V2"))
    assert all(torch.equal(*pair) for pair in zip(before, logits.parameters(), strict=True))


# --- the search ---------------------------------------------------------------------------------


def searching() -> Search:
    return search_by("rsws", "search.epochs=1", space=CHEAP)


def test_the_number_of_compared_cells_is_the_published_one_after_as_many_steps() -> None:
    assert rsws.num_candidates(50 * 390) == 1000
    assert rsws.num_candidates(25 * 390) == 500
    assert rsws.num_candidates(4) == rsws.FINALISTS


def test_cells_are_drawn_uniformly() -> None:
    method = searching().method
    assert isinstance(method, rsws.RandomWithSharing)
    assert not any(logits.any() for logits in method.logits.parameters())
    draws = [method.sample(1.0, torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert len({draw.normal.edges for draw in draws}) > 100  # of 180


def test_the_best_of_the_random_cells_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """By accuracy, then loss, computed here another way: cell by cell, with the whole network."""
    monkeypatch.setattr(rsws, "FINALISTS", 3)
    monkeypatch.setattr(rsws, "num_candidates", lambda steps: 12)
    search = searching()
    search.take_step(0)
    search.take_step(1)
    end = search._epoch_end(1)
    draws = [sample(ArchLogits(search.space), 1.0, end.draws(index + 1)) for index in range(12)]
    cells = [genotype_of(draw, search.space) for draw in draws]

    def judged(genotype: Genotype) -> tuple[float, float]:
        errors = losses = 0.0
        for index in range(end.steps):
            batch = end.arch_batch(index)
            set_noise_generator(noises_in(search.supernet), end.draws(0))
            with torch.no_grad():
                prediction = search.supernet(batch.images, draw_of(genotype, search.space))
            errors += float((prediction.argmax(1) != batch.labels).double().mean())
            losses += float(F.cross_entropy(prediction, batch.labels))
        return round(errors, 6), losses

    assert search.method.close_epoch(end) == 1
    assert search.method.derive() == min(cells, key=judged)
    assert len({judged(cell) for cell in cells}) > 6


def test_passes_count_what_is_compared() -> None:
    search = finish(search_by("rsws", "search.epochs=3", space=CHEAP))
    assert search.num_passes == 6 + 10 * 2 + 10 * 2
    assert search.metrics[-1]["genotype"] == search.method.derive().to_dict()
    assert all(row["arch_loss"] is None for row in search.metrics)


def test_the_published_recipe_is_the_default() -> None:
    config = build_config({}, ["search.method=rsws"]).search
    assert (config.epochs, config.weight_lr, config.weight_lr_min) == (50, 0.025, 1e-3)
