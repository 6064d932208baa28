"""The configuration of a run: one frozen, strict section per stage.

Keys are ``section.field`` as in ``--set retrain.epochs=10``. Unknown keys are refused with a
suggestion, wrong types are never converted. Values the paper fixes are marked "paper", those it
leaves open "ours" or with the code they are taken from.
"""

import difflib
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from ..errors import ConfigError, shown_value
from .deployment import ExportConfig, ValidateConfig
from .registry import data_sets, search_methods
from .section import (
    MAX_TEXT,
    Batch,
    Cells,
    Channels,
    Count,
    Decay,
    Device,
    Distance,
    Epochs,
    EpochsOrNone,
    FrontPoints,
    GenotypeText,
    ImageCount,
    LearningRate,
    LearningRateOrZero,
    LibraryNetworkName,
    LossWeight,
    Milliseconds,
    NormLimit,
    Pixels,
    Rate,
    Repeats,
    Section,
    Seed,
    Source,
    Temperature,
    Text,
    TrainingBudget,
)

if TYPE_CHECKING:
    from ..methods.base import Method

DEFAULT_METHOD = "d2nas"
"""The method whose settings are the fields' defaults: no method's code is loaded to check them."""
TRAINING_KEYS = ("training_epochs", "population", "sample_size")
"""Keys of ``search.*`` that only methods which train one cell after another read."""
UNREAD_BY_DEFAULT = ("drop_path", *TRAINING_KEYS)
"""Keys of ``search.*`` that the default method does not read."""
CELL_FIELDS = ("num_cells", "init_channels", "stem", "auxiliary", "auxiliary_weight", "drop_path")
"""Keys of ``retrain.*`` that only networks of cells read."""


def other_method(name: str) -> "type[Method] | None":
    """Return a method's facts; None for the default one, whose are the fields' own.

    Raises ``ConfigError`` for a method that cannot be found or loaded.
    """
    return None if name == DEFAULT_METHOD else search_methods.find(name)


class _NameError(ValueError):
    """A name that cannot be found or loaded, as pydantic passes it on, with the hint."""

    def __init__(self, error: ConfigError) -> None:
        super().__init__(str(error))
        self.hint = error.hint


def _found_by(find: Callable[[str], object]) -> Callable[[str], str]:
    """Return the check of a field that names a registered thing."""

    def check(name: str) -> str:
        try:
            find(name)
        except ConfigError as error:
            raise _NameError(error) from None
        return name

    return check


class RunConfig(Section):
    """Settings of the whole run."""

    seed: Seed = 0
    log: Annotated[
        tuple[Literal["tensorboard", "mlflow", "wandb"], ...],
        Field(max_length=3, strict=False),
        Source("ours: where its package is installed"),
    ] = ("tensorboard",)
    """Where each epoch's numbers go besides the store. MLflow and Weights & Biases get settings,
    versions and the gate's verdict, too, and are found by their own variables
    (MLFLOW_TRACKING_URI, WANDB_MODE). Not part of any artifact."""
    latency_table: Text | None = None
    """The path of a table that d2nas latency measure has written on the device that will serve; for
    limits on latency. Not part of any artifact (the table's digest is)."""


class DataConfig(Section):
    """Images: their source, size, splits and augmentation."""

    name: Annotated[
        Text, AfterValidator(_found_by(data_sets.find)), Source("ours: needs no download")
    ] = "digits"
    """A data set of the table below, or one that other code registers."""
    root: Text | None = None
    """Where the files are: their folder, a manifest of pictures (.csv, .parquet), or hf:NAME and
    hf:FOLDER, for the library datasets. Nothing is downloaded into it. Not part of any artifact
    (the content's digest is)."""
    image_size: Annotated[
        Annotated[int, Field(ge=8, le=512)] | None,
        Source("the data set's own; of a folder by its pictures, ours"),
    ] = None
    """Height and width in pixels; none keeps the data set's own, and of a folder takes the largest
    of 8 to 32, 64, 96, 128, 160, 224 that enlarges at most half of its pictures."""
    channels: Annotated[Literal[1, 3] | None, Source("the data set's own")] = None
    """None decides by the images: 1 if all are grey, else 3."""
    fit: Literal["crop", "pad"] = "crop"
    """How an image comes to image_size: crop scales the shorter side and cuts out the centre; pad
    shrinks what is larger, enlarges nothing, and lays it on black."""
    crop_fraction: Annotated[float, Field(gt=0.0, le=1.0), Source("ours: all")] = 1.0
    """Part of the shorter side that fit=crop keeps (ImageNet's usual 224 of 256: 0.875)."""
    validation_fraction: Annotated[
        float, Field(gt=0.0, lt=1.0), Source("DARTS's code, ROME 4: one half")
    ] = 0.5
    """Part of the training images that the architecture step sees (paper: a half)."""
    test_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Part held out as test images where the data set has none of its own."""
    train_images: Annotated[ImageCount | None, Source("ours: all")] = None
    """Training images kept, by seed, each class by its share; none keeps all (else: a reduced
    protocol)."""
    evaluation: Annotated[
        Literal["test", "held-out"], Source("the data set's test images, once")
    ] = "test"
    """What accuracy is measured on: held-out takes training images and leaves the test unread."""
    held_out_images: ImageCount = 5000
    """How many training images evaluation=held-out takes, each class by its share."""
    split_seed: Seed | None = None
    """Seed of all splits, so that a study's seeds see the same images; none: run.seed."""
    crop: Annotated[Literal["shift", "resized"], Source("DARTS's code")] = "shift"
    """Random crop while training: shift moves the image, resized cuts out 8 to 100 % of it."""
    crop_padding: Annotated[Pixels | Literal["auto"], Source("DARTS's code")] = 4
    """Random shift while training, in pixels (DARTS: 4 at 32 x 32); auto: 4, and of smaller images
    an eighth."""
    flip: Annotated[bool, Source("DARTS's code")] = True
    """Random horizontal flip while training."""
    color_jitter: Annotated[Rate, Source("DARTS's code: none on CIFAR")] = 0.0
    """Random brightness, contrast and saturation by up to this part, hue by half of it."""
    on_error: Literal["stop", "skip"] = "stop"
    """What an image file does that cannot be decoded: stop the run, which names all of them, or
    be left out, counted and named in the report. Skip decodes every image once before a run."""
    stream: Literal["auto", "always", "never"] = "auto"
    """Read image files while training, by worker processes, in place of once into memory. Auto:
    imagenet, what needs more than 8 GiB, and for crop=resized or color_jitter."""
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Worker processes that read a stream, of each training process; 0 reads in that one; none: one
    per core, shared by the training processes."""

    @model_validator(mode="after")
    def _can_be_augmented(self) -> "DataConfig":
        if self.crop == "shift" and not self.color_jitter:
            return self
        key = "crop=resized" if self.crop == "resized" else "color_jitter"
        if not data_sets.find(self.name).is_folder or self.stream == "never":
            raise ValueError(f"data.{key} is for streamed image files (data.name=folder)")
        return self


QUANTITIES = ("latency_ms", "macs", "params")
"""What of a network can be limited, as in ``search.max_macs``."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit on one of ``QUANTITIES``, and the key that sets it."""

    key: str
    quantity: str
    value: float


def _limit_of(section: "SearchConfig | DeriveConfig", name: str) -> Limit | None:
    given = {
        f"{name}.max_{quantity}": (quantity, getattr(section, f"max_{quantity}"))
        for quantity in QUANTITIES
    }
    found = [Limit(key, *one) for key, one in given.items() if one[1] is not None]
    if len(found) > 1:
        raise ValueError(f"{' and '.join(one.key for one in found)}: only one limit is supported")
    return found[0] if found else None


ClassWeights = Literal["none", "balanced", "sqrt"]
Estimator = Literal["straight-through", "score", "mixed"]
Reward = Literal["calibrated", "loss"]
WeightOptimizer = Literal["sgd", "rmsprop"]
Recipe = Literal["recommended", "paper"]
RECIPES: tuple[str, ...] = get_args(Recipe)
DEFAULT_RECIPE: Recipe = "recommended"
PAPERS_METHODS = ("d2nas", "entangled")
"""Methods that a ``recipe`` is of; others have their own, as published."""
LARGEST_RMSPROP_LR = 0.05
"""Largest ``search.weight_lr`` that RMSprop takes: SGD's 0.1 begins far above the loss of chance
(benchmarks/README.md)."""


def fewest_draws(estimator: Estimator) -> int:
    """Return an estimator's smallest ``search.draws``: two where draws are judged by others."""
    return 1 if estimator == "straight-through" else 2


def _weight_lr(search: dict[str, Any]) -> float:
    return 0.05 if search.get("weight_optimizer") == "sgd" else 0.015


def _retrain_lr(retrain: dict[str, Any]) -> float:
    return 1e-3 if retrain.get("optimizer") == "adamw" else 0.025


def _retrain_decay(retrain: dict[str, Any]) -> float:
    return 0.05 if retrain.get("optimizer") == "adamw" else 3e-4


def _warmup_epochs(search: dict[str, Any]) -> int:
    """Return the default for the values of a search that stand before it."""
    if search.get("recipe") == "paper" and search.get("method") in PAPERS_METHODS:
        return 0
    return 3 * int(search.get("epochs", 0)) // 10


class SearchConfig(Section):
    """The search. Defaults: the paper's CIFAR-10 setting."""

    method: Annotated[Text, AfterValidator(_found_by(other_method)), Source("D2NAS")] = (
        DEFAULT_METHOD
    )
    """A search method of the table below, or one that another package registers. Defaults are
    d2nas's; a method may have its own."""
    space: Annotated[Text, Source("DARTS's code, without none as ROME 3.3")] = "S0"
    """S0 to S4, or the path of a TOML file."""
    num_cells: Annotated[Cells, Source("DARTS's code, ROME 4")] = 8
    init_channels: Annotated[Channels, Source("DARTS's code, ROME 4")] = 16
    stem: Annotated[Literal["auto", "cifar", "imagenet"], Source("DARTS's code: by image size")] = (
        "auto"
    )
    """Auto: imagenet from 96 pixels on."""
    recipe: Recipe = DEFAULT_RECIPE
    """Whose settings hold where none are given: the paper's to the letter, or those that
    measurements chose (benchmarks/README.md). A preset says in what it differs."""
    branch_length: Annotated[
        Cells | Literal["num_cells"], Source("D2NAS figure 1, in our reading")
    ] = 1
    """Cells that one branch spans; num_cells is the entangled single-path supernet (ROME), and what
    method=entangled means."""
    branch_head: Literal["linear", "separable"] = "linear"
    """Head of a branch (ours): linear on pooled features, or a separable unit before it."""
    recompute: Literal["none", "cell", "op"] = "none"
    """What the backward pass computes again in place of keeping it; same gradients, less memory."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Type of the features; weights, statistics and sums stay in fp32. tf32: fp32 whose products a
    GPU rounds to 10 bits, faster; fp32 never does."""
    epochs: Annotated[Epochs, Source("ROME 4")] = 50
    warmup_epochs: Annotated[EpochsOrNone, Source("PC-DARTS's code: 15 of 50; paper: none")] = (
        Field(default_factory=_warmup_epochs)
    )
    """Epochs before the architecture moves. Default: three tenths of all, rounded down (PC-DARTS's
    share; for d2nas and entangled, too: ours, benchmarks/small_data.json); 0 with recipe=paper and
    for methods that do not warm up."""
    batch_size: Annotated[Batch, Source("DARTS's code; D2NAS's memory table")] = 64
    image_fraction: Annotated[float, Field(gt=0.0, le=1.0), Source("ours: all")] = 1.0
    """Part of each half's images that the search sees, by class (ImageNet in the paper: 0.2, that
    is 10 % of all for the weights and 10 % for the architecture)."""
    draws: Annotated[Repeats, Source("ROME 4")] = 7
    """K, sub-networks per step and half (paper: 7 on CIFAR, 3 on ImageNet); d2nas and entangled."""
    weight_optimizer: Annotated[WeightOptimizer, Source("ROME 4")] = "sgd"
    """SGD with momentum; or RMSprop (ours), whose step depends neither on how seldom an operation
    is sampled nor on how many losses' gradients are summed."""
    weight_lr: Annotated[LearningRate, Source("ROME 4")] = Field(default_factory=_weight_lr)
    """Default: 0.05; of RMSprop 0.015 (ours)."""
    weight_lr_min: Annotated[LearningRateOrZero, Source("DARTS's code")] = 0.001
    weight_momentum: Annotated[Rate, Source("ROME 4")] = 0.9
    weight_decay: Annotated[Decay, Source("DARTS's code")] = 3e-4
    clip_norm: Annotated[NormLimit, Source("DARTS's code")] = 5.0
    clip: Annotated[Literal["sum", "branch"], Source("DARTS's code, which sums nothing")] = "sum"
    """What clip_norm limits: the gradient summed over a step's draws and branches, or (ours) that
    of one of them, where the sum may have clip_norm times the square root of their number."""
    arch_lr: Annotated[LearningRate, Source("ROME 4")] = 3e-4
    arch_beta1: Annotated[float, Field(ge=0.0, lt=1.0), Source("DARTS's code")] = 0.5
    arch_beta2: Annotated[float, Field(ge=0.0, lt=1.0), Source("DARTS's code")] = 0.999
    arch_weight_decay: Annotated[Decay, Source("DARTS's code")] = 1e-3
    temperature_start: Annotated[Temperature, Source("GDAS")] = 10.0
    """GDAS's schedule, linear by epoch; the paper only says that it falls."""
    temperature_end: Annotated[Temperature, Source("GDAS")] = 0.1
    edge_gate_scale: Literal[1, 2] = 1
    """Factor on the soft edge gates in the backward pass (ours): they sum to 1, two are open."""
    estimator: Annotated[Estimator, Source("D2NAS section 4")] = "straight-through"
    """Estimator of the logits' gradient: straight-through; the score function (ours), of forward
    passes alone; or mixed, that for operations and straight-through for edges."""
    class_weights: Annotated[ClassWeights, Source("DARTS's code: none")] = "none"
    """As retrain.class_weights, in both halves."""
    reward: Reward = "calibrated"
    """What the score function counts, added over a draw's branches: the loss at the temperature
    that suits a branch best, or as it is."""
    training_epochs: Epochs = 5
    """Epochs in which a cell is trained by methods that train one after another, as many as
    search.epochs allow: best-of-n, local-search, regularized-evolution."""
    population: Repeats = 10
    """Youngest cells that are parents; regularized-evolution (default: at most a third of the
    trainings; published, for thousands of them: 100)."""
    sample_size: Repeats = 3
    """Draws from the population whose best is the next parent; regularized-evolution (published:
    25)."""
    cutout: Annotated[Pixels, Source("DARTS's code: none")] = 0
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0), Source("DARTS's code: none")] = 0.0
    """Probability of drop-path at the end, rising linearly from 0 by epoch, of an edge's mixture
    (R-DARTS: 0.2 to 0.6; snas: 0.3 from the first epoch on); methods that weigh all operations."""
    max_latency_ms: Annotated[Milliseconds | None, Source("ours: no limit")] = None
    """Limit on the expected latency of the network to be deployed, by run.latency_table and at its
    batch size: what is sampled keeps it by a price on operations that is solved for, what is
    derived by an exact search."""
    max_macs: Annotated[Count | None, Source("ours: no limit")] = None
    """The same of its multiply-adds for one image."""
    max_params: Annotated[Count | None, Source("ours: no limit")] = None
    """The same of its parameters."""
    latency_weight: Annotated[LossWeight | None, Source("ours: no such term")] = None
    """In place of a limit: this times the expected latency, in ms, is added to what the logits
    minimize (of d2nas the sum over a draw's branches)."""
    device: Device = "auto"

    @property
    def limit(self) -> Limit | None:
        """The limit on the expected cost."""
        return _limit_of(self, "search")

    @model_validator(mode="after")
    def _has_one_cost(self) -> "SearchConfig":
        if self.limit is not None and self.latency_weight is not None:
            raise ValueError("search.latency_weight stands in place of a limit: give one of them")
        return self

    @model_validator(mode="before")
    @classmethod
    def _over_the_methods_own_defaults(cls, values: Any) -> Any:
        name = values.get("method", DEFAULT_METHOD) if isinstance(values, Mapping) else None
        try:
            method = other_method(name) if isinstance(name, str) else None
        except ConfigError:
            return values  # the field tells it
        return values if method is None else method.settings(values)

    @model_validator(mode="after")
    def _learns_at_the_optimizers_rate(self) -> "SearchConfig":
        if self.weight_optimizer == "rmsprop" and self.weight_lr > LARGEST_RMSPROP_LR:
            raise ValueError(
                f"search.weight_lr ({self.weight_lr}) of rmsprop must be at most "
                f"{LARGEST_RMSPROP_LR}: leave it out, or add search.weight_optimizer=sgd"
            )
        return self

    @model_validator(mode="after")
    def _method_computes_in(self) -> "SearchConfig":
        method = other_method(self.method)
        if method is not None and self.precision not in method.precisions:
            supported = " or ".join(method.precisions)
            raise ValueError(f"search.precision must be {supported} for {self.method}")
        return self


class DeriveConfig(Section):
    """Derivation: the most probable cell (ROME 3.3), or the best of several (ours)."""

    genotype: Annotated[GenotypeText | None, Source("ours: searched")] = None
    """A published genotype's name, the path of a file (JSON where it is named .json, else what
    published codes print), or such a printed Genotype(...): taken as it is, without a search."""
    model: Annotated[LibraryNetworkName | None, Source("ours: a network of cells")] = None
    """A network of a library to compare with, in place of one of cells: torchvision:NAME or
    timm:NAME. Nothing is searched, and settings of cells are not read."""
    candidates: Annotated[Repeats, Source("ROME 3.3: the most probable")] = 1
    """Cells to compare on the architecture half, by calibrated loss: the most probable one, and
    samples of the learned distribution; 1 compares nothing (paper)."""
    rank_by: Literal["supernet", "training"] = "supernet"
    """By the supernet's weights, or by a short training of each on the weight half."""
    rank_epochs: Epochs = 5
    """Epochs of that training; its other settings are retrain's."""
    budget: Annotated[TrainingBudget | None, Source("ROME 3.3: the most probable")] = None
    """Such trainings to spend on finding the cell: of the most probable one, of samples, and of
    neighbours of the best, the better half of them again and again, each time from another seed.
    None compares nothing, or candidates."""
    temperature: Annotated[Temperature | None, Source("ROME 3.3: as learned")] = None
    """What logits are divided by before cells are sampled: above 1 they differ more. None: 1, and
    for a budget that at which a sample shares half of its edges with the most probable cell."""
    max_latency_ms: Annotated[Milliseconds | None, Source("search.max_latency_ms")] = None
    """Longest latency that run.latency_table predicts of the network to be trained, at the
    table's batch size: where the derived cell takes longer, it is the best one within the limit, by
    the method's own rule. None: the search's limit, if any."""
    max_macs: Annotated[Count | None, Source("search.max_macs")] = None
    """The same for its multiply-adds for one image."""
    max_params: Annotated[Count | None, Source("search.max_params")] = None
    """The same for its parameters."""
    pareto: Annotated[FrontPoints | None, Source("ours: no front")] = None
    """Cells of a front: the best within so many limits, by latency and by calibrated loss on the
    architecture half (rank_by), with published and random cells in its picture."""

    @property
    def limit(self) -> Limit | None:
        """The limit of its own on the derived cell's cost."""
        return _limit_of(self, "derive")

    @property
    def given(self) -> str | None:
        """The key that names the architecture, which then is not searched."""
        keys = (key for key in ("genotype", "model") if getattr(self, key) is not None)
        return next((f"derive.{key}" for key in keys), None)

    @property
    def compares(self) -> bool:
        """Whether several cells are compared."""
        return self.candidates > 1 or self.budget is not None


_DISTILLATION = "CRD's code (arXiv 1910.10699), for distillation alone"
_Number = TypeVar("_Number")
ByChannel = Annotated[tuple[_Number, ...], Field(min_length=1, max_length=3, strict=False)]


TEACHER_FIELDS = ("teacher_temperature", "teacher_weight", "teacher_mean", "teacher_std")
"""Keys of ``retrain.*`` that say how ``retrain.teacher`` is used."""


class RetrainConfig(Section):
    """Full training of the derived network. Defaults: DARTS's CIFAR-10 recipe."""

    seed: Annotated[Seed | None, Source("ours: run.seed")] = None
    """Seed of weights and batches, to train one found network several times; none: run.seed."""
    pretrained: bool = False
    """Whether derive.model begins with its library's published weights, which that downloads."""
    num_cells: Annotated[Cells, Source("DARTS's code")] = 20
    init_channels: Annotated[Channels, Source("DARTS's code")] = 36
    stem: Annotated[Literal["auto", "cifar", "imagenet"], Source("DARTS's code: by image size")] = (
        "auto"
    )
    auxiliary: Annotated[bool | Literal["auto"], Source("DARTS's code")] = True
    """A second classifier while training. It fits images of 29 to 40 pixels (imagenet stem: 193 to
    256); auto: where it fits."""
    auxiliary_weight: Annotated[LossWeight, Source("DARTS's code")] = 0.4
    epochs: Annotated[Epochs, Source("DARTS's code")] = 600
    warmup_epochs: Annotated[EpochsOrNone, Source("DARTS's code: none")] = 0
    """Linear warm-up of the learning rate."""
    batch_size: Annotated[Batch, Source("DARTS's code")] = 96
    accumulate: Annotated[Batch, Source("DARTS's code: none")] = 1
    """Micro-batches whose gradients make one step: with less memory, the same images, random
    numbers and gradients as a whole batch, but that batch norm sees one micro-batch at a time."""
    optimizer: Annotated[Literal["sgd", "adamw"], Source("DARTS's code")] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: Annotated[LearningRate, Source("DARTS's code")] = Field(default_factory=_retrain_lr)
    """Default: 0.025; of AdamW 0.001 (ours). Those of presets are SGD's."""
    lr_min: Annotated[LearningRateOrZero, Source("DARTS's code")] = 0.0
    lr_schedule: Annotated[
        Literal["cosine", "linear"],
        Source("DARTS's code; that it moves by step, not by epoch, is ours"),
    ] = "cosine"
    """From lr to lr_min after the warm-up; linear is PC-DARTS's on ImageNet, by epoch, to 0."""
    momentum: Annotated[Rate, Source("DARTS's code")] = 0.9
    nesterov: Annotated[bool, Source("DARTS's code")] = False
    weight_decay: Annotated[Decay, Source("DARTS's code")] = Field(default_factory=_retrain_decay)
    """Default: 3e-4; of AdamW 0.05 (ours)."""
    clip_norm: Annotated[NormLimit, Source("DARTS's code")] = 5.0
    ema: Annotated[float | None, Field(gt=0.0, lt=1.0), Source("DARTS's code: none")] = None
    """Share of a moving average of the weights that a step keeps, 0.999 for example; what is
    deployed is the average, which follows faster in the first steps. None: the last weights."""
    patience: Annotated[Epochs | None, Source("DARTS's code: none")] = None
    """Epochs without a lower loss on training images that are held out, after which a training
    stops; what is deployed is the best epoch, of which the learning rate's schedule, that of
    retrain.epochs, may be far from its end. The loss is of the averaged weights where there are
    any, with class_weights, without smoothing, mixing and teacher. None: all images are trained on,
    and the last epoch is deployed; as large as retrain.epochs: never stops, deploys the best."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0), Source("ours: a tenth")] = 0.1
    """Part of each class's training images that patience holds out; test images are not read."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0), Source("DARTS's code: none")] = 0.0
    class_weights: Annotated[ClassWeights, Source("DARTS's code: none")] = "none"
    """Weight of a class in the loss: balanced, one over its training images, or sqrt, the root of
    that."""
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0), Source("DARTS's code")] = 0.2
    """Probability at the end; it rises linearly from 0."""
    cutout: Annotated[Pixels | Literal["auto"], Source("DARTS's code")] = 16
    """Side of the hidden square, in pixels (DARTS: 16 at 32 x 32); auto: 16, and of smaller images
    half."""
    augment: Annotated[Literal["none", "trivial"], Source("DARTS's code: none")] = "none"
    """Trivial: one operation of colour or geometry for each image, of any strength
    (TrivialAugment)."""
    erasing: Annotated[Rate, Source("DARTS's code: none")] = 0.0
    """Probability that a rectangle of an image is erased."""
    mixup: Annotated[float, Field(ge=0.0, le=10.0), Source("DARTS's code: none")] = 0.0
    """Images are added in shares of Beta(mixup, mixup); 0: never."""
    cutmix: Annotated[float, Field(ge=0.0, le=10.0), Source("DARTS's code: none")] = 0.0
    """Rectangles are exchanged, of areas of Beta(cutmix, cutmix); 0: never. Where mixup is above 0,
    too, a coin decides."""
    teacher: Annotated[Text | None, Source("DARTS's code: none")] = None
    """A trained classifier whose answers are learned besides the labels: the path of an ONNX file
    or of a bundle, timm:NAME or timm:NAME@FILE.safetensors. Not part of any artifact (its content's
    digest is)."""
    teacher_temperature: Annotated[Temperature, Source(_DISTILLATION)] = 4.0
    """Divides the logits of both (Hinton et al., arXiv 1503.02531); the teacher's part of the loss
    is its square times the KL divergence from the teacher's probabilities."""
    teacher_weight: Annotated[Rate, Source(_DISTILLATION)] = 0.9
    """Share of the teacher's part in the loss; the labels' part has the rest."""
    teacher_mean: Annotated[
        ByChannel[Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]] | None,
        Source("the teacher's own"),
    ] = None
    """What is subtracted from each channel of the teacher's images, whose values are 0 to 1. None:
    what a model of d2nas or timm says; any other file of prepared images needs it."""
    teacher_std: Annotated[ByChannel[Distance] | None, Source("the teacher's own")] = None
    """What they are then divided by; a mean of 0 and 0.00392157 (1/255) give values 0 to 255."""
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "bf16", "fp16"], Source("DARTS's code")
    ] = "fp32"
    """Type that autocast computes in; weights and sums stay in fp32. tf32: as in the search. Auto:
    on a GPU bf16, or fp16 (with a loss scale) where it has no bf16; on a CPU fp32."""
    compile: bool = False
    """Whether torch.compile prepares the network: minutes at the start, other rounding."""
    device: Device = "auto"

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return self.mixup > 0.0 or self.cutmix > 0.0

    @property
    def micro_batch(self) -> int:
        """Images of a step's smallest micro-batch, in a set as large as a batch at least."""
        return self.batch_size // self.accumulate

    @model_validator(mode="after")
    def _can_be_trained(self) -> "RetrainConfig":
        if self.nesterov and not self.momentum:
            raise ValueError("retrain.nesterov needs a retrain.momentum above 0")
        if self.lr_schedule == "linear" and self.lr_min:
            raise ValueError("retrain.lr_schedule=linear ends at 0: retrain.lr_min must be 0")
        mean, std = self.teacher_mean or (), self.teacher_std or ()
        if len(mean) != len(std):
            raise ValueError(
                "retrain.teacher_mean and retrain.teacher_std must have a number for each channel"
            )
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"retrain.accumulate ({self.accumulate}) must not exceed retrain.batch_size "
                f"({self.batch_size})"
            )
        if self.auxiliary is True and (self.num_cells == 1 or self.batch_size == 1):
            what = "num_cells" if self.num_cells == 1 else "batch_size"
            raise ValueError(f"retrain.auxiliary needs a retrain.{what} of at least 2")
        if self.auxiliary is True and self.micro_batch == 1:
            raise ValueError(
                f"retrain.auxiliary needs micro-batches of at least 2 images: retrain.accumulate "
                f"must be at most {self.batch_size // 2}"
            )
        return self


class Config(Section):
    """A whole run, section by section."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    search: SearchConfig = SearchConfig()
    derive: DeriveConfig = DeriveConfig()
    retrain: RetrainConfig = RetrainConfig()
    export: ExportConfig = ExportConfig()
    validate_: ValidateConfig = Field(default=ValidateConfig(), alias="validate")

    @model_validator(mode="after")
    def _sections_agree(self) -> "Config":
        method = other_method(self.search.method)
        unread = () if method is None else method.unread
        if "warmup_epochs" not in unread and self.search.warmup_epochs >= self.search.epochs:
            raise ValueError(
                f"search.warmup_epochs ({self.search.warmup_epochs}) must be below "
                f"search.epochs ({self.search.epochs})"
            )
        if self.derive.candidates > 1 and self.derive.budget is not None:
            raise ValueError("derive.budget has candidates of its own: derive.candidates must be 1")
        key = "derive.candidates" if self.derive.candidates > 1 else "derive.budget"
        given = self.derive.given
        if self.derive.genotype is not None and self.derive.model is not None:
            raise ValueError("derive.genotype and derive.model exclude each other")
        if self.retrain.pretrained and self.derive.model is None:
            raise ValueError("retrain.pretrained needs derive.model: cells have no such weights")
        if self.derive.compares and given is not None:
            raise ValueError(f"{key} compares cells of a search; {given} is given")
        if self.derive.compares and method is not None and not method.learns_distribution:
            raise ValueError(f"{key}: {self.search.method} learns no distribution to sample from")
        self._check_limits(method)
        reads_temperatures = not {"temperature_start", "temperature_end"} & {*unread}
        if reads_temperatures and self.search.temperature_end > self.search.temperature_start:
            raise ValueError("search.temperature_end must not exceed search.temperature_start")
        estimator = self.search.estimator
        is_read = "estimator" not in unread and given is None
        if is_read and self.search.draws < (fewest := fewest_draws(estimator)):
            raise ValueError(
                f"search.estimator={estimator} needs search.draws of at least {fewest}"
            )
        length = self.search.branch_length
        reads_length = "branch_length" not in unread
        if reads_length and isinstance(length, int) and length > self.search.num_cells:
            raise ValueError(
                f"search.branch_length ({length}) must not exceed search.num_cells "
                f"({self.search.num_cells})"
            )
        return self

    @property
    def derive_limit(self) -> Limit | None:
        """The limit that the derived cell has to keep: that of ``derive``, else the search's."""
        if self.derive.given is not None:
            return None
        return self.derive.limit or self.search.limit

    @property
    def needs_table(self) -> bool:
        """Whether the search or the derivation needs the table of latencies."""
        limits = [limit for limit in (self.search.limit, self.derive.limit) if limit is not None]
        return self.derive.given is None and (
            any(limit.quantity == "latency_ms" for limit in limits)
            or self.search.latency_weight is not None
            or self.derive.pareto is not None
        )

    def _check_limits(self, method: "type[Method] | None") -> None:
        derive, search = self.derive, self.search
        if derive.limit is not None and derive.given is not None:
            raise ValueError(
                f"{derive.limit.key} chooses among cells of a search; {derive.given} is given"
            )
        if derive.pareto is not None:
            self._check_front(method)
        limit = self.derive_limit
        weighs = search.latency_weight is not None and derive.given is None
        if limit is None and not weighs:
            return
        key = "search.latency_weight" if limit is None else limit.key
        if self.needs_table and self.run.latency_table is None:
            raise ValueError(f"{key} needs run.latency_table (d2nas latency measure writes one)")
        if limit is not None and derive.compares:
            raise ValueError(f"{key} is not supported with derive.candidates or derive.budget")
        if method is not None and not method.keeps_limits:
            raise ValueError(f"{key} is not supported for {search.method}")

    def _check_front(self, method: "type[Method] | None") -> None:
        derive = self.derive
        if derive.given is not None:
            raise ValueError(f"derive.pareto shows cells of a search; {derive.given} is given")
        if self.run.latency_table is None:
            raise ValueError("derive.pareto needs run.latency_table")
        if derive.budget is not None:
            raise ValueError("derive.pareto is not supported with derive.budget")
        if method is None:
            return
        if not method.keeps_limits:
            raise ValueError(f"derive.pareto is not supported for {self.search.method}")
        if derive.rank_by == "supernet" and not method.learns_distribution:
            raise ValueError(f"derive.pareto of {self.search.method} needs derive.rank_by=training")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, keys as in ``--set``."""
        return self.model_dump(mode="json", by_alias=True)


def sources_of(given: Mapping[str, str], method: str = DEFAULT_METHOD) -> dict[str, str]:
    """Return ``section.field`` to the source of its value: of the search method's or the field's
    default, where ``given`` has no other.
    """
    defaults = {
        f"{info.alias or name}.{field}": source
        for name, info in Config.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
        for field, source in info.annotation.default_sources().items()
    }
    other = other_method(method)
    if other is not None:
        defaults |= {f"search.{field}": f"search.method={method}" for field in other.settings({})}
    return {key: given.get(key, source) for key, source in defaults.items()}


def parse_override(text: str) -> tuple[str, str, Any]:
    """Split ``section.field=value``; the value is TOML, or a string where it is not."""
    key, separator, raw = text.partition("=")
    section, dot, field = key.strip().partition(".")
    if not separator or not dot or not section or not field:
        raise ConfigError(
            f"--set {shown_value(text)} is not section.field=value",
            hint="for example --set retrain.epochs=10",
        )
    raw = raw.strip()
    return section, field, None if raw == "none" else _parsed(raw)


def _parsed(raw: str) -> Any:
    """Return a TOML value, or the text itself where it is none or more than one."""
    try:
        values = tomllib.loads(f"value = {raw}")
    except (ValueError, RecursionError):  # TOML's own, endless integers, endless nesting
        return raw
    return values["value"] if len(values) == 1 else raw


def override_key(text: str) -> str:
    """Return the key that an override sets, ``section.field``."""
    section, field, _ = parse_override(text)
    return f"{section}.{field}"


def build_config(
    values: Mapping[str, Any], overrides: Iterable[str] = (), *, what: str = "configuration"
) -> Config:
    """Check ``values`` (nested by section) with ``section.field=value`` overrides on top.

    The word none means no value, as in an override, for keys that may have none. Raises
    ``ConfigError`` naming the key, with a suggestion for a misspelt one.
    """
    merged: dict[str, dict[str, Any]] = {}
    for section, fields in values.items():
        if not isinstance(fields, Mapping):
            raise ConfigError(f"{what}: {section} must be a section, not a value")
        merged[section] = {
            field: None if value == "none" and "none" not in _words(section, field) else value
            for field, value in fields.items()
        }
    for override in overrides:
        section, field, value = parse_override(override)
        if value is None and "none" in _words(section, field):
            value = "none"
        merged.setdefault(section, {})[field] = value
    _check_keys(merged, what)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise _first_problem(error, what) from None


def _words(section: str, field: str) -> tuple[str, ...]:
    """Return the words that a field takes, where it takes only some."""
    known = _field(section, field)
    words = [] if known is None else [part for part in _parts(known) if isinstance(part, str)]
    return tuple(words)


def _range(section: str, field: str) -> str | None:
    """Say from where to where a number may be; None for what is no number."""
    known = _field(section, field)
    ends: dict[str, Any] = {}
    for part in () if known is None else _parts(known):
        for name in ("ge", "gt", "le", "lt"):
            if not isinstance(part, str) and getattr(part, name, None) is not None:
                ends[name] = getattr(part, name)
    if not ends.keys() & {"ge", "gt"} or not ends.keys() & {"le", "lt"}:
        return None
    low = f"from {ends['ge']}" if "ge" in ends else f"above {ends['gt']}"
    return (
        f"{low} {'to' if 'ge' in ends else 'and at most'} {ends['le']}"
        if "le" in ends
        else (f"{low} and below {ends['lt']}")
    )


def _field(section: str, field: str) -> FieldInfo | None:
    for name, info in Config.model_fields.items():
        if section == (info.alias or name) and isinstance(info.annotation, type):
            found: FieldInfo | None = info.annotation.model_fields.get(field)
            return found
    return None


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield what a type is made of: the words of its literals, the constraints of its numbers."""
    if isinstance(annotation, FieldInfo):
        yield from annotation.metadata
        yield from () if annotation.annotation is None else _parts(annotation.annotation)
    else:
        for part in get_args(annotation):
            if isinstance(part, str):
                yield part
            else:
                yield from _parts(part)


def _check_keys(values: Mapping[str, Mapping[str, Any]], what: str) -> None:
    known = {
        f"{info.alias or name}.{field}"
        for name, info in Config.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
        for field in info.annotation.model_fields
    }
    sections = {info.alias or name for name, info in Config.model_fields.items()}
    for section, fields in values.items():
        if section not in sections and not fields:
            raise _unknown(section, sections, what)
        for field in fields:
            if f"{section}.{field}" not in known:
                raise _unknown(f"{section}.{field}", known, what)


def _unknown(key: str, known: Iterable[str], what: str) -> ConfigError:
    close = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else "d2nas show --config PRESET lists every key"
    return ConfigError(f"{what}: unknown key {key}", hint=hint)


def _first_problem(error: ValidationError, what: str) -> ConfigError:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"][:2])
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    section, _, field = where.partition(".")
    if not field:
        return ConfigError(f"{what}: {message}")  # it names the keys itself
    if isinstance(given, Mapping):
        return ConfigError(f"{what}: {where}: {message}")
    reason = problem.get("ctx", {}).get("error")
    if isinstance(reason, _NameError):
        return ConfigError(f"{what}: {where}: {message}", hint=reason.hint)  # it names the value
    hint = None
    if problem["type"] == "literal_error" and isinstance(given, str):
        close = difflib.get_close_matches(given[:MAX_TEXT], _words(section, field), n=1)
        hint = f"did you mean {close[0]}?" if close else None
    elif isinstance(given, float) and not math.isfinite(given):
        message = "must be a finite number"
    elif problem["type"].startswith(("greater_than", "less_than", "int_parsing_size")):
        limits = _range(section, field)
        message = message if limits is None else f"must be {limits}"
    return ConfigError(f"{what}: {where}={shown_value(given)}: {_lower_first(message)}", hint=hint)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
