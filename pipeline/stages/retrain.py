"""Retrain: the derived network from scratch, on all images that are not test images."""

from dataclasses import asdict
from typing import Any

from d2nas.config.section import NonNegative
from d2nas.files.strict_json import canonical_json
from d2nas.genotype import Genotype

from ..report.training_curves import RETRAIN_PANELS, draw_curves
from ..store.forms import Form
from .derive import GENOTYPE_FILE
from .search import CURVES_FILE
from .stage import (
    METRICS_FILE,
    Context,
    Facts,
    Stage,
    always,
    encode_rows,
    run_loop,
    training_settings,
)

PREPROCESS_FILE = "preprocess.json"


def run(context: Context) -> Facts:
    """Write the weights, what builds the network, how images are prepared, and the metrics."""
    from d2nas.data.images import preprocessing
    from d2nas.data.sizes import stem_for
    from d2nas.files.tensors import encode_tensors
    from d2nas.measure.cost import count_cost
    from d2nas.nn.network import DESCRIPTION_FILE, WEIGHTS_FILE, build_described, describe_network
    from d2nas.parallel import ALONE
    from d2nas.train.loop import memory_errors, torch_device
    from d2nas.train.machine import machine_facts
    from d2nas.train.retrain import Retraining

    config = context.config
    ranks = context.ranks or ALONE
    device = ranks.device(torch_device(ranks.own_name(config.retrain.device)))
    data = context.data()
    derived = context.inputs["derive"]
    genotype = Genotype.from_json(
        derived.read(GENOTYPE_FILE), what=f"{derived.reference}: {GENOTYPE_FILE}"
    )
    stem = stem_for(config.retrain.stem, data.image_size)
    seed = config.run.seed if config.retrain.seed is None else config.retrain.seed
    with memory_errors(config.retrain.batch_size, device):
        retraining = Retraining(
            config.retrain,
            genotype,
            data,
            seed=seed,
            device=device,
            augmentation=config.data,
            ranks=ranks,
        )
    description = describe_network(
        genotype,
        num_cells=config.retrain.num_cells,
        init_channels=config.retrain.init_channels,
        num_classes=len(data.class_names),
        in_channels=data.channels,
        stem=stem,
    )
    shape = (data.channels, data.image_size, data.image_size)
    cost = count_cost(build_described(description, what=DESCRIPTION_FILE), shape)
    context.hooks.say(
        f"retrain {config.retrain.num_cells} cells x {config.retrain.init_channels} channels on "
        f"{device}: {cost.params:,} parameters, {cost.macs:,} multiply-adds"
    )
    _warn(context, genotype, len(data.train))
    run_loop(retraining, context.hooks)
    context.work.write(WEIGHTS_FILE, encode_tensors(retraining.deployed_weights()))
    context.work.write(DESCRIPTION_FILE, canonical_json(description))
    context.work.write(
        PREPROCESS_FILE,
        canonical_json({**preprocessing(data), "class_names": list(data.class_names)}),
    )
    context.work.write(METRICS_FILE, encode_rows(retraining.metrics))
    context.work.write(CURVES_FILE, draw_curves(retraining.metrics, RETRAIN_PANELS).encode())
    return {
        "device": device.type,
        "precision": retraining.precision,
        "arithmetic": asdict(retraining.arithmetic),
        **machine_facts(device.type, ranks),
        "data_digest": data.digest,
        "steps": retraining.num_steps,
        "train_accuracy": retraining.metrics[-1]["accuracy"],
        "params": cost.params,
        "macs": cost.macs,
    }


def _warn(context: Context, genotype: Genotype, num_images: int) -> None:
    """Tell what the user may not want, before it takes long."""
    config, warn = context.config.retrain, context.hooks.warn
    if genotype.has_noise:
        warn("a cell with noise can be trained, but not exported")
    if config.batch_size > num_images:
        warn(f"retrain.batch_size: all {num_images} images are one batch")
    if config.warmup_epochs >= config.epochs:
        warn("retrain.warmup_epochs leaves no epoch at the full learning rate")


class _Facts(Form):
    data_digest: str
    params: NonNegative
    macs: NonNegative
    device: str


class _RecordedConfig(Form):
    retrain: dict[str, Any]


STAGE = Stage(
    name="retrain",
    parents=("derive",),
    code_schema=6,
    run=run,
    own_config=lambda config: {"retrain": training_settings(config)},
    reads_data=always,
    checkpoints=True,
    parallel=True,
    facts=_Facts,
    recorded_config=_RecordedConfig,
)
