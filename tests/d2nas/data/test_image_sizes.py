"""The size that pictures are used at: the rule and its option, what is told, what is recorded."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import write_classes, write_image
from page_facts import PREPROCESS, REPORT, a_report, page
from tiny import TinyPlace
from toy import Place

from d2nas.config import DataConfig, RetrainConfig
from d2nas.data import sizes as image_sizes
from d2nas.data.augmentation import cutout, cutout_pixels, shift_pixels, strong_augmentation
from d2nas.data.batches import Batches
from d2nas.data.decoding import Header
from d2nas.data.folders import FolderListing, ImageFile
from d2nas.data.images import Normalizer, load_data
from d2nas.data.sizes import LOOKED_AT, Pictures, choose_size, folder_image_size, image_size
from d2nas.errors import ConfigError
from d2nas.genotype import Genotype
from d2nas.nn.network import auxiliary_fits
from d2nas.train.retrain import Retraining, check_auxiliary, has_auxiliary
from pipeline.bundle.card import model_card
from pipeline.commands.configuration import configure
from pipeline.preflight.plan import data_shape
from pipeline.presets import preset_names
from pipeline.running.display import Display
from pipeline.running.inputs import inputs_of
from pipeline.running.runner import Runner
from pipeline.running.signals import StopFlag
from pipeline.stages import BY_NAME
from pipeline.stages.validate import described
from pipeline.store import Store

STAGES_OF_PRESETS = (["run", "folder"], ["search", "folder"], ["retrain", "folder"])


@pytest.mark.parametrize("words", STAGES_OF_PRESETS, ids=lambda words: words[0])
def test_image_size_is_short_for_its_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    seen = []

    def looked_at(preset: str, settings: list[str] | None, data_root: str | None) -> None:
        seen.append(configure(preset, settings, data_root).data)
        raise ConfigError("enough")

    monkeypatch.setattr("pipeline.commands.configuration.configure", looked_at)
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


# --- the rule -----------------------------------------------------------------------------------


def pictures_of(*sides: tuple[int, int], count: int | None = None) -> Pictures:
    headers = tuple(Header(min(pair), max(pair), "RGB") for pair in sides)
    return Pictures(count or len(headers), headers)


def found_for(pictures: Pictures, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> Any:
    """What is found for a folder with these pictures."""
    monkeypatch.setattr(image_sizes, "look_at", lambda _listing: pictures)
    listing = FolderListing(Path("images"), ("a", "b"), (), (), (), Counter())
    return folder_image_size(DataConfig(name="folder", root="images", **keys), listing)


@pytest.mark.parametrize(
    ("sides", "size"),
    [
        ((5, 7), 8),
        ((8, 8), 8),
        ((28, 28), 28),
        ((33, 60), 32),
        ((63, 63), 32),
        ((64, 64), 64),
        ((100, 500), 96),
        ((240, 320), 224),
        ((223, 900), 160),
        ((3000, 4000), 224),
    ],
)
def test_the_size_is_the_largest_that_enlarges_nothing(sides: tuple[int, int], size: int) -> None:
    assert choose_size(DataConfig(name="folder"), pictures_of(sides)) == size


def test_the_size_follows_how_pictures_come_to_it() -> None:
    pictures = pictures_of((256, 300))
    for part, size in ((1.0, 224), (0.875, 224), (0.87, 160)):
        assert choose_size(DataConfig(name="folder", crop_fraction=part), pictures) == size
    padded = DataConfig(name="folder", fit="pad")
    assert choose_size(padded, pictures_of((30, 300))) == 224
    assert choose_size(padded, pictures_of((10, 28))) == 28


def test_at_most_half_of_the_pictures_are_enlarged() -> None:
    half = pictures_of(*[(32, 40)] * 3, *[(64, 80)] * 3)
    assert choose_size(DataConfig(name="folder"), half) == 32
    most = pictures_of(*[(32, 40)] * 2, *[(64, 80)] * 3)
    assert choose_size(DataConfig(name="folder"), most) == 64


def sorted_folder(monkeypatch: pytest.MonkeyPatch) -> FolderListing:
    """A folder whose first class has few, large pictures: no files are there."""
    first = [ImageFile(f"a/{index:04}", 0) for index in range(LOOKED_AT)]
    rest = [ImageFile(f"b/{index:04}", 1) for index in range(3 * LOOKED_AT)]

    def read_header(path: Path) -> Header:
        side = 300 if path.parent.name == "a" else 32
        return Header(side, side, "RGB")

    monkeypatch.setattr(image_sizes, "read_header", read_header)
    return FolderListing(Path("images"), ("a", "b"), (*first, *rest), (), (), Counter())


def test_the_size_is_that_of_all_pictures_not_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    found = folder_image_size(DataConfig(name="folder"), sorted_folder(monkeypatch))
    assert found.size == 32
    assert found.why == "chosen from 500 of 2,000 pictures: median 32 x 32"


def test_control_the_first_pictures_would_choose_another_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def first(_num: int, count: int, **_purpose: str) -> list[int]:
        return list(range(count))

    monkeypatch.setattr(image_sizes, "spread_sample", first)
    assert folder_image_size(DataConfig(name="folder"), sorted_folder(monkeypatch)).size == 224


def test_a_damaged_picture_decides_nothing_and_is_left_to_its_reader(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 4, "dog": 4})
    (tmp_path / "cat" / "000.png").write_bytes(b"no picture")
    config = DataConfig(name="folder", root=str(tmp_path))
    found = image_size(config, tmp_path)
    assert (found.size, len(found.pictures.headers)) == (10, 7)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"cat/000\.png: cannot be read"):
        image_size(config, tmp_path)


def test_a_size_that_is_set_or_published_stays(tmp_path: Path) -> None:
    write_classes(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 1})
    keys = {"root": str(tmp_path)}
    known = [
        (DataConfig(name="folder", image_size=16, **keys), 16, "set by data.image_size"),
        (DataConfig(name="imagenet", **keys), 224, "ImageNet's usual"),
        (DataConfig(name="fashion-mnist"), 28, "the data set's own"),
        (DataConfig(), 8, "the data set's own"),
    ]
    for config, size, why in known:
        found = image_size(config, tmp_path)
        assert (found.size, found.why) == (size, why)
        assert data_shape(config).image_size == size


# --- what is told -------------------------------------------------------------------------------


def test_pictures_that_are_enlarged_are_told_with_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    small = pictures_of((28, 28))
    (note,) = found_for(small, monkeypatch, image_size=32).notes()
    assert note == (
        "pictures of 28 pixels (median shorter side) are enlarged to 32, which adds cost and no "
        "detail: data.image_size=28 or data.fit=pad keeps theirs"
    )
    for keys in ({"image_size": 28}, {"image_size": 32, "fit": "pad"}, {}):
        assert found_for(small, monkeypatch, **keys).notes() == ()
    (tiny,) = found_for(pictures_of((5, 5)), monkeypatch).notes()
    assert "to 8, which adds cost and no detail: data.fit=pad" in tiny


def test_what_the_centre_crop_leaves_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_for(pictures_of((300, 30)), monkeypatch)
    assert found.line() == (
        "1 pictures have 30 x 300 pixels (medians of the sides), used at 30 x 30; the centre crop "
        "leaves out 90% of the area (median), 90% at 30 x 300"
    )
    (note,) = found.notes()
    assert note.startswith("the centre crop leaves out more than half of 1 of 1 pictures (90% of")
    assert note.endswith(": data.fit=pad keeps all of it")
    padded = found_for(pictures_of((300, 30)), monkeypatch, fit="pad")
    assert padded.notes() == ()
    assert padded.line().endswith("used at 224 x 224, padded with black")


def test_a_few_elongated_pictures_are_a_fact_and_no_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photographs = [(240, 320)] * 99
    found = found_for(pictures_of(*photographs, (30, 300)), monkeypatch)
    assert found.notes() == ()
    assert "leaves out 25% of the area (median), 90% at 30 x 300" in found.line()
    often = found_for(pictures_of(*photographs, *[(30, 300)] * 6), monkeypatch)
    assert "more than half of 6 of 105 pictures" in often.notes()[0]
    assert len(found_for(pictures_of((1080, 1920)), monkeypatch).notes()) == 1


def test_a_crop_fraction_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_for(pictures_of((256, 256)), monkeypatch, crop_fraction=0.5)
    assert found.facts()["lost_median"] == 0.75
    assert "data.fit=pad" in found.notes()[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of pictures of 30 x 300 pixels, and two files that are none."""
    for label in ("cat", "dog"):
        for index in range(6):
            name = tmp_path / "images" / label / f"{index}.png"
            write_image(name, seed=index, size=(300, 30))
        (tmp_path / "images" / label / "x.heic").touch()
    return tmp_path / "images"


LEFT_OUT = "files left out: 2 of the data folder (2 .heic)"


def test_the_data_tell_it(folder: Path) -> None:
    config = DataConfig(name="folder", root=str(folder))
    data = load_data(config, seed=0, default_root=folder)
    assert data.image_size == 30
    lines = data.summary_lines()
    assert data.sizes is not None
    assert data.sizes.line() in lines
    assert LEFT_OUT in data.warnings
    assert any("leaves out more than half of 12 of 12" in line for line in data.warnings)


def test_a_configuration_is_shown_with_its_size_and_whence(
    capfd: pytest.CaptureFixture[str], folder: Path
) -> None:
    place = Place(folder.parent)
    root = ["--data-root", str(folder)]
    assert place.run("show", "--config", "folder", *root) == 0
    shown = capfd.readouterr()
    why = "chosen from 12 pictures: median 30 x 300"
    assert f"data.image_size\tnone\t{why} (30)" in shown.out
    assert f"# image size 30: {why}" in shown.out
    assert "leaves out 90% of the area" in shown.out
    assert f"warning: {LEFT_OUT}" in shown.err
    images = place.json(capfd, "show", "--config", "folder", *root)["images"]
    assert (images["image_size"], images["image_size_from"]) == (30, why)
    assert images["notes"][0] == LEFT_OUT
    given = place.json(capfd, "show", "--config", "folder", *root, "--image-size", "16")
    assert given["images"]["image_size_from"] == "set by data.image_size"
    assert given["sources"]["data.image_size"] == "--set"
    assert place.run("show", "--config", "folder", "--data-root", "nowhere") == 0
    assert "of the images nothing is known: nowhere: no such folder" in capfd.readouterr().err
    known = place.json(capfd, "show", "--config", "quickstart")["sources"]
    assert known["data.image_size"] == "the data set's own (8)"
    unknown = place.json(capfd, "show", "--config", "folder")["sources"]
    assert "the largest of 8 to 32, 64, 96, 128, 160, 224" in unknown["data.image_size"]


def test_a_plan_says_the_size_and_what_is_left_out(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(
        "pipeline.preflight.plan.Estimates.of", lambda *_: {"steps": 1, "seconds": 1.0}
    )
    place = Place(folder.parent)
    words = ["run", "folder", "--data-root", str(folder), "--plan"]
    plan = place.json(capfd, *words)
    assert plan["data"]["image_size"] == 30
    assert plan["data"]["image_size_from"] == "chosen from 12 pictures: median 30 x 300"
    assert plan["data"]["notes"][0] == LEFT_OUT
    assert place.run(*words) == 0
    shown = capfd.readouterr()
    assert "# image size 30: chosen from 12 pictures" in shown.out
    assert f"warning: {LEFT_OUT}" in shown.err


@pytest.mark.parametrize(
    ("modes", "channels", "told"),
    [
        (["RGB", "RGB"], None, None),
        (["L", "L"], None, None),
        (["L", "RGB"], None, "1 of 2 pictures are grey and used as colour"),
        (["L", "RGB"], 3, None),
        (["L", "RGB"], 1, "the colours of 1 of 2 pictures are dropped (data.channels=1)"),
        (["I;16", "L"], None, "1 of 2 pictures have 16 bits a pixel"),
    ],
)
def test_colours_that_are_dropped_or_made_are_told(
    monkeypatch: pytest.MonkeyPatch, modes: list[str], channels: int | None, told: str | None
) -> None:
    pictures = Pictures(2, tuple(Header(40, 40, mode) for mode in modes))
    notes = found_for(pictures, monkeypatch, channels=channels).notes()
    assert len(notes) == (told is not None)
    assert told is None or notes[0].startswith(told)


def test_a_plan_of_grey_pictures_has_one_channel(tmp_path: Path) -> None:
    grey = write_classes(tmp_path / "grey", {"cat": 4, "dog": 4}, mode="L")
    colour = write_classes(tmp_path / "colour", {"cat": 4, "dog": 4})
    for root, channels in ((grey, 1), (colour, 3)):
        shape = data_shape(DataConfig(name="folder", root=str(root)))
        assert (shape.channels, shape.image_size) == (channels, 10)


# --- augmentation at other sizes than 32 --------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "shift", "hidden"), [(8, 1, 4), (28, 3, 14), (32, 4, 16), (224, 4, 16)]
)
def test_automatic_augmentation_leaves_small_images_their_content(
    size: int, shift: int, hidden: int
) -> None:
    assert (shift_pixels("auto", size), cutout_pixels("auto", size)) == (shift, hidden)
    assert strong_augmentation(size, "auto", "auto") == []
    assert (shift_pixels(5, size), cutout_pixels(7, size)) == (5, 7)


def test_control_what_is_usual_at_32_pixels_hides_small_images() -> None:
    shifted, hidden = strong_augmentation(10, 4, 16)
    assert "data.crop_padding=4 shifts images of 10 pixels by up to 40% of their side" in shifted
    assert "retrain.cutout=16 hides most of images of 10 pixels, or all" in hidden
    inputs = cutout(torch.ones(50, 1, 10, 10), size=16, generator=torch.Generator().manual_seed(0))
    assert (inputs.sum(dim=(1, 2, 3)) == 0).any()
    assert strong_augmentation(32, 4, 16) == []


def test_presets_for_folders_augment_by_size() -> None:
    for name in preset_names():
        config = configure(name, None)
        if config.data.name == "folder":
            assert strong_augmentation(8, config.data.crop_padding, config.retrain.cutout) == []


def test_batches_take_the_automatic_shift(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 6, "dog": 6})
    batches = []
    for padding in ("auto", 1, 4):
        keys = {"name": "folder", "root": str(tmp_path), "crop_padding": padding}
        config = DataConfig(**keys)
        data = load_data(config, seed=0, default_root=tmp_path)
        normalizer = Normalizer(data.mean, data.std)
        numbers = {"cutout_size": 0, "seed": 1, "purpose": "test"}
        batches.append(Batches(data.train, normalizer, config, 4, **numbers).batch(0)[0])
    assert torch.equal(batches[0], batches[1]), "an eighth of 10 pixels"
    assert not torch.equal(batches[0], batches[2])


def test_a_retraining_takes_the_automatic_cutout(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 6, "dog": 6})
    config = DataConfig(name="folder", root=str(tmp_path), image_size=8)
    data = load_data(config, seed=0, default_root=tmp_path)
    small = RetrainConfig(cutout="auto", auxiliary=False, num_cells=2, init_channels=4)
    cell = Genotype.published("DARTS_V2")
    device = torch.device("cpu")
    made = Retraining(small, cell, data, seed=0, device=device, augmentation=config)
    assert made.batches.cutout_size == 4


# --- what is recorded ---------------------------------------------------------------------------


class Silent(Display):
    pass


def settled_sizes(tmp_path: Path, *roots: Path) -> list[int | None]:
    """The image sizes in the search's key, for one configuration and several folders."""
    runner = Runner(Store(tmp_path / "store"), Silent(), StopFlag())
    configs = [runner.settled(configure("folder", None, str(root))) for root in roots]
    return [BY_NAME["search"].config(config)["data"]["image_size"] for config in configs]


@pytest.fixture
def two_folders(tmp_path: Path) -> list[Path]:
    small = write_classes(tmp_path / "small", {"cat": 4, "dog": 4})
    for index in range(8):
        label = ("cat", "dog")[index % 2]
        write_image(tmp_path / "large" / label / f"{index}.png", size=(70, 70))
    return [small, tmp_path / "large"]


def test_the_size_that_was_chosen_is_in_the_key(tmp_path: Path, two_folders: list[Path]) -> None:
    assert settled_sizes(tmp_path, *two_folders) == [10, 64]


def test_control_without_settling_the_key_knows_no_size(
    tmp_path: Path, two_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "settled", lambda _runner, config: config)
    assert settled_sizes(tmp_path, *two_folders) == [None, None]


def test_a_search_settles_its_size_for_all_that_follows(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its pictures change size afterwards: the run's later stages keep the size of its search."""
    place = TinyPlace(tmp_path)
    root = write_classes(tmp_path / "images", {"cat": 8, "dog": 8})
    words = ["--set", "data.name=folder", "--set", "data.train_images=none"]
    words += ["--set", "search.epochs=1", "--set", "search.warmup_epochs=0"]
    assert place.run("search", str(place.preset), *words, "--data-root", str(root)) == 0
    told = "image size 10: chosen from 16 pictures: median 10 x 12 (data.image_size sets another)"
    assert told in capfd.readouterr().err
    searched = place.latest("search")
    assert searched.manifest.config["data"]["image_size"] == 10
    assert place.run("derive", "tiny") == 0
    for path in root.rglob("*.png"):
        write_image(path, seed=len(str(path)), size=(70, 70))
    _, config, _ = inputs_of(Store(place.store), "retrain", "tiny", (), None)
    assert config.data.image_size == 10


def test_the_report_its_page_and_the_card_say_it(folder: Path) -> None:
    config = DataConfig(name="folder", root=str(folder))
    data = load_data(config, seed=0, default_root=folder)
    facts = described(data)["pictures"]
    assert (facts["count"], facts["looked_at"], facts["enlarged"]) == (12, 12, 0)
    assert (facts["median_shorter"], facts["median_longer"]) == (30, 300)
    line = "12 pictures have 30 x 300 pixels"
    model = REPORT["model"] | {"precision": "fp32"}
    golden = {"images": np.zeros((1, 3, 32, 32)), "logits": np.zeros((1, 3))}
    for report, said in (
        (a_report(model=model, data=described(data)), True),
        (a_report(model=model), False),
    ):
        assert (line in page(report)) is said
        card = model_card("demo", 1, report | {"parameterless_normal": 2}, PREPROCESS, golden)
        assert (line in card) is said
