"""What is left to do to a picture before a model takes it (no torch)."""

from collections.abc import Mapping
from typing import Any


def preprocess_for(input_type: str, trained: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preparation that a model with ``input_type`` asks for, out of the training's.

    A model that takes pixels (``uint8``) normalises them itself.
    """
    if input_type != "uint8":
        return dict(trained)
    return {
        **trained,
        "layout": "NHWC",
        "dtype": "uint8",
        "formula": f"none: the model itself computes {trained['formula']}",
        "value_range": [0, 255],
    }
