"""Hostile files that a user names: genotypes in JSON, search spaces in TOML.

Each is a usage error (2) in a few short lines, in a moment, whatever is in it; a file that the
operating system refuses is 7.
"""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hostile import VALUES

from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.files import strict_json
from d2nas.files import text_files as config_files
from d2nas.files.strict_json import parse_json
from d2nas.files.text_files import parse_toml, read_space
from d2nas.genotype import Genotype
from d2nas.spaces import EDGES, SPACES, SearchSpace
from pipeline.cli import run

GOOD = Genotype.published("DARTS_V2").to_dict()
TEXT = json.dumps(GOOD).encode()
GENOTYPES: dict[str, bytes] = {
    "empty": b"",
    "marked UTF-8": b"\xef\xbb\xbf" + TEXT,
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "not UTF-8": b"\xff" + TEXT,
    "zero characters": b"\0" * 10,
    "zero character in a key": TEXT.replace(b"normal", b"nor\\u0000mal", 1),
    "lone surrogate": TEXT.replace(b"sep_conv_3x3", b"\\udc80", 1),
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep in the place of a number": TEXT.replace(b"0]", b"[" * 500 + b"]" * 500 + b"]", 1),
    "key twice": TEXT[:-1] + b', "normal": []}',
    "not a number": TEXT.replace(b"0]", b"NaN]", 1),
    "infinite": TEXT.replace(b"0]", b"-Infinity]", 1),
    "beyond all floats": TEXT.replace(b"0]", b"1e" + b"9" * 900_000 + b"]", 1),
    "many digits": TEXT.replace(b"0]", b"9" * 900_000 + b"]", 1),
    "many digits behind a point": TEXT.replace(b"0]", b"0." + b"0" * 900_000 + b"1]", 1),
    "long operation": TEXT.replace(b"sep_conv_3x3", b"x" * 900_000, 1),
    "long predecessor": TEXT.replace(b"0]", b'"' + b"x" * 900_000 + b'"]', 1),
    "long key": b'{"' + b"x" * 900_000 + b'": 1}',
    "line breaks in a key": b'{"a\\nb": 1}',
    "many empty lists": b"[" + b"[]," * 300_000 + b"1]",
    "two documents": TEXT + TEXT,
    "comment": b"// a\n" + TEXT,
    "single quotes": TEXT.replace(b'"', b"'"),
    "too large": b" " * 1_000_001,
    "list": json.dumps([GOOD]).encode(),
}


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Run a command that must refuse its file, in short lines; return what it says."""
    capfd.readouterr()
    assert run(arguments) == 2
    talk = capfd.readouterr().err
    assert "bug" not in talk
    assert max(map(len, talk.splitlines())) < 1000
    assert sum(line.startswith(("error: ", "hint: ")) for line in talk.splitlines()) == 2
    return talk


@pytest.mark.parametrize("name", GENOTYPES)
def test_a_hostile_genotype_is_a_usage_error(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cell.json"
    file.write_bytes(GENOTYPES[name])
    words = ["retrain", "quickstart", "--genotype", str(file), "--store", str(tmp_path / "store")]
    assert str(file) in refused(words, capfd)


@pytest.mark.parametrize("place", ["normal", "normal_concat", "edge", "operation", "predecessor"])
def test_a_value_of_another_kind_is_no_genotype(place: str) -> None:
    for value in (*VALUES.values(), {"a": 1}, [[0, 1]], 1.0, -0.0):
        values = json.loads(TEXT)
        if place in values:
            values[place] = value
        elif place == "edge":
            values["reduce"][3] = value
        else:
            values["reduce"][3][place == "predecessor"] = value
        if values == GOOD:
            continue  # zero, where it was
        try:
            Genotype.from_dict(values, what="file")
        except ConfigError as error:
            told = str(error)
        else:
            told = "file: another predecessor, which is one"
            assert (place, value) == ("predecessor", 0)
        assert told.startswith("file: ")
        assert len(told) < 300
        assert len(told.splitlines()) == 1


LISTED = '["skip_connect", "sep_conv_3x3"]'
SPACES_TEXT: dict[str, bytes] = {
    "empty": b"",
    "marked UTF-8": f"\ufeffnormal = {LISTED}".encode(),
    "UTF-16": f"normal = {LISTED}".encode("utf-16"),
    "zero characters": b"\0" * 10,
    "key twice": f"normal = {LISTED}\nnormal = {LISTED}".encode(),
    "deep": b"normal = " + b"[" * 5000,
    "a key of many parts": b"a." * 400_000 + b"a = 1",
    "a table of many parts": b"[" + b"a." * 400_000 + b"a]",
    "a key of many parts in a value": b"normal = {" + b"a . " * 200_000 + b"a = 1}",
    "quoted parts": b'"a"."a".' * 100_000 + b"a = 1",
    "number": b"normal = " + b"9" * 5000,
    "not a number": b"normal = nan",
    "long operation": b'normal = ["' + b"x" * 900_000 + b'"]',
    "long key": b"x" * 900_000 + b" = 1",
    "long name": f'normal = {LISTED}\nname = "{"x" * 900_000}"'.encode(),
    "name of two lines": f'normal = {LISTED}\nname = "a\\nb"'.encode(),
    "name that is a number": f"normal = {LISTED}\nname = 1".encode(),
    "operation twice": b'normal = ["skip_connect", "skip_connect"]',
    "many operations": b"normal = [" + b'"skip_connect",' * 60_000 + b"]",
    "many edges": b"normal = [" + f"{LISTED},".encode() * 20_000 + b"]",
    "edges of other kinds": b"normal = [[1], [2.0], [true]]",
    "no edges": b"normal = []",
    "empty edges": b"normal = [" + b"[]," * len(EDGES) + b"]",
    "only none": b'normal = ["none"]',
    "mixed": b'normal = ["skip_connect", ["skip_connect"]]',
}


@pytest.mark.parametrize("name", SPACES_TEXT)
def test_a_hostile_space_is_a_usage_error(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "space.toml"
    file.write_bytes(SPACES_TEXT[name])
    words = ["run", "quickstart", "--plan", "--set", f"search.space={file}"]
    capfd.readouterr()
    assert run([*words, "--store", str(tmp_path / "store")]) == 2
    talk = capfd.readouterr().err
    assert "bug" not in talk
    assert max(map(len, talk.splitlines())) < 1000
    with pytest.raises(ConfigError) as caught:
        read_space(str(file))
    assert len(str(caught.value)) < 400
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("key", ["normal", "reduce", "name"])
def test_a_value_of_another_kind_is_no_space(key: str) -> None:
    good: dict[str, Any] = SPACES["S2"].to_dict()
    for name, value in VALUES.items():
        if (key, name) in (("name", "tilde"), ("name", "word"), ("name", "path out")):
            continue  # a name
        with pytest.raises(ConfigError) as caught:
            SearchSpace.from_dict({**good, key: value}, what="file")
        assert len(str(caught.value)) < 400
        assert len(str(caught.value).splitlines()) == 1


# What a short text becomes


@pytest.mark.parametrize("text", ["a." * 20 + "a = 1", "[" + "a." * 20 + "a]"])
def test_control_keys_of_many_parts_reach_the_parser(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[int] = []
    monkeypatch.setattr(config_files.tomllib, "loads", lambda text: reached.append(len(text)) or {})
    parse_toml(text, what="file")
    for longer in (text.replace("a.", "a.a."), text.replace("a.", "'a' . ")):
        monkeypatch.setattr(config_files, "_MAX_KEY_PARTS", 16)
        with pytest.raises(ConfigError, match="a key of more than 16 parts"):
            parse_toml(longer, what="file")
    assert reached == [len(text)]
    monkeypatch.setattr(config_files, "_check_keys", lambda _: None)  # control
    parse_toml(text.replace("a.", "a.a."), what="file")
    assert len(reached) == 2


@pytest.mark.parametrize(
    "text",
    [
        "a = [" + "1.5, " * 100 + "]",
        'a = "' + "x.y " * 100 + '"',
        'a = "' + "../" * 100 + '"',
        "\n".join(f"a{number}.b = 1.0" for number in range(100)),
        "# " + "one. two. " * 3,
    ],
)
def test_dots_that_are_of_no_key_do_not_count(text: str) -> None:
    assert parse_toml(text, what="file") is not None


def memory_of(text: str) -> int:
    """The most memory that is taken until a text is refused, in bytes."""
    tracemalloc.start()
    try:
        with pytest.raises(DamagedArtifactError):
            parse_json(text, what="file")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


MANY = {
    "empty lists": "[" + "[]," * 6_000,
    "nested lists": "[" + "[[[[[[[[1]]]]]]]]," * 1_000,
    "numbers": "[" + "1.5," * 21_000,
}


@pytest.mark.parametrize("name", MANY)
def test_many_values_are_refused_before_they_take_memory(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MANY[name]
    for limit in ("MAX_VALUES", "MAX_CONTAINERS"):
        monkeypatch.setattr(strict_json, limit, getattr(strict_json, limit) // 100)
    assert memory_of(text) < 2 * len(text)
    monkeypatch.setattr(strict_json, "_check_counts", lambda _: None)
    assert memory_of(text) > 6 * len(text)  # control


def test_a_message_does_not_repeat_a_long_number() -> None:
    with pytest.raises(DamagedArtifactError) as caught:
        parse_json("1e" + "9" * 1_000_000, what="file")
    assert len(str(caught.value)) < 200
