"""The parity gate passes an exported model and says no to every wrong one it is shown."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx_models import INPUT_SHAPE, pattern_images, settled_network, torch_answer

from d2nas.errors import ConfigError, ValidationFailedError
from pipeline.onnx_io import parity
from pipeline.onnx_io.export import export_onnx
from pipeline.onnx_io.mutants import mutants
from pipeline.onnx_io.parity import Limits, check_parity, compare, gate, self_test
from pipeline.onnx_io.session import OnnxSession, open_session

Images = NDArray[np.float32]
Answer = Callable[[Images], Any]

MIXING = np.random.default_rng(5).standard_normal((12, 4)).astype(np.float32)
IMAGES = np.random.default_rng(6).standard_normal((150, 3, 2, 2)).astype(np.float32)


def linear(images: Images) -> Images:
    return images.reshape(len(images), -1) @ MIXING


@dataclass
class Stub:
    """A session that answers with a function and records the batch sizes it was given."""

    answer: Answer
    sizes: list[int] = field(default_factory=list)
    provider_checks: int = 0

    def run(self, images: Images) -> Any:
        self.sizes.append(len(images))
        return self.answer(images)

    def check_provider(self) -> None:
        self.provider_checks += 1


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
    assert gate(result) == ("passed", ())


def first_row(value: float) -> Answer:
    def change(images: Images) -> Images:
        logits = linear(images)
        logits[0, 0] = value
        return logits

    return change


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
    verdict, reasons = gate(compare(linear(IMAGES), wrong(IMAGES)))
    assert verdict == "failed"
    assert any(reason in text for text in reasons)


def test_a_reference_that_is_not_finite_fails_too() -> None:
    assert gate(compare(first_row(math.nan)(IMAGES), linear(IMAGES)))[0] == "failed"
    broken = first_row(math.nan)(IMAGES)
    assert gate(compare(broken, broken))[0] == "failed"


def test_float32_noise_passes() -> None:
    noise = np.random.default_rng(7).standard_normal((150, 4)).astype(np.float32)
    result = compare(linear(IMAGES), linear(IMAGES) + 1e-6 * noise)
    assert 1e-8 < result.relative_l2 < 1e-5
    assert gate(result)[0] == "passed"


def test_limits_are_met_at_equality_and_missed_beyond() -> None:
    result = parity.ParityResult(True, True, True, 0.1, 1e-5, 0.999, 1e-3)
    assert gate(result)[0] == "passed"
    for change in ({"relative_l2": 1.01e-5}, {"top1_agreement": 0.9989}, {"relative_l2": math.nan}):
        worse = parity.ParityResult(**{**result.__dict__, **change})
        assert gate(worse)[0] == "failed"
    hardly_varying = parity.ParityResult(**{**result.__dict__, "spread": 0.99e-3})
    assert gate(hardly_varying)[0] == "inconclusive"
    assert gate(hardly_varying, Limits(relative_l2=1e-6))[0] == "failed"  # not excused by spread


def flipped(count: int) -> Answer:
    """Right but for a few images, whose two largest classes are next to equal and change places."""

    def answer(images: Images) -> Images:
        logits = linear(images)
        chosen = [image.tobytes() for image in IMAGES[[3, 11, 20, 100]][:count]]
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
    monkeypatch.setattr(parity, "SPREAD_FACTOR", 0.0)
    limits = Limits(relative_l2=1.0, top1_agreement=limit)
    report = check_parity(linear, Stub(flipped(flips)), IMAGES, limits=limits)
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
    assert gate(result, limits, is_part=True)[0] != "failed"
    assert gate(result, limits)[0] == "failed"
    got[1, [0, 1, 2, 3]] = -logits[1]
    assert gate(compare(logits, got), limits, is_part=True)[0] == "failed"  # two flips
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
    report = check_parity(reference, Stub(broken), IMAGES)
    assert report.verdict == "inconclusive"
    assert not report.passed
    assert "hardly vary" in report.reasons[0]
    monkeypatch.setattr(parity, "SPREAD_FACTOR", 0.0)
    assert check_parity(reference, Stub(broken), IMAGES).passed


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
    report = check_parity(answer, Stub(answer), IMAGES, labels=labels)
    assert report.verdict == verdict, report.reasons
    assert any("with one class" in reason for reason in report.reasons) == (verdict != "passed")
    # What is wrong stays wrong.
    wrong = check_parity(answer, Stub(linear), IMAGES, labels=labels)
    assert wrong.verdict == "failed"


def test_varying_outputs_are_conclusive() -> None:
    assert check_parity(nearly_constant(0.05), Stub(nearly_constant(0.05)), IMAGES).passed
    assert check_parity(nearly_constant(0.05), Stub(nearly_constant(0.0)), IMAGES).verdict == (
        "failed"
    )


def test_a_shift_common_to_all_classes_is_no_spread() -> None:
    """It varies between images, but no prediction depends on it."""

    def shifted(images: Images) -> Images:
        return np.array([0.1, 0.2, 0.3, 0.4], np.float32) + images.mean(axis=(1, 2, 3))[:, None]

    assert check_parity(shifted, Stub(shifted), IMAGES).verdict == "inconclusive"


def test_one_image_proves_nothing() -> None:
    assert check_parity(linear, Stub(linear), IMAGES[:1]).verdict == "inconclusive"


def test_all_zero_logits_are_inconclusive_or_wrong() -> None:
    def zeros(images: Images) -> Images:
        return np.zeros((len(images), 4), np.float32)

    assert check_parity(zeros, Stub(zeros), IMAGES).verdict == "inconclusive"
    report = check_parity(zeros, Stub(linear), IMAGES)
    assert report.verdict == "failed"
    json.dumps(report.to_dict(), allow_nan=False)


# --- batch sizes --------------------------------------------------------------------------------


def test_largest_batch_sees_all_images_and_the_others_the_first_64() -> None:
    session = Stub(linear)
    report = check_parity(linear, session, IMAGES, batches=(64, 1, 7, 2))
    assert [(entry.batch, entry.num_images) for entry in report.batches] == [
        (1, 64),
        (2, 64),
        (7, 64),
        (64, 150),
    ]
    assert session.sizes.count(64) == 2 + 3  # 64 + 64 + 22, and three of equal or reordered rows
    assert session.sizes.count(22) == 1
    assert session.sizes.count(7) == 9 + 3
    assert session.provider_checks >= 1


def test_batches_larger_than_the_number_of_images_are_really_run() -> None:
    session = Stub(linear)
    report = check_parity(linear, session, IMAGES[:5], batches=(2, 64))
    assert report.passed
    assert session.sizes.count(64) == 4


def only_at(size: int, answer: Answer) -> Answer:
    return lambda images: answer(images) if len(images) == size else linear(images)


def leaking(images: Images) -> Images:
    logits = linear(images)
    return logits + np.float32(0.01) * logits.mean(axis=0)


def last_image_wrong(images: Images) -> Images:
    logits = linear(images)
    logits[(images == IMAGES[-1]).all(axis=(1, 2, 3))] *= 2
    return logits


@pytest.mark.parametrize(
    "wrong",
    [
        only_at(1, lambda images: linear(images) * 2),
        only_at(2, lambda images: linear(images)[::-1]),
        only_at(7, lambda images: np.roll(linear(images), 1, axis=0)),
        only_at(64, lambda images: np.repeat(linear(images)[:1], 64, axis=0)),
        only_at(7, first_row(math.nan)),
        only_at(64, lambda images: linear(images)[:63]),
        leaking,
        last_image_wrong,
    ],
)
def test_defects_of_single_batch_sizes_and_images_are_found(wrong: Answer) -> None:
    report = check_parity(linear, Stub(wrong), IMAGES)
    assert report.verdict == "failed"
    assert report.reasons
    json.dumps(report.to_dict(), allow_nan=False)


def position_dependent(images: Images) -> Images:
    """Right for the order in which images come, wrong for where they stand in the batch."""
    logits = linear(images)
    same = len(images) > 1 and bool((images == images[:1]).all())
    if same:
        logits[-1] *= np.float32(1.001)
    return logits


def order_dependent(images: Images) -> Images:
    """Right for the images in their usual order only."""
    logits = linear(images)
    if len(images) > 1 and not any(
        (images == IMAGES[at : at + len(images)]).all()
        for at in range(len(IMAGES) - len(images) + 1)
    ):
        logits[0] *= np.float32(1.001)
    return logits


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [(position_dependent, "copies of one image"), (order_dependent, "reordered batch")],
)
def test_rows_must_not_depend_on_their_neighbours(
    wrong: Answer, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = check_parity(linear, Stub(wrong), IMAGES)
    assert report.verdict == "failed"
    assert any(reason in text for text in report.reasons)
    monkeypatch.setattr(parity, "_row_invariance", lambda session, rows: (0.0, 0.0))
    assert check_parity(linear, Stub(wrong), IMAGES).passed


def test_the_order_of_the_permutation_is_no_rotation_or_reversal() -> None:
    for num_rows in (7, 64):
        order = parity._scrambled(num_rows)
        assert sorted(order) == list(range(num_rows))
        steps = {int(step) % num_rows for step in np.diff(order)}
        assert len(steps) > 1
    assert list(parity._scrambled(2)) == [1, 0]


def test_the_report_tells_the_worst_of_all_batch_sizes() -> None:
    wrong = only_at(7, lambda images: linear(images) + np.float32(0.25))
    report = check_parity(linear, Stub(wrong), IMAGES)
    data = report.to_dict()
    by_batch = {entry["batch"]: entry for entry in data["batches"]}
    assert data["passed"] is False
    assert data["verdict"] == "failed"
    assert data["max_abs"] == report.max_abs == pytest.approx(0.25, abs=1e-5)
    assert data["relative_l2"] == report.relative_l2 == by_batch[7]["relative_l2"] > 1e-2
    assert by_batch[64]["verdict"] == by_batch[1]["verdict"] == "passed"
    json.dumps(data, allow_nan=False)


def test_outputs_that_cannot_be_compared_have_no_numbers() -> None:
    report = check_parity(linear, Stub(only_at(7, lambda images: linear(images)[:, :2])), IMAGES)
    assert (report.verdict, report.max_abs, report.relative_l2) == ("failed", None, None)


def test_a_provider_that_changed_ends_the_comparison() -> None:
    class Fallen(Stub):
        def check_provider(self) -> None:
            raise ValidationFailedError("CUDA was asked for, but ONNX Runtime uses CPU")

    with pytest.raises(ValidationFailedError, match="uses CPU"):
        check_parity(linear, Fallen(linear), IMAGES)


def test_a_reference_that_loses_images_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="one row of logits"):
        check_parity(lambda images: linear(images)[:-1], Stub(linear), IMAGES)


@pytest.mark.parametrize(("images", "batches"), [(IMAGES[:0], (1,)), (IMAGES, ()), (IMAGES, (0,))])
def test_parity_of_nothing_is_refused(images: Images, batches: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        check_parity(linear, Stub(linear), images, batches)


# --- a real model, exported ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def answer() -> Iterator[Answer]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch_answer(settled_network())
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def exported(answer: Answer) -> bytes:
    return export_onnx(settled_network(), input_shape=INPUT_SHAPE, opset=20, metadata={})


def on_cpu(model: bytes) -> OnnxSession:
    return open_session(model, device="cpu", num_threads=1)


def test_an_exported_model_passes_with_room_to_spare(answer: Answer, exported: bytes) -> None:
    report = check_parity(answer, on_cpu(exported), pattern_images(100).numpy())
    assert report.passed, report.reasons
    assert report.relative_l2 is not None
    assert report.relative_l2 < 2e-6
    assert min(entry.result.spread or 0.0 for entry in report.batches) > 0.1


def test_every_mutant_of_the_exported_model_is_rejected(answer: Answer, exported: bytes) -> None:
    images = pattern_images(16).numpy()
    faulty = {name: on_cpu(model) for name, model in mutants(exported)}
    result = self_test(answer, faulty.items(), images)
    assert result.passed
    assert result.rejected == tuple(faulty)
    assert len(faulty) == 6
    # One fault in one tensor is far outside the tolerance, not just beyond it.
    for session in faulty.values():
        assert (compare(answer(images), session.run(images)).relative_l2 or 0.0) > 1e-3
    loose = self_test(answer, faulty.items(), images, Limits(relative_l2=1.0, top1_agreement=0.0))
    assert not loose.passed
    assert "stem weight + 1 %" in loose.accepted


def test_a_self_test_without_mutants_or_with_an_accepted_one_does_not_pass() -> None:
    assert not self_test(linear, [], IMAGES).passed
    result = self_test(linear, [("intact", Stub(linear))], IMAGES)
    assert result.to_dict() == {"passed": False, "rejected": [], "accepted": ["intact"]}
