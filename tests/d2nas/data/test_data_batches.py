"""Batches, augmentation and cutout: functions of (seed, purpose, step), exact in what they do."""

from pathlib import Path

import pytest
import torch
from image_files import noise

from d2nas.config import DataConfig
from d2nas.data.augmentation import augment_pixels, cutout
from d2nas.data.batches import batch_indices, steps_per_epoch
from d2nas.data.images import Normalizer, load_data
from d2nas.data.splits import epoch_order
from d2nas.randomness import generator


def draw(seed: int = 0) -> torch.Generator:
    return generator(seed, "test")


# --- batches ------------------------------------------------------------------------------------


def test_an_epoch_shows_each_image_at_most_once_and_the_next_in_another_order():
    assert steps_per_epoch(103, 10) == 10
    batches = [batch_indices(103, 10, seed=0, purpose="p", step=step) for step in range(20)]
    assert {len(batch) for batch in batches} == {10}
    for epoch in range(2):
        order = epoch_order(103, seed=0, purpose="p", epoch=epoch)
        assert sorted(order.tolist()) == list(range(103))
        assert torch.equal(torch.cat(batches[epoch * 10 : epoch * 10 + 10]), order[:100])
    assert not torch.equal(torch.cat(batches[:10]), torch.cat(batches[10:]))


def test_a_batch_depends_on_seed_purpose_and_step_alone():
    torch.manual_seed(0)
    first = batch_indices(103, 10, seed=1, purpose="p", step=37)
    batch_indices(103, 10, seed=1, purpose="p", step=5)
    torch.rand(3)
    assert torch.equal(batch_indices(103, 10, seed=1, purpose="p", step=37), first)
    assert not torch.equal(batch_indices(103, 10, seed=2, purpose="p", step=37), first)
    assert not torch.equal(batch_indices(103, 10, seed=1, purpose="q", step=37), first)


def test_a_batch_larger_than_the_set_is_the_whole_set():
    assert steps_per_epoch(5, 64) == 1
    for step in range(3):
        batch = batch_indices(5, 64, seed=0, purpose="p", step=step)
        assert sorted(batch.tolist()) == [0, 1, 2, 3, 4]
    for num_images, batch_size in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="no batches"):
            steps_per_epoch(num_images, batch_size)


def test_no_draw_touches_the_global_generators():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    digits = load_data(DataConfig(), seed=3, default_root=Path("unused"))
    images = augment_pixels(
        digits.train.images_NCHW[:9], crop_padding=2, flip_probability=0.5, generator=draw()
    )
    cutout(images.float(), size=3, generator=draw())
    batch_indices(100, 7, seed=0, purpose="p", step=3)
    assert torch.equal(torch.get_rng_state(), before)


def count_permutations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    real, drawn = torch.randperm, []

    def counted(number: int, **options: object) -> torch.Tensor:
        drawn.append(number)
        return real(number, **options)

    monkeypatch.setattr(torch, "randperm", counted)
    return drawn


def test_an_epochs_order_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where both halves of a search take turns, and a reader is an epoch ahead."""
    drawn = count_permutations(monkeypatch)
    for step in range(30):
        for purpose, ahead in (("once-weights", 3), ("once-architecture", 0)):
            batch_indices(103, 10, seed=8, purpose=purpose, step=step)
            batch_indices(103, 10, seed=8, purpose=purpose, step=step + ahead)
    assert drawn == [103] * (4 + 3)
    # Control: each call draws.
    for epoch in (0, 0):
        epoch_order(103, seed=8, purpose="once-weights", epoch=epoch)
    assert len(drawn) == 9


# --- augmentation -------------------------------------------------------------------------------


def shifted(image: torch.Tensor, down: int, right: int, padding: int) -> torch.Tensor:
    """The plain way: pad with zeros, cut out."""
    padded = torch.nn.functional.pad(image, (padding,) * 4)
    height, width = image.shape[1:]
    top, left = padding + down, padding + right
    return padded[:, top : top + height, left : left + width]


def test_every_image_is_shifted_and_flipped_as_padding_and_cutting_would():
    image = torch.from_numpy(noise(2, 3, 6, 5)).clamp(min=1)
    num_images = 5000
    moved = augment_pixels(
        image.expand(num_images, -1, -1, -1),
        crop_padding=1,
        flip_probability=0.25,
        generator=draw(),
    )
    assert moved.dtype == torch.uint8
    counts = {}
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            for flipped in (False, True):
                expected = shifted(image, down, right, 1)
                expected = expected.flip(2) if flipped else expected
                same = (moved == expected).flatten(1).all(1)
                counts[down, right, flipped] = int(same.sum())
    assert sum(counts.values()) == num_images
    for (_, _, flipped), count in counts.items():
        mean = num_images / 9 * (0.25 if flipped else 0.75)
        assert abs(count - mean) < 5 * mean**0.5


def test_without_padding_and_flips_nothing_changes():
    images = torch.from_numpy(noise(3, 10, 3, 6, 6))
    same = augment_pixels(images, crop_padding=0, flip_probability=0.0, generator=draw())
    assert torch.equal(same, images)
    flipped = augment_pixels(images, crop_padding=0, flip_probability=1.0, generator=draw())
    assert torch.equal(flipped, images.flip(3))


def test_a_shift_beyond_the_image_leaves_zeros():
    images = torch.full((200, 1, 2, 2), 9, dtype=torch.uint8)
    moved = augment_pixels(images, crop_padding=4, flip_probability=0.5, generator=draw())
    assert set(moved.unique().tolist()) == {0, 9}
    assert bool((moved == 0).flatten(1).all(1).any())


def test_augmentation_is_a_function_of_its_generator():
    images = torch.from_numpy(noise(4, 50, 1, 8, 8))
    options = {"crop_padding": 3, "flip_probability": 0.5}
    first = augment_pixels(images, **options, generator=draw())
    assert torch.equal(augment_pixels(images, **options, generator=draw()), first)
    assert not torch.equal(augment_pixels(images, **options, generator=draw(1)), first)
    inputs = images.float() + 1
    first = cutout(inputs, size=4, generator=draw())
    assert torch.equal(cutout(inputs, size=4, generator=draw()), first)
    assert not torch.equal(cutout(inputs, size=4, generator=draw(1)), first)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_cutout_hides_one_square_whose_centre_is_uniform(size):
    height, width, num_images = 6, 5, 6000
    inputs = torch.ones(num_images, 2, height, width)
    hidden = cutout(inputs, size=size, generator=draw()) == 0
    assert bool((inputs == 1).all())
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    counts = []
    seen = set()
    for row in range(height):
        for column in range(width):
            top, left = row - size // 2, column - size // 2
            square = torch.zeros(height, width, dtype=torch.bool)
            square[max(top, 0) : top + size, max(left, 0) : left + size] = True
            assert square.numpy().tobytes() not in seen
            seen.add(square.numpy().tobytes())
            counts.append(int((hidden[:, 0] == square).flatten(1).all(1).sum()))
    mean = num_images / (height * width)
    assert sum(counts) == num_images
    assert max(abs(count - mean) for count in counts) < 5 * mean**0.5


def test_cutout_of_size_zero_changes_nothing():
    inputs = torch.rand(5, 3, 8, 8, generator=draw())
    assert torch.equal(cutout(inputs, size=0, generator=draw()), inputs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_does_not_change_what_is_drawn():
    images = torch.from_numpy(noise(5, 64, 3, 32, 32))
    options = {"crop_padding": 4, "flip_probability": 0.5}
    normalise = Normalizer((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    moved = augment_pixels(images, **options, generator=draw())
    moved_there = augment_pixels(images.cuda(), **options, generator=draw())
    assert torch.equal(moved_there.cpu(), moved)
    expected = cutout(normalise(moved), size=16, generator=draw())
    there = cutout(normalise(moved_there), size=16, generator=draw()).cpu()
    assert torch.equal(there == 0, expected == 0)
    assert torch.allclose(there, expected, rtol=0, atol=1e-6)
