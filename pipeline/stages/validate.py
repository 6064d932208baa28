"""Validate: the gate before deployment. Is it the network of its genotype, does it compute what was
trained, how well and how fast, on the runtime that serves.

The test images are touched here, once, after all training. A model that does not pass raises
``ValidationFailedError`` and leaves no version.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from d2nas.cost import MACS_CONVENTION
from d2nas.data import ImageData, Normalizer
from d2nas.errors import DamagedArtifactError, ValidationFailedError
from d2nas.network import Network, load_network
from d2nas.strict_json import canonical_json
from d2nas.training import resolve_device as resolve_torch_device

from ..onnx_io.identity import IdentityReport, check_identity
from ..onnx_io.latency import measure_latency
from ..onnx_io.model_file import check_model, lineage, mutants
from ..onnx_io.parity import Limits, ParityReport, SelfTest, check_parity, self_test
from ..onnx_io.session import OnnxSession, open_session, resolve_device
from ..store.codec import encode_tensors
from . import Context, Facts
from .export import MODEL_FILE

REPORT_FILE = "report.json"
GOLDEN_FILE = "golden.safetensors"
NUM_GOLDEN = 8
NUM_SELF_TEST = 64

Images = NDArray[np.float32]


def run(context: Context) -> Facts:
    """Write ``report.json`` and ``golden.safetensors`` (a few inputs with their logits).

    Raises ``ValidationFailedError`` when the gate says no or the device cannot be had,
    ``DamagedArtifactError`` when the model names other parents than its version does.
    """
    config = context.config.validate_
    exported = context.inputs["export"]
    model = exported.read(MODEL_FILE)
    identity = _check_architecture(context, model)
    device = resolve_device(config.device)
    session = open_session(model, device=device, what=f"{exported.reference}: {MODEL_FILE}")
    data = context.data()
    images = _Inputs(data)
    context.hooks.begin(2 + len(config.latency_batches), 0, "check")
    context.hooks.say(f"validate on {session.device.label}: {len(images)} test images")

    network = load_network(context.inputs["retrain"].path)
    reference = _Recorded(_torch_answer(network, session))
    limits = Limits(config.relative_l2, config.top1_agreement)
    parity = check_parity(reference, session, images, config.parity_batches, limits)
    context.hooks.advance(1, None)
    selftest = self_test(
        reference.answer,
        ((name, open_session(mutant, device=device)) for name, mutant in mutants(model)),
        images[:NUM_SELF_TEST],
        limits,
    )
    context.hooks.advance(2, None)
    _require_passed(parity, selftest)

    onnx_logits = _in_batches(session.run, images, max(config.parity_batches))
    labels = data.test.labels_N.numpy()
    accuracy = {
        "torch": _accuracy(np.concatenate(reference.answers), labels),
        "onnx": _accuracy(onnx_logits, labels),
        "test_images": len(images),
    }
    latency = _latencies(context, session)
    report = _report(context, data, session)
    report |= {
        "identity": identity.to_dict(),
        "accuracy": accuracy,
        "parity": parity.to_dict(),
        "self_test": selftest.to_dict(),
        "latency": latency,
    }
    golden = {
        "images": torch.from_numpy(images[:NUM_GOLDEN]),
        "logits": torch.from_numpy(onnx_logits[:NUM_GOLDEN]),
        "labels": data.test.labels_N[:NUM_GOLDEN],
    }
    context.work.write(REPORT_FILE, canonical_json(report))
    context.work.write(GOLDEN_FILE, encode_tensors(golden))
    return {
        "device": session.device.kind,
        "accuracy": accuracy,
        "evaluation": data.evaluation,
        "relative_l2": parity.relative_l2,
        "max_abs": parity.max_abs,
    }


def _latencies(context: Context, session: OnnxSession) -> list[dict[str, Any]]:
    config = context.config.validate_
    records = []
    for done, batch in enumerate(config.latency_batches, start=3):
        record = measure_latency(
            session, batch, samples=config.latency_samples, seconds=config.latency_seconds
        )
        records.append(record.to_dict())
        context.hooks.advance(done, None)
    session.check_provider()
    return records


class _Recorded:
    """Keeps what a function answered, so that the test images are not run twice."""

    def __init__(self, answer: Callable[[Images], Images]) -> None:
        self.answer = answer
        self.answers: list[Images] = []

    def __call__(self, images: Images) -> Images:
        self.answers.append(self.answer(images))
        return self.answers[-1]


def _torch_answer(network: Network, session: OnnxSession) -> Callable[[Images], Images]:
    # Full float32 on both sides: TF32 is torch's default for convolutions on CUDA.
    torch.backends.cudnn.allow_tf32 = False
    device = resolve_torch_device(session.device.kind)
    network.to(device)

    def answer(images: Images) -> Images:
        with torch.no_grad():
            logits = network(torch.from_numpy(images).to(device))
        assert isinstance(logits, torch.Tensor)  # evaluation mode: no auxiliary logits
        answered: Images = logits.cpu().numpy()
        return answered

    return answer


def _check_lineage(context: Context, model: bytes) -> None:
    named = lineage(check_model(model, what=MODEL_FILE))
    for role in ("derive", "retrain"):
        if named.get(f"d2nas.{role}") != context.inputs[role].id:
            raise DamagedArtifactError(
                f"{MODEL_FILE} names another {role} version than {context.inputs[role].reference}",
                hint="export it again: d2nas export RUN",
            )


def _check_architecture(context: Context, model: bytes) -> IdentityReport:
    _check_lineage(context, model)
    identity = check_identity(model)
    if identity.genotype_digest != context.inputs["derive"].manifest.facts["genotype_digest"]:
        raise ValidationFailedError(
            f"{MODEL_FILE} is another genotype's network than {context.inputs['derive'].reference}",
            hint="export it again: d2nas export RUN",
        )
    return identity


class _Inputs:
    """The test images as the network's inputs, prepared when a part is looked at."""

    def __init__(self, data: ImageData) -> None:
        self._images, self._normalizer = data.test, Normalizer(data.mean, data.std)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, part: slice, /) -> Images:
        inputs: Images = self._normalizer(self._images.pixels(part)).numpy()
        return inputs


def _require_passed(parity: ParityReport, selftest: SelfTest) -> None:
    if not parity.passed:
        raise ValidationFailedError(
            f"parity {parity.verdict}: {'; '.join(parity.reasons[:3])}",
            hint="an untrained or diverged network is inconclusive; look at retrain's metrics",
        )
    if not selftest.passed:
        raise ValidationFailedError(
            "the parity gate accepted a faulty copy of the model "
            f"({', '.join(selftest.accepted) or 'no copy could be made'}): it proves nothing"
        )


def _report(context: Context, data: ImageData, session: OnnxSession) -> dict[str, Any]:
    derived, retrained, exported = (context.inputs[r] for r in ("derive", "retrain", "export"))
    return {
        "schema": 1,
        "genotype": derived.manifest.facts["genotype"],
        "genotype_digest": derived.manifest.facts["genotype_digest"],
        "parameterless_normal": derived.manifest.facts["parameterless_normal"],
        "found_by": derived.manifest.facts["found_by"],
        "found_on_this_data": derived.manifest.facts["searched_data_digest"] == data.digest,
        "params": retrained.manifest.facts["params"],
        "macs": retrained.manifest.facts["macs"],
        "macs_convention": MACS_CONVENTION,
        "retrain": retrained.manifest.config["retrain"],
        "data": {
            "name": data.name,
            "digest": data.digest,
            "image_size": data.image_size,
            "channels": data.channels,
            "train": len(data.train),
            "weight_half": len(data.weight_half),
            "arch_half": len(data.arch_half),
            "test": len(data.test),
            "evaluation": data.evaluation,
            "class_counts": data.class_counts(),
            "warnings": list(data.warnings),
        },
        "device": {
            "kind": session.device.kind,
            "label": session.device.label,
            "provider": session.provider,
        },
        "trained_on": retrained.manifest.facts["device"],
        "model": dict(exported.manifest.facts),
        "lineage": {
            **derived.manifest.parents,
            "derive": derived.id,
            "retrain": retrained.id,
            "export": exported.id,
        },
    }


def _in_batches(answer: Callable[[Images], Images], images: _Inputs, batch: int) -> Images:
    return np.concatenate(
        [answer(images[start : start + batch]) for start in range(0, len(images), batch)]
    )


def _accuracy(logits: Images, labels: NDArray[np.int64]) -> float:
    return float((logits.argmax(axis=1) == labels).mean())
