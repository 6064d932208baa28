"""Splits: index tensors out of labels, a function of (seed, purpose) alone.

No pixel is looked at here: a split is made before any image is read.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import randomness
from ..config import DataConfig
from ..config.registry import data_sets
from ..errors import ConfigError
from .readers import TEST, TRAIN, VALIDATION, Pool

_DRAWS = {"run.seed", "data.split_seed", "data.test_fraction"}
"""Settings that published test images do not depend on."""


class Split(NamedTuple):
    """Indices into a pool (int64): disjoint, and not all of it where the data is reduced."""

    weight_half: Tensor
    arch_half: Tensor
    test: Tensor


def split_pool(pool: Pool, config: DataConfig, *, seed: int) -> Split:
    """Return the indices of the weight half, the architecture half and the test images.

    In this order: the data set's test images are set apart (its own, else ``test_fraction`` of
    each class); with ``evaluation="held-out"`` they are left out and ``held_out_images`` of the
    rest take their place; of what remains ``train_images`` are kept and halved. Raises
    ``ConfigError`` for more images than there are, or too few for every class.
    """
    train, validation, test = (
        (pool.parts == part).nonzero().flatten() for part in (TRAIN, VALIDATION, TEST)
    )
    halves_given = len(test) > 0 and len(validation) > 0
    if halves_given:
        train = torch.cat((train, validation))
    elif len(validation):
        test = validation
    elif not len(test):
        # Two stay, one for each half.
        kept, held = stratified_split(
            pool.labels[train], config.test_fraction, keep=2, seed=seed, purpose="test-split"
        )
        train, test = train[kept], train[held]
    # Images of a group are exchangeable: a class, and where the halves are given, one half of it.
    groups = pool.labels
    if halves_given:
        groups = pool.labels + (pool.parts == VALIDATION) * len(pool.class_names)
    least = 1 if halves_given else 2
    if config.evaluation == "held-out":
        train, test = _hold_out(train, groups, config, least=least, seed=seed)
    if config.train_images is not None:
        train = _limit(train, groups, config, least=least, seed=seed)
    if halves_given:
        is_arch = pool.parts[train] == VALIDATION
        return Split(train[~is_arch], train[is_arch], test)
    kept, held = stratified_split(
        pool.labels[train],
        config.validation_fraction,
        keep=1,
        seed=seed,
        purpose="validation-split",
    )
    return Split(train[kept], train[held], test)


def changed_test_settings(
    trained: Mapping[str, Any], now: Mapping[str, Any], *, same_images: bool
) -> list[str]:
    """Return what makes test images of ``now`` ones that a training may have seen; [] if nothing.

    Both are whole configurations as JSON data; that of the training may lack keys of ``data`` that
    are newer. The test images are other ones where the data are, or a split that was drawn
    otherwise; published ones are the same whatever is drawn.
    """
    changed = [] if same_images else ["images"]
    was, data = DataConfig().model_dump(mode="json") | trained["data"], now["data"]
    is_held_out = data["evaluation"] == "held-out"
    keys = ["evaluation", "held_out_images" if is_held_out else "test_fraction"]
    changed += [f"data.{key}" for key in keys if was[key] != data[key]]
    if _split_seed({**trained, "data": was}) != _split_seed(now):
        changed.append("run.seed" if data["split_seed"] is None else "data.split_seed")
    data_set = data_sets.find(data["name"])
    is_drawn = data_set.is_folder or not data_set.num_test or is_held_out
    return changed if is_drawn or not set(changed) <= _DRAWS else []


def _split_seed(config: Mapping[str, Any]) -> Any:
    own = config["data"]["split_seed"]
    return config["run"]["seed"] if own is None else own


def stratified_split(
    labels_N: Tensor, fraction: float, *, keep: int, seed: int, purpose: str
) -> tuple[Tensor, Tensor]:
    """Return indices of the images that stay and of those held out, both ascending.

    Of each class ``fraction`` is held out, rounded, but at least one image, and at most so many
    that ``keep`` stay.
    """
    held_out = torch.zeros(len(labels_N), dtype=torch.bool)
    for label in range(int(labels_N.max()) + 1 if len(labels_N) else 0):
        members = (labels_N == label).nonzero().flatten()
        num_held = min(max(1, int(len(members) * fraction + 0.5)), max(0, len(members) - keep))
        order = epoch_order(len(members), seed=seed, purpose=purpose, epoch=label)
        held_out[members[order[:num_held]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def stratified_choice(
    groups_N: Tensor, count: int, *, least: int, seed: int, purpose: str
) -> tuple[Tensor, Tensor]:
    """Return indices of ``count`` chosen images and of the others, both ascending.

    Of each group (int64 numbers) as many as ``fair_shares`` says. With the same seed and purpose
    and equal groups, a smaller choice lies within a larger one.
    """
    chosen = torch.zeros(len(groups_N), dtype=torch.bool)
    names = sorted(set(groups_N.tolist()))
    members = [(groups_N == name).nonzero().flatten() for name in names]
    shares = fair_shares([len(group) for group in members], count, least=least)
    for name, group, share in zip(names, members, shares, strict=True):
        order = epoch_order(len(group), seed=seed, purpose=purpose, epoch=name)
        chosen[group[order[:share]]] = True
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()


def fair_shares(sizes: list[int], count: int, *, least: int) -> list[int]:
    """Return how many of ``count`` images each group gives: in proportion to its size.

    Shares add up to ``count`` and differ from the exact proportion by less than one, except that
    each group gives at least ``least`` (or all it has). The largest remainders are rounded up, the
    earlier group first. Raises ``ValueError`` where that cannot be.
    """
    floors = [min(least, size) for size in sizes]
    if not sum(floors) <= count <= sum(sizes):
        raise ValueError(f"{count} images cannot be shared among groups of {sizes}")
    total = max(1, sum(sizes))
    shares = [max(floor, size * count // total) for size, floor in zip(sizes, floors, strict=True)]

    def surplus(group: int) -> int:
        return shares[group] * total - sizes[group] * count

    indices = range(len(sizes))
    while sum(shares) < count:
        shares[min((i for i in indices if shares[i] < sizes[i]), key=surplus)] += 1
    while sum(shares) > count:
        shares[max((i for i in indices if shares[i] > floors[i]), key=surplus)] -= 1
    return shares


def epoch_order(num_images: int, *, seed: int, purpose: str, epoch: int) -> Tensor:
    """Return the order of the images in one epoch: an int64 permutation of ``num_images``."""
    return torch.randperm(num_images, generator=randomness.generator(seed, purpose, epoch))


def _hold_out(
    train: Tensor, groups: Tensor, config: DataConfig, *, least: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the training images that stay and the held-out ones that stand in for the test."""
    most = len(train) - _at_least(groups[train], least)
    if config.held_out_images > most:
        raise ConfigError(
            f"{config.name}: data.held_out_images={config.held_out_images}, but at most {most} of "
            f"{len(train)} training images can be held out",
            hint="lower data.held_out_images",
        )
    kept, held = stratified_choice(
        groups[train],
        len(train) - config.held_out_images,
        least=least,
        seed=seed,
        purpose="held-out-split",
    )
    return train[kept], train[held]


def _limit(train: Tensor, groups: Tensor, config: DataConfig, *, least: int, seed: int) -> Tensor:
    """Return ``train_images`` of the training images."""
    assert config.train_images is not None
    fewest = _at_least(groups[train], least)
    if not fewest <= config.train_images <= len(train):
        raise ConfigError(
            f"{config.name}: data.train_images={config.train_images}, but there are {len(train)} "
            f"training images, of which every class needs {fewest} in all",
            hint=f"choose data.train_images from {fewest} to {len(train)}",
        )
    chosen, _ = stratified_choice(
        groups[train], config.train_images, least=least, seed=seed, purpose="train-images"
    )
    return train[chosen]


def _at_least(groups_N: Tensor, least: int) -> int:
    return int(torch.bincount(groups_N).clamp(max=least).sum())
