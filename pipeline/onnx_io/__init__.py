"""Everything that touches ONNX: export, checked loading, sessions, parity, latency.

The only importer of ``onnx``, ``onnxscript`` and ``onnxruntime`` in d2nas. Nothing is re-exported:
``export`` needs torch, and asking which devices there are must not wait for torch to load.
"""
