"""Facts of versions in words: of what d2nas writes, and of anything else."""

import pytest

from d2nas.spaces import SPACES
from pipeline.report.versions import (
    fact_words,
    setting_words,
    space_words,
    version_line,
    version_rows,
)


def test_settings_are_written_as_set_takes_them() -> None:
    assert setting_words({"a": None, "b": True, "c": [1, 0.123456789, False]}) == (
        "a=none, b=true, c=[1, 0.123456789, false]"
    )


def test_what_lies_within_is_told_apart_and_rounded() -> None:
    row = {"entropy": {"normal": 1.23456789, "reduce": None}, "loss": None, "epoch": 4}
    assert fact_words(row) == "entropy=(normal=1.23457), epoch=4"


@pytest.mark.parametrize("name", SPACES)
def test_a_space_is_written_by_its_name(name: str) -> None:
    space = SPACES[name]
    assert space_words(space.to_dict()) == name
    if space.with_none() != space:
        assert space_words(space.with_none().to_dict()) == f"{name} with none"


def test_known_facts_come_first_and_what_is_not_known_is_left_out() -> None:
    rows = version_rows({"mine": 3, "gpu": None, "params": 1234567, "passes": 20})
    assert rows == [
        ("parameters", "1,234,567"),
        ("passes of sub-networks", "20"),
        ("mine", "3"),
    ]


def test_an_accuracy_that_may_be_chance_says_so() -> None:
    accuracy = {"onnx": 0.1, "torch": 0.1, "test_images": 10, "near_chance": True}
    (_, words), required, largest = version_rows(
        {"accuracy": {**accuracy, "floor": 0.999, "largest_class_share": 0.125}}
    )
    assert required == ("required part of PyTorch's accuracy", "0.999")
    assert largest == ("part of the largest class", "0.125")
    assert words == "10.00 % (ONNX Runtime), 10.00 % (PyTorch), on 10 images, may be chance"


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"evaluation": "held-out", "accuracy": 0.5, "images": 150}, "held-out accuracy 50.00 %"),
        ({"train_accuracy": 0.25, "params": 3200}, "training accuracy 25.00 %, 3,200 parameters"),
        ({"evaluation": "test"}, ""),
        ({}, ""),
    ],
)
def test_a_line_says_the_most_telling_facts(facts: dict[str, object], line: str) -> None:
    assert version_line(facts) == line


@pytest.mark.parametrize("value", ["x", [1], {"onnx": "x"}, {"a": {}}, -1, 1e400])
@pytest.mark.parametrize("key", ["accuracy", "genotype", "params", "op_entropy", "bytes"])
def test_what_d2nas_does_not_write_is_shown_all_the_same(key: str, value: object) -> None:
    (_, words), *_ = version_rows({key: value})
    assert words
    version_line({key: value})
