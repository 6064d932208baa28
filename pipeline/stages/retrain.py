"""Retrain: the derived network from scratch, on all images that are not test images."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from d2nas.config import Config, RetrainConfig
from d2nas.config.section import NonNegative
from d2nas.files.strict_json import canonical_json
from d2nas.genotype import Genotype

from ..report.training_curves import draw_curves, retrain_panels
from ..store.forms import Form
from ..teacher.source import teacher_key
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

if TYPE_CHECKING:
    from d2nas.data.images import ImageData
    from d2nas.train.retrain import Retraining

    from ..store import Version

PREPROCESS_FILE = "preprocess.json"


def run(context: Context) -> Facts:
    """Write the weights, what builds the network, how images are prepared, and the metrics."""
    from d2nas.data.images import preprocessing
    from d2nas.files.tensors import encode_tensors
    from d2nas.measure.cost import count_cost
    from d2nas.nn.network import DESCRIPTION_FILE, WEIGHTS_FILE, build_described
    from d2nas.parallel import ALONE
    from d2nas.train.loop import memory_errors, torch_device
    from d2nas.train.machine import machine_facts
    from d2nas.train.retrain import Retraining

    from ..teacher.opening import open_teacher

    config = context.config
    ranks = context.ranks or ALONE
    device = ranks.device(torch_device(ranks.own_name(config.retrain.device)))
    data = context.data()
    derived = context.inputs["derive"]
    architecture = _architecture(derived)
    seed = config.run.seed if config.retrain.seed is None else config.retrain.seed
    with memory_errors(config.retrain.batch_size, device):
        teacher = None
        if config.retrain.teacher is not None:
            teacher = open_teacher(config.retrain, data, device)
            context.hooks.say(str(teacher))
        retraining = Retraining(
            config.retrain,
            architecture,
            data,
            seed=seed,
            device=device,
            augmentation=config.data,
            teacher=None if teacher is None else teacher.answer,
            ranks=ranks,
        )
    description = _describe(config.retrain, architecture, data)
    shape = (data.channels, data.image_size, data.image_size)
    cost = count_cost(build_described(description, what=DESCRIPTION_FILE), shape)
    what = f"{config.retrain.num_cells} cells x {config.retrain.init_channels} channels"
    if isinstance(architecture, str):
        what = architecture + (", pretrained," if config.retrain.pretrained else "")
    context.hooks.say(
        f"retrain {what} on {device}: {cost.params:,} parameters, {cost.macs:,} multiply-adds"
    )
    _warn(context, architecture, len(retraining.batches.images))
    if retraining.validation is not None:
        context.hooks.say(
            f"{len(retraining.validation)} training images are held out, by which the best epoch "
            "is chosen"
        )
    run_loop(retraining, context.hooks)
    rows = retraining.metrics
    context.work.write(WEIGHTS_FILE, encode_tensors(retraining.deployed_weights()))
    context.work.write(DESCRIPTION_FILE, canonical_json(description))
    context.work.write(
        PREPROCESS_FILE,
        canonical_json({**preprocessing(data), "class_names": list(data.class_names)}),
    )
    context.work.write(METRICS_FILE, encode_rows(rows))
    context.work.write(CURVES_FILE, draw_curves(rows, retrain_panels(rows)).encode())
    return {
        "device": device.type,
        "precision": retraining.precision,
        "arithmetic": asdict(retraining.arithmetic),
        **machine_facts(device.type, ranks),
        "data_digest": data.digest,
        "steps": retraining.num_steps,
        "train_accuracy": rows[-1]["accuracy"],
        "params": cost.params,
        "macs": cost.macs,
        **({} if teacher is None else {"teacher": teacher.facts}),
        **_best_epoch(retraining),
    }


def _best_epoch(retraining: "Retraining") -> Facts:
    """Return which epoch is deployed and by how many images it was chosen, if it was; the training
    accuracy is that epoch's.
    """
    best, rows = retraining.best_epoch, retraining.metrics
    if best is None or retraining.validation is None:
        return {}
    return {
        "train_accuracy": rows[best]["accuracy"],
        "stopping": {
            "best_epoch": best,
            "epochs": len(rows),
            "train_images": len(retraining.batches.images),
            "held_out_images": len(retraining.validation),
            "validation_loss": rows[best]["validation_loss"],
            "validation_accuracy": rows[best]["validation_accuracy"],
        },
    }


def _architecture(derived: "Version") -> Genotype | str:
    """Return the genotype that was derived, or the name of a library's network."""
    name = derived.manifest.facts.get("architecture")
    if name is not None:
        return str(name)
    return Genotype.from_json(
        derived.read(GENOTYPE_FILE), what=f"{derived.reference}: {GENOTYPE_FILE}"
    )


def _describe(
    config: RetrainConfig, architecture: Genotype | str, data: "ImageData"
) -> dict[str, Any]:
    from d2nas.data.sizes import stem_for
    from d2nas.nn.library_network import describe_library_network
    from d2nas.nn.network import describe_network

    num_classes, in_channels = len(data.class_names), data.channels
    if isinstance(architecture, str):
        return describe_library_network(
            architecture, num_classes=num_classes, in_channels=in_channels
        )
    return describe_network(
        architecture,
        num_cells=config.num_cells,
        init_channels=config.init_channels,
        num_classes=num_classes,
        in_channels=in_channels,
        stem=stem_for(config.stem, data.image_size),
    )


def _warn(context: Context, architecture: Genotype | str, num_images: int) -> None:
    """Tell what the user may not want, before it takes long."""
    config, warn = context.config.retrain, context.hooks.warn
    if isinstance(architecture, Genotype) and architecture.has_noise:
        warn("a cell with noise can be trained, but not exported")
    if config.batch_size > num_images:
        warn(f"retrain.batch_size: all {num_images} images are one batch")
    if config.warmup_epochs >= config.epochs:
        warn("retrain.warmup_epochs leaves no epoch at the full learning rate")


def _config(config: Config) -> dict[str, Any]:
    """Return the settings; a teacher is what its file holds, not the path of that.

    Keys are as before there were teachers where there is none.
    """
    part: dict[str, Any] = {"retrain": training_settings(config)}
    if config.retrain.teacher is not None:
        part["teacher"] = teacher_key(config.retrain)
    return part


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
    own_config=_config,
    reads_data=always,
    checkpoints=True,
    parallel=True,
    facts=_Facts,
    recorded_config=_RecordedConfig,
)
