"""``d2nas serve``: a bundle behind the Open Inference Protocol v2 over HTTP."""
