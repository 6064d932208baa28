"""A stand-in of MLflow's client: the calls that d2nas makes, by its documentation."""

import os


def get_tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI", "stand-in")


def get_registry_uri() -> str:
    return get_tracking_uri()
