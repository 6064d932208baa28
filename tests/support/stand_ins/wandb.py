"""A stand-in of Weights & Biases: the calls that d2nas makes, by its documentation."""

from typing import Any

from recorded import known, told


class Settings:
    def __init__(self, **values: Any) -> None:
        self.values = values


class _Part:
    def __init__(self, name: str) -> None:
        self.name = name

    def update(self, values: dict[str, Any], **_: Any) -> None:
        told(self.name, **{"values": values})


class Run:
    url = None
    dir = "nowhere"

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self.config, self.summary = _Part("config"), _Part("summary")

    def define_metric(self, name: str, step_metric: str | None = None, **_: Any) -> None:
        told("define_metric", name=name, step_metric=step_metric)

    def log(self, values: dict[str, Any]) -> None:
        told("log", values=values, run=self.id)

    def finish(self, exit_code: int) -> None:
        told("finish", exit_code=exit_code)


def init(*, settings: Settings, **values: Any) -> Run:
    run = values["id"] or f"run-{sum(call['call'] == 'init' for call in known())}"
    told("init", **values | {"id": run}, settings=settings.values)
    return Run(run)
