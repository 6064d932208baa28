"""MLflow's entities: a parameter and a tag by key and value, a metric by time and step, too."""

from typing import NamedTuple


class Param(NamedTuple):
    key: str
    value: str


class RunTag(NamedTuple):
    key: str
    value: str


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int
