"""``config.pbtxt``: how Triton Inference Server serves a bundle.

Written as text; a test parses it with Triton's own definition of the format.
"""

from collections.abc import Mapping
from typing import Any

_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}
_KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}


def triton_config(name: str, number: int, report: Mapping[str, Any]) -> str:
    """Return the configuration that serves version ``number`` as it was validated.

    On the validated kind of device, in its best mode. Ready only after a run at batch 1 and at the
    largest batch: at a new shape a GPU first chooses its kernels.
    """
    model = report["model"]
    largest = max(entry["batch"] for entry in report["parity"]["batches"])
    channels, height, width = model["input_shape"]
    dims = (height, width, channels) if model["input_type"] == "uint8" else model["input_shape"]
    shape, input_type = ", ".join(map(str, dims)), _TYPES[model["input_type"]]
    warmups = "".join(_warmup(batch, input_type, shape) for batch in dict.fromkeys((1, largest)))
    return f"""name: "{name}"
backend: "onnxruntime"
max_batch_size: {largest}
input [
  {{ name: "images" data_type: {input_type} dims: [ {shape} ] }}
]
output [
  {{
    name: "logits"
    data_type: TYPE_FP32
    dims: [ {model["num_classes"]} ]
    label_filename: "labels.txt"
  }}
]
instance_group [
  {{ count: 1 kind: {_KINDS[report["device"]["kind"]]} }}
]
dynamic_batching {{ }}
version_policy: {{ specific: {{ versions: [ {number} ] }} }}
{warmups}{_acceleration(report)}"""


def _warmup(batch: int, input_type: str, shape: str) -> str:
    return f"""model_warmup [
  {{
    name: "batch of {batch}"
    batch_size: {batch}
    inputs {{
      key: "images"
      value: {{ data_type: {input_type} dims: [ {shape} ] zero_data: true }}
    }}
  }}
]
"""


def _acceleration(report: Mapping[str, Any]) -> str:
    """Return the options of the CUDA provider that the best mode ran with."""
    if report["device"]["kind"] != "cuda":
        return ""
    options = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    if report["best_mode"] == "nhwc":
        options["prefer_nhwc"] = "1"
    parameters = "".join(
        f'        parameters {{ key: "{key}" value: "{value}" }}\n'
        for key, value in options.items()
    )
    return f"""optimization {{
  execution_accelerators {{
    gpu_execution_accelerator [
      {{
        name: "cuda"
{parameters}      }}
    ]
  }}
}}
"""
