"""Forms of what a version holds: checks of facts, configuration and JSON files before their use.

A version whose digests are right may still hold anything: whoever can write a store can sign. So
what later stages rely on has a form, which stands beside the code that writes it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.files.strict_json import parse_json

from .manifest import problem_of
from .version import Version

Number = Annotated[float, Field(allow_inf_nan=False)]


class Form(BaseModel):
    """More keys are fine: only what is relied on is checked."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


FormT = TypeVar("FormT", bound=Form)


def read_form(form: type[FormT], version: Version, name: str) -> FormT:
    """Read a JSON file of a version that has this form. Raises ``DamagedArtifactError``."""
    return parse_form(form, parse_json(version.read(name), what=name), version, name)


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


def require_valid(parse: Any, values: Any) -> None:
    """Raise ``ValueError``, as validators of forms do, where ``parse`` raises ``ConfigError``."""
    try:
        parse(values)
    except ConfigError as error:
        raise ValueError(str(error)) from None
