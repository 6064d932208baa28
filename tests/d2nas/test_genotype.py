"""Genotypes, spaces and strict JSON: exact round trips, and refusal of everything else."""

import copy
import json
import random
from collections import Counter

import pytest

from d2nas import SPACES, Genotype, SearchSpace
from d2nas.errors import ConfigError, D2NasError, DamagedArtifactError
from d2nas.files.strict_json import canonical_json, digest, parse_json
from d2nas.genotype import PUBLISHED, neighbour, neighbours, places_of, uniform
from d2nas.spaces import (
    CELL_TYPES,
    EDGES,
    EDGES_PER_NODE,
    NODE_COUNTS,
    NODES,
    OPERATION_NAMES,
    node_edges,
)

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
        (edited(normal=GOOD["normal"][:2], reduce=GOOD["reduce"][:2]), "2 edges"),
        (edited(normal=GOOD["normal"] * 3, reduce=GOOD["reduce"] * 3), "24 edges"),
        (edited(normal=[*GOOD["normal"], *GOOD["normal"][:2]]), "10 edges, not 8"),
        (edited(normal="eval"), "list"),
        (edited(normal_concat=[2, 3, 4, 6]), "normal_concat"),
        (edited(normal_concat=[3, 2]), "normal_concat"),
        (edited(reduce_concat=[]), "reduce_concat"),
        (edited(reduce_concat=None), "reduce_concat"),
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


def test_a_genotype_has_as_many_nodes_as_its_lists_and_hands_on_any_of_them() -> None:
    six = [["skip_connect", 0], ["sep_conv_7x7", 0]] * 6
    genotype = Genotype.from_dict({"normal": six, "reduce": six, "reduce_concat": [4, 7]})
    assert genotype.nodes == range(2, 8)
    assert (genotype.normal_concat, genotype.reduce_concat) == ((2, 3, 4, 5, 6, 7), (4, 7))
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert genotype.describe("normal").endswith("7: skip_connect(0) + sep_conv_7x7(0)")
    assert genotype.parameterless_normal == 6
    with pytest.raises(ConfigError, match=r"reduce_concat must list nodes out of \[2, 3, 4"):
        Genotype.from_dict({"normal": six, "reduce": six, "reduce_concat": [8]})


def test_published_cells_hand_on_every_node_that_no_node_reads() -> None:
    five = [name for name in PUBLISHED if len(Genotype.published(name).nodes) == 5]
    assert five == ["NASNet_A", "AmoebaNet_A", "PNAS", "ENAS"]
    for name in five:
        genotype = Genotype.published(name)
        for cell, concat in (
            (genotype.normal, genotype.normal_concat),
            (genotype.reduce, genotype.reduce_concat),
        ):
            unread = set(genotype.nodes) - {source for _, source in cell}
            assert unread <= set(concat)
            assert unread == set(concat) or name == "PNAS"  # which hands on node 4 as well


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
        {"normal": ["skip_connect"], "nodes": 1},
        {"normal": ["skip_connect"], "nodes": 9},
        {"normal": ["skip_connect"], "nodes": 5.0},
        {"normal": ["skip_connect"], "nodes": True},
        {"normal": [["skip_connect"]] * 14, "nodes": 5},
        {"normal": [["skip_connect"]] * 14, "reduce": [["skip_connect"]] * 20},
        {"normal": "skip_connect"},
    ):
        with pytest.raises(ConfigError):
            SearchSpace.from_dict(values)


@pytest.mark.parametrize("nodes", NODE_COUNTS)
def test_a_users_space_has_the_nodes_that_it_asks_for(nodes: int) -> None:
    space = SearchSpace.from_dict({"nodes": nodes, "normal": ["sep_conv_3x3", "skip_connect"]})
    assert len(space.nodes) == nodes
    assert space.edges == tuple((s, n) for n in space.nodes for s in range(n))
    assert len(space.normal) == len(space.reduce) == len(space.edges)
    assert SearchSpace.from_dict(space.to_dict()) == space
    rows = [row for rows in node_edges(len(space.edges)) for row in rows]
    assert rows == [*range(len(space.edges))]
    for node, own in zip(space.nodes, node_edges(len(space.edges)), strict=True):
        assert [space.edges[row] for row in own] == [(source, node) for source in range(node)]


def test_a_genotype_of_other_nodes_is_outside_of_a_space() -> None:
    five = Genotype.published("NASNet_A")
    with pytest.raises(ConfigError, match="a cell of 5 nodes, not of 4 as the space S0"):
        places_of(five, SPACES["S0"], "normal")
    twice = SearchSpace("five", (OPERATION_NAMES,) * 20, (OPERATION_NAMES,) * 20)
    with pytest.raises(ConfigError, match=r"sep_conv_3x3 from 0 to 3 .* which the space five has"):
        places_of(five, twice, "normal")


@pytest.mark.parametrize("name", SPACES)
def test_a_neighbour_is_of_its_space_and_differs_by_one_change(name: str) -> None:
    space, numbers = SPACES[name], random.Random(0)
    genotype, places, both = random_genotype(space, numbers), set(), set()
    for _ in range(400):
        other = neighbour(genotype, space, numbers)
        changed = [
            (cell_type, index)
            for cell_type in CELL_TYPES
            for index in range(8)
            if genotype.cell(cell_type)[index] != other.cell(cell_type)[index]
        ]
        ((cell_type, index),) = changed
        assert is_of(space, other)
        one, two = genotype.cell(cell_type)[index], other.cell(cell_type)[index]
        places.add((cell_type, index, one[1] != two[1]))
        both.add(one[0] != two[0] and one[1] != two[1])
        if one[0] != two[0] and one[1] != two[1]:  # the operation is none of the other edge's
            node = NODES[index // EDGES_PER_NODE]
            assert one[0] not in space.candidates(cell_type)[EDGES.index((two[1], node))]
    moved = {(cell_type, index) for cell_type, index, is_moved in places if is_moved}
    assert moved == {(cell_type, index) for cell_type in CELL_TYPES for index in range(2, 8)}
    assert {*both} == ({False, True} if name == "S1" else {False})
    genotype = other  # a walk stays in the space, too
    for _ in range(50):
        genotype = neighbour(genotype, space, numbers)
        assert is_of(space, genotype)


@pytest.mark.parametrize("name", ["S0", "S1", "S4"])
def test_neighbours_are_all_that_one_change_makes(name: str) -> None:
    space, numbers = SPACES[name], random.Random(1)
    genotype = uniform(space, numbers)
    found = neighbours(genotype, space)
    assert len({*found}) == len(found)
    drawn = {ordered(neighbour(genotype, space, numbers)) for _ in range(3000)}
    assert drawn == {*found}
    assert all(ordered(each) == each and is_of(space, each) for each in found)


def ordered(genotype: Genotype) -> Genotype:
    cells = (
        tuple(
            pair for node in range(4) for pair in sorted(cell[2 * node :][:2], key=lambda p: p[1])
        )
        for cell in (genotype.normal, genotype.reduce)
    )
    return Genotype(*cells)


def test_uniform_genotypes_have_every_choice_equally_often() -> None:
    space, numbers = SPACES["S3"], random.Random(0)
    drawn = [uniform(space, numbers) for _ in range(2000)]
    assert all(ordered(each) == each and is_of(space, each) for each in drawn)
    pairs = Counter(tuple(source for _, source in each.reduce[6:]) for each in drawn)
    operations = Counter(operation for each in drawn for operation, _ in each.normal)
    assert len(pairs) == 10
    assert all(count == pytest.approx(200, abs=70) for count in pairs.values())  # 5 deviations
    assert {*operations} == {"skip_connect", "sep_conv_3x3"}
    assert operations["skip_connect"] == pytest.approx(8000, abs=320)


def random_genotype(space: SearchSpace, numbers: random.Random) -> Genotype:
    cells = []
    for cell_type in CELL_TYPES:
        pairs = []
        for node in NODES:
            for source in numbers.sample(range(node), EDGES_PER_NODE):
                offered = space.candidates(cell_type)[EDGES.index((source, node))]
                pairs.append((numbers.choice([op for op in offered if op != "none"]), source))
        cells.append(tuple(pairs))
    return Genotype(*cells)


def is_of(space: SearchSpace, genotype: Genotype) -> bool:
    return all(
        operation in space.candidates(cell_type)[EDGES.index((source, NODES[index // 2]))]
        for cell_type in CELL_TYPES
        for index, (operation, source) in enumerate(genotype.cell(cell_type))
    )
