"""Models that can teach: ONNX files, and networks of timm."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from d2nas.config import RetrainConfig
from d2nas.errors import ConfigError, DamagedArtifactError, brief_reason
from d2nas.files.strict_json import parse_json
from d2nas.files.tensors import decode_tensors
from d2nas.telemetry import disable_hub_telemetry

from ..onnx_io.foreign import ForeignModel
from ..onnx_io.preparation import PREPROCESS_KEY, Preprocess
from ..store.manifest import problem_of
from .classes import names_beside, names_in
from .preparation import Input, layout_of
from .source import Source, digest_of, read_source

Numbers = tuple[float, ...] | None


@dataclass(frozen=True)
class Model:
    """A model on its device: its input, its classes where it names them, the SHA-256 of its file or
    weights. ``answer`` returns float32 (N, outputs) for what ``Preparation`` returns.
    """

    input: Input
    class_names: Sequence[str] | None
    digest: str
    answer: Callable[[Tensor], Tensor]


def open_model(source: Source, config: RetrainConfig, device: torch.device, classes: int) -> Model:
    """Open a teacher on ``device``; ``classes``: how many a network of timm with weights of its own
    is built for.

    Raises ``ConfigError``, ``DamagedArtifactError``, ``OutOfMemoryError``, ``StorageError``.
    """
    given = config.teacher_mean, config.teacher_std
    if source.kind == "timm":
        return _timm_model(source, given, device, classes)
    return _onnx_model(source, given, device)


def _onnx_model(source: Source, given: tuple[Numbers, Numbers], device: torch.device) -> Model:
    data, what = read_source(source), f"retrain.teacher: {source.name}"
    model = ForeignModel(
        data,
        cuda_index=(device.index or 0) if device.type == "cuda" else None,
        num_threads=torch.get_num_threads(),
        what=what,
    )
    layout, channels, size = layout_of(model.axes, what)
    own, (mean, std) = _own_words(model, what), given
    if own is not None and mean is None and model.dtype != np.uint8:
        mean, std = tuple(own.mean), tuple(own.std)
    names = names_in(model.metadata, what) or names_beside(source)
    if own is not None:
        names = own.class_names

    def answer(images_NCHW: Tensor) -> Tensor:
        if layout == "NHWC":
            images_NCHW = images_NCHW.permute(0, 2, 3, 1)
        images = images_NCHW.cpu().numpy().astype(model.dtype, copy=False)
        answers = model.run(images, num_threads=torch.get_num_threads())
        return torch.from_numpy(answers).to(images_NCHW.device)

    wanted = Input(layout, channels, size, model.dtype.name, mean, std)  # type: ignore[arg-type]
    return Model(wanted, names, hashlib.sha256(data).hexdigest(), answer)


def _own_words(model: ForeignModel, what: str) -> Preprocess | None:
    """Return what a model of d2nas says of its preparation and classes; None of any other."""
    text = model.metadata.get(PREPROCESS_KEY)
    if text is None:
        return None
    try:
        return Preprocess.model_validate(parse_json(text, what=f"{what}: {PREPROCESS_KEY}"))
    except ValidationError as error:
        problem = f"{PREPROCESS_KEY}: {problem_of(error)}"
        raise DamagedArtifactError(f"{what}: {problem}") from None


def _timm_model(
    source: Source, given: tuple[Numbers, Numbers], device: torch.device, classes: int
) -> Model:
    what = f"retrain.teacher: timm:{source.name}"
    disable_hub_telemetry()
    try:
        from timm.data import resolve_model_data_config
    except ImportError as error:
        raise ConfigError(
            f"{what}: timm cannot be imported ({brief_reason(error)})",
            hint="pip install '.[timm]' in the clone",
        ) from error
    network = build_timm(source, classes, what)
    known = resolve_model_data_config(network)
    channels, height, width = known["input_size"]
    mean, std = given
    if mean is None:
        mean, std = tuple(known["mean"]), tuple(known["std"])
    if source.file is None:
        digest = _digest_of_weights(network)
        names = _timm_names(network)
    else:
        digest, names = digest_of(source.file), names_beside(source)
    network.requires_grad_(False).eval().to(device)

    def answer(images_NCHW: Tensor) -> Tensor:
        found: Tensor = network(images_NCHW)
        return found.float()

    wanted = Input("NCHW", channels, (height, width), "float32", mean, std)
    return Model(wanted, names, digest, answer)


def build_timm(source: Source, classes: int, what: str) -> nn.Module:
    """Return a network of timm with its published weights, or with those of the source's file."""
    import timm

    try:
        with torch.random.fork_rng(devices=[]):
            if source.file is None:
                network = timm.create_model(source.name, pretrained=True)
            else:
                network = timm.create_model(source.name, num_classes=classes)
                weights = decode_tensors(read_source(source), what=str(source.file))
                network.load_state_dict(weights)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        # Unknown names, absent weights and failed downloads: all of them by these.
        raise ConfigError(f"{what}: {brief_reason(error, 300)}") from error
    assert isinstance(network, nn.Module)
    return network


def _timm_names(network: nn.Module) -> list[str] | None:
    """Return the classes of published weights: those that they name, or ImageNet's by WordNet's
    numbers, as folders of ImageNet are called.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    names = getattr(network, "pretrained_cfg", {}).get("label_names")
    if names:
        return [*names]
    subset = infer_imagenet_subset(network)
    return None if subset is None else [*ImageNetInfo(subset).label_names()]


def _digest_of_weights(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        values = value.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode())
        digest.update(
            values.view(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
        )
    return digest.hexdigest()
