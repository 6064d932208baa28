"""Damaged images of a folder: all are named before a run stops, or they are left out and told."""

from pathlib import Path

import pytest
import torch
from image_files import write_classes, write_image
from page_facts import REPORT, page
from toy import Place

from d2nas.config import DataConfig, build_config
from d2nas.data import decoding as image_decoding
from d2nas.data import faults as image_faults
from d2nas.data import readers as data_readers
from d2nas.data import sources as data_sources
from d2nas.data.files import ImageFiles
from d2nas.data.folders import find_images
from d2nas.data.images import load_data
from d2nas.data.sources import content_digest
from d2nas.errors import ConfigError
from pipeline.cli import run
from pipeline.stages import BY_NAME

DAMAGED = ("a/001.png", "b/000.png", "b/003.png")
REASON = "cannot be read as an image"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of eight, of which three images are damaged: two headers, one end."""
    root = write_classes(tmp_path / "images", {"a": 8, "b": 8})
    for path in DAMAGED[:2]:
        (root / path).write_bytes(b"no image")
    whole = (root / DAMAGED[2]).read_bytes()
    (root / DAMAGED[2]).write_bytes(whole[: len(whole) // 2])
    return root


def config_of(root: Path, **settings: object) -> DataConfig:
    return build_config({"data": {"name": "folder", "root": str(root), **settings}}).data


def loaded(root: Path, **settings: object):
    return load_data(config_of(root, **settings), seed=0, default_root=root)


def digest_of(root: Path, cache=None, **settings: object) -> str:
    return content_digest(config_of(root, **settings), default_root=root, cache=cache)


# --- stop ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [None, 3])
def test_all_damaged_images_are_named_before_a_run_stops(folder: Path, channels: int | None):
    with pytest.raises(ConfigError, match=rf"{folder}: 3 faults \(damaged images 3\)") as raised:
        loaded(folder, channels=channels)
    assert [line.partition(": ")[0] for line in raised.value.details] == list(DAMAGED)
    assert all(REASON in line for line in raised.value.details)
    assert "data.on_error=skip" in raised.value.hint


def test_many_damaged_images_are_counted(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {"a": 4, "b": 4})
    for index in range(23):
        (root / "a" / f"{index:03}.jpg").write_bytes(b"no image")
    with pytest.raises(ConfigError) as raised:
        loaded(root)
    assert len(raised.value.details) == image_faults.MAX_TOLD + 1
    assert raised.value.details[-1] == "and 3 more (damaged images 3)"


def test_of_streamed_images_all_whose_header_is_damaged_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(folder, stream="always")
    assert [line.partition(": ")[0] for line in raised.value.details] == list(DAMAGED[:2])


def test_without_the_collection_the_first_damaged_image_ends_it(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(data_readers, "_refuse_damaged", lambda *_: None)
    with pytest.raises(ConfigError, match=r"a/001\.png: cannot be read") as raised:
        loaded(folder)
    assert not raised.value.details


# --- skip ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["never", "always"])
def test_damaged_images_are_left_out_and_told(folder: Path, tmp_path: Path, stream: str) -> None:
    data = loaded(folder, on_error="skip", stream=stream, image_size=9)
    assert isinstance(data.train, ImageFiles) is (stream == "always")
    assert len(data.train) + len(data.test) == 13
    assert data.warnings[0] == f"damaged images left out: 3 of 16 ({', '.join(DAMAGED)})"
    assert not set(data.warnings) & set(data.summary_lines())
    for path in DAMAGED:
        (folder / path).unlink()
    without = loaded(folder, stream=stream, image_size=9)
    assert without.digest == data.digest == digest_of(folder)
    whole = slice(0, len(data.train))
    assert torch.equal(without.train.pixels(whole), data.train.pixels(whole))
    assert without.warnings == data.warnings[1:]


def test_who_is_left_out_is_part_of_the_digest(folder: Path) -> None:
    one = digest_of(folder, on_error="skip")
    assert one != digest_of(folder)
    write_image(folder / DAMAGED[0], seed=1)
    two = digest_of(folder, on_error="skip")
    (folder / DAMAGED[0]).write_bytes(b"no image")
    assert digest_of(folder, on_error="skip") == one
    (folder / "a" / "002.png").write_bytes(b"no image")
    assert len({one, two, digest_of(folder, on_error="skip")}) == 3


def test_without_the_digest_of_what_is_used_two_data_sets_would_be_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = find_images(folder)
    monkeypatch.setattr(data_sources, "list_usable_images", lambda *_, **__: listing)
    assert digest_of(folder, on_error="skip") == digest_of(folder)


def test_the_key_itself_decides_nothing_where_all_images_are_whole(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {"a": 4, "b": 4})
    assert digest_of(root, on_error="skip") == digest_of(root)
    keys = {
        BY_NAME["search"].key(build_config({"data": {"on_error": choice}}), {}, "digest")
        for choice in ("stop", "skip")
    }
    assert len(keys) == 1


def test_test_images_that_are_left_out_are_told_too(tmp_path: Path) -> None:
    counts = {f"{part}/{name}": 4 for part in ("train", "val", "test") for name in "ab"}
    root = write_classes(tmp_path, counts)
    for path in ("test/a/000.png", "val/b/002.png"):
        (root / path).write_bytes(b"")
    data = loaded(root, on_error="skip")
    assert (len(data.test), len(data.arch_half), len(data.weight_half)) == (7, 7, 8)
    assert data.warnings[0].endswith("2 of 24 (test/a/000.png, val/b/002.png)")


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ("train/a", "class a has 3 images that can be decoded, at least 4"),
        ("test", "none of the 2 test images"),
    ],
)
def test_a_class_or_part_of_which_too_few_are_left_is_refused(tmp_path, part, problem):
    root = write_classes(tmp_path, {"train/a": 4, "train/b": 4, "test/a": 1, "test/b": 1})
    damaged = sorted((root / part).rglob("*.png"))[: 1 if part == "train/a" else 2]
    for path in damaged:
        path.write_bytes(b"no image")
    with pytest.raises(ConfigError, match=problem) as raised:
        loaded(root, on_error="skip")
    assert len(raised.value.details) == 1 + len(damaged)
    assert str(damaged[0].relative_to(root)) in raised.value.details[1]


class Cache(dict[str, str]):
    """A digest cache in memory."""

    def set(self, key: str, value: str) -> None:
        self[key] = value


def test_images_are_decoded_once_for_all_runs(folder: Path, monkeypatch) -> None:
    cache = Cache()
    expected = digest_of(folder, cache, on_error="skip")
    assert len(cache) == 16 + 13
    decoded = []
    real = image_decoding.check_decodes
    monkeypatch.setattr(image_decoding, "check_decodes", lambda path: decoded.append(path))
    assert digest_of(folder, cache, on_error="skip") == expected
    assert decoded == []
    monkeypatch.setattr(image_decoding, "check_decodes", real)
    write_image(folder / DAMAGED[0], seed=1)
    assert digest_of(folder, cache, on_error="skip") != expected
    monkeypatch.setattr("PIL.__version__", "another")
    monkeypatch.setattr(image_decoding, "check_decodes", lambda path: decoded.append(path))
    digest_of(folder, cache, on_error="skip")
    assert len(decoded) == 16


def test_progress_is_told_while_images_are_decoded(folder: Path) -> None:
    told = []
    content_digest(
        config_of(folder, on_error="skip"),
        default_root=folder,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(16, 16), (13, 13)]


def test_a_run_tells_it_and_stops_without_the_key(folder: Path, tmp_path: Path, capsys) -> None:
    words = ["search", "folder", "--data-root", str(folder), "--method", "random"]
    words += ["--store", str(tmp_path / "store"), "--set", "data.image_size=8"]
    assert run(words) == 2
    assert f"  {DAMAGED[2]}: {REASON}" in capsys.readouterr().err
    assert run([*words, "--set", "data.on_error=skip"]) == 0
    assert "damaged images left out: 3 of 16 (a/001.png" in capsys.readouterr().err


def test_a_plan_tells_it_and_decodes_each_image_once(
    folder: Path, place: Place, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline.preflight.plan.Estimates.of", lambda *_: {"steps": 1, "seconds": 1.0}
    )
    decoded = []
    real = image_decoding.check_decodes

    def counted(path: Path) -> None:
        decoded.append(path)
        real(path)

    monkeypatch.setattr(image_decoding, "check_decodes", counted)
    words = ["run", "folder", "--data-root", str(folder), "--set", "data.on_error=skip", "--plan"]
    told = f"damaged images left out: 3 of 16 ({', '.join(DAMAGED)})"
    assert told in place.json(capfd, *words)["data"]["notes"]
    assert told in place.json(capfd, *words)["data"]["notes"]
    assert len(decoded) == 16


def test_the_report_tells_what_was_left_out(folder: Path) -> None:
    line = loaded(folder, on_error="skip", image_size=8).warnings[0]
    report = {**REPORT, "data": {**REPORT["data"], "warnings": [line]}}
    assert line in page(report)
    assert line not in page(REPORT)
