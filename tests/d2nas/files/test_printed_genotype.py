"""Printed genotypes: every style of the published codes, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
from printed_genotypes import printed

from d2nas import Genotype
from d2nas.config import build_config
from d2nas.errors import ConfigError
from d2nas.files.printed_genotype import MAX_CHARACTERS, parse_printed
from d2nas.genotype import PUBLISHED, genotype_name, read_genotype

V2 = Genotype.published("DARTS_V2")
STYLES: dict[str, dict[str, Any]] = {
    "as DARTS prints": {},
    "as DARTS's file": {"start": "DARTS_V2 = "},
    "lists": {"concat": "[2, 3, 4, 5]", "pairs": "[]"},
    "a tuple of nodes, double quotes": {"concat": "(2, 3, 4, 5)", "quote": '"'},
    "a comment": {"end": "  # 97.24 %, Genotype() of 'V2'"},
    "a long range": {"concat": "range(2, 6, 1)", "end": "\n\n"},
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "name", [name for name in PUBLISHED if Genotype.published(name).nodes == V2.nodes]
)
def test_every_style_is_read(name: str, style: str) -> None:
    genotype = Genotype.published(name)
    assert Genotype.from_string(printed(genotype, **STYLES[style])) == genotype


def test_lines_and_unnamed_arguments_are_read() -> None:
    text = printed(V2).replace("), (", "),\n    (").replace("normal=[", "\n  normal=[\n")
    assert Genotype.from_string(text) == V2
    unnamed = printed(V2)
    for name in ("normal_concat=", "reduce_concat=", "normal=", "reduce="):
        unnamed = unnamed.replace(name, "")
    assert Genotype.from_string(unnamed) == V2
    normal, reduce = printed(V2)[9:-1].split(", reduce=")
    assert Genotype.from_string(f"Genotype(reduce={reduce}, {normal})") == V2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sep_conv_3x3", "mbconv", "unknown operation 'mbconv'"),
        ("sep_conv_3x3", "none", "none is not supported"),
        ("range(2, 6)", "range(2, 7)", "normal_concat"),
        ("range(2, 6)", "range(2, 100000000)", "bounds are integers up to 100"),
        ("reduce=[", "reduce_concat=[", "reduce is missing|reduce_concat is there twice|repeated"),
        ("normal=[", "normal=[('skip_connect', 0), ('skip_connect', 1), ", "10 edges, not 8"),
        ("reduce=", "other=", "unknown argument 'other'"),
        ("reduce=", "normal=", "normal is there twice|keyword argument repeated"),
        ("range(2, 6)", "range(2, __import__('os').getpid())", r"invalid in line 1: '\.getpid"),
        ("range(2, 6)", "sorted([2, 3, 4, 5])", "not a list, a tuple or a range"),
        ("range(2, 6)", "[i for i in (2, 3)]", "invalid in line 1: 'for'"),
        ("range(2, 6)", "[[[[[2]]]]]", "nested too deeply"),
        ("Genotype(", "lambda: Genotype(", "invalid in line 1: 'lambda'"),
        ("Genotype(", "a = b = Genotype(", "not Genotype"),
        ("Genotype(", "Genotype(Genotype(", "invalid"),
        ("('", "(f'", "invalid in line 1"),
        ("3', 1)", "3', 1 ** 9)", "invalid in line 1"),
        ("3', 1)", "3', True)", "invalid in line 1: 'True'"),
        ("3', 1)", "3\\x41', 1)", "invalid in line 1"),
    ],
)
def test_what_is_no_genotype_is_refused_with_its_reason(old: str, new: str, message: str) -> None:
    text = printed(V2)
    assert old in text
    with pytest.raises(ConfigError, match=message):
        Genotype.from_string(text.replace(old, new, 1), what="the cell")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "DARTS_V2",
        "Genotype",
        "Genotype()",
        "Genotype(*[])",
        "Genotype(**{})",
        "Genotype(normal=[(((((((((((((((((1)))))))))))))))))])",
        "Genotype(" + "[" * 5_000 + "]" * 5_000 + ")",
        "Genotype(" + "(" * 9_000,
        "Genotype" + "()" * 9_000,
        "Genotype" + "[0]" * 6_000,
        "Genotype(normal=[\0])",
        "Genotype(normal=['a\nb'])",
        "x = Genotype(normal=[]); y = 1",
        "import os\nGenotype(normal=[])",
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Genotype.from_string(text)


def test_a_long_text_is_not_parsed() -> None:
    padded = printed(V2) + "#" * MAX_CHARACTERS
    with pytest.raises(ConfigError, match="characters are not supported"):
        Genotype.from_string(padded)
    assert parse_printed(padded[:MAX_CHARACTERS], what="x")[0] is None  # control


def test_a_genotype_is_given_by_name_file_or_text(tmp_path: Path) -> None:
    text, path = tmp_path / "cell.txt", tmp_path / "cell.json"
    text.write_text(printed(V2, start="FOUND = "))
    path.write_text(V2.to_json())
    ways = ("DARTS_V2", str(text), str(path), printed(V2), printed(V2, start="\nX = "))
    assert {read_genotype(given) for given in ways} == {V2}
    assert [genotype_name(given) for given in ways[:3]] == ["DARTS_V2", "cell", "cell"]
    assert genotype_name(ways[4]) == "X"
    assert genotype_name(ways[3]) == f"cell-{V2.digest[:8]}"
    text.write_text(V2.to_json())
    with pytest.raises(ConfigError, match="in JSON is not supported in a file of this name"):
        read_genotype(str(text))
    with pytest.raises(ConfigError, match="no published genotype"):
        read_genotype("DARTS_V3")


def test_a_configuration_takes_a_text_of_several_lines() -> None:
    text = printed(V2).replace("), (", "),\n (") + "  # found\n"
    config = build_config({"derive": {"genotype": text}})
    assert config.derive.genotype is not None
    assert "\n" not in config.derive.genotype
    assert read_genotype(config.derive.genotype) == V2
