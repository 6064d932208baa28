"""Retraining on several processes: weights that learn nothing, and resumes to the last bit."""

from pathlib import Path

import pytest
import torch
from children import ForkServer
from processes import on_processes, save
from searches import CPU, SIZE, config_of, made_images
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from d2nas.errors import LostRankError
from d2nas.genotype import Genotype
from d2nas.parallel import ALONE, Ranks, lost_ranks
from d2nas.train.distillation import Teacher
from d2nas.train.retrain import Retraining, train_step

# What R-DARTS's S4 finds, and worse: the normal cell's first input is read by noise alone.
NOISY = Genotype(
    normal=(("noise", 0), ("skip_connect", 1), *(("sep_conv_3x3", 1), ("noise", 0)) * 3),
    reduce=(("noise", 0), ("sep_conv_3x3", 1), *(("sep_conv_3x3", 1), ("noise", 0)) * 3),
)
# Nodes 3 to 5 reach no output.
UNREAD = Genotype(
    normal=(("sep_conv_3x3", 0), ("skip_connect", 1)) * 4,
    reduce=(("sep_conv_3x3", 0), ("skip_connect", 1)) * 4,
    normal_concat=(2,),
    reduce_concat=(2, 3, 4, 5),
)
GENOTYPES = {"noisy": NOISY, "unread": UNREAD, "usual": Genotype.published("DARTS_V2")}
STEPS = 6


def by_brightness(images: Tensor) -> Tensor:
    """A teacher's answers."""
    return images.mean((1, 2, 3))[:, None] * torch.arange(4.0)


def retraining_of(
    genotype: str,
    *settings: str,
    ranks: Ranks = ALONE,
    size: int = SIZE,
    teacher: Teacher | None = None,
) -> Retraining:
    """Six steps of 12 images each."""
    sizes = ("num_cells=3", "init_channels=4", "batch_size=12", "epochs=3", "auxiliary=false")
    recipe = ("drop_path=0.3", "cutout=3", "lr=0.1")
    words = [f"retrain.{setting}" for setting in (*sizes, *recipe, *settings)]
    config = config_of("d2nas", *words)
    return Retraining(
        config.retrain,
        GENOTYPES[genotype],
        made_images(half=12, size=size),
        seed=0,
        device=CPU,
        augmentation=config.data,
        teacher=teacher,
        ranks=ranks,
    )


def finished(retraining: Retraining) -> dict[str, Tensor]:
    for _ in retraining.run():
        pass
    return retraining.capture(retraining.num_steps).tensors


def train_here(ranks: Ranks, folder: str) -> None:
    told = {}
    trainings = {genotype: retraining_of(genotype, ranks=ranks) for genotype in GENOTYPES}
    # The head's batch norm is PyTorch's own.
    trainings["headed"] = retraining_of("usual", "auxiliary=true", ranks=ranks, size=32)
    trainings["taught"] = retraining_of("usual", ranks=ranks, teacher=by_brightness)
    for genotype, retraining in trainings.items():
        frozen = sum(not weight.requires_grad for weight in retraining.weights)
        told |= {f"{genotype}.{name}": value for name, value in finished(retraining).items()}
        told[f"{genotype}.frozen"] = torch.tensor(frozen)
    # Control: with these weights in the game, each process waits for gradients that never come.
    Retraining._freeze_unused_weights = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
        finished(retraining_of("noisy", ranks=ranks))
    save(folder, ranks, told)


def resume_here(ranks: Ranks, folder: str) -> None:
    """Stop after some step, go on in another trainer, and compare with the uninterrupted one."""
    whole = retraining_of("usual", ranks=ranks)
    states = {report.step + 1: whole.capture(report.step + 1) for report in whole.run()}

    def resumed_exactly(stop: int) -> bool:
        second = retraining_of("usual", ranks=ranks)
        for _ in second.run(states[stop]):
            pass
        got = second.capture(STEPS).tensors
        return all(torch.equal(got[name], value) for name, value in states[STEPS].tensors.items())

    told = {str(stop): torch.tensor(resumed_exactly(stop)) for stop in (1, 2, 5)}
    Retraining.prepare = lambda _: None  # type: ignore[method-assign]
    save(folder, ranks, {**told, "control": torch.tensor(resumed_exactly(2))})


PARTED = ("accumulate=2", "patience=1", "validation_fraction=0.3")


def part_here(ranks: Ranks, folder: str) -> None:
    """Steps of two micro-batches on each rank, and the end by what is held out."""
    sent: list[int] = []

    def hook(_state: object, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
        sent.append(1)
        return default_hooks.allreduce_hook(distributed.group.WORLD, bucket)

    counted = retraining_of("usual", PARTED[0], ranks=ranks)
    assert isinstance(counted.model, nn.parallel.DistributedDataParallel)
    counted.model.register_comm_hook(None, hook)
    counted.network.train()
    for step in range(3):
        sent.clear()
        train_step(counted, step)
    assert len(sent) == 1  # a message a step, once its parts are known

    parted = retraining_of("usual", *PARTED, ranks=ranks)
    states = {report.step + 1: parted.capture(report.step + 1) for report in parted.run()}
    end = states[parted.num_steps]
    told = {
        "losses": torch.tensor([row["validation_loss"] for row in parted.metrics]),
        "weights": torch.cat([weight.detach().flatten() for weight in counted.weights]),
    }
    second = retraining_of("usual", *PARTED, ranks=ranks)
    for _ in second.run(states[1]):
        pass
    got = second.capture(second.num_steps).tensors
    equal = all(torch.equal(got[name], value) for name, value in end.tensors.items())
    save(folder, ranks, {**told, "equal": torch.tensor(equal)})


def test_micro_batches_of_two_processes_are_one_processs(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    first, second = on_processes(
        2, "test_parallel_retraining.part_here", tmp_path, fork_server=fork_server
    )
    alone = retraining_of("usual", "accumulate=4")
    alone.network.train()
    for step in range(3):
        train_step(alone, step)
    weights = torch.cat([weight.detach().flatten() for weight in alone.weights])
    # Rank 0 has the first half: the same micro-batches, so what batch norm sees is the same.
    torch.testing.assert_close(first["weights"], weights, rtol=1e-3, atol=1e-5)
    assert torch.equal(first["weights"], second["weights"])
    assert torch.equal(first["losses"], second["losses"])
    assert first["equal"]
    assert second["equal"]
    whole = retraining_of("usual", "accumulate=2")  # control: micro-batches of another size
    whole.network.train()
    for step in range(3):
        train_step(whole, step)
    other = torch.cat([weight.detach().flatten() for weight in whole.weights])
    assert not torch.allclose(other, weights, rtol=1e-3, atol=1e-5)


def test_weights_that_learn_nothing_hold_nobody_up(fork_server: ForkServer, tmp_path: Path) -> None:
    first, second = on_processes(
        2, "test_parallel_retraining.train_here", tmp_path, fork_server=fork_server
    )
    for genotype in ("usual", "headed", "taught"):
        assert int(first[f"{genotype}.frozen"]) == 0
        assert torch.equal(first[f"{genotype}.sums"], second[f"{genotype}.sums"])
    weight = "network.classifier.weight"
    assert torch.equal(first[f"taught.{weight}"], second[f"taught.{weight}"])
    assert not torch.equal(first[f"taught.{weight}"], first[f"usual.{weight}"])
    for genotype in ("noisy", "unread"):
        assert int(first[f"{genotype}.frozen"]) > 0
        assert torch.equal(first[f"{genotype}.sums"], second[f"{genotype}.sums"])
        # One process leaves the same weights alone.
        before = retraining_of(genotype).network.state_dict()
        alone = finished(retraining_of(genotype))
        for name, value in before.items():
            moved = not torch.equal(first[f"{genotype}.network.{name}"], value)
            assert moved == (not torch.equal(alone[f"network.{name}"], value)), name


def test_a_resume_on_three_processes_is_exact(fork_server: ForkServer, tmp_path: Path) -> None:
    for told in on_processes(
        3, "test_parallel_retraining.resume_here", tmp_path, fork_server=fork_server
    ):
        assert {name: bool(value) for name, value in told.items()} == {
            "1": True,
            "2": True,
            "5": True,
            "control": False,
        }


def test_the_pass_before_the_first_step_changes_nothing() -> None:
    class Two(Ranks):
        """Two ranks that say nothing to each other."""

        def wrap(self, network: torch.nn.Module) -> torch.nn.Module:
            return network

    retraining = retraining_of("noisy", ranks=Two(0, 2))
    before = {name: value.clone() for name, value in retraining.trained.tensors().items()}
    calls = []
    retraining.network.register_forward_hook(lambda *_: calls.append(1))
    retraining.prepare()
    assert calls == [1]
    for name, value in retraining.trained.tensors().items():
        assert torch.equal(before[name], value), name
    assert all(weight.grad is None for weight in retraining.weights)


def test_a_librarys_message_is_told_without_its_sources_and_in_whole_words() -> None:
    place = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] "
    peer = "Connection closed by peer [127.0.0.1]:51234"
    for text in (place + peer, f"{place}{peer}\nmore", peer):
        with pytest.raises(LostRankError) as caught, lost_ranks(Ranks(0, 2)):
            raise RuntimeError(text)
        assert str(caught.value) == f"another process of this training is gone: {peer}"
    with pytest.raises(LostRankError) as caught, lost_ranks(Ranks(0, 2)):
        raise RuntimeError("gloo " + "words " * 100)
    assert str(caught.value).endswith(" words ...")
