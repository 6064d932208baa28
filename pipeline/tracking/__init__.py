"""Tracking of a run's numbers by TensorBoard, MLflow, Weights & Biases."""

TITLES = {"mlflow": "MLflow", "wandb": "Weights & Biases"}
"""The trackers, by the names of their packages, which are those of ``run.log``."""
