"""Is the architecture of a model the one that its metadata claims?

Parity says that a model computes what the trained network computes; this says, from the ONNX file
alone and without torch, that it is the network of that genotype. The names of nodes are not
trusted: the graph is read as an expression (``graph_reader``), and the genotype's network is laid
over it (``layout``, where it stands why that is a proof).

A network of a library is no genotype's: of it the digest of its graph is compared with the one that
the model says, and by the gate with that of the library's network exported anew.

Weights are matched, not compared: each convolution of the network needs weights of its own in the
graph. What cannot be told apart is the same function for some weights: nodes of the cell in another
order where nothing shows it, or states that are equal because no weights stand before them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from d2nas.errors import ConfigError, ValidationFailedError
from d2nas.files.strict_json import parse_json
from d2nas.genotype import Genotype

from ..onnx_io.model_file import check_model, lineage
from .explain import describe_value, explain_cell
from .expressions import Value, reachable
from .graph_digest import graph_digest
from .graph_reader import read_graph
from .layout import DEPLOYED_OPERATIONS, CellLayout, Claim, fit_cell, lay, shared_weights
from .quantised import unquantised

GENOTYPE_KEY = "d2nas.genotype"
NETWORK_KEY = "d2nas.network"
LIBRARY_KEY = "d2nas.architecture"
"""In place of both: the name of a library's network."""
GRAPH_KEY = "d2nas.graph_sha256"
_SIZES = ("num_cells", "init_channels", "num_classes", "in_channels")
_MAX_SIZES = {"num_cells": 1000}
_MAX_SIZE = 1_000_000
_HINT = "the model is not what its metadata says: export it again, d2nas export RUN"


@dataclass(frozen=True)
class IdentityReport:
    """A model whose graph was found to be its genotype's network, and how much was compared.

    Nothing was where the genotype has ``unknown`` operations, registered ones: what their graphs
    are is not described here.
    """

    genotype_digest: str | None
    """None of a library's network."""
    num_cells: int = 0
    num_convolutions: int = 0
    num_pools: int = 0
    unknown: tuple[str, ...] = ()
    graph_sha256: str | None = None
    """Digest of the graph of a library's network."""

    @property
    def not_checked(self) -> str | None:
        """Why nothing was compared; None where it was."""
        if not self.unknown:
            return None
        return f"the graphs of {', '.join(self.unknown)} are not known to the identity check"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        if self.graph_sha256 is not None:
            return {
                "verdict": "passed",
                "graph_sha256": self.graph_sha256,
                "convolutions": self.num_convolutions,
            }
        compared = {
            "verdict": "passed",
            "genotype_digest": self.genotype_digest,
            "cells": self.num_cells,
            "convolutions": self.num_convolutions,
            "pools": self.num_pools,
        }
        if self.not_checked is None:
            return compared
        return compared | {"verdict": "not checked", "reason": self.not_checked}


def check_identity(model: onnx.ModelProto | bytes) -> IdentityReport:
    """Check that ``model`` is the network of its ``d2nas.genotype`` and ``d2nas.network``; with
    registered operations the report says that this was not checked. Of a library's network it is
    checked that its graph has the digest that its ``d2nas.graph_sha256`` says.

    ``model`` is a file's bytes, or what ``check_model`` returned. Raises ``ValidationFailedError``
    naming the cell, node and operation that differ, ``DamagedArtifactError`` for bytes that are
    no model and metadata that is no JSON.
    """
    parsed = check_model(model, what="model") if isinstance(model, bytes) else model
    said = lineage(parsed)
    if LIBRARY_KEY in said and GENOTYPE_KEY in said:
        raise ValidationFailedError(
            f"identity: the model's metadata has {GENOTYPE_KEY} and {LIBRARY_KEY}", hint=_HINT
        )
    if LIBRARY_KEY in said:
        return _check_digest(parsed, said)
    claim = read_claim(said)
    used = {name for name, _ in (*claim.genotype.normal, *claim.genotype.reduce)}
    unknown = tuple(sorted(used.difference(DEPLOYED_OPERATIONS)))
    if unknown:
        return IdentityReport(claim.genotype.digest, claim.num_cells, unknown=unknown)
    logits = read_graph(parsed)
    fit_network(claim, logits)
    kinds = [value.kind for value in reachable(logits)]
    return IdentityReport(
        genotype_digest=claim.genotype.digest,
        num_cells=claim.num_cells,
        num_convolutions=kinds.count("conv"),
        num_pools=kinds.count("max_pool") + kinds.count("avg_pool"),
    )


def _check_digest(model: onnx.ModelProto, said: Mapping[str, str]) -> IdentityReport:
    found = graph_digest(unquantised(model))
    if said.get(GRAPH_KEY) != found:
        raise _differs(f"the graph is not that of {said[LIBRARY_KEY][:80]}: its digest is another")
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    return IdentityReport(None, num_convolutions=convolutions, graph_sha256=found)


def read_claim(metadata: Mapping[str, str]) -> Claim:
    """Return what metadata claims. Raises ``ValidationFailedError`` if that is no network."""
    for key in (GENOTYPE_KEY, NETWORK_KEY):
        if key not in metadata:
            raise ValidationFailedError(
                f"identity: the model's metadata has no {key}", hint="d2nas export RUN writes it"
            )
    network = parse_json(metadata[NETWORK_KEY], what=NETWORK_KEY)
    if not isinstance(network, dict) or set(network) != {"genotype", "stem", *_SIZES}:
        raise ValidationFailedError(f"identity: {NETWORK_KEY} is no description of a network")
    try:
        genotype = Genotype.from_json(metadata[GENOTYPE_KEY], what=GENOTYPE_KEY)
        same = Genotype.from_dict(network["genotype"], what=NETWORK_KEY) == genotype
    except ConfigError as error:
        raise ValidationFailedError(f"identity: {error}", hint=error.hint) from None
    if not same:
        raise ValidationFailedError(f"identity: {GENOTYPE_KEY} and {NETWORK_KEY} differ")
    for key in _SIZES:
        most = _MAX_SIZES.get(key, _MAX_SIZE)
        if type(network[key]) is not int or not 1 <= network[key] <= most:
            raise ValidationFailedError(f"identity: {key}={network[key]!r} is not a size")
    if network["stem"] not in ("cifar", "imagenet"):
        raise ValidationFailedError(f"identity: unknown stem {str(network['stem'])[:40]!r}")
    for name, _ in (*genotype.normal, *genotype.reduce):
        if name == "noise":
            raise ValidationFailedError("identity: a network with noise is never exported")
    return Claim(genotype, stem=network["stem"], **{key: network[key] for key in _SIZES})


@dataclass(frozen=True)
class _Place:
    """A cell to be laid: its output, the output of the cell before it, if known, and what lies."""

    output: Value
    previous: Value | None
    layers: tuple[Value, ...]


def fit_network(claim: Claim, logits: Value) -> None:
    """Lay the claimed network over ``logits``, from the classifier to the images.

    Raises ``ValidationFailedError`` naming the first place, seen from there, that differs.
    """
    if logits.kind != "linear" or logits.shape != (claim.num_classes,):
        raise _differs(
            f"the output is {describe_value(logits)}, not a classifier of {claim.num_classes}"
        )
    (features,) = logits.inputs[0].inputs
    places = [_Place(features, None, (logits,))]
    for layout in reversed(claim.cells()):
        found = [later for place in places for later in _before(layout, place)]
        if not found:
            raise _differs(explain_cell(layout, places[0].output, places[0].previous))
        # Ways that agree on what is left to lay are one.
        unique = {(place.output.number, _number(place.previous)): place for place in found}
        places = list(unique.values())
    fitting = [place for place in places if _is_stem(claim, place)]
    if not fitting:
        raise _differs(
            f"the first cell reads {describe_value(places[0].output)}, "
            f"not the {claim.stem} stem of {claim.in_channels}-channel images"
        )
    shared = shared_weights(fitting[0].layers)
    if shared is not None:
        raise _differs(
            f"{describe_value(shared[0])} and {describe_value(shared[1])} share their weights"
        )


def _before(layout: CellLayout, place: _Place) -> list[_Place]:
    """Return where the cell before ``layout``'s stands, for each way to lay the latter."""
    return [
        _Place(fit.inputs[1], fit.inputs[0], (*place.layers, *fit.convs))
        for fit in fit_cell(layout, place.output)
        if place.previous is None or fit.inputs[1] is place.previous
    ]


def _number(value: Value | None) -> int:
    return -1 if value is None else value.number


def _is_stem(claim: Claim, place: _Place) -> bool:
    to_first, to_second = claim.stem_layers()
    second = lay(to_second, place.output)
    if second is None or second.leaf is not place.previous:
        return False
    first = lay(to_first, second.leaf)
    return (
        first is not None
        and first.leaf.kind == "images"
        and first.leaf.shape[0] == claim.in_channels
    )


def _differs(what: str) -> ValidationFailedError:
    return ValidationFailedError(f"identity: {what}", hint=_HINT)
