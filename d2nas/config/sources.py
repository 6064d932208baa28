"""Sources of configuration defaults: paper, published code, or ours.

``D2NAS`` is Hou et al. (2024), ``ROME`` arXiv 2011.11233v2, ``DARTS`` arXiv 1806.09055; ``ours``
is what neither these nor the codes of GDAS, PC-DARTS and R-DARTS fix.
"""

from collections.abc import Mapping

from . import Config

DEFAULT_SOURCES: Mapping[str, str] = {
    "run.seed": "ours",
    "data.name": "ours: needs no download",
    "data.root": "ours",
    "data.image_size": "the data set's own; of a folder by its pictures, ours",
    "data.channels": "the data set's own",
    "data.fit": "ours",
    "data.validation_fraction": "DARTS's code, ROME 4: one half",
    "data.test_fraction": "ours",
    "data.train_images": "ours: all",
    "data.evaluation": "the data set's test images, once",
    "data.held_out_images": "ours",
    "data.split_seed": "ours",
    "data.crop_fraction": "ours: all",
    "data.crop": "DARTS's code",
    "data.crop_padding": "DARTS's code",
    "data.flip": "DARTS's code",
    "data.color_jitter": "DARTS's code: none on CIFAR",
    "data.on_error": "ours",
    "data.stream": "ours",
    "data.workers": "ours",
    "search.method": "D2NAS",
    "search.space": "DARTS's code, without none as ROME 3.3",
    "search.num_cells": "DARTS's code, ROME 4",
    "search.init_channels": "DARTS's code, ROME 4",
    "search.stem": "DARTS's code: by image size",
    "search.branch_length": "D2NAS figure 1, in our reading",
    "search.branch_head": "ours",
    "search.recompute": "ours",
    "search.precision": "ours",
    "search.epochs": "ROME 4",
    "search.warmup_epochs": "PC-DARTS's code: 15 of 50; that d2nas has it too is ours",
    "search.batch_size": "DARTS's code; D2NAS's memory table",
    "search.image_fraction": "ours: all",
    "search.draws": "ROME 4",
    "search.weight_lr": "ROME 4",
    "search.weight_lr_min": "DARTS's code",
    "search.weight_momentum": "ROME 4",
    "search.weight_decay": "DARTS's code",
    "search.clip_norm": "DARTS's code",
    "search.arch_lr": "ROME 4",
    "search.arch_beta1": "DARTS's code",
    "search.arch_beta2": "DARTS's code",
    "search.arch_weight_decay": "DARTS's code",
    "search.temperature_start": "GDAS",
    "search.temperature_end": "GDAS",
    "search.edge_gate_scale": "ours",
    "search.cutout": "DARTS's code: none",
    "search.device": "ours",
    "derive.genotype": "ours: searched",
    "derive.candidates": "ROME 3.3: the most probable",
    "derive.rank_by": "ours",
    "derive.rank_epochs": "ours",
    "retrain.seed": "ours: run.seed",
    "retrain.num_cells": "DARTS's code",
    "retrain.init_channels": "DARTS's code",
    "retrain.stem": "DARTS's code: by image size",
    "retrain.auxiliary": "DARTS's code",
    "retrain.auxiliary_weight": "DARTS's code",
    "retrain.epochs": "DARTS's code",
    "retrain.warmup_epochs": "DARTS's code: none",
    "retrain.batch_size": "DARTS's code",
    "retrain.lr": "DARTS's code",
    "retrain.lr_min": "DARTS's code",
    "retrain.lr_schedule": "DARTS's code; that it moves by step, not by epoch, is ours",
    "retrain.momentum": "DARTS's code",
    "retrain.nesterov": "DARTS's code",
    "retrain.weight_decay": "DARTS's code",
    "retrain.clip_norm": "DARTS's code",
    "retrain.label_smoothing": "DARTS's code: none",
    "retrain.drop_path": "DARTS's code",
    "retrain.cutout": "DARTS's code",
    "retrain.precision": "DARTS's code",
    "retrain.compile": "ours",
    "retrain.device": "ours",
    "export.opset": "ours: the newest that ONNX Runtime's CUDA kernels cover",
    "export.precision": "ours",
    "export.input": "ours",
    "validate.device": "ours",
    "validate.parity_batches": "ours",
    "validate.relative_l2": "ours: by precision",
    "validate.top1_agreement": "ours: by precision",
    "validate.accuracy_floor": "MLPerf: 99.9 % (fp32), 99 % (fp16)",
    "validate.latency_batches": "ours",
    "validate.latency_samples": "MLPerf's early-stopping rule: a p99 needs 662",
    "validate.latency_seconds": "ours",
    "validate.modes": "ours: all that the device has",
    "validate.max_p99_ms": "ours: no gate",
    "validate.gate_batch": "ours",
    "validate.compare_eager": "ours",
}


def sources_of(config: Config, given: Mapping[str, str]) -> dict[str, str]:
    """Return ``section.field`` to source for every value of ``config``.

    ``given`` holds the sources of values that are not the defaults.
    """
    return {
        f"{section}.{field}": given.get(f"{section}.{field}", DEFAULT_SOURCES[f"{section}.{field}"])
        for section, fields in config.to_dict().items()
        for field in fields
    }
