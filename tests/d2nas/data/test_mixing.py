"""TrivialAugment, random erasing, mixup and cutmix: arithmetic, and what they are drawn by."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, TrivialAugmentWide

from d2nas.data.augmentation import Part, random_erasing
from d2nas.data.mixing import mix
from d2nas.data.trivial_augment import OPERATIONS, TRANSLATION, trivial_augment
from d2nas.randomness import generator

PUBLISHED = {
    "shear-x": ("ShearX", 0.99),
    "shear-y": ("ShearY", 0.99),
    "translate-x": ("TranslateX", TRANSLATION * 28),
    "translate-y": ("TranslateY", TRANSLATION * 28),
    "rotate": ("Rotate", 135.0),
    "brightness": ("Brightness", 0.99),
    "color": ("Color", 0.99),
    "contrast": ("Contrast", 0.99),
    "sharpness": ("Sharpness", 0.99),
    "auto-contrast": ("AutoContrast", 0.0),
    "equalize": ("Equalize", 0.0),
    "identity": ("Identity", 0.0),
}


def pixels(number: int = 12, channels: int = 3, size: int = 28) -> Tensor:
    shape = (number, channels, size, size)
    return torch.randint(0, 256, shape, generator=generator(0, "p"), dtype=torch.uint8)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("strength", [-1.0, 0.4, 1.0])
def test_an_operation_is_torchvisions(name: str, strength: float) -> None:
    images = pixels(2)
    theirs, largest = PUBLISHED[name]
    wanted = TrivialAugmentWide()._apply_image_or_video_transform(
        images, theirs, strength * largest, InterpolationMode.NEAREST, {}
    )
    assert torch.equal(OPERATIONS[name](images, strength), wanted)


def test_posterize_and_solarize_go_from_nothing_to_their_range() -> None:
    images = pixels(2)
    assert torch.equal(OPERATIONS["posterize"](images, 0.0), images)
    assert OPERATIONS["posterize"](images, -1.0).unique().tolist() == [0, 64, 128, 192]
    assert torch.equal(OPERATIONS["solarize"](images, 1.0), 255 - images)
    half = OPERATIONS["solarize"](images, 0.5)
    assert torch.equal(half, torch.where(images >= 128, 255 - images, images))


def test_each_image_has_one_operation_drawn_by_the_generator() -> None:
    images = pixels(200)
    changed = trivial_augment(images, generator=generator(3, "x"))
    assert torch.equal(changed, trivial_augment(images, generator=generator(3, "x")))
    assert not torch.equal(changed, trivial_augment(images, generator=generator(4, "x")))
    assert changed.dtype == torch.uint8
    drawn = torch.randint(len(OPERATIONS), (200,), generator=generator(3, "x"))
    assert drawn.bincount().min() > 3
    kept = [torch.equal(one, other) for one, other in zip(images, changed, strict=True)]
    untouched = drawn == [*OPERATIONS].index("identity")
    assert all(kept[index] for index in torch.nonzero(untouched).flatten().tolist())
    assert sum(kept) < 60
    assert torch.equal(pixels(200), images)  # the given ones are as they were


@pytest.mark.parametrize("channels", [1, 3])
def test_a_part_of_a_batch_is_changed_as_in_the_whole(channels: int) -> None:
    images = pixels(12, channels)
    part = slice(4, 9)
    whole = trivial_augment(images, generator=generator(3, "x"))
    own = trivial_augment(images[part], generator=generator(3, "x"), part=Part(12, part))
    assert torch.equal(own, whole[part])
    inputs = images.float()
    erased = random_erasing(inputs, probability=0.6, generator=generator(3, "e"))
    own = random_erasing(
        inputs[part], probability=0.6, generator=generator(3, "e"), part=Part(12, part)
    )
    assert torch.equal(own, erased[part])


def test_a_rectangle_of_some_images_is_erased() -> None:
    inputs = torch.ones(600, 3, 32, 32)
    erased = random_erasing(inputs, probability=0.5, generator=generator(0, "e"))
    assert bool((inputs == 1).all())
    hidden = (erased == 0).all(dim=1)
    touched = hidden.flatten(1).any(dim=1)
    assert 0.42 < float(touched.double().mean()) < 0.58
    for one in hidden[touched]:
        rows, columns = one.any(dim=1), one.any(dim=0)
        high, wide = int(rows.sum()), int(columns.sum())
        assert int(one.sum()) == high * wide  # one rectangle
        assert 0.3 / 1.6 < high / wide < 3.3 * 1.6  # rounded to pixels, cut at the border
        assert high * wide <= 0.38 * 32 * 32
    shares = hidden[touched].double().mean(dim=(1, 2))
    assert 0.14 < float(shares.mean()) < 0.21  # of 2 to 33 % evenly
    assert torch.equal(random_erasing(inputs, probability=0.0, generator=generator(0, "e")), inputs)


def test_mixup_adds_images_in_shares() -> None:
    inputs = torch.randn(8, 3, 6, 6)
    mixed = mix(inputs, mixup=0.4, cutmix=0.0, generator=generator(1, "m"))
    wanted = mixed.share * inputs + (1 - mixed.share) * inputs[mixed.partners]
    torch.testing.assert_close(mixed.images, wanted)
    assert sorted(mixed.partners.tolist()) == [*range(8)]
    again = mix(inputs, mixup=0.4, cutmix=0.0, generator=generator(1, "m"))
    assert torch.equal(again.images, mixed.images)


def test_cutmix_takes_a_rectangle_of_the_other_image() -> None:
    inputs = torch.arange(8.0)[:, None, None, None].expand(8, 3, 20, 20)
    shares = []
    for number in range(60):
        mixed = mix(inputs, mixup=0.0, cutmix=1.0, generator=generator(number, "m"))
        others = inputs[mixed.partners]
        taken = (mixed.images == others) & (others != inputs)
        kept = (mixed.images == inputs).all(dim=1)
        assert bool((taken.all(dim=1) | kept).all())
        moved = mixed.partners != torch.arange(8)
        share = kept[moved].double().mean()
        assert float(share) == pytest.approx(mixed.share)
        shares.append(mixed.share)
    assert min(shares) < 0.4
    assert 0.5 < sum(shares) / 60 < 0.9  # of Beta(1, 1), more where it is cut at the border


def test_a_share_is_of_the_beta_distribution() -> None:
    inputs = torch.randn(4, 1, 2, 2)
    found = [
        mix(inputs, mixup=0.5, cutmix=0.0, generator=generator(number, "m")).share
        for number in range(800)
    ]
    mean = sum(found) / 800
    variance = sum((share - mean) ** 2 for share in found) / 800
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)).
    assert mean == pytest.approx(0.5, abs=4 * math.sqrt(variance / 800))
    assert variance == pytest.approx(1 / 8, rel=0.1)


def test_a_coin_decides_between_both() -> None:
    inputs = torch.arange(4.0)[:, None, None, None].expand(4, 1, 9, 9)
    cuts = 0
    for number in range(200):
        mixed = mix(inputs, mixup=1.0, cutmix=1.0, generator=generator(number, "m"))
        whole = mixed.images == mixed.images.round()
        cuts += int(whole.all())
    assert 70 < cuts < 130
