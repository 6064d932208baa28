"""Genotypes, spaces and strict JSON: exact round trips, and refusal of everything else."""

import copy
import json

import pytest

from d2nas import SPACES, Genotype, SearchSpace
from d2nas.errors import ConfigError, D2NasError, DamagedArtifactError
from d2nas.files.strict_json import canonical_json, digest, parse_json
from d2nas.genotype import PUBLISHED

GOOD = Genotype.published("DARTS_V2").to_dict()


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_round_trip(name: str) -> None:
    genotype = Genotype.published(name)
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert Genotype.from_dict(genotype.to_dict()) == genotype
    assert digest(json.loads(genotype.to_json())) == genotype.digest


def test_the_digest_is_the_same_everywhere() -> None:
    assert Genotype.published("DARTS_V2").digest == (
        "a44f6cdf527b71b4e26f0c6c380e1a9e82f7434258f9df4ab58a7dfc2396ff57"
    )


def edited(**changes: object) -> dict[str, object]:
    return {**copy.deepcopy(GOOD), **changes}


def with_pair(index: int, pair: object) -> dict[str, object]:
    pairs = copy.deepcopy(GOOD["normal"])
    pairs[index] = pair
    return edited(normal=pairs)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (with_pair(0, ["conv_9x9", 0]), "conv_9x9"),
        (with_pair(0, ["none", 0]), "none"),
        (with_pair(0, ["sep_conv_3x3", 2]), "predecessor 2"),
        (with_pair(7, ["sep_conv_3x3", 5]), "predecessor 5"),
        (with_pair(0, ["sep_conv_3x3", -1]), "predecessor -1"),
        (with_pair(0, ["sep_conv_3x3", 1]), "both edges"),
        (with_pair(0, ["sep_conv_3x3", True]), "predecessor"),
        (with_pair(0, ["sep_conv_3x3", 0.0]), "predecessor"),
        (with_pair(0, ["sep_conv_3x3"]), "pair"),
        (with_pair(0, "sep_conv_3x3"), "pair"),
        (with_pair(0, [["sep_conv_3x3"], 0]), "unknown operation"),
        (edited(normal=GOOD["normal"][:7]), "7 edges"),
        (edited(normal=[*GOOD["normal"], GOOD["normal"][0]]), "9 edges"),
        (edited(normal="eval"), "list"),
        (edited(normal_concat=[2, 3, 4, 6]), "normal_concat"),
        (edited(normal_concat=[3, 2]), "normal_concat"),
        (edited(reduce_concat=[]), "reduce_concat"),
        (edited(extra=1), "extra"),
        ({"normal": GOOD["normal"]}, "reduce"),
        ([], "object"),
        (None, "object"),
    ],
)
def test_what_is_no_genotype_is_refused(values: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Genotype.from_dict(values)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": 1e999}',
        "[" * 100 + "]" * 100,
        "1" * 5000,
        "{",
        b"\xff\xfe",
        "",
    ],
)
def test_what_is_no_strict_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(DamagedArtifactError):
        parse_json(text, what="test")


def test_control_the_standard_parser_takes_it() -> None:
    assert json.loads('{"a": 1, "a": 2}') == {"a": 2}
    assert json.loads('{"a": NaN}')


def test_canonical_json_is_one_encoding() -> None:
    assert canonical_json({"b": 1, "a": [1, "é"]}) == '{"a":[1,"é"],"b":1}\n'.encode()
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))


@pytest.mark.parametrize("position", range(0, 400, 7))
def test_a_flipped_bit_gives_only_our_own_errors(position: int) -> None:
    data = bytearray(Genotype.published("DARTS_V1").to_json().encode())
    data[position % len(data)] ^= 1 << (position % 8)
    try:
        Genotype.from_json(bytes(data))
    except D2NasError:
        return
    assert bytes(data) != Genotype.published("DARTS_V1").to_json().encode()


def test_spaces_are_those_of_the_papers() -> None:
    assert sorted(SPACES) == ["S0", "S1", "S2", "S3", "S4"]
    assert all(len(edge) == 7 for edge in SPACES["S0"].normal)
    assert SPACES["S1"].normal[5] == ("max_pool_3x3", "skip_connect")
    assert SPACES["S1"].reduce[6] == ("max_pool_3x3", "sep_conv_3x3")
    assert SPACES["S0"].with_none().normal[0][0] == "none"
    assert SPACES["S3"].with_none() == SPACES["S3"]


def test_a_users_space_is_read_strictly() -> None:
    space = SearchSpace.from_dict({"name": "mine", "normal": ["sep_conv_3x3", "skip_connect"]})
    assert space.reduce == space.normal
    assert SearchSpace.from_dict(SPACES["S1"].to_dict()) == SPACES["S1"]
    for values in (
        {"normal": ["conv"]},
        {"normal": []},
        {"normal": [["skip_connect"]] * 13},
        {"normal": ["none"]},
        {"normal": ["skip_connect", "skip_connect"]},
        {"normal": ["skip_connect"], "colour": "blue"},
        {"normal": "skip_connect"},
    ):
        with pytest.raises(ConfigError):
            SearchSpace.from_dict(values)
