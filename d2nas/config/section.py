"""Base class of configuration sections, and ranges of their values.

Every number has a range. Its upper end is what no real setting comes near and arithmetic still
stands: without one, a slip of the key ends as an overflow deep in a library, or never.
"""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

LARGEST_INTEGER = 2**63 - 1
MAX_TEXT = 4096
"""Characters of a name or path: the longest path that Linux takes."""

Positive = Annotated[int, Field(ge=1, le=LARGEST_INTEGER)]
NonNegative = Annotated[int, Field(ge=0, le=LARGEST_INTEGER)]
Rate = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]

Seed = Annotated[int, Field(ge=0, lt=2**31)]
Cells = Annotated[int, Field(ge=1, le=1000)]
Channels = Annotated[int, Field(ge=1, le=2048)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
EpochsOrNone = Annotated[int, Field(ge=0, le=100_000)]
Batch = Annotated[int, Field(ge=1, le=65_536)]
Repeats = Annotated[int, Field(ge=1, le=10_000)]
"""Sub-networks of a step, candidates: whatever is done several times over."""
TrainingBudget = Annotated[int, Field(ge=6, le=10_000)]
"""Trainings to spend on comparing cells: fewer are no two rounds of several cells."""
ImageCount = Annotated[int, Field(ge=1, le=10**9)]
Pixels = Annotated[int, Field(ge=0, le=512)]
"""A length in an image, which has at most 512 pixels a side."""
LearningRate = Annotated[float, Field(gt=0.0, le=100.0, allow_inf_nan=False)]
LearningRateOrZero = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]
LossWeight = Annotated[float, Field(ge=0.0, le=1000.0, allow_inf_nan=False)]
NormLimit = Annotated[float, Field(gt=0.0, le=1e9, allow_inf_nan=False)]
Temperature = Annotated[float, Field(ge=1e-4, le=1e4, allow_inf_nan=False)]
Distance = Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0.0, le=86_400.0, allow_inf_nan=False)]
FrontPoints = Annotated[int, Field(ge=2, le=100)]
Count = Annotated[float, Field(gt=0.0, le=1e18, allow_inf_nan=False)]
"""Multiply-adds or parameters, which people write as 3e8."""
Milliseconds = Annotated[float, Field(gt=0.0, le=1e9, allow_inf_nan=False)]


def _checked_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", name):
        raise ValueError("must be auto, cpu, cuda or cuda:N")
    return name


LIBRARY_NETWORK = r"(timm|torchvision):([A-Za-z0-9][A-Za-z0-9_.-]{0,99})"
"""Form of the name of a library's network."""


def _checked_library_network(name: str) -> str:
    if not re.fullmatch(LIBRARY_NETWORK, name):
        raise ValueError("must be timm:NAME or torchvision:NAME")
    return name


def _checked_text(text: str) -> str:
    if not text or len(text) > MAX_TEXT:
        raise ValueError(f"must have 1 to {MAX_TEXT} characters")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("must not have control characters")
    return text


Text = Annotated[str, AfterValidator(_checked_text)]
"""A name or a path."""


def _on_one_line(value: object) -> object:
    """Return a printed genotype as one line without comments; any other value as it is."""
    if not isinstance(value, str) or "Genotype" not in value or "(" not in value:
        return value
    words = (word for line in value.splitlines() for word in line.partition("#")[0].split())
    return " ".join(words)


GenotypeText = Annotated[Text, BeforeValidator(_on_one_line)]
"""A name, a path, or a printed genotype, which may have any number of lines."""

LibraryNetworkName = Annotated[str, AfterValidator(_checked_library_network)]

Device = Annotated[str, AfterValidator(_checked_device)]


OURS = "ours"


@dataclass(frozen=True, slots=True)
class Source:
    """Source of a field's default: a paper or a published code; without one it is ours.

    ``D2NAS`` is Hou et al. (2024), ``ROME`` arXiv 2011.11233v2, ``DARTS`` arXiv 1806.09055.
    """

    text: str


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no conversion between types."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    @classmethod
    def default_sources(cls) -> dict[str, str]:
        """Return each field's key and the source of its default."""
        return {
            name: next((part.text for part in info.metadata if isinstance(part, Source)), OURS)
            for name, info in cls.model_fields.items()
        }
