"""Target of a push, ``hf:OWNER/NAME`` or ``mlflow:NAME``."""

import re
from dataclasses import dataclass
from typing import Literal

from d2nas.errors import ConfigError, shown_value

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_FORMS = {"hf": re.compile(rf"{_WORD}/({_WORD})"), "mlflow": re.compile(rf"({_WORD})")}
PACKAGES = {"hf": "huggingface_hub", "mlflow": "mlflow"}


@dataclass(frozen=True)
class Target:
    """A repository of the Hub, or a model of MLflow's registry."""

    kind: Literal["hf", "mlflow"]
    name: str
    bundle_name: str
    """The last part of the name: of the bundle that is pushed where none is given."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


def parse_target(text: str) -> Target:
    """Return the target that a user names. Raises ``ConfigError``."""
    kind, _, name = text.partition(":")
    match = _FORMS[kind].fullmatch(name) if kind in _FORMS else None
    if match is None or ".." in name or "--" in name:
        raise ConfigError(
            f"invalid target {shown_value(text)}", hint="hf:OWNER/NAME or mlflow:NAME"
        )
    return Target("hf" if kind == "hf" else "mlflow", name, match[1])
