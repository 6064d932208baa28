"""``MODEL_CARD.md``: what a person needs who has the bundle and nothing else."""

import re
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..gate.golden import PICTURE_FILE
from ..report.facts import (
    Content,
    chance_caveat,
    gate_result,
    origin_of,
    pictures_line,
    searched_here,
)
from .checksums import CHECKSUMS, MODEL_NAME

_PRECISIONS = {"fp32": "float32", "fp16": "float16"}


_SNIPPET = """import numpy as np
import onnxruntime
import preprocess  # the file of this folder; it needs Pillow and numpy

options = {{"providers": ["CPUExecutionProvider"]}}
session = onnxruntime.InferenceSession("{number}/{model}", **options)
names = preprocess.read_settings()["class_names"]
images = preprocess.prepare(["{picture}"])  # paths of pictures, any number
(logits,) = session.run(["logits"], {{"images": images}})
for row in logits:
    shares = np.exp(row.astype(np.float64) - row.max())
    shares /= shares.sum()
    for index in np.argsort(-row, kind="stable")[:3]:
        print(f"{{names[index]}}\\t{{100 * shares[index]:.2f}} %")
"""
"""Formatted with nothing but a number and names of our own: class names are read where it runs."""


def model_card(
    name: str,
    number: int,
    report: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    golden: Mapping[str, NDArray[Any]],
) -> str:
    """Return the card as Markdown; ``golden`` is the content of ``golden.safetensors``."""
    content = Content(name, number, report, preprocess)
    data, accuracy, parity = report["data"], report["accuracy"], report["parity"]
    latency = "\n".join(
        f"| {entry['batch']} | {entry['device']} | {entry['provider']} "
        f"| {_milliseconds(entry['p50_ms'])} | {_milliseconds(entry['p90_ms'])} "
        f"| {_milliseconds(entry['p99_ms'])} | {entry['samples']} "
        f"| {'stable' if entry.get('stable') is True else '**unstable**'} |"
        for entry in report["latency"]
    )
    lineage = "\n".join(f"- {stage}: `{version}`" for stage, version in report["lineage"].items())
    return f"""# {name}, version {number}

Image classifier for {len(preprocess["class_names"])} classes; its architecture was
{origin_of(content)}.
Served as is by Triton (this folder lies in a model repository) or by ONNX Runtime.

- Input `images`: {_input_line(report["model"])}, prepared as told below
- Output `logits`: float32 [batch, {len(preprocess["class_names"])}], classes in the order of
  `labels.txt`
- Computes in {_PRECISIONS[report["model"]["precision"]]}; {report["params"]:,} parameters,
  {report["macs"]:,} MACs ({report["macs_convention"]})

## Use

In this folder, with onnxruntime, numpy and Pillow and without d2nas:

```python
{_snippet(number, golden)}```

{_answers(preprocess, golden)}

## Preparation of pictures

`preprocess.py` does it, with the numbers of `preprocess.json`
({_settings(preprocess)}). In words:

```text
{_steps(preprocess)}
```

## Evidence

- Accuracy {100 * accuracy["onnx"]:.2f} % (ONNX Runtime), {100 * accuracy["torch"]:.2f} %
  (PyTorch), on {accuracy["test_images"]} {data["evaluation"]} images that neither
  search nor training read; weights of the last epoch{_cautions(content)}
- Parity {parity["verdict"]}: relative L2 {parity["relative_l2"]:.2e}, largest difference
  {parity["max_abs"]:.2e}, top-1 agreement {100 * parity["top1_agreement"]:.2f} %
- The gate rejected every deliberately faulty copy: {", ".join(report["self_test"]["rejected"])}
- Trained on {report["trained_on"]}; validated on {report["device"]["label"]}

| batch | device | provider | p50 ms | p90 ms | p99 ms | runs | steady? |
|---|---|---|---|---|---|---|---|
{latency}

## Data

{data["name"]}: {data["train"]} training images{_halves(content)},
{data["test"]} {data["evaluation"]} images. Content digest `{data["digest"]}`.{_pictures(content)}

## Limits

Measured on one test set and one device, as stated above. The model answers every image with one of
its classes, also images of nothing it was trained on.

## Lineage

{lineage}

`report.html` shows all of this and more in a browser, without a network.
`golden.safetensors` holds prepared inputs and the logits to expect; `{CHECKSUMS}` the digests of
all files (`sha256sum -c {CHECKSUMS}`). The folder of each version holds what belongs to it; beside
the folders lie the same files of the version that is served.
"""


def _snippet(number: int, golden: Mapping[str, NDArray[Any]]) -> str:
    picture = PICTURE_FILE if "picture" in golden else "picture.jpg"
    return _SNIPPET.format(number=number, model=MODEL_NAME, picture=picture)


def _answers(preprocess: Mapping[str, Any], golden: Mapping[str, NDArray[Any]]) -> str:
    """Return what the golden picture and the golden inputs are answered with, by class name."""
    names = preprocess["class_names"]
    told = []
    if "picture" in golden:
        (row,) = golden["picture_logits"].astype(np.float64)
        shares = np.exp(row - row.max())
        shares /= shares.sum()
        best = [
            f"{_text(names[index])} {100 * shares[index]:.2f} %"
            for index in np.argsort(-row, kind="stable")[:3]
        ]
        told.append(f"It answers `{PICTURE_FILE}`, which shows nothing, with {', '.join(best)}.")
    answers = [_text(names[index]) for index in golden["logits"].argmax(axis=1)]
    told.append(
        f"The {len(answers)} inputs in `golden.safetensors` are answered with {', '.join(answers)}."
    )
    return "\n".join(told)


def _settings(preprocess: Mapping[str, Any]) -> str:
    keys = ["image_size", "crop_fraction"]
    if preprocess["dtype"] != "uint8":  # else the model itself applies them
        keys += ["mean", "std"]
    return ", ".join(f"{key} = {preprocess[key]}" for key in keys)


def _steps(preprocess: Mapping[str, Any]) -> str:
    # A model that was exported earlier says less.
    steps = preprocess.get("steps", [preprocess["resize"], preprocess["formula"]])
    lines = []
    for number, step in enumerate(steps, start=1):
        lines += textwrap.wrap(
            " ".join(str(step).replace("`", "'").split()),
            96,
            initial_indent=f"{number}. ",
            subsequent_indent="   ",
            break_long_words=False,
        )
    return "\n".join(lines)


def _text(text: str) -> str:
    """Return any text as Markdown that shows it: one line, nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", " ".join(str(text).split()))


def _cautions(content: Content) -> str:
    """Return the lines on an accuracy that may be chance, and on the gate on latency, if any."""
    chance, gate = chance_caveat(content), gate_result(content)
    return (f"\n- **Its accuracy of {chance}**" if chance else "") + (
        f"\n- Gate on latency passed: {gate}" if gate else ""
    )


def _input_line(model: Mapping[str, Any]) -> str:
    channels, height, width = model["input_shape"]
    if model["input_type"] == "uint8":
        return f"uint8 [batch, {height}, {width}, {channels}]"
    return f"float32 [batch, {channels}, {height}, {width}]"


def _pictures(content: Content) -> str:
    line = pictures_line(content)
    return "" if line is None else f"\n{_text(line)}."


def _halves(content: Content) -> str:
    if not searched_here(content):
        return ""
    data = content.report["data"]
    return (
        f" ({data['weight_half']} for the weights and\n{data['arch_half']} for the architecture "
        "during the search, all of them for the final training)"
    )


def _milliseconds(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"
