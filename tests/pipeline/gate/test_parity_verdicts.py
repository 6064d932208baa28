"""When two outputs agree, differ, or say too little to tell."""

import json
import math
from typing import Any

import numpy as np
import pytest
from parity_stubs import IMAGES, Answer, Images, Stub, first_row, linear

from pipeline.gate import comparison, parity
from pipeline.gate.comparison import Limits, ParityResult, compare, judge_parity
from pipeline.gate.parity import check_parity

# --- two arrays ---------------------------------------------------------------------------------


def test_numbers_are_what_the_definitions_say() -> None:
    reference = np.array([[3.0, 1.0], [0.0, 4.0], [2.0, 1.0]], np.float32)
    got = reference + np.array([[0.0, 0.0], [0.0, 0.5], [-1.5, 0.0]], np.float32)
    result = compare(reference, got)
    assert result.max_abs == 1.5
    assert result.relative_l2 == pytest.approx(math.sqrt(1.5**2 + 0.5**2) / math.sqrt(31.0))
    assert result.top1_agreement == pytest.approx(2 / 3)
    # Half differences between the two classes: 1, -2, 0.5; without their mean, twice (per class).
    halves = np.array([1.0, -2.0, 0.5])
    varying = math.sqrt(2.0 * ((halves - halves.mean()) ** 2).sum())
    assert result.spread == pytest.approx(varying / math.sqrt(31.0))
    # The rows are [3, 1], [0, 4] against [0, 4.5], [2, 1] against [0.5, 1].
    assert result.cosine == pytest.approx(2.0 / math.sqrt(5.0 * 1.25))
    assert result.top5_agreement == 1.0


def test_the_five_largest_classes_are_compared_as_a_set() -> None:
    reference = np.arange(8.0, dtype=np.float32).reshape(1, 8)
    reordered = reference[:, [0, 1, 2, 7, 6, 5, 4, 3]]
    assert compare(reference, reordered).top5_agreement == 1.0
    two_lost = reference.copy()
    two_lost[0, :2] = 10.0
    assert compare(reference, two_lost).top5_agreement == pytest.approx(3 / 5)


def test_rows_of_zeros_are_alike_to_each_other_alone() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert compare(zeros, zeros).cosine == 1.0
    assert compare(zeros, np.ones((2, 3), np.float32)).cosine == 0.0


def test_equal_arrays_agree_exactly() -> None:
    result = compare(linear(IMAGES), linear(IMAGES))
    assert (result.max_abs, result.relative_l2, result.top1_agreement) == (0.0, 0.0, 1.0)
    assert judge_parity(result) == ("passed", ())


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda images: linear(images)[:, :3], "shape"),
        (lambda images: linear(images)[:-1], "shape"),
        (lambda images: linear(images)[:, :, None], "shape"),
        (lambda images: linear(images).astype(np.float64), "type"),
        (first_row(math.nan), "not finite"),
        (first_row(math.inf), "not finite"),
        (lambda images: linear(images) * np.float32(1 + 1e-4), "relative L2 0.0001 > 1e-05"),
        (lambda images: linear(images)[:, ::-1], "top-1 agreement"),
    ],
)
def test_each_kind_of_difference_fails(wrong: Answer, reason: str) -> None:
    verdict, reasons = judge_parity(compare(linear(IMAGES), wrong(IMAGES)))
    assert verdict == "failed"
    assert any(reason in text for text in reasons)


def test_a_reference_that_is_not_finite_fails_too() -> None:
    assert judge_parity(compare(first_row(math.nan)(IMAGES), linear(IMAGES)))[0] == "failed"
    broken = first_row(math.nan)(IMAGES)
    assert judge_parity(compare(broken, broken))[0] == "failed"


def test_float32_noise_passes() -> None:
    noise = np.random.default_rng(7).standard_normal((150, 4)).astype(np.float32)
    result = compare(linear(IMAGES), linear(IMAGES) + 1e-6 * noise)
    assert 1e-8 < result.relative_l2 < 1e-5
    assert judge_parity(result)[0] == "passed"


def test_limits_are_met_at_equality_and_missed_beyond() -> None:
    result = ParityResult(True, True, True, 0.1, 1e-5, 0.999, 1e-3)
    assert judge_parity(result)[0] == "passed"
    for change in ({"relative_l2": 1.01e-5}, {"top1_agreement": 0.9989}, {"relative_l2": math.nan}):
        worse = ParityResult(**{**result.__dict__, **change})
        assert judge_parity(worse)[0] == "failed"
    hardly_varying = ParityResult(**{**result.__dict__, "spread": 0.99e-3})
    assert judge_parity(hardly_varying)[0] == "inconclusive"
    # A distance above the limit is not excused by a small spread.
    assert judge_parity(hardly_varying, Limits(relative_l2=1e-6))[0] == "failed"


SAMPLED = parity.sample_of(len(IMAGES), None)
THREE_AND_ANOTHER = [*SAMPLED[:3], next(i for i in range(len(IMAGES)) if i not in SAMPLED)]
"""Three images that all batch sizes see, and one that only the largest sees."""


def flipped(count: int) -> Answer:
    """Right but for a few images, whose two largest classes are next to equal and change places."""

    def answer(images: Images) -> Images:
        logits = linear(images)
        chosen = [image.tobytes() for image in IMAGES[THREE_AND_ANOTHER][:count]]
        for image, row in zip(images, logits, strict=True):
            first, second = np.argsort(-row)[:2]
            if image.tobytes() in chosen:
                row[[first, second]] = row[[second, first]]
        return logits

    return answer


@pytest.mark.parametrize(
    ("limit", "flips", "verdict"),
    [(0.999, 1, "failed"), (0.99, 1, "passed"), (0.98, 3, "failed"), (0.97, 2, "passed")],
)
def test_agreement_is_held_to_its_limit_over_all_images_and_counted_in_a_part(
    limit: float, flips: int, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 150 images; 64 of them see three flips, where one weighs 1.6 %."""
    monkeypatch.setattr(comparison, "SPREAD_FACTOR", 0.0)
    limits = Limits(relative_l2=1.0, top1_agreement=limit)
    report = check_parity(linear(IMAGES), Stub(flipped(flips)), IMAGES, limits=limits)
    parts, whole = report.batches[:-1], report.batches[-1]
    reasons = [reason for entry in report.batches for reason in entry.reasons]
    assert all("top-1 agreement" in reason for reason in reasons)
    of_part, of_whole = min(flips, 3), flips
    assert [entry.result.num_flips for entry in parts] == [of_part] * 3
    assert whole.result.num_flips == of_whole
    assert [entry.reasons == () for entry in parts] == [
        of_part <= math.ceil(round((1 - limit) * 64, 9))
    ] * 3
    assert (whole.reasons == ()) == (1 - of_whole / 150 >= limit)
    assert ("failed" if reasons else "passed") == verdict
    assert report.to_dict()["limits"]["top1_rule"] == parity.TOP1_RULE


def test_one_flip_of_64_is_no_failure_where_a_hundredth_may_flip() -> None:
    logits = linear(IMAGES[:64])
    got = logits.copy()
    first, second = np.argsort(-got[0])[:2]
    got[0, [first, second]] = got[0, [second, first]]
    result, limits = compare(logits, got), Limits(relative_l2=1.0, top1_agreement=0.99)
    assert judge_parity(result, limits, is_part=True)[0] != "failed"
    assert judge_parity(result, limits)[0] == "failed"
    got[1, [0, 1, 2, 3]] = -logits[1]
    assert judge_parity(compare(logits, got), limits, is_part=True)[0] == "failed"  # two flips
    assert Limits(top1_agreement=0.999).flips(1000) == 1


# --- outputs that hardly vary -------------------------------------------------------------------


def nearly_constant(size: float) -> Answer:
    """Logits of about 0.17 that depend on the image only in the part of the given size."""
    base = np.array([0.17, -0.05, 0.1, 0.02], np.float32)
    return lambda images: base + np.float32(size) * linear(images)


def test_a_broken_model_passes_unnoticed_only_without_the_spread_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference, broken = nearly_constant(1e-7), nearly_constant(0.0)  # it ignores the image
    report = check_parity(reference(IMAGES), Stub(broken), IMAGES)
    assert report.verdict == "inconclusive"
    assert not report.passed
    assert "hardly vary" in report.reasons[0]
    monkeypatch.setattr(comparison, "SPREAD_FACTOR", 0.0)
    assert check_parity(reference(IMAGES), Stub(broken), IMAGES).passed


def mostly_first(others: int) -> Answer:
    """Logits that vary, and the first class for all but some of the images."""
    exceptions = [image.tobytes() for image in IMAGES[:others]]

    def answer(images: Images) -> Images:
        logits = linear(images)
        high = np.abs(logits).max(axis=1) + 1
        for image, row, top in zip(images, logits, high, strict=True):
            row[3 if image.tobytes() in exceptions else 0] = top
        return logits

    return answer


LABELS = np.arange(150) % 4


@pytest.mark.parametrize(
    ("others", "labels", "verdict"),
    [
        (0, LABELS, "inconclusive"),
        (7, LABELS, "inconclusive"),  # 95.3 %
        (8, LABELS, "passed"),
        (0, None, "passed"),
        (0, np.zeros(150, np.int64), "passed"),  # nothing else was to be answered
        (7, (np.arange(150) < 9).astype(np.int64), "passed"),  # 94 % have one class
        (2, (np.arange(150) < 9).astype(np.int64), "inconclusive"),  # 98.7 % are answered with it
    ],
)
def test_one_answer_for_nearly_all_images_is_inconclusive(
    others: int, labels: Any, verdict: str
) -> None:
    answer = mostly_first(others)
    report = check_parity(answer(IMAGES), Stub(answer), IMAGES, labels=labels)
    assert report.verdict == verdict, report.reasons
    assert any("with one class" in reason for reason in report.reasons) == (verdict != "passed")
    # What is wrong stays wrong.
    wrong = check_parity(answer(IMAGES), Stub(linear), IMAGES, labels=labels)
    assert wrong.verdict == "failed"


def test_varying_outputs_are_conclusive() -> None:
    varying = nearly_constant(0.05)
    assert check_parity(varying(IMAGES), Stub(varying), IMAGES).passed
    broken = check_parity(varying(IMAGES), Stub(nearly_constant(0.0)), IMAGES)
    assert broken.verdict == "failed"


def test_a_shift_common_to_all_classes_is_no_spread() -> None:
    """It varies between images, but no prediction depends on it."""

    def shifted(images: Images) -> Images:
        return np.array([0.1, 0.2, 0.3, 0.4], np.float32) + images.mean(axis=(1, 2, 3))[:, None]

    assert check_parity(shifted(IMAGES), Stub(shifted), IMAGES).verdict == "inconclusive"


def test_one_image_proves_nothing() -> None:
    assert check_parity(linear(IMAGES[:1]), Stub(linear), IMAGES[:1]).verdict == "inconclusive"


def test_all_zero_logits_are_inconclusive_or_wrong() -> None:
    def zeros(images: Images) -> Images:
        return np.zeros((len(images), 4), np.float32)

    assert check_parity(zeros(IMAGES), Stub(zeros), IMAGES).verdict == "inconclusive"
    report = check_parity(zeros(IMAGES), Stub(linear), IMAGES)
    assert report.verdict == "failed"
    json.dumps(report.to_dict(), allow_nan=False)
