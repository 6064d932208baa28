"""Validation of an exported model: identity, parity, accuracy and latency; the evidence written."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from d2nas.config import Config
from d2nas.config.deployment import ValidateConfig
from d2nas.config.registry import data_sets
from d2nas.data.images import ImageData
from d2nas.data.subsample import SAMPLE_RULE
from d2nas.errors import ConfigError, DamagedArtifactError, ValidationFailedError
from d2nas.files.strict_json import canonical_json
from d2nas.files.tensors import encode_tensors
from d2nas.measure.cost import MACS_CONVENTION
from d2nas.nn.network import load_network
from d2nas.train.loop import memory_errors

from ..identity.check import IdentityReport, check_identity
from ..onnx_io.model_file import MODEL_FILE, check_model, lineage
from ..onnx_io.preparation import prepare_content, read_prepared
from ..onnx_io.providers import resolve_device
from ..onnx_io.session import SMALLER_BATCHES, OnnxSession, open_session
from .comparison import largest_share
from .golden import PICTURE_FILE, golden_picture
from .modes import GateLimits, ModeCheck, accuracy_of, is_near_chance
from .mutants import mutants
from .parity import (
    PRECISION_LIMITS,
    SMALL_BATCH_IMAGES,
    Limits,
    ParityReport,
    SelfTest,
    check_parity,
    in_batches,
    rows_at,
    sample_of,
    self_test,
)
from .report import REPORT_SCHEMA
from .test_images import Recorded, TestImages, torch_answer
from .timing import measure_all, num_measured, pass_gate

if TYPE_CHECKING:
    from ..stages.stage import Context, Facts

REPORT_FILE = "report.json"
GOLDEN_FILE = "golden.safetensors"
LATENCY_FILE = "latency.json"
NUM_GOLDEN = 8
NUM_SELF_TEST = 64

Images = NDArray[Any]
Labels = NDArray[np.int64]


def validate(context: "Context") -> "Facts":
    """Write the evidence; see ``pipeline.stages.validate``."""
    config = context.config.validate_
    on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    largest = max(*config.parity_batches, *config.latency_batches)
    with memory_errors(largest, torch.device("cuda" if on_cuda else "cpu"), hint=SMALLER_BATCHES):
        return _validate(context, config)


def _validate(context: "Context", config: ValidateConfig) -> "Facts":
    exported = context.inputs["export"]
    model = exported.read(MODEL_FILE)
    identity = _check_architecture(context, model)
    device = resolve_device(config.device)
    what = f"{exported.reference}: {MODEL_FILE}"
    session = open_session(model, device=device, what=what)
    data = context.data()
    _require_unseen(context, data)
    images = TestImages(data, session.description)
    context.hooks.begin(2 + num_measured(session.device, config), 0, "check")
    context.hooks.say(f"validate on {session.device.label}: {len(images)} test images")

    network = load_network(context.inputs["retrain"].path)
    limits = _limits(config, exported.manifest.facts["precision"])
    reference = Recorded(torch_answer(network, images, session))
    labels, batches = data.test.labels_N.numpy(), config.parity_batches
    checked = _check(context, model, session, reference, images, labels, limits)
    accuracy = _accuracies(checked.logits, reference, labels, limits)
    if accuracy["near_chance"]:
        context.hooks.warn(
            f"accuracy {100 * accuracy['onnx']:.2f} % may be chance: the largest class has "
            f"{100 * accuracy['largest_class_share']:.2f} % of the images"
        )
    modes = ModeCheck(reference.answer, images, labels, batches, limits, accuracy["torch"])
    latencies = measure_all(
        session,
        lambda mode: open_session(model, device=device, what=what, mode=mode),
        network,
        config,
        modes.problem,
        _counter(context),
    )
    gate = pass_gate(latencies, config, context.hooks.warn)
    report = _report(context, data, session) | {
        "identity": identity.to_dict(),
        "accuracy": accuracy,
        "parity": checked.parity.to_dict(),
        "self_test": checked.self_test.to_dict(),
        "sampled_images": _sampled(labels),
        **latencies.to_dict(),
        "latency_gate": gate,
    }
    context.work.write(REPORT_FILE, canonical_json(report))
    picture = golden_picture(data.image_size)
    context.work.write(PICTURE_FILE, picture)
    prepared = _prepared(picture, read_prepared(exported, MODEL_FILE), session)
    golden = _golden(images, checked.logits, labels) | prepared
    context.work.write(GOLDEN_FILE, encode_tensors(golden))
    context.work.write(LATENCY_FILE, canonical_json(latencies.samples()))
    return {
        "device": session.device.kind,
        "accuracy": accuracy,
        "evaluation": data.evaluation,
        "relative_l2": checked.parity.relative_l2,
        "max_abs": checked.parity.max_abs,
    }


def _golden(images: TestImages, logits: Images, labels: Labels) -> dict[str, torch.Tensor]:
    chosen = sample_of(len(images), labels, NUM_GOLDEN)
    return {
        "images": torch.from_numpy(rows_at(images, chosen)),
        "logits": torch.from_numpy(logits[chosen]),
        "labels": torch.from_numpy(labels[chosen]),
    }


def _prepared(
    picture: bytes, settings: Mapping[str, Any], session: OnnxSession
) -> dict[str, torch.Tensor]:
    """Return the golden picture as the model takes it, and its logits."""
    image = prepare_content(picture, settings, what=PICTURE_FILE)
    return {
        "picture": torch.from_numpy(image.copy()),
        "picture_logits": torch.from_numpy(session.run(image)),
    }


def _sampled(labels: Labels) -> dict[str, Any]:
    """Return which test images stood for all, as JSON data: the golden inputs are its start."""
    chosen = sample_of(len(labels), labels, max(NUM_SELF_TEST, SMALL_BATCH_IMAGES))
    return {"indices": chosen, "golden": NUM_GOLDEN, "rule": SAMPLE_RULE}


@dataclass(frozen=True)
class _Checked:
    """Model that passed the gate: its logits of all test images, and how they were judged."""

    parity: ParityReport
    self_test: SelfTest
    logits: Images


def _check(
    context: "Context",
    model: bytes,
    session: OnnxSession,
    reference: Recorded,
    images: TestImages,
    labels: Labels,
    limits: GateLimits,
) -> _Checked:
    """Raise ``ValidationFailedError`` unless the model computes what the network computes."""
    batches = context.config.validate_.parity_batches
    parity = check_parity(reference, session, images, batches, limits.parity, labels)
    _advance(context, 1)
    device = resolve_device(context.config.validate_.device)
    selftest = self_test(
        reference.answer,
        ((name, open_session(mutant, device=device)) for name, mutant in mutants(model)),
        rows_at(images, sample_of(len(images), labels, NUM_SELF_TEST)),
        limits.parity,
    )
    _advance(context, 2)
    _require_passed(parity, selftest)
    return _Checked(parity, selftest, in_batches(session.run, images, max(batches)))


def _accuracies(
    logits: Images, reference: Recorded, labels: Labels, limits: GateLimits
) -> dict[str, Any]:
    """Return the accuracies of both; raises ``ValidationFailedError`` below the floor."""
    own = accuracy_of(np.concatenate(reference.answers), labels)
    exported = accuracy_of(logits, labels)
    accuracy = {
        "torch": own,
        "onnx": exported,
        "test_images": len(labels),
        "floor": limits.accuracy_floor,
        "largest_class_share": largest_share(labels),
        "near_chance": is_near_chance(exported, len(labels), largest_share(labels)),
    }
    _require_accurate(accuracy)
    return accuracy


def _limits(config: ValidateConfig, precision: str) -> GateLimits:
    """Return the configured limits, the precision's where none is given."""
    parity, floor = PRECISION_LIMITS[precision]
    return GateLimits(
        Limits(
            parity.relative_l2 if config.relative_l2 is None else config.relative_l2,
            parity.top1_agreement if config.top1_agreement is None else config.top1_agreement,
            parity.spread_factor,
        ),
        floor if config.accuracy_floor is None else config.accuracy_floor,
    )


def _counter(context: "Context") -> Callable[[], None]:
    done = itertools.count(3)
    return lambda: _advance(context, next(done))


def _advance(context: "Context", done: int) -> None:
    context.hooks.advance(done, None)
    context.hooks.pause()


def _check_lineage(context: "Context", model: bytes) -> None:
    named = lineage(check_model(model, what=MODEL_FILE))
    for role in ("derive", "retrain"):
        if named.get(f"d2nas.{role}") != context.inputs[role].id:
            raise DamagedArtifactError(
                f"{MODEL_FILE} names another {role} version than {context.inputs[role].reference}",
                hint="export it again: d2nas export RUN",
            )


def _check_architecture(context: "Context", model: bytes) -> IdentityReport:
    _check_lineage(context, model)
    identity = check_identity(model)
    if identity.genotype_digest != context.inputs["derive"].manifest.facts["genotype_digest"]:
        raise ValidationFailedError(
            f"{MODEL_FILE} is another genotype's network than {context.inputs['derive'].reference}",
            hint="export it again: d2nas export RUN",
        )
    return identity


def _require_passed(parity: ParityReport, selftest: SelfTest) -> None:
    if not parity.passed:
        raise ValidationFailedError(
            f"parity {parity.verdict}: {'; '.join(parity.reasons[:3])}",
            hint=_parity_hint(parity),
        )
    if not selftest.passed:
        raise ValidationFailedError(
            "the parity gate accepted a faulty copy of the model "
            f"({', '.join(selftest.accepted) or 'no copy could be made'}): it proves nothing"
        )


def _parity_hint(parity: ParityReport) -> str:
    """Return what to look at: the export, or why the answers say little."""
    if parity.verdict == "failed":
        return "the exported model computes something else: export again, or as --precision fp32"
    return (
        "answers that hardly differ prove no copy right: an untrained or diverged network "
        "(retrain's metrics), or test images nearly alike; fp32 needs less difference than fp16"
    )


def _require_accurate(accuracy: Mapping[str, Any]) -> None:
    floor = accuracy["floor"] * accuracy["torch"]
    # "Not at least" rather than "below": a NaN must not pass.
    if not accuracy["onnx"] >= floor:
        raise ValidationFailedError(
            f"the exported model's accuracy {accuracy['onnx']:.4f} is below {floor:.4f}, "
            f"{100 * accuracy['floor']:g} % of PyTorch's {accuracy['torch']:.4f}",
            hint="validate.accuracy_floor",
        )


_DRAWS = {"run.seed", "data.split_seed", "data.test_fraction"}
"""Settings that published test images do not depend on."""


def _require_unseen(context: "Context", data: ImageData) -> None:
    """Raise ``ConfigError`` where test images may be among those that the network learned from: of
    other data, or of a split that was drawn otherwise.
    """
    trained = context.inputs["retrain"].manifest
    changed = [] if trained.facts["data_digest"] == data.digest else ["images"]
    was, now = trained.config, context.config.to_dict()
    was = {**was, "data": Config().to_dict()["data"] | was["data"]}  # keys since its version
    keys = ["evaluation", "held_out_images" if data.evaluation == "held-out" else "test_fraction"]
    changed += [f"data.{key}" for key in keys if was["data"][key] != now["data"][key]]
    if _split_seed(was) != _split_seed(now):
        changed.append("data.split_seed" if now["data"]["split_seed"] is not None else "run.seed")
    data_set = data_sets.find(data.name)
    is_drawn = data_set.is_folder or not data_set.num_test or data.evaluation == "held-out"
    if changed and (is_drawn or not set(changed) <= _DRAWS):
        raise ConfigError(
            f"the network was trained with other {', '.join(changed)}: it may have learned from "
            "images that would be its test",
            hint="d2nas retrain RUN with the same settings; or d2nas evaluate BUNDLE DIR, for "
            "labelled pictures that it has not seen",
        )


def _split_seed(config: Mapping[str, Any]) -> Any:
    own = config["data"]["split_seed"]
    return config["run"]["seed"] if own is None else own


def _report(context: "Context", data: ImageData, session: OnnxSession) -> dict[str, Any]:
    derived, retrained, exported = (context.inputs[r] for r in ("derive", "retrain", "export"))
    return {
        "schema": REPORT_SCHEMA,
        "genotype": derived.manifest.facts["genotype"],
        "genotype_digest": derived.manifest.facts["genotype_digest"],
        "parameterless_normal": derived.manifest.facts["parameterless_normal"],
        "found_by": derived.manifest.facts["found_by"],
        "found_on_this_data": derived.manifest.facts["searched_data_digest"] == data.digest,
        "params": retrained.manifest.facts["params"],
        "macs": retrained.manifest.facts["macs"],
        "macs_convention": MACS_CONVENTION,
        "retrain": retrained.manifest.config["retrain"],
        "data": described(data),
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


def described(data: ImageData) -> dict[str, Any]:
    """Return which images the model was made and judged with, as JSON data."""
    return {
        "name": data.name,
        "digest": data.digest,
        "image_size": data.image_size,
        "channels": data.channels,
        **({} if data.sizes is None else {"pictures": data.sizes.facts()}),
        "train": len(data.train),
        "weight_half": len(data.weight_half),
        "arch_half": len(data.arch_half),
        "test": len(data.test),
        "evaluation": data.evaluation,
        "class_counts": data.class_counts(),
        "warnings": list(data.warnings),
    }
