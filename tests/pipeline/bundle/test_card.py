"""The model card: names that somebody else chose are text in it, each on one line."""

import re

import numpy as np
import pytest
import yaml
from page_facts import HOSTILE, PREPROCESS, hostile_report

from pipeline.bundle import card
from pipeline.bundle.card import model_card
from pipeline.bundle.front_matter import front_matter

HARMLESS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


def card_of(names: tuple[str, ...]) -> str:
    """The card of a report that has some names wherever names of others can stand."""
    report = hostile_report(names)
    report["model"] |= {"precision": "fp32"}
    golden = {"images": np.zeros((7, 3, 8, 8)), "logits": np.eye(7)}
    golden |= {"picture": np.zeros((1, 3, 8, 8)), "picture_logits": np.eye(7)[:1]}
    return model_card("demo", 1, report, PREPROCESS | {"class_names": list(names)}, golden)


def markup_in(text: str) -> list[str]:
    """Marks in a card beside letters: those that are no text, and how lines begin."""
    inside = re.sub(r"`[^`\n]+`", "code", text.replace("```", "FENCE"))
    shown = re.sub(r"\\[^A-Za-z0-9\s]", "", inside)
    return re.findall(
        r"^ *(?:#+|-|\d+\.|>|FENCE)|[*<>|`~\[\]&@]|(?<![a-z0-9])_|_(?![a-z0-9])|://|www\.",
        shown,
        re.MULTILINE,
    )


def test_names_are_text() -> None:
    text = card_of(HOSTILE)
    assert markup_in(text) == markup_in(card_of(HARMLESS))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e]", text)
    assert "\\<script\\>alert(1)\\</script\\>" in text


@pytest.mark.parametrize("name", [*HOSTILE, *HARMLESS, "a: b", "- a", "'\"\\", "café 🐈"])
def test_the_head_for_model_hubs_is_yaml_and_names_are_text_in_it(name: str) -> None:
    report = hostile_report(HARMLESS)
    report["data"]["name"] = name
    head = front_matter("demo", report, card._quoted)
    first, found, rest = head.split("---\n")
    assert first == rest == ""
    (result,) = yaml.safe_load(found)["model-index"][0]["results"]
    assert result["dataset"]["name"] == result["dataset"]["type"] == card._line(name)
    assert result["metrics"][0]["value"] == report["accuracy"]["onnx"]


@pytest.mark.parametrize(
    ("name", "known"), [("cifar10", ["uoft-cs/cifar10"]), ("digits", None), ("folder", None)]
)
def test_data_sets_that_the_hub_has_are_named_as_there(name: str, known: object) -> None:
    report = hostile_report(HARMLESS)
    report["data"] |= {"name": name, "evaluation": "held-out"}
    found = yaml.safe_load(front_matter("demo", report, card._quoted).split("---\n")[1])
    assert found.get("datasets") == known
    assert found["model-index"][0]["results"][0]["dataset"]["split"] == "train"


@pytest.mark.parametrize("kept", ["_MARKUP", "_SPACE", "_TURNS", "writable"])
def test_control_without_each_part_of_it_they_are_not(
    kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = re.compile(r"(\Z\A)")
    monkeypatch.setattr(card, kept, str if kept == "writable" else nothing)
    with pytest.raises(AssertionError):
        test_names_are_text()
