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


def front_matter(name: str, report: Mapping[str, Any], quoted: Callable[[str], str]) -> str:
    """Return the head of the card of a bundle called ``name``.

    ``quoted`` writes a text as YAML's scalar.
    """
    data, accuracy = report["data"], report["accuracy"]
    known = _ON_THE_HUB.get(data["name"])
    is_held_out = data["evaluation"] == "held-out"
    searched = [] if report.get("architecture") else ["neural-architecture-search"]
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
        "tags": ["d2nas", *searched, "onnx"],
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
    return "\n".join(["---", *_yaml(head, quoted), "---", ""])


def _yaml(value: Any, quoted: Callable[[str], str], indent: str = "") -> list[str]:
    """Return the lines of nested mappings and lists."""

    def scalar(one: Any) -> str:
        return quoted(one) if isinstance(one, str) else json.dumps(one)

    lines = []
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, Mapping | list):
                lines += [f"{indent}{key}:", *_yaml(inner, quoted, indent + "  ")]
            else:
                lines.append(f"{indent}{key}: {scalar(inner)}")
        return lines
    for inner in value:
        if isinstance(inner, Mapping):
            first, *others = _yaml(inner, quoted, indent + "  ")
            lines += [f"{indent}- {first.strip()}", *others]
        else:
            lines.append(f"{indent}- {scalar(inner)}")
    return lines
