"""What sections of the configuration are made of: their base, and kinds of numbers (no torch)."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
NonNegativeReal = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
PositiveReal = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


def _checked_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError("must be auto, cpu, cuda or cuda:N")
    return name


Device = Annotated[str, AfterValidator(_checked_device)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)
