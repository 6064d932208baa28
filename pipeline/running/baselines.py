"""Baselines: ordinary networks and published cells, trained and judged by the settings of a run."""

from collections.abc import Sequence

from d2nas.config import Config, build_config
from d2nas.errors import ConfigError

from ..store import joined_run_name

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
    if "model" in given:
        values["retrain"]["auxiliary"] = False  # a head of cells, with conditions of its own
    for key in ("max_latency_ms", "max_macs", "max_params", "latency_weight"):
        values["search"][key] = None  # nothing is searched
    return build_config(values, what=f"--model {model}")


def baseline_configs(
    run: str, config: Config, models: Sequence[str]
) -> list[tuple[str, str, Config]]:
    """Return model, name and configuration of each baseline that a run is shown beside.

    They keep no limit on latency: how long they take is what is asked. Raises ``ConfigError``, also
    for two of one name.
    """
    unlimited = {"max_p99_ms": None, "gate_batch": None}
    validate = config.validate_.model_copy(update=unlimited)
    config = config.model_copy(update={"validate_": validate})
    found = [
        (model, baseline_name(run, model), with_architecture(config, model)) for model in models
    ]
    names = [run, *(name for _, name, _ in found)]
    for _, name, _ in found:
        if names.count(name) > 1:
            raise ConfigError(
                f"two of the run and its baselines would be called {name}",
                hint="name each baseline once; d2nas baseline --name gives one a name of its own",
            )
    return found


def baseline_name(run: str, model: str, *, pretrained: bool = False) -> str:
    """Return the default name of a baseline's run, beside that of the run it is compared with."""
    return joined_run_name(run, model, *(["pretrained"] if pretrained else []))
