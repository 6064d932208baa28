"""The selection step: which cells are compared, on what, and which one is kept."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import Place

from d2nas import SPACES, ArchLogits, sample
from d2nas.config import build_config
from d2nas.data.batches import channels_last
from d2nas.data.images import ImageData, ImageSet, Normalizer, load_data
from d2nas.errors import ConfigError
from d2nas.genotype import Genotype
from d2nas.measure.calibration import calibrated_loss
from d2nas.methods.derivation import derive_genotype
from d2nas.nn.supernet import Supernet
from d2nas.train import candidates as select
from d2nas.train.candidates import (
    Candidate,
    best,
    draw_of,
    genotype_of,
    rank_by_supernet,
    rank_by_training,
    sample_candidates,
)
from pipeline.store import Store

S0 = SPACES["S0"]


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(
        build_config({"data": {"name": "digits"}}).data, seed=0, default_root=Path("unused")
    )


@pytest.mark.parametrize("space", ["S0", "S1", "S2", "S3", "S4"])
def test_a_draw_and_its_genotype_are_the_same_sub_network(space: str) -> None:
    logits = ArchLogits(SPACES[space])
    for seed in range(20):
        draw = sample(logits, 1.0, torch.Generator().manual_seed(seed)).with_gates(None, None)
        assert draw_of(genotype_of(draw, SPACES[space]), SPACES[space]) == draw


def test_a_genotype_outside_of_the_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="which the space S2 has not"):
        draw_of(Genotype.published("DARTS_V2"), SPACES["S2"])


def test_candidates_are_the_most_probable_cell_and_different_samples() -> None:
    logits = ArchLogits(S0, generator=torch.Generator().manual_seed(1))
    found = sample_candidates(logits, 12, seed=3)
    assert found[0] == derive_genotype(logits, S0)
    assert len({genotype.digest for genotype in found}) == 12
    assert found == sample_candidates(logits, 12, seed=3)
    assert found[1:] != sample_candidates(logits, 12, seed=4)[1:]


def test_a_narrow_distribution_gives_fewer_candidates() -> None:
    logits = ArchLogits(S0)
    with torch.no_grad():
        for cell in ("normal", "reduce"):
            logits.ops(cell)[:, 2] = 1e4
            logits.edges(cell).copy_(1e4 * torch.arange(14.0))
    assert len(sample_candidates(logits, 5, seed=0)) == 1


def test_the_supernet_judges_with_batch_statistics(data: ImageData) -> None:
    torch.manual_seed(0)
    supernet = Supernet(S0, num_cells=3, init_channels=4, in_channels=1)
    genotypes = sample_candidates(ArchLogits(S0), 3, seed=0)
    normalizer = Normalizer(data.mean, data.std)
    part = data.arch_half.select(torch.arange(100))
    ranked = list(rank_by_supernet(supernet, genotypes, part, normalizer, seed=0))
    assert [candidate.genotype for candidate in ranked] == genotypes
    for candidate in ranked:
        with torch.no_grad():
            logits = supernet.train()(
                channels_last(normalizer(part.images_NCHW)), draw_of(candidate.genotype, S0)
            )
        expected = (logits.argmax(1) == part.labels_N).double().mean()
        assert candidate.accuracy == pytest.approx(float(expected))
        # In another order of the images, batch statistics are equal but for rounding.
        wanted = calibrated_loss(logits, part.labels_N)[0]
        assert candidate.calibrated_loss == pytest.approx(wanted, rel=1e-6)
    assert len({candidate.calibrated_loss for candidate in ranked}) > 1


def test_batches_of_sorted_images_are_of_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(10).repeat_interleave(20)
    images = ImageSet(labels.to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8), labels)
    supernet = Supernet(S0, num_cells=3, init_channels=4, in_channels=1)
    genotypes = sample_candidates(ArchLogits(S0), 1, seed=0)
    monkeypatch.setattr(select, "EVALUATION_BATCH", 20)
    seen: list[int] = []

    class Watching(Normalizer):
        def __call__(self, images_NCHW: torch.Tensor) -> torch.Tensor:
            seen.append(len(images_NCHW.unique()))
            return super().__call__(images_NCHW)

    list(rank_by_supernet(supernet, genotypes, images, Watching((0.5,), (0.2,)), seed=0))
    assert min(seen) >= 5
    seen.clear()
    # Control: as they come, each batch is of one class.
    monkeypatch.setattr(select, "epoch_order", lambda count, **_: torch.arange(count))
    list(rank_by_supernet(supernet, genotypes, images, Watching((0.5,), (0.2,)), seed=0))
    assert set(seen) == {1}


def test_a_short_training_sees_one_half_and_is_judged_on_the_other(data: ImageData) -> None:
    """Labels of the architecture half are turned by one: whoever learned the weight half fails."""
    config = build_config(
        {
            "retrain": {
                "num_cells": 2,
                "init_channels": 4,
                "auxiliary": False,
                "epochs": 6,
                "batch_size": 64,
                "lr": 0.1,
                "drop_path": 0.0,
                "cutout": 0,
            },
            "data": {"name": "digits", "crop_padding": 0, "flip": False},
        }
    )
    turned = replace(
        data, arch_half=ImageSet(data.arch_half.images_NCHW, (data.arch_half.labels_N + 1) % 10)
    )
    found = [
        candidate.accuracy
        for half in (data, turned)
        for candidate in rank_by_training(
            config.retrain,
            config.retrain.epochs,
            [Genotype.published("DARTS_V2")],
            half,
            seed=0,
            device=torch.device("cpu"),
            augmentation=config.data,
        )
    ]
    assert found[0] > 0.5
    assert found[1] < 0.2


def test_the_best_is_kept_and_of_equals_the_more_probable() -> None:
    genotypes = sample_candidates(ArchLogits(S0), 3, seed=0)
    ranked = [
        Candidate(genotype, accuracy, loss)
        for genotype, accuracy, loss in zip(
            genotypes, (0.8, 0.7, 0.7), (0.5, 0.4, 0.4), strict=True
        )
    ]
    assert best(ranked) is ranked[1]


@pytest.mark.parametrize("rank_by", ["supernet", "training"])
def test_derive_compares_candidates_when_asked(
    finished: Place, capfd: pytest.CaptureFixture[str], rank_by: str
) -> None:
    settings = (
        "--set",
        "derive.candidates=3",
        "--set",
        f"derive.rank_by={rank_by}",
        "--set",
        "derive.rank_epochs=1",
    )
    result = finished.json(capfd, "derive", "toy", *settings)
    version = Store(finished.store).open(result["ref"])
    rows: list[dict[str, Any]] = json.loads(version.read("candidates.json"))
    assert len(rows) == 3
    top = min(rows, key=lambda row: row["calibrated_loss"])
    assert all(0.0 <= row["accuracy"] <= 1.0 for row in rows)
    assert result["facts"]["genotype"] == top["genotype"]
    assert result["facts"]["candidates"] == 3
    assert result["facts"]["cpu"]["threads"] == torch.get_num_threads()  # sums may decide
    assert "cpu" not in finished.json(capfd, "show", "toy/derive@v1")["facts"]  # one, unmeasured
    again = finished.json(capfd, "derive", "toy", *settings)
    assert again["executed"] == []


def test_a_temperature_decides_how_much_candidates_differ(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    logits = ArchLogits(S0, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for cell in ("normal", "reduce"):
            logits.edges(cell).copy_(torch.arange(14.0))
    plain = sample_candidates(logits, 8, seed=3)
    assert plain == sample_candidates(logits, 8, seed=3, temperature=1.0)
    assert plain[1:] != sample_candidates(logits, 8, seed=3, temperature=1e-3)[1:]
    assert len(sample_candidates(logits, 8, seed=3, temperature=1e-9)) == 1
    settings = ("--set", "derive.candidates=3", "--set", "derive.temperature=0.0001")
    result = finished.json(capfd, "derive", "toy", *settings)
    rows = json.loads(Store(finished.store).open(result["ref"]).read("candidates.json"))
    assert len(rows) < 3


def test_methods_without_a_distribution_refuse_candidates() -> None:
    with pytest.raises(ConfigError, match="no distribution"):
        build_config({"search": {"method": "darts"}, "derive": {"candidates": 2}})
