"""How small models are served, for tests of latency; others by ``dataclasses.replace``."""

from pipeline.latency.parts import Serving

PLAIN = Serving(
    image_size=16,
    in_channels=3,
    num_classes=10,
    stem="cifar",
    opset=20,
    input_type="float32",
    precision="fp32",
    batch=1,
)
