"""MLflow, at ``MLFLOW_TRACKING_URI``, in the experiment ``MLFLOW_EXPERIMENT_NAME`` or d2nas."""

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..credentials import without_credentials
from . import TITLES
from .tracker import Tracker

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "d2nas"
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_MAX_BATCH = 100
"""Parameters, or tags, of one request."""
_MAX_METRICS = 1000
_MAX_VALUE = 500
"""Characters of a value that every server takes."""


class MlflowTracker(Tracker):
    """A run of MLflow's."""

    title = TITLES["mlflow"]
    _id = ""

    def open(self, known: str | None) -> str:
        """Open a run by ``MlflowClient``: nothing of MLflow's active run is touched."""
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        found = known if known is not None and self._is_there(known) else None
        if found is None:
            experiment = experiment_of(self._client)
            found = self._client.create_run(experiment, run_name=self.run).info.run_id
        else:
            self._client.update_run(found, status="RUNNING")
        self._id = found
        return found

    def _is_there(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            stage = self._client.get_run(run_id).info.lifecycle_stage
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return bool(stage == "active")

    def where(self) -> str:
        """Return the run's id and the server."""
        import mlflow

        return f"run {self._id} at {without_credentials(mlflow.get_tracking_uri())}"

    def log_params(self, params: Mapping[str, str]) -> None:
        """Add parameters; long values are cut."""
        from mlflow.entities import Param

        entries = [Param(name, value[:_MAX_VALUE]) for name, value in params.items()]
        for part in _parts(entries, _MAX_BATCH):
            self._client.log_batch(self._id, params=part)

    def log_metrics(self, stage: str, metrics: Mapping[str, float], step: int) -> None:
        """Add metrics, all of one moment."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        entries = [Metric(name, value, now, step) for name, value in metrics.items()]
        for part in _parts(entries, _MAX_METRICS):
            self._client.log_batch(self._id, metrics=part)

    def log_outcome(self, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """Add tags, and metrics of step 0."""
        from mlflow.entities import RunTag

        entries = [RunTag(name, value[:_MAX_VALUE]) for name, value in tags.items()]
        for part in _parts(entries, _MAX_BATCH):
            self._client.log_batch(self._id, tags=part)
        self.log_metrics("", metrics, 0)

    def finish(self, status: str) -> None:
        """Set the run's status."""
        self._client.set_terminated(self._id, _STATUS[status])


def experiment_of(client: "MlflowClient") -> str:
    """Return the id of the experiment that holds our runs, which is made where there is none."""
    given = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if given:
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    return str(client.create_experiment(name) if found is None else found.experiment_id)


def _parts(entries: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(entries)
    while part := list(itertools.islice(iterator, size)):
        yield part
