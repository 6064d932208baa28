"""``d2nas run``: what it refuses at once, and its plan."""

from pathlib import Path

import pytest
from PIL import Image
from rivals import make_cheap
from tiny import TinyPlace
from toy import Place, expect_error

from d2nas.config.registry import search_methods


def test_a_folder_with_one_class_is_refused(
    capfd: pytest.CaptureFixture[str], place: Place, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    (images / "cat").mkdir(parents=True)
    for index in range(6):
        Image.new("RGB", (9, 12), (index, 0, 0)).save(images / "cat" / f"{index}.png")
    error = expect_error(capfd, place, 2, "run", "folder", "--data-root", str(images))
    assert "class" in error


def test_a_plan_runs_nothing(capfd: pytest.CaptureFixture[str], place: Place) -> None:
    plan = place.json(capfd, "run", str(place.preset), "--plan")
    assert plan["executes"] == ["search", "derive", "retrain", "export", "validate"]
    search, retrain = plan["stages"][0], plan["stages"][2]
    assert search["steps"] == 2 * (719 // 128)
    assert retrain["steps"] == 3 * (1438 // 128)
    for row in (search, retrain):
        assert row["seconds"] > 0
        assert row["peak_bytes"] > 0
        assert row["disk_bytes"] > 0
    assert not (place.store / "versions").exists()


@pytest.mark.parametrize("method", search_methods.names())
def test_a_plan_knows_what_the_search_will_do(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cheap(monkeypatch)  # passes are counted, not computed
    place = TinyPlace(tmp_path)  # of few candidates
    sets = [
        f"search.method={method}",
        "search.init_channels=8",
        "search.epochs=2",
        "search.batch_size=64",
        "search.warmup_epochs=1",
        "search.image_fraction=0.5",
        "data.train_images=600",
        "data.evaluation=held-out",
        "data.held_out_images=500",
    ]
    sets = [word for setting in sets for word in ("--set", setting)]
    plan = place.json(capfd, "run", str(place.preset), "--plan", *sets)
    planned, retrain = plan["stages"][0], plan["stages"][2]
    assert retrain["steps"] == 4 * (600 // 20)
    version = place.json(capfd, "search", str(place.preset), *sets)
    assert planned["steps"] == version["facts"]["steps"]
    assert planned.get("passes", 0) == version["facts"]["passes"]
    assert (planned.get("peak_bytes", 0) > 0) == (method != "random")


@pytest.mark.parametrize("estimator", ["score", "mixed"])
def test_a_plan_knows_estimators_that_need_two_draws(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, estimator: str
) -> None:
    place = TinyPlace(tmp_path)
    settings = [f"search.estimator={estimator}", "search.draws=3", "search.epochs=2"]
    settings += ["search.batch_size=16", "data.train_images=100"]
    sets = [word for setting in settings for word in ("--set", setting)]
    planned = place.json(capfd, "run", str(place.preset), "--plan", *sets)["stages"][0]
    version = place.json(capfd, "search", str(place.preset), *sets)
    assert planned["passes"] == version["facts"]["passes"]
