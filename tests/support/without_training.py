"""Runs a command where nothing that trains is installed.

python tests/support/without_training.py COMMAND ...
"""

import sys

TRAINS = ("torch", "torchvision", "scipy", "onnxscript", "onnx_ir", "tensorboard")

if __name__ == "__main__":
    for name in TRAINS:
        sys.modules[name] = None  # type: ignore[assignment]
    from d2nas.__main__ import main

    sys.argv[0] = "d2nas"
    sys.exit(main())
