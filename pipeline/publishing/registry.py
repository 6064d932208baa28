"""MLflow's model registry: a bundle as a version of a registered model.

The artifacts of a version are the bundle's folder and, beside it, the ONNX file once more with
``MLmodel``, MLflow's description of a model, which must lie next to it. That is written here, since
``mlflow.onnx`` would store the network anew, in other bytes than those that were validated.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from d2nas.devices import CPU_PROVIDER, CUDA_PROVIDER
from d2nas.errors import ConfigError, StorageError

from ..bundle.reader import Bundle
from ..credentials import reason_without_credentials, without_credentials
from ..onnx_io import MODEL_FILE
from ..tracking.mlflow_tracker import experiment_of

_FOLDER = "model"
_DENIED = ("UNAUTHENTICATED", "PERMISSION_DENIED")


def push_to_registry(name: str, bundle: Bundle, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Register a bundle's ``model_files`` as the next version of the model ``name``, where
    ``MLFLOW_TRACKING_URI`` says; return the version, as JSON data.

    The version is made last, of artifacts that are all there. Raises ``ConfigError`` without
    permission, ``StorageError`` where the server or its store does not answer.
    """
    with _errors_told(name):
        import mlflow
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        client = MlflowClient()
        run = client.create_run(
            experiment_of(client), run_name=f"push of {bundle.name}"
        ).info.run_id
        try:
            with tempfile.TemporaryDirectory() as folder:
                for path, data in files.items():
                    target = Path(folder) / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(data)
                client.log_artifacts(run, folder, _FOLDER)
            client.log_metric(run, "accuracy", bundle.report["accuracy"]["onnx"])
            try:
                client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            tags = {"d2nas.digest": bundle.digest, "d2nas.bundle": bundle.name}
            artifacts = client.get_run(run).info.artifact_uri
            version = client.create_model_version(
                name, f"{artifacts}/{_FOLDER}", run_id=run, tags=tags
            )
        except BaseException:
            with suppress(MlflowException, OSError):  # the first error is the one to tell
                client.set_terminated(run, "FAILED")
            raise
        client.set_terminated(run, "FINISHED")
        return {
            "model": f"models:/{name}/{version.version}",
            "run": run,
            "registry": without_credentials(mlflow.get_registry_uri()),
        }


def model_files(bundle: Bundle, contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the artifacts of a version, by path."""
    files = {f"{bundle.name}/{path}": data for path, data in contents.items()}
    description = json.dumps(_description(bundle), indent=2).encode()
    return {"MLmodel": description, MODEL_FILE: bundle.model, **files}


def _description(bundle: Bundle) -> dict[str, Any]:
    """Return MLflow's description of a model: JSON is YAML."""
    described = bundle.description
    provider = {"cpu": CPU_PROVIDER, "cuda": CUDA_PROVIDER}[bundle.report["device"]["kind"]]
    images = _tensor("images", described.input_type, described.array_shape)
    logits = _tensor("logits", "float32", (described.num_classes,))
    return {
        "flavors": {
            "onnx": {"data": MODEL_FILE, "providers": [provider], "onnx_session_options": None},
            "python_function": {"loader_module": "mlflow.onnx", "data": MODEL_FILE},
        },
        "signature": {"inputs": json.dumps([images]), "outputs": json.dumps([logits])},
    }


def _tensor(name: str, kind: str, shape: tuple[int, ...]) -> dict[str, Any]:
    spec = {"dtype": kind, "shape": [-1, *shape]}
    return {"name": name, "type": "tensor", "tensor-spec": spec}


@contextmanager
def _errors_told(name: str) -> Iterator[None]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow
    from mlflow.exceptions import MlflowException

    where = without_credentials(mlflow.get_tracking_uri())
    try:
        yield
    except (MlflowException, OSError) as error:
        reason = reason_without_credentials(error)
        if getattr(error, "error_code", None) in _DENIED:
            raise ConfigError(
                f"{name}: {where} refuses: {reason}",
                hint="set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD",
            ) from error
        raise StorageError(
            f"{name}: {where} does not register it: {reason}",
            hint="no version was registered; check MLFLOW_TRACKING_URI and push again",
        ) from error
