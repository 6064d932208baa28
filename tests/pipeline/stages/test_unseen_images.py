"""Test images of a validation: never those that the network learned from."""

from types import SimpleNamespace
from typing import Any

import pytest
from toy import Place

from d2nas.config import build_config
from d2nas.errors import ConfigError
from pipeline.stages import validate


@pytest.mark.parametrize("setting", ["run.seed=9", "data.split_seed=5", "data.test_fraction=0.5"])
def test_another_split_than_the_trainings_is_refused(
    finished: Place, capfd: pytest.CaptureFixture[str], setting: str
) -> None:
    assert finished.run("validate", "toy", "--set", setting) == 2
    told = capfd.readouterr().err
    assert f"the network was trained with other {setting.partition('=')[0]}" in told
    assert "d2nas evaluate BUNDLE DIR" in told


def test_control_without_the_comparison_it_is_judged_by_what_it_learned(
    finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "require_unseen", lambda *_: None)
    assert finished.run("validate", "toy", "--set", "run.seed=9") == 0


def check(
    trained: dict[str, Any], now: dict[str, Any], *, digest: str = "a", name: str = "digits"
) -> None:
    """Compare a training's settings and images with those of a validation."""
    trained, now = (
        {**values, "data": {"name": name, **values.get("data", {})}} for values in (trained, now)
    )
    manifest = SimpleNamespace(facts={"data_digest": "a"}, config=build_config(trained).to_dict())
    context = SimpleNamespace(
        inputs={"retrain": SimpleNamespace(manifest=manifest)}, config=build_config(now)
    )
    validate.require_unseen(context, SimpleNamespace(digest=digest))  # type: ignore[arg-type]


def test_the_same_split_however_it_is_said_is_taken() -> None:
    check({}, {})
    check({"run": {"seed": 4}}, {"run": {"seed": 7}, "data": {"split_seed": 4}})
    # Published test images are the same whatever the seed.
    check({}, {"run": {"seed": 7}, "data": {"test_fraction": 0.5}}, name="cifar10")


def test_a_version_from_before_a_key_was_there_counts_as_its_default() -> None:
    older = {"data": {"split_seed": None}, "run": {"seed": 0}}
    manifest = SimpleNamespace(facts={"data_digest": "a"}, config=older)
    context = SimpleNamespace(
        inputs={"retrain": SimpleNamespace(manifest=manifest)}, config=build_config({})
    )
    validate.require_unseen(context, SimpleNamespace(digest="a"))  # type: ignore[arg-type]


def test_other_images_and_held_out_ones_are_refused() -> None:
    with pytest.raises(ConfigError, match="trained with other images"):
        check({}, {}, digest="b")
    with pytest.raises(ConfigError, match=r"data\.evaluation"):
        check({}, {"data": {"evaluation": "held-out"}}, name="cifar10")
    held = {"evaluation": "held-out"}
    with pytest.raises(ConfigError, match=r"run\.seed"):
        check({"data": held}, {"data": held, "run": {"seed": 7}}, name="cifar10")
