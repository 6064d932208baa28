"""Publication of a verified bundle: the Hugging Face Hub, MLflow's model registry."""
