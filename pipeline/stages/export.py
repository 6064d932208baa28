"""Export: trained weights to one ONNX file that says where it came from."""

from d2nas._version import __version__
from d2nas.data import Normalizer
from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.network import DESCRIPTION_FILE, WEIGHTS_FILE, load_network
from d2nas.strict_json import canonical_json, parse_json

from ..onnx_io.export import export_onnx
from ..onnx_io.identity import GENOTYPE_KEY, NETWORK_KEY
from ..onnx_io.model_file import check_model, describe
from ..preprocess import preprocess_for
from . import Context, Facts
from .forms import Preprocess, read_form
from .retrain import PREPROCESS_FILE

MODEL_FILE = "model.onnx"


def run(context: Context) -> Facts:
    """Write ``model.onnx``: weights inside, batch axis free, lineage in its metadata.

    Raises ``ConfigError`` for a genotype with ``noise``, which has no deterministic model.
    """
    derived, retrained = context.inputs["derive"], context.inputs["retrain"]
    network = load_network(retrained.path)
    if any(name == "noise" for name, _ in (*network.genotype.normal, *network.genotype.reduce)):
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
    pixels = normalizer if config.input == "uint8" else None
    data = export_onnx(
        network,
        input_shape=(prepared.channels, size, size),
        opset=config.opset,
        pixels=pixels,
        precision=config.precision,
        metadata={
            "d2nas.version": __version__,
            **{f"d2nas.{role}": parent for role, parent in derived.manifest.parents.items()},
            "d2nas.derive": derived.id,
            "d2nas.retrain": retrained.id,
            "d2nas.weights_sha256": retrained.manifest.files[WEIGHTS_FILE].sha256,
            "d2nas.data_digest": str(retrained.manifest.facts["data_digest"]),
            "d2nas.seed": str(retrained.manifest.seed),
            GENOTYPE_KEY: network.genotype.to_json().strip(),
            NETWORK_KEY: canonical_json(description).decode().strip(),
            "d2nas.preprocess": canonical_json(preprocess_for(config.input, preprocess))
            .decode()
            .strip(),
        },
    )
    context.work.write(MODEL_FILE, data)
    context.hooks.advance(1, None)
    facts = describe(check_model(data, what=MODEL_FILE)).to_dict()
    return {"bytes": len(data), "precision": config.precision, **facts}
