"""Export: trained weights to one ONNX file that says where it came from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from d2nas._version import __version__
from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.files.strict_json import canonical_json, parse_json

from ..store.forms import Form, read_form
from .retrain import PREPROCESS_FILE
from .stage import Context, Facts, Stage

if TYPE_CHECKING:
    from d2nas.config import Config
    from d2nas.data.images import Normalizer
    from d2nas.nn.library_network import LibraryNetwork
    from d2nas.nn.network import Network


SECONDS_PER_CELL = 0.8
"""Rule of thumb."""


def run(context: Context) -> Facts:
    """Write ``model.onnx``: weights inside, batch axis free, lineage in its metadata; of a model in
    8-bit integers also the float32 one that it was made of.

    Raises ``ConfigError`` for a genotype with ``noise``, which has no deterministic model.
    """
    import torch

    from d2nas.data.images import Normalizer
    from d2nas.nn.library_network import LibraryNetwork
    from d2nas.nn.network import DESCRIPTION_FILE, Network, load_network
    from d2nas.train.loop import memory_errors

    from ..identity.check import GRAPH_KEY
    from ..identity.graph_digest import graph_digest
    from ..onnx_io import FLOAT32_FILE, MODEL_FILE
    from ..onnx_io.export import EXAMPLE_BATCH, export_onnx
    from ..onnx_io.model_file import check_model, describe, with_metadata
    from ..onnx_io.preparation import Preprocess

    retrained = context.inputs["retrain"]
    network = load_network(retrained.path)
    if isinstance(network, Network) and network.genotype.has_noise:
        raise ConfigError(
            "a genotype with noise cannot be exported: its answers are random",
            hint="search in another space, for example search.space=S3",
        )
    context.hooks.begin(1, 0, "model")
    preprocess = parse_json(retrained.read(PREPROCESS_FILE), what=PREPROCESS_FILE)
    description = parse_json(retrained.read(DESCRIPTION_FILE), what=DESCRIPTION_FILE)
    prepared = read_form(Preprocess, retrained, PREPROCESS_FILE)
    if prepared.channels != description["in_channels"]:
        raise DamagedArtifactError(
            f"{retrained.path}: {PREPROCESS_FILE}: {prepared.channels} channels, but the network "
            f"takes {description['in_channels']}",
            hint=retrained.content.hint,
        )
    config, size = context.config.export, prepared.image_size
    normalizer = Normalizer(tuple(prepared.mean), tuple(prepared.std))
    with memory_errors(EXAMPLE_BATCH, torch.device("cpu"), hint="free memory, then export again"):
        data = export_onnx(
            network,
            input_shape=(prepared.channels, size, size),
            opset=config.opset,
            pixels=normalizer if config.input == "uint8" else None,
            precision=config.float_precision,
            metadata=_lineage(context, network, description, preprocess),
        )
    if isinstance(network, LibraryNetwork):
        # Of the finished graph, which no metadata is part of.
        data = with_metadata(data, GRAPH_KEY, graph_digest(check_model(data, what=MODEL_FILE)))
    calibrated: Facts = {}
    if config.precision == "int8":
        context.work.write(FLOAT32_FILE, data)
        data, calibrated = _quantised(context, data, normalizer)
    context.work.write(MODEL_FILE, data)
    context.hooks.advance(1, None)
    facts = describe(check_model(data, what=MODEL_FILE)).to_dict()
    return {"bytes": len(data), "precision": config.precision, **calibrated, **facts}


def _quantised(context: Context, model: bytes, normalizer: "Normalizer") -> tuple[bytes, Facts]:
    """Return ``model`` in 8-bit integers, and by which images."""
    from ..onnx_io.quantisation import METHOD, quantise, weight_bits
    from .calibration import calibration_images

    calibration, bits = calibration_images(context, normalizer), weight_bits()
    data = quantise(model, calibration.batches(), bits=bits)
    facts = {**calibration.facts(), "method": METHOD, "weight_bits": bits}
    return data, {"calibration": facts}


def _lineage(
    context: Context,
    network: "Network | LibraryNetwork",
    description: Mapping[str, Any],
    preprocess: Mapping[str, Any],
) -> dict[str, str]:
    """Return what the file says of itself: where it came from, and how images are prepared."""
    from d2nas.nn.network import WEIGHTS_FILE, Network

    from ..identity.check import GENOTYPE_KEY, LIBRARY_KEY, NETWORK_KEY
    from ..onnx_io.preparation import PREPROCESS_KEY, preprocess_for

    derived, retrained = context.inputs["derive"], context.inputs["retrain"]
    prepared = preprocess_for(context.config.export.input, preprocess)
    if isinstance(network, Network):
        architecture = {
            GENOTYPE_KEY: network.genotype.to_json().strip(),
            NETWORK_KEY: canonical_json(description).decode().strip(),
        }
    else:
        architecture = {LIBRARY_KEY: network.name}
    return {
        "d2nas.version": __version__,
        **{f"d2nas.{role}": parent for role, parent in derived.manifest.parents.items()},
        "d2nas.derive": derived.id,
        "d2nas.retrain": retrained.id,
        "d2nas.weights_sha256": retrained.manifest.files[WEIGHTS_FILE].sha256,
        "d2nas.data_digest": str(retrained.manifest.facts["data_digest"]),
        "d2nas.seed": str(retrained.manifest.seed),
        **architecture,
        PREPROCESS_KEY: canonical_json(prepared).decode().strip(),
    }


def _own_config(config: "Config") -> dict[str, Any]:
    """Return the section, without what other precisions do not read: their versions have no such
    key.
    """
    own: dict[str, Any] = config.to_dict()["export"]
    if config.export.precision != "int8":
        del own["calibration_images"]
    return {"export": own}


class _Facts(Form):
    precision: Literal["fp32", "fp16", "int8"]


STAGE = Stage(
    name="export",
    parents=("derive", "retrain"),
    code_schema=5,
    run=run,
    own_config=_own_config,
    reads_data=lambda config: config.export.precision == "int8",
    rough_seconds=lambda config: 5.0 + SECONDS_PER_CELL * config.retrain.num_cells,
    facts=_Facts,
)
