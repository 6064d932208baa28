"""Validate: the gate before deployment. Is it the network of its genotype, does it compute what was
trained, how well and how fast, on the runtime that serves.

The test images are touched here, once, after all training. A model that does not pass raises
``ValidationFailedError`` and leaves no version.
"""

import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from d2nas.config import Config
from d2nas.config.deployment import ValidateConfig
from d2nas.errors import DamagedArtifactError, ValidationFailedError
from d2nas.files.strict_json import canonical_json

from ..store.forms import read_form
from .retrain import PREPROCESS_FILE
from .stage import Context, Facts, Stage, always, section
from .unseen import require_unseen

if TYPE_CHECKING:
    from torch import Tensor

    from d2nas.data.images import ImageData
    from d2nas.nn.library_network import LibraryNetwork
    from d2nas.nn.network import Network

    from ..gate.classes import ClassVerdict
    from ..gate.comparison import Limits
    from ..gate.judge import Verdict
    from ..gate.timing import Latencies, TimingPlan
    from ..identity.check import IdentityReport
    from ..onnx_io.session import OnnxSession

REPORT_FILE = "report.json"
GOLDEN_FILE = "golden.safetensors"
LATENCY_FILE = "latency.json"
MISTAKES_FILE = "mistakes.svg"
_ARCHITECTURE = ("genotype", "genotype_digest", "parameterless_normal", "architecture")
"""Facts of a derivation that say what the network is."""
LARGEST_SHOWN = 96
"""Side of a mistaken image in the report, in pixels."""


def run(context: Context) -> Facts:
    """Write ``report.json``, ``golden.safetensors`` (a few inputs with their logits, the picture
    ``golden.png`` prepared among them), every timed run in ``latency.json``, and the worst mistakes
    in ``mistakes.svg``, unless none is to be shown.

    Raises ``ValidationFailedError`` when the gate says no or the device cannot be had,
    ``DamagedArtifactError`` when the model names other parents than its version does, and
    ``OutOfMemoryError``.
    """
    import torch

    from d2nas.train.loop import memory_errors

    from ..onnx_io.session import SMALLER_BATCHES

    config = context.config.validate_
    on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    largest = max(*config.parity_batches, *config.latency_batches)
    with memory_errors(largest, torch.device("cuda" if on_cuda else "cpu"), hint=SMALLER_BATCHES):
        return _validate(context, config)


def _validate(context: Context, config: ValidateConfig) -> Facts:
    from d2nas.nn.network import load_network

    from ..gate.classes import class_verdict
    from ..gate.judge import check_mode, judge
    from ..gate.reference import torch_reference
    from ..gate.timing import time_modes
    from ..onnx_io import MODEL_FILE
    from ..onnx_io.providers import runtime_device
    from ..onnx_io.session import open_session
    from .original import Original

    exported, hooks, batches = context.inputs["export"], context.hooks, config.parity_batches
    model = exported.read(MODEL_FILE)
    network = load_network(context.inputs["retrain"].path)
    identity = _check_identity(context, model, network)
    if identity.not_checked is not None:
        hooks.warn(f"the model is not compared with its genotype: {identity.not_checked}")

    device, what = runtime_device(config.device), f"{exported.reference}: {MODEL_FILE}"
    session = open_session(model, device=device, what=what)
    data = context.data()
    require_unseen(context, data)
    plan = _timing_plan(config, session)
    original = Original.of(exported, device, plan.deciding_batch)
    hooks.begin(2 + plan.num_steps + (0 if original is None else original.NUM_STEPS), 0, "check")
    hooks.say(f"validate on {session.device.label}: {len(data.test)} {data.evaluation} images")
    done = _counter(context)

    reference = torch_reference(network, data, session, max(batches))
    limits = _limits(config, exported.manifest.facts["precision"])
    if original is not None:
        original.judge(reference, batches, done)
    verdict = judge(
        model,
        session,
        reference,
        limits,
        batches=batches,
        on_check_done=done,
        original=None if original is None else original.model,
    )
    for line in verdict.warnings():
        hooks.warn(line)
    classes = class_verdict(
        verdict.logits,
        reference.labels,
        data.class_names,
        num_mistakes=config.shown_mistakes,
    )
    classes.require(config.min_recall, config.min_balanced_accuracy)
    if original is not None:
        original.require_slower(session, done)

    def open_mode(mode: str) -> "OnnxSession":
        opened = open_session(model, device=device, what=what, mode=mode)
        check_mode(opened, reference, limits, batches=batches)
        return opened

    eager = network if config.compare_eager else None
    latencies = time_modes(session, plan, open_mode, network=eager, done=done)
    for line in latencies.warnings():
        hooks.warn(line)

    found = {"identity": identity.to_dict()} | verdict.to_dict() | classes.to_dict()
    if original is not None:
        found["quantisation"] |= original.to_dict()
    _write(context, data, session, found | latencies.to_dict(), verdict, classes, latencies)
    return {
        "device": session.device.kind,
        "accuracy": dict(verdict.accuracy),
        "balanced_accuracy": classes.scores.overall()["balanced_accuracy"],
        "evaluation": data.evaluation,
        "relative_l2": verdict.parity.relative_l2,
        "max_abs": verdict.parity.max_abs,
    }


def _timing_plan(config: ValidateConfig, session: "OnnxSession") -> "TimingPlan":
    from ..gate.timing import TimingPlan
    from ..onnx_io.session import modes_of

    return TimingPlan(
        config.latency_batches,
        config.latency_samples,
        config.latency_seconds,
        modes_of(session.device, config.modes),
        config.max_p99_ms,
        config.gated_batch,
    )


def _check_identity(
    context: Context, model: bytes, network: "Network | LibraryNetwork"
) -> "IdentityReport":
    """Raise unless ``model`` names its parents, and is the network of the genotype derived, or has
    the graph of the library's ``network``, exported anew.
    """
    from d2nas.nn.library_network import LibraryNetwork

    from ..identity.check import LIBRARY_KEY, check_identity
    from ..onnx_io import MODEL_FILE
    from ..onnx_io.model_file import check_model, lineage

    derived = context.inputs["derive"]
    named = lineage(check_model(model, what=MODEL_FILE))
    for role in ("derive", "retrain"):
        if named.get(f"d2nas.{role}") != context.inputs[role].id:
            raise DamagedArtifactError(
                f"{MODEL_FILE} names another {role} version than {context.inputs[role].reference}",
                hint="export it again: d2nas export RUN",
            )
    identity = check_identity(model)
    facts = derived.manifest.facts
    if identity.genotype_digest != facts.get("genotype_digest"):
        raise ValidationFailedError(
            f"{MODEL_FILE} is another genotype's network than {derived.reference}",
            hint="export it again: d2nas export RUN",
        )
    if isinstance(network, LibraryNetwork) and (
        named.get(LIBRARY_KEY) != facts.get("architecture")
        or identity.graph_sha256 != _digest_of_export(context, network)
    ):
        raise ValidationFailedError(
            f"{MODEL_FILE} is not the graph of {facts.get('architecture')}, exported anew",
            hint="export it again: d2nas export RUN",
        )
    return identity


def _digest_of_export(context: Context, network: "LibraryNetwork") -> str:
    """Return the digest of the graph of ``network``, exported as the model was."""
    from d2nas.data.images import Normalizer

    from ..identity.graph_digest import graph_digest
    from ..onnx_io import MODEL_FILE
    from ..onnx_io.export import export_onnx
    from ..onnx_io.model_file import check_model
    from ..onnx_io.preparation import Preprocess

    facts = context.inputs["export"].manifest.facts
    prepared = read_form(Preprocess, context.inputs["retrain"], PREPROCESS_FILE)
    normalizer = Normalizer(tuple(prepared.mean), tuple(prepared.std))
    channels, height, width = facts["input_shape"]
    data = export_onnx(
        network,
        input_shape=(channels, height, width),
        opset=facts["opset"],
        pixels=normalizer if facts["input_type"] == "uint8" else None,
        precision="fp16" if facts["precision"] == "fp16" else "fp32",
        metadata={},
    )
    return graph_digest(check_model(data, what=MODEL_FILE))


def _limits(config: ValidateConfig, precision: str) -> "Limits":
    """Return the configured limits, the precision's where none is given."""
    from ..gate.comparison import PRECISION_LIMITS

    names = ("relative_l2", "top1_agreement", "accuracy_floor")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return replace(PRECISION_LIMITS[precision], **given)


def _counter(context: Context) -> Callable[[], None]:
    """Return what counts a finished step, and lets a signal through."""
    steps = itertools.count(1)

    def done() -> None:
        context.hooks.advance(next(steps), None)
        context.hooks.pause()

    return done


def _write(
    context: Context,
    data: "ImageData",
    session: "OnnxSession",
    found: Facts,
    verdict: "Verdict",
    classes: "ClassVerdict",
    latencies: "Latencies",
) -> None:
    import torch

    from d2nas.files.tensors import encode_tensors

    from ..gate.golden import PICTURE_FILE, golden_picture
    from ..onnx_io import MODEL_FILE
    from ..onnx_io.preparation import prepare_content, read_prepared

    report = _report(context, data, session) | found
    context.work.write(REPORT_FILE, canonical_json(report))
    if classes.mistakes:
        context.work.write(MISTAKES_FILE, _mistakes_drawing(data, classes).encode())
    picture = golden_picture(data.image_size)
    context.work.write(PICTURE_FILE, picture)
    image = prepare_content(
        picture, read_prepared(context.inputs["export"], MODEL_FILE), what=PICTURE_FILE
    )
    prepared = {"picture": image.copy(), "picture_logits": session.run(image)}
    golden = {name: torch.from_numpy(a) for name, a in (verdict.golden | prepared).items()}
    context.work.write(GOLDEN_FILE, encode_tensors(golden))
    context.work.write(LATENCY_FILE, canonical_json(latencies.samples()))


def _mistakes_drawing(data: "ImageData", classes: "ClassVerdict") -> str:
    """Return the images that were mistaken with the most confidence, as the model saw them."""
    from ..report.class_drawings import Picture, draw_mistakes

    return draw_mistakes(
        [
            Picture(
                _png(data.test.pixels(slice(one.index, one.index + 1))[0]),
                classes.class_names[one.label],
                classes.class_names[one.answer],
                one.confidence,
            )
            for one in classes.mistakes
        ]
    )


def _png(pixels_CHW: "Tensor") -> bytes:
    """Return a PNG of an image of uint8 pixels, grey or colour, not larger than it is shown."""
    from PIL import Image

    array = pixels_CHW.permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    image.thumbnail((LARGEST_SHOWN, LARGEST_SHOWN))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _report(context: Context, data: "ImageData", session: "OnnxSession") -> dict[str, Any]:
    from d2nas.measure.cost import MACS_CONVENTION

    from ..gate.report import REPORT_SCHEMA

    derived, retrained, exported = (context.inputs[r] for r in ("derive", "retrain", "export"))
    facts = derived.manifest.facts
    return {
        "schema": REPORT_SCHEMA,
        **{key: facts[key] for key in _ARCHITECTURE if key in facts},
        "found_by": facts["found_by"],
        "found_on_this_data": facts["searched_data_digest"] == data.digest,
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


def described(data: "ImageData") -> dict[str, Any]:
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


def _rough_seconds(config: Config) -> float:
    # Each batch is timed on the device and from host to host.
    return 10.0 + 2 * config.validate_.latency_seconds * len(config.validate_.latency_batches)


STAGE = Stage(
    name="validate",
    parents=("derive", "retrain", "export"),
    code_schema=11,
    run=run,
    own_config=section("validate"),
    reads_data=always,
    rough_seconds=_rough_seconds,
)
