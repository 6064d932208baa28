"""Baselines: ordinary networks and published cells, trained and judged by the settings of a run."""

import re

from d2nas.config import Config, build_config
from d2nas.errors import ConfigError

_CELL = "cell:"


def with_architecture(config: Config, model: str, *, pretrained: bool = False) -> Config:
    """Return a run's configuration with a given network in place of a searched one.

    ``model`` is ``timm:NAME``, ``torchvision:NAME`` or ``cell:`` with a genotype as
    ``derive.genotype`` takes it. Raises ``ConfigError``.
    """
    given = {"genotype": model.removeprefix(_CELL)} if model.startswith(_CELL) else {"model": model}
    if "genotype" in given and pretrained:
        raise ConfigError(
            f"{model}: a cell has no published weights", hint="leave out --pretrained"
        )
    values = config.to_dict()
    values["derive"] = given
    values["retrain"]["pretrained"] = pretrained
    for key in ("max_latency_ms", "max_macs", "max_params", "latency_weight"):
        values["search"][key] = None  # nothing is searched
    return build_config(values, what=f"--model {model}")


def baseline_name(run: str, model: str, *, pretrained: bool = False) -> str:
    """Return the default name of a baseline's run, beside that of the run it is compared with."""
    words = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return f"{run}-{words}{'-pretrained' if pretrained else ''}"[:64].rstrip("-")
