"""ONNX: export, checked loading, sessions, latency, profiles.

The only importer of ``onnxruntime`` in d2nas. Nothing is re-exported:
``export`` needs torch, and asking which devices there are must not wait for torch to load.
"""

import os

# Importing ONNX Runtime sends telemetry and writes a device id under the home folder, before any of
# its switches can be reached from Python. So it is told in the environment, children included, and
# here: whoever imports the runtime (only this package does) has imported this first.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

MODEL_FILE = "model.onnx"
"""Name of a model's file, in a version and in a bundle."""
LIBRARY_FILE = "architecture.json"
"""Name, in a version and in a bundle, of the file that names a library's network."""
FLOAT32_FILE = "float32.onnx"
"""Name, in a version alone, of the model that a quantised one was made of."""
INPUT_NAME = "images"
OUTPUT_NAME = "logits"
"""Names of a model's only input and only output."""
