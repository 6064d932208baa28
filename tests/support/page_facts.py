"""A report as ``validate`` writes it, by hand, so that the page can be tested without a run."""

import copy
from typing import Any

from d2nas import Genotype
from pipeline.report.genotype_drawing import draw_genotype
from pipeline.report.page import report_page
from pipeline.report.training_curves import RETRAIN_PANELS, SEARCH_PANELS, draw_curves

GENOTYPE = Genotype.published("PC_DARTS_cifar")
NAMES = ["ant", "bee", "cat"]
CPU = "CPU Example 9000, 2 threads"
GPU = "CUDA Example H1 (cuda:0, driver 580.1)"
DIGEST = "0123456789abcdef" * 4


def latency(batch: int, ms: float, **changes: Any) -> dict[str, Any]:
    return {
        "batch": batch,
        "device": CPU,
        "kind": "cpu",
        "provider": "CPUExecutionProvider",
        "p50_ms": ms,
        "p90_ms": 1.2 * ms,
        "p95_ms": 1.25 * ms,
        "p99_ms": 1.4 * ms,
        "mean_ms": 1.05 * ms,
        "min_ms": 0.9 * ms,
        "max_ms": 2.0 * ms,
        "variation": 0.1,
        "drift": 0.02,
        "samples": 662,
        "warmup_runs": 20,
        "stable": True,
    } | changes


def on_gpu(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"device": GPU, "kind": "cuda", "provider": "CUDAExecutionProvider"}


def unstable(batch: int, ms: float) -> dict[str, Any]:
    few: dict[str, Any] = {"p90_ms": None, "p95_ms": None, "p99_ms": None, "samples": 20}
    return latency(batch, ms, stable=False, drift=0.31, variation=0.4, **few)


def parity(batch: int) -> dict[str, Any]:
    return {
        "batch": batch,
        "images": 64,
        "verdict": "passed",
        "max_abs": 3.1e-6,
        "relative_l2": 2.5e-7,
        "top1_agreement": 1.0,
        "spread": 0.93,
        "reasons": [],
    }


REPORT: dict[str, Any] = {
    "schema": 1,
    "genotype": GENOTYPE.to_dict(),
    "genotype_digest": GENOTYPE.digest,
    "found_by": "d2nas",
    "found_on_this_data": True,
    "params": 470458,
    "macs": 4489728,
    "macs_convention": "multiply-adds of convolutions and linears for one image",
    "retrain": {
        "epochs": 20,
        "num_cells": 20,
        "init_channels": 16,
        "seed": None,
        "auxiliary": False,
    },
    "data": {
        "name": "folder",
        "digest": DIGEST,
        "image_size": 32,
        "channels": 3,
        "train": 1438,
        "weight_half": 717,
        "arch_half": 721,
        "test": 359,
        "evaluation": "test",
        "class_counts": {"ant": 900, "bee": 500, "cat": 38},
        "warnings": ["imbalanced: class ant has 900 training images, class cat 38"],
    },
    "accuracy": {"torch": 0.9916, "onnx": 0.9916, "test_images": 359},
    "parity": {
        "verdict": "passed",
        "passed": True,
        "max_abs": 3.1e-6,
        "relative_l2": 2.5e-7,
        "top1_agreement": 1.0,
        "limits": {"relative_l2": 1e-5, "top1_agreement": 0.999, "spread": 1e-3},
        "batches": [parity(batch) for batch in (1, 2, 7, 64)],
        "reasons": [],
    },
    "self_test": {
        "passed": True,
        "rejected": ["one weight 1 % off", "two classes swapped"],
        "accepted": [],
    },
    "latency": [latency(1, 0.42), latency(8, 2.1), unstable(64, 17.0)],
    "device": {"kind": "cpu", "label": CPU, "provider": "CPUExecutionProvider"},
    "trained_on": "cpu",
    "model": {
        "bytes": 1_913_337,
        "input_shape": [3, 32, 32],
        "input_type": "float32",
        "num_classes": 3,
        "opset": 20,
        "ir_version": 10,
        "num_nodes": 512,
    },
    "lineage": {
        s: f"{i}{DIGEST[1:]}"
        for i, s in enumerate(("search", "derive", "retrain", "export", "validate"))
    },
    "bundle_version": 1,
}

PREPROCESS: dict[str, Any] = {
    "layout": "NCHW",
    "dtype": "float32",
    "image_size": 32,
    "channels": 3,
    "colour_order": "RGB",
    "resize": "the shorter side to the size, bilinear; the centre is cut out",
    "crop_fraction": 1.0,
    "transparency": "over black",
    "value_range": [0.0, 1.0],
    "mean": [0.49, 0.48, 0.45],
    "std": [0.25, 0.24, 0.26],
    "formula": "(pixel / 255 - mean) / std, by channel",
    "class_names": NAMES,
}

MANIFESTS: dict[str, Any] = {
    "search": {
        "config": {"search": {"space": "S0", "num_cells": 6, "init_channels": 8, "epochs": 12}},
        "facts": {"arch_accuracy": 0.42},
        "seed": 0,
    },
    "derive": {"facts": {"candidates": 1}},
    "retrain": {
        "config": {"data": {"train_images": None, "name": "folder"}, "retrain": {"seed": None}},
        "facts": {"train_accuracy": 0.998, "precision": "fp32"},
        "seed": 0,
    },
    "validate": {"versions": {"d2nas": "0.1.0", "torch": "2.14.0"}},
}

ROWS = [
    {"loss": 2.3 * 0.8**epoch, "accuracy": 1.0 - 0.8**epoch}
    | {f"{half}_loss": 2.2 * 0.9**epoch for half in ("weight", "arch")}
    | {f"{half}_accuracy": 0.5 - 0.4 * 0.9**epoch for half in ("weight", "arch")}
    for epoch in range(12)
]
CURVES = {
    "search": draw_curves(ROWS, SEARCH_PANELS).encode(),
    "retrain": draw_curves(ROWS, RETRAIN_PANELS).encode(),
}
DRAWING = draw_genotype(GENOTYPE).encode()
FILES = {"1/model.onnx": b"model", "labels.txt": b"ant\nbee\ncat\n"}


def a_report(**changes: Any) -> dict[str, Any]:
    """A copy of the report with other values."""
    return copy.deepcopy(REPORT) | changes


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><svg onload=alert(1)>",
    "]]>&amp;<!--",
    "'; x=\u202eevil",
    "\x00\x1b[31m\ud800",
    "`|\n\n# heading\n- [x](http://example.org) www.example.org a@b.org *a* _b_ __c__ ~~d~~",
)
"""Names that somebody else chose: markup, a script, control characters, the end of a line."""


def hostile_report(names: tuple[str, ...] = HOSTILE) -> dict[str, Any]:
    """A report with these names wherever a name of others can stand."""
    report = a_report(latency=[latency(1, 0.4, device=names[1])], eager=[])
    report |= {"found_by": f"given: {names[2]}", "parameterless_normal": 2}
    report["data"] |= {"name": names[0], "warnings": list(names)}
    report["data"] |= {"class_counts": dict.fromkeys(names, 3), "pictures": {"line": names[5]}}
    report["self_test"]["rejected"] = list(names)
    report["device"]["label"] = names[1]
    report["lineage"][names[2]] = names[0]
    report["retrain"][names[0]] = names[1]
    report["genotype"]["normal"][0] = [names[0], 1]
    return report


def page(report: dict[str, Any] | None = None, **changes: Any) -> str:
    """The page of a report, with other arguments where named."""
    arguments: dict[str, Any] = {
        "name": "demo",
        "number": 1,
        "report": REPORT if report is None else report,
        "preprocess": PREPROCESS,
        "genotype_svg": DRAWING,
        "drawings": CURVES,
        "manifests": MANIFESTS,
        "files": FILES,
    }
    return report_page(**(arguments | changes)).decode()
