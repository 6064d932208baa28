"""The parity gate passes an exported model and says no to every wrong one it is shown."""

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from onnx_models import INPUT_SHAPE, pattern_images, settled_network, torch_answer
from parity_stubs import IMAGES, Answer, Images, Stub, first_row, linear

from d2nas.errors import ConfigError, ValidationFailedError
from pipeline.gate import parity
from pipeline.gate.comparison import Limits, compare
from pipeline.gate.mutants import mutants, self_test
from pipeline.gate.parity import check_parity
from pipeline.onnx_io.export import export_onnx
from pipeline.onnx_io.session import OnnxSession, open_session

# --- batch sizes --------------------------------------------------------------------------------


def test_largest_batch_sees_all_images_and_the_others_the_first_64() -> None:
    session = Stub(linear)
    report = check_parity(linear(IMAGES), session, IMAGES, batches=(64, 1, 7, 2))
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
    report = check_parity(linear(IMAGES[:5]), session, IMAGES[:5], batches=(2, 64))
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
    report = check_parity(linear(IMAGES), Stub(wrong), IMAGES)
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
    """Right for the images in the orders in which they are looked at only."""
    logits = linear(images)
    sampled = parity.rows_at(IMAGES, parity.sample_of(len(IMAGES), None))
    if len(images) > 1 and not any(
        (images == usual[at : at + len(images)]).all()
        for usual in (IMAGES, sampled)
        for at in range(len(usual) - len(images) + 1)
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
    report = check_parity(linear(IMAGES), Stub(wrong), IMAGES)
    assert report.verdict == "failed"
    assert any(reason in text for text in report.reasons)
    monkeypatch.setattr(parity, "_row_invariance", lambda session, rows: (0.0, 0.0))
    assert check_parity(linear(IMAGES), Stub(wrong), IMAGES).passed


def test_the_order_of_the_permutation_is_no_rotation_or_reversal() -> None:
    for num_rows in (7, 64):
        order = parity._scrambled(num_rows)
        assert sorted(order) == list(range(num_rows))
        steps = {int(step) % num_rows for step in np.diff(order)}
        assert len(steps) > 1
    assert list(parity._scrambled(2)) == [1, 0]


def test_the_report_tells_the_worst_of_all_batch_sizes() -> None:
    wrong = only_at(7, lambda images: linear(images) + np.float32(0.25))
    report = check_parity(linear(IMAGES), Stub(wrong), IMAGES)
    data = report.to_dict()
    by_batch = {entry["batch"]: entry for entry in data["batches"]}
    assert data["passed"] is False
    assert data["verdict"] == "failed"
    assert data["max_abs"] == report.max_abs == pytest.approx(0.25, abs=1e-5)
    assert data["relative_l2"] == report.relative_l2 == by_batch[7]["relative_l2"] > 1e-2
    assert by_batch[64]["verdict"] == by_batch[1]["verdict"] == "passed"
    json.dumps(data, allow_nan=False)


def test_outputs_that_cannot_be_compared_have_no_numbers() -> None:
    report = check_parity(
        linear(IMAGES), Stub(only_at(7, lambda images: linear(images)[:, :2])), IMAGES
    )
    assert (report.verdict, report.max_abs, report.relative_l2) == ("failed", None, None)


def test_a_provider_that_changed_ends_the_comparison() -> None:
    class Fallen(Stub):
        def check_provider(self) -> None:
            raise ValidationFailedError("CUDA was asked for, but ONNX Runtime uses CPU")

    with pytest.raises(ValidationFailedError, match="uses CPU"):
        check_parity(linear(IMAGES), Fallen(linear), IMAGES)


def test_a_reference_that_loses_images_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="one row of logits"):
        check_parity(linear(IMAGES)[:-1], Stub(linear), IMAGES)


@pytest.mark.parametrize(("images", "batches"), [(IMAGES[:0], (1,)), (IMAGES, ()), (IMAGES, (0,))])
def test_parity_of_nothing_is_refused(images: Images, batches: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        check_parity(linear(images), Stub(linear), images, batches)


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
    images = pattern_images(100).numpy()
    report = check_parity(answer(images), on_cpu(exported), images)
    assert report.passed, report.reasons
    assert report.relative_l2 is not None
    assert report.relative_l2 < 2e-6
    assert min(entry.result.spread or 0.0 for entry in report.batches) > 0.1


def test_every_mutant_of_the_exported_model_is_rejected(answer: Answer, exported: bytes) -> None:
    images = pattern_images(16).numpy()
    faulty = {name: on_cpu(model) for name, model in mutants(exported)}
    result = self_test(answer(images), faulty.items(), images)
    assert result.passed
    assert result.rejected == tuple(faulty)
    assert len(faulty) == 6
    # One fault in one tensor is far outside the tolerance, not just beyond it.
    for session in faulty.values():
        assert (compare(answer(images), session.run(images)).relative_l2 or 0.0) > 1e-3
    loose = self_test(
        answer(images), faulty.items(), images, Limits(relative_l2=1.0, top1_agreement=0.0)
    )
    assert not loose.passed
    assert "stem weight + 1 %" in loose.accepted


def test_a_self_test_without_mutants_or_with_an_accepted_one_does_not_pass() -> None:
    assert not self_test(linear(IMAGES), [], IMAGES).passed
    result = self_test(linear(IMAGES), [("intact", Stub(linear))], IMAGES)
    assert result.to_dict() == {"passed": False, "rejected": [], "accepted": ["intact"]}
