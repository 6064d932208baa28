"""MLflow's client. Its runs are those that were created, but for ``GONE``."""

import os
import shutil
from types import SimpleNamespace
from typing import Any

from recorded import known, told

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException


class MlflowClient:
    def get_experiment_by_name(self, name: str) -> Any:
        told("get_experiment_by_name", name=name)

    def create_experiment(self, name: str) -> str:
        told("create_experiment", name=name)
        return "1"

    def create_run(self, experiment_id: str, *, run_name: str) -> Any:
        run = f"run-{sum(call['call'] == 'create_run' for call in known())}"
        told("create_run", experiment=experiment_id, name=run_name, run=run)
        return SimpleNamespace(info=SimpleNamespace(run_id=run))

    def get_run(self, run_id: str) -> Any:
        told("get_run", run=run_id)
        if run_id == os.environ.get("GONE"):
            raise MlflowException("no such run")
        uri = os.environ.get("ARTIFACTS")
        return SimpleNamespace(info=SimpleNamespace(lifecycle_stage="active", artifact_uri=uri))

    def update_run(self, run_id: str, *, status: str) -> None:
        told("update_run", run=run_id, status=status)

    def log_batch(
        self,
        run_id: str,
        metrics: list[Metric] | tuple[()] = (),
        params: list[Param] | tuple[()] = (),
        tags: list[RunTag] | tuple[()] = (),
    ) -> None:
        assert len(params) <= 100
        assert len(metrics) <= 1000
        told(
            "log_batch",
            run=run_id,
            metrics={f"{metric.key}@{metric.step}": metric.value for metric in metrics},
            params=dict(params),
            tags=dict(tags),
        )

    def set_terminated(self, run_id: str, status: str) -> None:
        told("set_terminated", run=run_id, status=status)

    def log_artifacts(self, run_id: str, local_dir: str, artifact_path: str) -> None:
        told("log_artifacts", run=run_id)
        shutil.copytree(local_dir, os.path.join(os.environ["ARTIFACTS"], artifact_path))

    def log_metric(self, run_id: str, key: str, value: float) -> None:
        told("log_metric", run=run_id, key=key, value=value)

    def create_registered_model(self, name: str) -> None:
        told("create_registered_model", name=name)

    def create_model_version(
        self, name: str, source: str, *, run_id: str, tags: dict[str, str]
    ) -> Any:
        told("create_model_version", name=name, source=source, run=run_id, tags=tags)
        return SimpleNamespace(version="1")
