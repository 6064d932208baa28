"""The card's head in YAML, by which model hubs list it; no licence, which nobody has chosen."""

import json
from collections.abc import Callable, Mapping
from typing import Any

_ON_THE_HUB = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "imagenet": "ILSVRC/imagenet-1k",
    "svhn": "ufldl-stanford/svhn",
}
"""Data sets by ``data.name``, and what they are called on the Hugging Face Hub."""


def front_matter(name: str, report: Mapping[str, Any], line: Callable[[object], str]) -> str:
    """Return the head of the card of a bundle called ``name``.

    ``line`` makes any value one line of characters that a text file may hold.
    """
    data, accuracy = report["data"], report["accuracy"]
    known = _ON_THE_HUB.get(data["name"])
    is_held_out = data["evaluation"] == "held-out"
    dataset = {
        "type": known or data["name"],
        "name": data["name"],
        "split": "train" if is_held_out else "test",
    }
    metric = {
        "type": "accuracy",
        "name": f"accuracy on {'held-out training' if is_held_out else 'test'} images",
        "value": accuracy["onnx"],
    }
    head = {
        "pipeline_tag": "image-classification",
        "library_name": "onnx",
        "tags": ["d2nas", "neural-architecture-search", "onnx"],
        **({} if known is None else {"datasets": [known]}),
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": dataset,
                        "metrics": [metric],
                    }
                ],
            }
        ],
    }
    return "\n".join(["---", *_yaml(head, line), "---", ""])


def _yaml(value: Any, line: Callable[[object], str], indent: str = "") -> list[str]:
    """Return YAML's lines of nested mappings and lists; texts between quotes, as JSON has them."""
    if isinstance(value, Mapping):
        lines = []
        for key, inner in value.items():
            if isinstance(inner, Mapping | list):
                lines += [f"{indent}{key}:", *_yaml(inner, line, indent + "  ")]
            else:
                lines.append(f"{indent}{key}: {_scalar(inner, line)}")
        return lines
    lines = []
    for inner in value:
        if isinstance(inner, Mapping):
            first, *others = _yaml(inner, line, indent + "  ")
            lines += [f"{indent}- {first.strip()}", *others]
        else:
            lines.append(f"{indent}- {_scalar(inner, line)}")
    return lines


def _scalar(value: Any, line: Callable[[object], str]) -> str:
    return json.dumps(line(value) if isinstance(value, str) else value, ensure_ascii=False)
