"""``d2nas search``: of a folder of anyone's images, and by a rival."""

from pathlib import Path

import pytest
from PIL import Image
from toy import Place


def test_a_folder_of_anyones_images_is_searched(
    capfd: pytest.CaptureFixture[str], place: Place, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    for label, colour in (("cat", 40), ("dog", 200)):
        (images / label).mkdir(parents=True)
        for index in range(30 if label == "cat" else 5):
            shade = (colour, colour, (7 * index) % 255)
            Image.new("RGB", (20 + index, 31), shade).save(images / label / f"{index}.png")
    settings = ["data.name=folder", "data.image_size=13", "search.batch_size=8"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    code = place.run("search", str(place.preset), *arguments, "--data-root", str(images))
    error = capfd.readouterr().err
    assert code == 0, error
    assert "2 classes, 3 x 13 x 13 pixels" in error
    assert "cat 24, dog 4" in error
    assert "warning: imbalanced" in error


def test_control_the_same_folder_balanced_gives_no_warning(
    capfd: pytest.CaptureFixture[str], place: Place, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    for label, colour in (("cat", 40), ("dog", 200)):
        (images / label).mkdir(parents=True)
        for index in range(8):
            shade = (colour, colour, 7 * index)
            Image.new("RGB", (20, 31), shade).save(images / label / f"{index}.png")
    settings = ["data.name=folder", "data.image_size=13", "search.batch_size=4"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    assert place.run("search", str(place.preset), *arguments, "--data-root", str(images)) == 0
    assert "imbalanced" not in capfd.readouterr().err


def test_a_rival_searches_behind_the_same_command(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    found = place.json(capfd, "search", str(place.preset), "--method", "random")
    assert found["facts"]["method"] == "random"
    assert place.run("search", str(place.preset), "--method", "grid") == 2
    assert "search.method" in capfd.readouterr().err
