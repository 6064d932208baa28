"""Which tests the first tier leaves out: those marked ``slow``."""

from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
RUNS = {"derived_folder", "exported_folder", "finished_folder", "fork_server", "place"}
"""Fixtures of tests that run commands, or begin with what a run has made."""
SLOW = (
    "benchmarks",
    "d2nas/data/test_image_workers.py",
    "d2nas/data/test_streaming.py",
    "d2nas/methods/test_darts_variants.py",
    "d2nas/methods/test_method_hooks.py",
    "d2nas/methods/test_methods.py",
    "d2nas/methods/test_p_darts.py",
    "d2nas/methods/test_r_darts.py",
    "d2nas/methods/test_sdarts.py",
    "d2nas/nn/test_exactness.py",
    "d2nas/nn/test_mixed_supernet.py",
    "d2nas/train",
    "house/test_references.py",
    "pipeline/bench",
    "pipeline/commands/test_node_counts.py",
    "pipeline/commands/test_own_operation.py",
    "pipeline/identity",
    "pipeline/onnx_io/test_node_names.py",
    "pipeline/onnx_io/test_onnx_equality.py",
    "pipeline/onnx_io/test_onnx_export.py",
    "pipeline/onnx_io/test_onnx_precision.py",
    "pipeline/onnx_io/test_profile.py",
    "pipeline/onnx_io/test_quantisation.py",
    "pipeline/preflight/test_operator_support.py",
    "pipeline/running",
    "pipeline/serving/test_inference_hostile.py",
    "pipeline/serving/test_serve_attacks.py",
    "pipeline/serving/test_serve_load.py",
    "pipeline/store/test_store_faults.py",
    "pipeline/study/test_study_run.py",
    "pipeline/tracking",
    "promises",
)
"""Folders and modules whose tests train, export or start many processes."""


def is_slow(item: pytest.Item) -> bool:
    """Whether the first tier leaves a test out."""
    return bool(RUNS & set(getattr(item, "fixturenames", ()))) or any(
        item.path.is_relative_to(TESTS / name) for name in SLOW
    )
