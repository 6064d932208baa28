"""Facts as a terminal shows them: rows of a finished run, of a version, of a configuration.

Plain text; the console escapes what a terminal would obey.
"""

from collections.abc import Mapping
from typing import Any

from d2nas.config import Config
from d2nas.genotype import Genotype

from .facts import Facts
from .latency import latency_rows
from .versions import fact_words, setting_words, space_words, version_rows
from .words import parameterless, size

Rows = list[tuple[str, str]]


def report_rows(report: Mapping[str, Any], bundle: str) -> Rows:
    """Return the closing table of a run as (name, value) rows. Raises what the report lacks."""
    facts = Facts("", 0, report)
    rows = [
        *_cell_rows(report),
        *facts.architecture,
        ("data", facts.images_used),
        ("accuracy", facts.accuracy),
        ("caution", facts.chance and f"accuracy {facts.chance}"),
        *facts.by_class,
        ("parity", facts.parity),
        *((f"int8 {name}", value) for name, value in facts.quantisation),
        ("identity", facts.identity),
        *latency_rows(facts),
        ("latency gate", facts.gate and f"passed: {facts.gate}"),
        ("device", facts.device),
        ("bundle", bundle),
    ]
    return [(name, str(value)) for name, value in rows if value is not None]


def _cell_rows(report: Mapping[str, Any]) -> Rows:
    """Return both cells; nothing of a library's network."""
    if report.get("architecture") is not None:
        return []
    genotype = Genotype.from_dict(report["genotype"])
    return [
        ("normal cell", genotype.describe("normal")),
        ("reduction cell", genotype.describe("reduce")),
        ("parameterless", parameterless(report["parameterless_normal"])),
    ]


def fact_rows(described: Mapping[str, Any]) -> Rows:
    """Return a description as (name, value) rows; what is not known is left out."""
    unfinished = described.get("unfinished")
    so_far = [] if unfinished is None else _so_far_rows(unfinished)
    if "facts" not in described:
        return [("run", described["run"]), *so_far]
    rows = [(key, str(described[key])) for key in ("ref", "id", "path") if described.get(key)]
    rows += so_far
    rows += version_rows(described["facts"])
    rows += [
        (f"from {entry['role']}", f"{entry['ref']} {entry['id']}")
        for entry in described.get("lineage", [])
    ]
    rows += [(f"file {name}", size(num_bytes)) for name, num_bytes in described["files"].items()]
    for section, values in described["config"].items():
        words = space_words(values) if section == "space" else setting_words(values)
        rows.append((f"config {section}", words))
    rows.append(("seed", str(described["seed"])))
    rows.append(("libraries", fact_words(described["libraries"])))
    rows += [(name, fact_words(value)) for name, value in described["note"].items()]
    return rows


def _so_far_rows(unfinished: Mapping[str, Any]) -> Rows:
    """Return the last epoch of a training that has not finished as rows, its cell last."""
    row = dict(unfinished["row"])
    genotype = row.pop("genotype", None)
    rows = [(f"{unfinished['stage']}, not finished", fact_words(row))]
    if genotype is not None:
        rows += [("genotype so far", words) for _, words in version_rows({"genotype": genotype})]
    return rows


def config_rows(config: Config, sources: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return every configuration key with its value, as ``--set`` takes it, and where that comes
    from.
    """
    return [
        (f"{section}.{field}", setting_words(value), sources[f"{section}.{field}"])
        for section, fields in config.to_dict().items()
        for field, value in fields.items()
    ]
