"""Verdict on an exported model: parity, faulty copies, accuracy, golden inputs.

Values in, a verdict out: no torch, no configuration. A session in another mode is judged by the
same images before it may be timed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2nas.data.subsample import SAMPLE_RULE
from d2nas.errors import ValidationFailedError
from d2nas.measure.scores import wilson_interval

from ..identity.quantised import QuantisedReport, check_quantised
from ..onnx_io.session import OnnxSession, may_serve, open_session
from .comparison import Limits, compare, judge_parity, largest_share
from .mutants import SelfTest, mutants, self_test, self_test_by_weights
from .parity import (
    DEFAULT_BATCHES,
    ParityReport,
    Rows,
    check_parity,
    in_batches,
    rows_at,
    sample_of,
)

NUM_GOLDEN = 8
"""Images that travel with the model, with its answers."""


@dataclass(frozen=True)
class Reference:
    """Labelled test images as the model takes them, and the trained network's answers to them."""

    images: Rows
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    """[N, classes], in float32."""


@dataclass(frozen=True)
class Verdict:
    """A model that passed, and how it was judged."""

    parity: ParityReport
    self_test: SelfTest
    accuracy: Mapping[str, Any]
    sample: Sequence[int]
    """Images that stood for all where not all were needed; the golden inputs are its start."""
    golden: dict[str, NDArray[Any]]
    """``images`` with the model's ``logits`` and the ``labels``: whatever serves answers alike."""
    logits: NDArray[np.float32]
    """The model's answers to all images."""
    quantised: QuantisedReport | None = None
    """Comparison of a quantised model's weights with the float32 ones."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report's parts as JSON data."""
        quantised = {} if self.quantised is None else {"quantisation": self.quantised.to_dict()}
        return quantised | {
            "accuracy": dict(self.accuracy),
            "parity": self.parity.to_dict(),
            "self_test": self.self_test.to_dict(),
            "sampled_images": {
                "indices": list(self.sample),
                "golden": NUM_GOLDEN,
                "rule": SAMPLE_RULE,
            },
        }

    def warnings(self) -> list[str]:
        """Return, a line each, what the user should know of a model that passed."""
        if not self.accuracy["near_chance"]:
            return []
        return [
            f"accuracy {100 * self.accuracy['onnx']:.2f} % may be chance: the largest class has "
            f"{100 * self.accuracy['largest_class_share']:.2f} % of the images"
        ]


def judge(
    model: bytes,
    session: OnnxSession,
    reference: Reference,
    limits: Limits | None = None,
    *,
    batches: Sequence[int] = DEFAULT_BATCHES,
    on_check_done: Callable[[], None] = lambda: None,
    original: bytes | None = None,
) -> Verdict:
    """Raise ``ValidationFailedError`` unless ``model`` computes what the network computes.

    ``session`` is the model's, in the plain mode. ``on_check_done`` is called after parity and
    after the self-test, so twice, whatever they say. A quantised model needs its
    ``original`` too, in float32, which must have passed: its weights must be those, rounded, and by
    that the faulty copies are rejected. Raises also as ``check_parity`` and the session do.
    """
    limits = limits or Limits()
    quantised = None if original is None else check_quantised(model, original)
    images, labels = reference.images, reference.labels
    parity = check_parity(reference.logits, session, images, batches, limits, labels)
    on_check_done()
    sample = sample_of(len(images), labels)
    if original is None:
        device = session.device.address
        copies = ((name, open_session(copy, device=device)) for name, copy in mutants(model))
        tested = self_test(reference.logits[sample], copies, rows_at(images, sample), limits)
    else:
        tested = self_test_by_weights(mutants(model), lambda copy: check_quantised(copy, original))
    on_check_done()
    _require_passed(parity, tested)
    logits = in_batches(session.run, images, max(batches))
    accuracy = _accuracies(logits, reference, limits)
    chosen = sample[:NUM_GOLDEN]
    golden = {"images": rows_at(images, chosen), "logits": logits[chosen], "labels": labels[chosen]}
    return Verdict(parity, tested, accuracy, sample, golden, logits, quantised)


def check_mode(
    session: OnnxSession,
    reference: Reference,
    limits: Limits | None = None,
    *,
    batches: Sequence[int] = DEFAULT_BATCHES,
) -> None:
    """Raise ``ValidationFailedError`` unless ``session``, in another mode, answers as the network.

    A mode that may serve passes what the plain one passed: parity at every batch size on all test
    images, and the accuracy's floor. One with CUDA graphs holds for one batch size each and one
    thread at a time; it is timed for comparison, after a look at bound images, and never serves.
    """
    limits = limits or Limits()
    if not may_serve(session.mode):
        _check_bound(session, reference, limits)
        return
    images, labels = reference.images, reference.labels
    parity = check_parity(reference.logits, session, images, batches, limits, labels)
    if not parity.passed:
        raise _not_alike(parity)
    accuracy = accuracy_of(in_batches(session.run, images, max(batches)), labels)
    floor = limits.accuracy_floor * accuracy_of(reference.logits, labels)
    # "Not at least" rather than "below": a NaN must not pass.
    if not accuracy >= floor:
        raise ValidationFailedError(f"accuracy {accuracy:.4f} is below {floor:.4f}")


def accuracy_of(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of rows [N, classes] whose largest logit is the label's."""
    return float((logits.argmax(axis=1) == labels).mean())


def is_near_chance(accuracy: float, num_images: int, largest_share: float) -> bool:
    """Whether an accuracy counted on so many images may be that of always answering the largest
    class: the lower end of its 95 % interval (Wilson's) is not above that class's share.
    """
    return wilson_interval(accuracy, num_images)[0] <= largest_share


def _check_bound(session: OnnxSession, reference: Reference, limits: Limits) -> None:
    sample = sample_of(len(reference.images), reference.labels)
    images = rows_at(reference.images, sample)
    bound = session.bind(images)
    bound()  # what is captured at the first run must hold for the images of a later one
    answers = bound.answer(images[::-1].copy())[::-1]
    verdict, reasons = judge_parity(
        compare(reference.logits[sample], answers), limits, is_part=True
    )
    if verdict == "failed":
        raise ValidationFailedError("; ".join(reasons))


def _require_passed(parity: ParityReport, tested: SelfTest) -> None:
    if not parity.passed:
        raise _not_alike(parity)
    if not tested.passed:
        raise ValidationFailedError(
            "the parity gate accepted a faulty copy of the model "
            f"({', '.join(tested.accepted) or 'no copy could be made'}): it proves nothing"
        )


def _not_alike(parity: ParityReport) -> ValidationFailedError:
    """Return the error with what to look at: the export, or why the answers say little."""
    hint = (
        "the exported model computes something else: export again, or as --precision fp32"
        if parity.verdict == "failed"
        else "answers that hardly differ prove no copy right: an untrained or diverged network "
        "(retrain's metrics), or test images nearly alike; fp32 needs less difference than fp16"
    )
    return ValidationFailedError(
        f"parity {parity.verdict}: {'; '.join(parity.reasons[:3])}", hint=hint
    )


def _accuracies(
    logits: NDArray[np.float32], reference: Reference, limits: Limits
) -> dict[str, Any]:
    """Return the accuracies of both; raises ``ValidationFailedError`` below the floor."""
    labels, share = reference.labels, largest_share(reference.labels)
    own, exported = accuracy_of(reference.logits, labels), accuracy_of(logits, labels)
    floor = limits.accuracy_floor * own
    # "Not at least" rather than "below": a NaN must not pass.
    if not exported >= floor:
        raise ValidationFailedError(
            f"the exported model's accuracy {exported:.4f} is below {floor:.4f}, "
            f"{100 * limits.accuracy_floor:g} % of PyTorch's {own:.4f}",
            hint="validate.accuracy_floor",
        )
    return {
        "torch": own,
        "onnx": exported,
        "test_images": len(labels),
        "floor": limits.accuracy_floor,
        "largest_class_share": share,
        "near_chance": is_near_chance(exported, len(labels), share),
    }
