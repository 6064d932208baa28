"""Derive: architecture logits to the most probable genotype, its cost and its drawing."""

from d2nas.cost import MACS_CONVENTION, count_cost
from d2nas.methods import derive_for
from d2nas.network import Network, load_weights
from d2nas.sampling import ArchLogits
from d2nas.spaces import SearchSpace
from d2nas.strict_json import canonical_json

from ..drawing import draw_genotype
from ..store.codec import decode_tensors
from . import Context, Facts
from .search import LOGITS_FILE

GENOTYPE_FILE = "genotype.json"
COST_FILE = "cost.json"
DRAWING_FILE = "genotype.svg"


def run(context: Context) -> Facts:
    """Write ``genotype.json``, ``cost.json`` (at the CIFAR-10 size) and ``genotype.svg``."""
    search = context.inputs["search"]
    space = SearchSpace.from_dict(search.manifest.facts["searched_space"])
    logits = ArchLogits(space)
    what = f"{search.reference}: {LOGITS_FILE}"
    load_weights(logits, decode_tensors(search.read(LOGITS_FILE), what=what), what=what)
    context.hooks.begin(1, 0, "genotype")
    genotype = derive_for(search.manifest.config["search"]["method"], logits)
    cost = count_cost(Network(genotype), (3, 32, 32))
    context.work.write(GENOTYPE_FILE, genotype.to_json().encode())
    context.work.write(
        COST_FILE,
        canonical_json(
            {
                "setting": "20 cells, 36 channels, 3 x 32 x 32 pixels, 10 classes",
                "params": cost.params,
                "macs": cost.macs,
                "macs_convention": MACS_CONVENTION,
            }
        ),
    )
    context.work.write(DRAWING_FILE, draw_genotype(genotype).encode())
    context.hooks.advance(1, None)
    return {
        "genotype": genotype.to_dict(),
        "genotype_digest": genotype.digest,
        "parameterless_normal": genotype.parameterless_normal,
        "params_20x36": cost.params,
        "macs_20x36": cost.macs,
    }
