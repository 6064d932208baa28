"""A quantised model's original in float32: what it is judged and timed beside in a validation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from d2nas.errors import ValidationFailedError

from ..gate.comparison import PRECISION_LIMITS
from ..gate.judge import Reference, Verdict, judge
from ..latency.timing import InTurns, time_in_turns
from ..onnx_io import FLOAT32_FILE
from ..onnx_io.session import OnnxSession, open_session
from ..store import Version
from .stage import Facts


@dataclass
class Original:
    """The float32 model of an export's version, opened on the device of the validation."""

    NUM_STEPS: ClassVar[int] = 3
    """How often ``done`` is called in all."""

    model: bytes
    session: OnnxSession
    batch: int
    """Batch size at which the two are compared: the one that decides between modes, too."""
    verdict: Verdict | None = None
    times: tuple[InTurns, InTurns] | None = None
    """Those of the quantised model and of this one."""

    @classmethod
    def of(cls, exported: Version, device: str, batch: int) -> "Original | None":
        """Open it; None where the model is not quantised."""
        if exported.manifest.facts["precision"] != "int8":
            return None
        model = exported.read(FLOAT32_FILE)
        what = f"{exported.reference}: {FLOAT32_FILE}"
        return cls(model, open_session(model, device=device, what=what), batch)

    def judge(self, reference: Reference, batches: Sequence[int], done: Callable[[], None]) -> None:
        """Raise ``ValidationFailedError`` unless it computes what was trained, as any float32
        model: by what it is the quantised one is judged.
        """
        limits = PRECISION_LIMITS["fp32"]
        self.verdict = judge(
            self.model, self.session, reference, limits, batches=batches, on_check_done=done
        )

    def require_slower(self, quantised: OnnxSession, done: Callable[[], None]) -> None:
        """Time both in turns, which what else the machine does meanwhile slows alike; raise
        ``ValidationFailedError`` where the quantised model is not faster.
        """
        own, others = time_in_turns([quantised, self.session], self.batch)
        self.times = own, others
        done()
        # "Not faster" rather than "slower": a NaN must not pass.
        if not own.quietest_ms < others.quietest_ms:
            raise ValidationFailedError(
                f"int8 is not faster than fp32: {own.quietest_ms:.3g} ms against "
                f"{others.quietest_ms:.3g} ms at batch {self.batch} on {quantised.device.label}",
                hint="export it as fp32 or fp16: d2nas export RUN --precision fp32",
            )

    def to_dict(self) -> Facts:
        """Return JSON data."""
        assert self.verdict is not None
        assert self.times is not None
        own, others = self.times
        parity = self.verdict.parity
        return {
            "float32": {
                "relative_l2": parity.relative_l2,
                "limit": parity.limits.relative_l2,
                "rejected": list(self.verdict.self_test.rejected),
            },
            "latency": {
                "batch": self.batch,
                "device": self.session.device.label,
                "kind": self.session.device.kind,
                "int8_ms": own.quietest_ms,
                "float32_ms": others.quietest_ms,
                "rounds": len(own.medians_ms),
            },
        }
