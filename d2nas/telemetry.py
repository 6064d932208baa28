"""Telemetry of libraries switched off, unless the environment says otherwise."""

import os


def disable_hub_telemetry() -> None:
    """Tell the Hugging Face Hub's client to report nothing; call it before the import of any
    library that imports the client, which reads the variable once.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
