"""The size that pictures are used at: the option, and what follows from a size."""

from pathlib import Path

import pytest
from image_files import write_classes
from toy import Place

from d2nas.config import RetrainConfig
from d2nas.errors import ConfigError
from d2nas.network import auxiliary_fits
from d2nas.retrain import check_auxiliary, has_auxiliary
from pipeline import commands
from pipeline.commands import configure
from pipeline.presets import preset_names

STAGES_OF_PRESETS = (["run", "folder"], ["search", "folder"], ["retrain", "folder"])


@pytest.mark.parametrize("words", STAGES_OF_PRESETS, ids=lambda words: words[0])
def test_image_size_is_short_for_its_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    seen = []

    def looked_at(preset: str, settings: list[str] | None, data_root: str | None) -> None:
        seen.append(configure(preset, settings, data_root).data)
        raise ConfigError("enough")

    monkeypatch.setattr(commands, "configure", looked_at)
    genotype = ["--genotype", "DARTS_V2"] if words[0] == "retrain" else []
    root = ["--data-root", str(tmp_path)]
    place = Place(tmp_path)
    for size in (["--image-size", "48"], ["--set", "data.image_size=48"]):
        assert place.run(*words, *genotype, *root, *size) == 2
    assert seen[0] == seen[1]
    assert seen[0].image_size == 48


@pytest.mark.parametrize("size", [8, 28, 32, 64, 96, 128, 160, 224, 256])
def test_the_auxiliary_head_of_auto_is_there_where_it_fits(size: int) -> None:
    stem = "imagenet" if size >= 96 else "cifar"
    config = RetrainConfig(auxiliary="auto")
    check_auxiliary(config, size)
    assert has_auxiliary(config, size) is auxiliary_fits(size, stem)
    assert not has_auxiliary(RetrainConfig(auxiliary="auto", batch_size=1), size)


def test_control_a_head_that_is_set_is_refused_where_it_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="does not fit 64-pixel") as refused:
        check_auxiliary(RetrainConfig(), 64)
    assert "retrain.auxiliary=auto" in str(refused.value.hint)


def test_presets_for_folders_train_at_any_size() -> None:
    folders = [name for name in preset_names() if configure(name, None).data.name == "folder"]
    assert "folder" in folders
    for name in folders:
        for size in (8, 28, 64, 224):
            check_auxiliary(configure(name, None).retrain, size)


def test_a_folder_of_64_pixel_pictures_is_planned_as_it_is(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = write_classes(tmp_path / "images", {"cat": 6, "dog": 6})
    small = ["search.num_cells=3", "retrain.num_cells=3", "retrain.batch_size=2"]
    small += ["search.batch_size=2"]
    words = [word for one in small for word in ("--set", one)]
    plan = Place(tmp_path).json(
        capfd, "run", "folder", "--data-root", str(root), "--image-size", "64", "--plan", *words
    )
    assert plan["executes"][0] == "search"
