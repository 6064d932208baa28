"""Reduced data: exact counts, fair to every class, and test images that are really left alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import noise, write_fashion_mnist
from PIL import Image

from d2nas.config import DataConfig, build_config
from d2nas.data import images as data_module
from d2nas.data.images import ImageData, channel_statistics, load_data
from d2nas.data.readers import TEST, TRAIN, VALIDATION, Pool, open_pool
from d2nas.data.sources import content_digest
from d2nas.data.splits import Split, fair_shares, split_pool, stratified_choice
from d2nas.errors import ConfigError
from pipeline.stages import BY_NAME


def make_pool(parts: dict[int, list[int]]) -> Pool:
    """A pool without pixels: per part, how many images each class has."""
    labels = [
        label for counts in parts.values() for label, n in enumerate(counts) for _ in range(n)
    ]
    part_of = [part for part, counts in parts.items() for _ in range(sum(counts))]
    # Files come in no helpful order.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))
    names = tuple("abcdefghij"[: max(len(counts) for counts in parts.values())])

    def read(_order: torch.Tensor) -> tuple[torch.Tensor, str]:
        raise AssertionError("a split reads no image")

    return Pool(
        "made", names, torch.tensor(labels)[order], torch.tensor(part_of)[order], 8, 1, read
    )


def split(pool: Pool, *, seed: int = 0, **options: object) -> Split:
    return split_pool(pool, DataConfig.model_validate(options), seed=seed)


def counts(pool: Pool, *parts: torch.Tensor) -> list[int]:
    return torch.bincount(pool.labels[torch.cat(parts)], minlength=len(pool.class_names)).tolist()


def as_sets(parts: Split) -> list[set[int]]:
    return [set(part.tolist()) for part in parts]


BALANCED = {TRAIN: [60] * 10, TEST: [10] * 10}
UNEVEN = {TRAIN: [200, 50, 10], TEST: [7, 7, 7]}
THREE = {TRAIN: [40, 20], VALIDATION: [20, 10], TEST: [6, 6]}
WITHOUT_TEST = {TRAIN: [60, 30]}
REDUCED = {"evaluation": "held-out", "held_out_images": 30, "train_images": 40}


# --- how many, and which ------------------------------------------------------------------------


def test_counts_are_exact_and_every_class_has_its_share():
    pool = make_pool(BALANCED)
    parts = split(pool, evaluation="held-out", held_out_images=100, train_images=300)
    assert counts(pool, parts.test) == [10] * 10
    assert counts(pool, parts.weight_half, parts.arch_half) == [30] * 10
    assert counts(pool, parts.weight_half) == counts(pool, parts.arch_half) == [15] * 10


def test_classes_of_different_size_keep_their_proportion():
    pool = make_pool(UNEVEN)
    parts = split(pool, evaluation="held-out", held_out_images=26, train_images=117)
    assert counts(pool, parts.test) == [20, 5, 1]
    assert counts(pool, parts.weight_half, parts.arch_half) == [
        90,
        23,
        4,
    ]  # 22.5 and 4.5: the earlier


def test_a_number_that_does_not_divide_is_met_all_the_same():
    pool = make_pool(BALANCED)
    parts = split(pool, evaluation="held-out", held_out_images=37, train_images=203)
    assert sorted(counts(pool, parts.test)) == [3] * 3 + [4] * 7
    assert sorted(counts(pool, parts.weight_half, parts.arch_half)) == [20] * 7 + [21] * 3


@pytest.mark.parametrize("layout", [BALANCED, UNEVEN, THREE, WITHOUT_TEST])
def test_the_parts_are_disjoint(layout):
    pool = make_pool(layout)
    weight, arch, held = as_sets(split(pool, **REDUCED))
    assert not weight & arch
    assert not held & (weight | arch)
    assert (len(held), len(weight | arch)) == (30, 40)


@pytest.mark.parametrize("layout", [BALANCED, UNEVEN, THREE, WITHOUT_TEST])
def test_held_out_images_are_training_images_and_no_test_image_is_used(layout):
    pool = make_pool(layout)
    usual, reduced = as_sets(split(pool)), as_sets(split(pool, **REDUCED))
    assert usual[2]
    assert not usual[2] & set.union(*reduced)
    assert set.union(*reduced) <= usual[0] | usual[1]


def test_train_images_alone_leaves_the_test_images_as_they_are():
    pool = make_pool(BALANCED)
    usual, reduced = as_sets(split(pool)), as_sets(split(pool, train_images=100))
    assert reduced[2] == usual[2]
    assert len(reduced[0] | reduced[1]) == 100
    assert reduced[0] | reduced[1] < usual[0] | usual[1]


def test_given_halves_stay_what_they_are():
    pool = make_pool(THREE)
    parts = split(pool, **REDUCED)
    assert set(pool.parts[parts.weight_half].tolist()) == {TRAIN}
    assert set(pool.parts[parts.arch_half].tolist()) == {VALIDATION}
    # 60 of 90 remain after the held-out ones; of these 40: two thirds train, two thirds class a.
    assert sum(counts(pool, parts.weight_half)) == pytest.approx(40 * 2 / 3, abs=1)
    assert counts(pool, parts.weight_half, parts.arch_half)[0] == pytest.approx(40 * 2 / 3, abs=1)


def test_control_without_the_options_the_split_is_all_there_is():
    pool = make_pool(THREE)
    assert set.union(*as_sets(split(pool))) == set(range(len(pool.labels)))


def test_fewer_training_images_lie_within_more():
    pool = make_pool(UNEVEN)
    small, large = (
        set.union(*as_sets(split(pool, **(REDUCED | {"train_images": n})))[:2]) for n in (40, 120)
    )
    assert small < large


def test_the_held_out_images_do_not_depend_on_what_else_is_kept():
    pool = make_pool(UNEVEN)
    parts = [split(pool, **(REDUCED | {"train_images": n})) for n in (40, 120)]
    assert torch.equal(parts[0].test, parts[1].test)


def test_the_seed_decides_which_images():
    pool = make_pool(BALANCED)
    first, again, other = (as_sets(split(pool, seed=seed, **REDUCED)) for seed in (0, 0, 1))
    assert first == again
    assert first[2] != other[2]
    assert first[0] | first[1] != other[0] | other[1]


@pytest.mark.parametrize(
    ("sizes", "count", "least", "expected"),
    [
        ([10, 10, 10], 10, 0, [4, 3, 3]),
        ([30, 20, 10], 6, 0, [3, 2, 1]),
        ([97, 2, 1], 10, 1, [8, 1, 1]),
        ([96, 2, 2], 10, 2, [6, 2, 2]),
        ([5, 1], 4, 2, [3, 1]),
        ([3, 3], 6, 1, [3, 3]),
        ([], 0, 2, []),
    ],
)
def test_shares_by_hand(sizes, count, least, expected):
    assert fair_shares(sizes, count, least=least) == expected


@pytest.mark.parametrize(("count", "least"), [(7, 0), (2, 2)])
def test_impossible_shares_are_refused(count, least):
    with pytest.raises(ValueError, match="cannot be shared"):
        fair_shares([3, 3], count, least=least)


def test_shares_are_within_one_of_the_proportion():
    draws = np.random.default_rng(0)
    for _ in range(300):
        sizes = draws.integers(1, 200, size=draws.integers(1, 12)).tolist()
        count = int(draws.integers(0, sum(sizes) + 1))
        shares = fair_shares(sizes, count, least=0)
        assert sum(shares) == count
        for share, size in zip(shares, sizes, strict=True):
            assert 0 <= share <= size
            assert abs(share - size * count / sum(sizes)) < 1


def test_chosen_and_others_are_everything_in_order():
    groups = torch.tensor([3, 1, 3, 3, 1, 1, 3, 3])
    chosen, others = stratified_choice(groups, 4, least=1, seed=0, purpose="p")
    assert sorted(torch.cat((chosen, others)).tolist()) == list(range(8))
    for part in (chosen, others):
        assert part.tolist() == sorted(part.tolist())
    assert sorted(groups[chosen].tolist()) in ([1, 3, 3, 3], [1, 1, 3, 3])


# --- too many, too few --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_images": 601}, ["data.train_images=601", "600"]),
        ({"train_images": 19}, ["data.train_images=19", "20"]),
        ({"evaluation": "held-out", "held_out_images": 581}, ["data.held_out_images=581", "580"]),
        (
            {"evaluation": "held-out", "held_out_images": 400, "train_images": 201},
            ["data.train_images=201", "200"],
        ),
    ],
)
def test_more_images_than_there_are_is_an_error_with_a_hint(options, words):
    with pytest.raises(ConfigError) as caught:
        split(make_pool(BALANCED), **options)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"train_images": 600},
        {"train_images": 20},
        {"evaluation": "held-out", "held_out_images": 580},
        {"evaluation": "held-out", "held_out_images": 400, "train_images": 200},
    ],
)
def test_control_the_very_limits_are_allowed_and_leave_two_images_of_each_class(options):
    pool = make_pool(BALANCED)
    parts = split(pool, **options)
    for half in (parts.weight_half, parts.arch_half):
        assert min(counts(pool, half)) >= 1


@pytest.mark.parametrize(
    "value",
    [{"train_images": 0}, {"held_out_images": 0}, {"evaluation": "tset"}, {"split_seed": -1}],
)
def test_values_out_of_range_are_config_errors(value):
    with pytest.raises(ConfigError, match=next(iter(value))):
        build_config({"data": value})


# --- whole data sets ----------------------------------------------------------------------------


def keys(part) -> list[bytes]:
    return [image.tobytes() for image in part.images_NCHW.numpy()]


def digits(*, seed: int = 0, **options: object) -> ImageData:
    config = DataConfig.model_validate({"name": "digits", **options})
    return load_data(config, seed=seed, default_root=Path("unused"))


SMALL = {"evaluation": "held-out", "held_out_images": 200, "train_images": 500}


def test_digits_are_reduced_to_what_was_asked_for():
    usual, reduced = digits(), digits(**SMALL)
    assert (len(reduced.train), len(reduced.test)) == (500, 200)
    assert len(reduced.weight_half) + len(reduced.arch_half) == 500
    used = set(keys(reduced.train)) | set(keys(reduced.test))
    assert not used & set(keys(usual.test))
    assert used <= set(keys(usual.train))
    assert not set(keys(reduced.train)) & set(keys(reduced.test))
    shares = torch.bincount(reduced.train.labels_N) / torch.bincount(usual.train.labels_N)
    assert (shares - 500 / 1438).abs().max() < 0.02


def test_images_and_labels_stay_together():
    usual, reduced = digits(), digits(**SMALL)
    label_of = dict(zip(keys(usual.train), usual.train.labels_N.tolist(), strict=True))
    for part in (reduced.train, reduced.test):
        assert [label_of[key] for key in keys(part)] == part.labels_N.tolist()


def test_mean_and_deviation_are_those_of_the_kept_training_images():
    usual, reduced = digits(), digits(**SMALL)
    assert (reduced.mean, reduced.std) == channel_statistics([reduced.train.images_NCHW])
    assert reduced.mean != usual.mean


def test_the_digest_is_of_the_whole_data_set_and_the_stage_keys_differ():
    usual, reduced = digits(), digits(**SMALL)
    assert reduced.digest == usual.digest
    found = {
        BY_NAME["search"].key(build_config({"data": data}), {}, usual.digest)
        for data in ({}, SMALL, SMALL | {"train_images": 501}, SMALL | {"split_seed": 0})
    }
    assert len(found) == 4


def test_with_a_split_seed_all_seeds_see_the_same_images():
    parts = ("weight_half", "arch_half", "test")
    first, second = (digits(seed=seed, split_seed=7, **SMALL) for seed in (0, 1))
    for part in parts:
        assert keys(getattr(first, part)) == keys(getattr(second, part))
    own = digits(seed=7, **SMALL)
    for part in parts:
        assert keys(getattr(own, part)) == keys(getattr(first, part))


def test_control_without_a_split_seed_they_do_not():
    first, second = (digits(seed=seed, **SMALL) for seed in (0, 1))
    assert set(keys(first.test)) != set(keys(second.test))


def test_a_person_is_told_what_the_accuracy_is_measured_on():
    assert "200 held-out images" in digits(**SMALL).summary_lines()[1]
    assert "359 test images" in digits().summary_lines()[1]


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Reading one of a pool's own test images fails; returns how many images were read."""
    num_read: list[int] = []

    def guarded_pool(config: DataConfig, **options: object) -> Pool:
        pool = open_pool(config, **options)

        def read(order: torch.Tensor) -> tuple[torch.Tensor, str]:
            if (pool.parts[order] == TEST).any():
                raise AssertionError("a test image was read")
            num_read.append(len(order))
            return pool.read(order)

        return Pool(**{**vars(pool), "read": read})

    monkeypatch.setattr(data_module, "open_pool", guarded_pool)
    return lambda: num_read


def fashion(root: Path, **options: object) -> ImageData:
    config = DataConfig.model_validate({"name": "fashion-mnist", **options})
    return load_data(config, seed=0, default_root=root)


TINY = {"evaluation": "held-out", "held_out_images": 10, "train_images": 20}


def test_the_published_test_images_are_never_read(tmp_path, monkeypatch, guarded):
    arrays = write_fashion_mnist(tmp_path, monkeypatch)
    data = fashion(tmp_path, **TINY)
    assert guarded() == [30]
    own = {image.tobytes() for image in arrays["train"][0]}
    assert len(data.train) == 20
    assert set(keys(data.train)) | set(keys(data.test)) <= own
    assert torch.bincount(data.train.labels_N).tolist() == [2] * 10
    assert torch.bincount(data.test.labels_N).tolist() == [1] * 10
    assert data.digest == content_digest(DataConfig(name="fashion-mnist"), default_root=tmp_path)


@pytest.mark.parametrize("options", [{}, {"train_images": 20}])
def test_control_an_evaluation_on_the_test_images_reads_them(
    tmp_path, monkeypatch, guarded, options
):
    write_fashion_mnist(tmp_path, monkeypatch)
    with pytest.raises(AssertionError, match="a test image was read"):
        fashion(tmp_path, **options)


def write_folders(root: Path, parts: tuple[str, ...]) -> Path:
    for index in range(12 * len(parts)):
        part, label = parts[index % len(parts)], "ab"[index // len(parts) % 2]
        (root / part / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(index, 8, 8, 3)).save(root / part / label / f"{index}.png")
    return root


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "val", "test")])
def test_of_a_folder_only_what_is_kept_is_read_and_the_digest_covers_the_rest(
    tmp_path, guarded, parts
):
    root = write_folders(tmp_path, parts)
    config = DataConfig(
        name="folder",
        root=str(root),
        image_size=8,
        evaluation="held-out",
        held_out_images=4,
        train_images=6,
    )
    data = load_data(config, seed=0, default_root=root)
    assert guarded() == [10]
    assert (len(data.train), len(data.test)) == (6, 4)
    assert set(data.weight_half.labels_N.tolist()) == {0, 1}
    assert data.digest == content_digest(config, default_root=root)
    unused = next((root / "test" / "a").iterdir())
    Image.fromarray(noise(99, 8, 8, 3)).save(unused)
    assert load_data(config, seed=0, default_root=root).digest != data.digest
