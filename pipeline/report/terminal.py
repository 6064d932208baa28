"""Facts as a terminal shows them: rows of a finished run, of a version, of a configuration.

Plain text; the console escapes what a terminal would obey.
"""

from collections.abc import Mapping
from typing import Any

from d2nas.config import Config
from d2nas.errors import ConfigError
from d2nas.genotype import NUM_PAIRS, Genotype
from d2nas.spaces import CELL_TYPES, SPACES

from .facts import Facts
from .latency import latency_rows

Rows = list[tuple[str, str]]


def report_rows(report: Mapping[str, Any], bundle: str) -> Rows:
    """Return the closing table of a run as (name, value) rows. Raises what the report lacks."""
    facts, genotype = Facts("", 0, report), Genotype.from_dict(report["genotype"])
    parameterless = report["parameterless_normal"]
    rows = [
        ("normal cell", genotype.describe("normal")),
        ("reduction cell", genotype.describe("reduce")),
        ("parameterless", f"{parameterless} of {NUM_PAIRS} operations in the normal cell"),
        *facts.architecture,
        ("data", facts.images_used),
        ("accuracy", facts.accuracy),
        ("caution", facts.chance and f"accuracy {facts.chance}"),
        ("parity", facts.parity),
        *latency_rows(facts),
        ("latency gate", facts.gate and f"passed: {facts.gate}"),
        ("device", facts.device),
        ("bundle", bundle),
    ]
    return [(name, str(value)) for name, value in rows if value is not None]


def fact_rows(described: Mapping[str, Any]) -> Rows:
    """Return a description as (name, value) rows."""
    unfinished = described.get("unfinished")
    so_far = [] if unfinished is None else _so_far_rows(unfinished)
    if "facts" not in described:
        return [("run", described["run"]), *so_far]
    rows = [(key, str(described[key])) for key in ("ref", "id", "path") if described.get(key)]
    rows += so_far
    rows += [(name, _fact(name, value)) for name, value in described["facts"].items()]
    rows += [
        (f"from {entry['role']}", f"{entry['ref']} {entry['id']}")
        for entry in described.get("lineage", [])
    ]
    rows += [(f"file {name}", f"{size:,} bytes") for name, size in described["files"].items()]
    for section, values in described["config"].items():
        rows.append((f"config {section}", _fact(section, values)))
    rows.append(("seed", str(described["seed"])))
    rows.append(("libraries", _value(described["libraries"])))
    rows += [(name, _value(value)) for name, value in described["note"].items()]
    return rows


def _so_far_rows(unfinished: Mapping[str, Any]) -> Rows:
    """Return the last epoch of a training that has not finished as rows, its cell last."""
    row = dict(unfinished["row"])
    genotype = row.pop("genotype", None)
    rows = [(f"{unfinished['stage']}, not finished", _value(row))]
    if genotype is not None:
        try:
            rows.append(("genotype so far", _fact("genotype", genotype)))
        except ConfigError:  # not what d2nas writes; it is shown all the same
            rows.append(("genotype so far", _value(genotype)))
    return rows


def config_rows(config: Config, sources: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return every configuration key with its value and where that comes from."""
    return [
        (f"{section}.{field}", _value(value), sources[f"{section}.{field}"])
        for section, fields in config.to_dict().items()
        for field, value in fields.items()
    ]


def _fact(name: str, value: Any) -> str:
    """Return a value as text: a search space by its name, a genotype by its cells."""
    if name in ("space", "searched_space"):
        known = [space.to_dict() for one in SPACES.values() for space in (one, one.with_none())]
        return str(value["name"]) if value in known else _value(value)
    if name == "genotype":
        genotype = Genotype.from_dict(value)
        return "; ".join(f"{cell} {genotype.describe(cell)}" for cell in CELL_TYPES)
    return _value(value)


def in_words(facts: Mapping[str, Any]) -> str:
    """Return a version's facts in a line of ``ls``."""
    try:
        return _formatted(facts)
    except (KeyError, TypeError, ValueError):  # not what d2nas writes; it is shown all the same
        return _value(facts)


def _formatted(facts: Mapping[str, Any]) -> str:
    known = (
        ("step", "step {}"),
        ("arch_accuracy", "architecture half {:.3f}"),
        ("parameterless_normal", f"parameterless {{}} of {NUM_PAIRS}"),
        ("train_accuracy", "training accuracy {:.4f}"),
        ("params", "{:,} parameters"),
        ("num_nodes", "{} nodes"),
        ("relative_l2", "parity {:.1e}"),
    )
    words = [text.format(facts[key]) for key, text in known if facts.get(key) is not None]
    if isinstance(facts.get("accuracy"), dict):
        words.insert(
            0, f"{facts.get('evaluation', 'test')} accuracy {facts['accuracy']['onnx']:.4f}"
        )
    elif "evaluation" in facts:
        images = f"{facts['images']:,} {facts['evaluation']} images"
        words.insert(0, f"accuracy {facts['accuracy']:.4f} on {images}")
    return ", ".join(words)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_value(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return str(value)
