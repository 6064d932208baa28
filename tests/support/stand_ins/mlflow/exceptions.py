"""MLflow's error, which has a code."""


class MlflowException(Exception):  # noqa: N818 - its name there
    error_code = "RESOURCE_DOES_NOT_EXIST"
