"""Schemas of version files: checks of what stages read from earlier ones.

A version whose digests are right may still hold anything: whoever can write a store can sign. So
the facts, the configuration and the small JSON files that later stages use have a form, which is
checked before they are used.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from d2nas.config.section import NonNegative, Positive
from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.files.strict_json import parse_json
from d2nas.genotype import Genotype
from d2nas.spaces import SearchSpace

from ..onnx_io.preparation import PREPROCESS_KEY
from ..store import Version
from ..store.manifest import problem_of

_Size = Annotated[int, Field(ge=1, le=4096)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Form(BaseModel):
    """More keys are fine: only what is relied on is checked."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class _SearchFacts(_Form):
    searched_space: dict[str, Any]
    data_digest: str
    passes: NonNegative | None = None
    device: str | None = None

    @model_validator(mode="after")
    def _is_a_space(self) -> "_SearchFacts":
        _valid(SearchSpace.from_dict, self.searched_space)
        return self


class _Method(_Form):
    method: str


class _SearchConfig(_Form):
    search: _Method


class _DeriveFacts(_Form):
    genotype: dict[str, Any]
    genotype_digest: str
    parameterless_normal: NonNegative
    found_by: str
    searched_data_digest: str | None

    @model_validator(mode="after")
    def _is_a_genotype(self) -> "_DeriveFacts":
        _valid(Genotype.from_dict, self.genotype)
        return self


class _RetrainFacts(_Form):
    data_digest: str
    params: NonNegative
    macs: NonNegative
    device: str


class _RetrainConfig(_Form):
    retrain: dict[str, Any]


class _EvaluateFacts(_Form):
    accuracy: _Number
    calibrated_loss: _Number | None = None
    images: Positive
    evaluation: str


class _ExportFacts(_Form):
    precision: Literal["fp32", "fp16"]


class _StateFacts(_Form):
    step: NonNegative


class Preprocess(_Form):
    """Preparation of a picture, ``preprocess.json``."""

    channels: _Size
    image_size: _Size
    mean: list[_Number]
    std: list[Annotated[float, Field(gt=0.0, allow_inf_nan=False)]]
    class_names: list[str]

    @model_validator(mode="after")
    def _fits_its_channels(self) -> "Preprocess":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError("mean and std must have a number for each channel")
        return self


class Prepared(Preprocess):
    """Preparation of a model's input: the model's own ``d2nas.preprocess``."""

    fit: Literal["crop", "pad"]
    crop_fraction: Annotated[float, Field(gt=0.0, le=1.0)]
    dtype: Literal["float32", "uint8"]


class _Data(_Form):
    name: str
    digest: str
    train: Positive
    weight_half: NonNegative
    arch_half: NonNegative
    test: Positive
    evaluation: str


class _Accuracy(_Form):
    onnx: _Number
    torch: _Number
    test_images: Positive


class _Limits(_Form):
    relative_l2: _Number
    top1_agreement: _Number


class _Batch(_Form):
    batch: Positive


class _Parity(_Form):
    verdict: str
    relative_l2: _Number
    max_abs: _Number
    top1_agreement: _Number
    limits: _Limits
    batches: Annotated[list[_Batch], Field(min_length=1)]


class _SelfTest(_Form):
    rejected: list[str]


class _Device(_Form):
    kind: Literal["cpu", "cuda"]
    label: str
    provider: str


class _Latency(_Form):
    batch: Positive
    kind: Literal["cpu", "cuda"]
    device: str
    provider: str
    samples: Positive
    p50_ms: _Number | None
    p90_ms: _Number | None
    p99_ms: _Number | None


class _Model(_ExportFacts):
    input_type: Literal["float32", "uint8"]
    input_shape: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    num_classes: Positive


class Report(_Form):
    """Findings of a validation, ``report.json``, as far as bundles and readers rely on them."""

    genotype_digest: str
    found_by: str
    found_on_this_data: bool
    params: NonNegative
    macs: NonNegative
    macs_convention: str
    data: _Data
    accuracy: _Accuracy
    parity: _Parity
    self_test: _SelfTest
    device: _Device
    latency: list[_Latency]
    model: _Model
    trained_on: str
    lineage: dict[str, str]


FormT = TypeVar("FormT", bound=_Form)

_FORMS: Mapping[str, tuple[type[_Form], type[_Form]]] = {
    # kind: facts, configuration
    "search": (_SearchFacts, _SearchConfig),
    "derive": (_DeriveFacts, _Form),
    "retrain": (_RetrainFacts, _RetrainConfig),
    "evaluate": (_EvaluateFacts, _Form),
    "export": (_ExportFacts, _Form),
    "validate": (_Form, _Form),
    "state": (_StateFacts, _Form),
}


def checked(version: Version) -> Version:
    """Return ``version`` if later stages can rely on its manifest.

    Raises ``DamagedArtifactError`` naming what is wrong.
    """
    manifest = version.manifest
    facts, config = _FORMS[manifest.kind]
    parse_form(facts, manifest.facts, version, "manifest.json: facts")
    parse_form(config, manifest.config, version, "manifest.json: config")
    return version


def read_form(form: type[FormT], version: Version, name: str) -> FormT:
    """Read a JSON file of a version that has this form. Raises ``DamagedArtifactError``."""
    return parse_form(form, parse_json(version.read(name), what=name), version, name)


def read_prepared(version: Version, name: str) -> dict[str, Any]:
    """Return how pictures are prepared for the model in the file ``name`` of an exported version.

    Raises ``DamagedArtifactError`` where the model does not say so.
    """
    # Here, because onnx loads slowly and most commands need no model.
    from ..onnx_io.model_file import check_model, lineage

    model = check_model(version.read(name), what=f"{version.path}: {name}")
    text = lineage(model).get(PREPROCESS_KEY, "null")
    values: dict[str, Any] = parse_json(text, what=f"{version.path}: {name}: {PREPROCESS_KEY}")
    parse_form(Prepared, values, version, f"{name}: {PREPROCESS_KEY}")
    return values


def parse_form(form: type[FormT], values: Any, version: Version, where: str) -> FormT:
    """Return ``values``, which stand somewhere in a version, if they have this form.

    Raises ``DamagedArtifactError`` naming version and place.
    """
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise DamagedArtifactError(
            f"{version.path}: {where}: {problem_of(error)}", hint=version.content.hint
        ) from None


@contextmanager
def damage_of(what: str, hint: str | None) -> Iterator[None]:
    """Tell values that cannot be shown as damage of ``what``: a report holds much for people only,
    which has no form of its own, and a forger may have put anything there.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"holds values that d2nas does not write ({type(error).__name__})"
        raise DamagedArtifactError(f"{what}: {problem}", hint=hint) from error


def _valid(parse: Any, values: Any) -> None:
    try:
        parse(values)
    except ConfigError as error:
        raise ValueError(str(error)) from None
