"""A bundle is enough: pictures are prepared and answered from its files, without this library."""

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.numpy
from bundles import bundle_of, other_golden
from forgery import seal
from image_files import noise
from odd_pictures import write_all
from page_facts import PREPROCESS, a_report
from PIL import Image, features
from toy import Place

from d2nas.data import preprocess
from d2nas.errors import DamagedArtifactError
from pipeline.bundle import prediction
from pipeline.bundle.card import model_card
from pipeline.bundle.reader import open_bundle
from pipeline.cli import run
from pipeline.gate import golden
from pipeline.onnx_io.preparation import preprocess_for

# A bundle's folder is where the child runs, so that only the bundle's own module is found.
ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("d2nas", "pipeline", "torch"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, ".")
"""
TRAINED = {
    "channels": 3,
    "image_size": 16,
    "fit": "crop",
    "crop_fraction": 1.0,
    "dtype": "float32",
    "layout": "NCHW",
    "mean": [0.49, 0.48, 0.45],
    "std": [0.25, 0.24, 0.26],
    "formula": "(pixel / 255 - mean) / std, by channel",
    "resize": "",
    "class_names": ["a", "b"],
}


def alone(folder: Path, script: str, *arguments: str) -> str:
    """Run a script where only numpy, Pillow and ONNX Runtime can be imported."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE + script, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": "", "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def snippet_of(card: str) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return str(found)


# --- pictures of every kind ---------------------------------------------------------------------

SIZES = [(97, 41), (41, 97), (16, 16), (1, 1), (3, 2), (500, 7), (7, 500), (640, 427), (17, 16)]


def pictures(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield more than a hundred pictures, of all sizes, modes, formats and orientations."""
    colour = Image.fromarray(noise(1, 41, 97, 3))
    for size in SIZES:
        yield f"{size}", write(Image.fromarray(noise(2, size[1], size[0], 3)), folder)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield mode, write(colour.convert(mode), folder)
    for mode in ("CMYK", "YCbCr"):
        yield mode, write(colour.convert(mode), folder, ".jpg", quality=95)
    yield "CMYK in TIFF", write(colour.convert("CMYK"), folder, ".tif")
    for suffix in (".bmp", ".gif", ".webp", ".tif", ".ppm", ".jpg"):
        if suffix != ".webp" or features.check("webp"):
            yield suffix, write(colour, folder, suffix)
    for suffix, feature in ((".avif", "avif"), (".jp2", "jpg_2000")):
        if features.check(feature):
            yield suffix, write(colour, folder, suffix)
    translucent = Image.fromarray(np.concatenate([noise(3, 41, 97, 3), noise(4, 41, 97, 1)], 2))
    yield "alpha", write(translucent, folder)
    yield "grey and alpha", write(translucent.convert("LA"), folder)
    yield "a transparent entry", write(colour.convert("P"), folder, transparency=3)
    yield "a transparent grey", write(colour.convert("L"), folder, transparency=77)
    yield "a transparent colour", write(colour, folder, transparency=(1, 2, 3))
    deep = np.random.default_rng(5).integers(0, 65536, (41, 97)).astype(np.uint16)
    for suffix in (".png", ".tif", ".pgm"):
        yield f"16 bits in {suffix}", write(Image.fromarray(deep), folder, suffix)
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        yield f"orientation {orientation}", write(colour, folder, ".jpg", exif=exif)
    yield "damaged EXIF data", write(colour, folder, exif=b"Exif\0\0MM\0*\xff\xff")
    others = [Image.fromarray(noise(seed, 41, 97, 3)) for seed in (7, 8)]
    for suffix in (".gif", ".png", ".tif"):
        frames: dict[str, Any] = {"save_all": True, "append_images": others}
        yield f"many frames in {suffix}", write(colour, folder, suffix, **frames)
    (folder / "odd").mkdir()
    for odd in write_all(folder / "odd"):
        yield odd.name, folder / "odd" / odd.name
    yield "a profile", write(colour, folder, icc_profile=b"\0" * 200)


def write(image: Image.Image, folder: Path, suffix: str = ".png", **options: Any) -> Path:
    path = folder / f"{len(list(folder.iterdir())):03}{suffix}"
    image.save(path, **options)
    return path


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "colour": ("float32", {}),
    "pixels": ("uint8", {}),
    "a smaller part": ("float32", {"crop_fraction": 0.875}),
    "padded": ("uint8", {"fit": "pad"}),
    "grey": ("float32", {"channels": 1, "mean": [0.3], "std": [0.37]}),
}

PREPARE = """
import json, pathlib, preprocess, numpy
paths, names, bad = map(json.loads, sys.argv[1:])
for name in names:
    settings = preprocess.read_settings(f"{name}.json")
    numpy.save(f"{name}.npy", preprocess.prepare(paths, settings))
with pathlib.Path(paths[0]).open("rb") as opened:
    one = preprocess.prepare([opened], preprocess.read_settings("colour.json"))
assert (one == numpy.load("colour.npy")[:1]).all()
for path in bad:
    try:
        preprocess.prepare([path], settings)
    except preprocess.DECODE_ERRORS:
        print("refused")
"""


def test_pictures_of_every_kind_are_prepared_as_predict_does_it(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    kinds, paths = zip(*pictures(tmp_path / "pictures"), strict=True)
    assert len(paths) >= 100
    shutil.copy(preprocess.__file__, tmp_path / "preprocess.py")
    settings = {
        name: preprocess_for(kind, TRAINED | changes) for name, (kind, changes) in VARIANTS.items()
    }
    for name, values in settings.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    bad = [
        write(Image.fromarray(np.ones((4, 4), np.float32)), tmp_path, ".tif"),
        write(Image.fromarray(np.full((4, 4), 70000, np.int32)), tmp_path, ".tif"),
        tmp_path / "preprocess.py",
    ]
    words = [json.dumps([*map(str, some)]) for some in (paths, settings, bad)]
    assert alone(tmp_path, PREPARE, *words).split() == ["refused"] * 3
    for name, values in settings.items():
        wanted = prediction.read_pictures(paths, values)
        found = np.load(tmp_path / f"{name}.npy", allow_pickle=False)
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert [k for k, a, b in zip(kinds, found, wanted, strict=True) if (a != b).any()] == []
    # Control: who takes "resize, then centre crop" literally gets other pixels.
    literal = [by_two_steps(path) for path in paths]
    pixels = prediction.read_pictures(paths, settings["pixels"])
    assert sum((a != b).any() for a, b in zip(literal, pixels, strict=True)) > 20


def by_two_steps(path: Path) -> Any:
    image = Image.open(path).convert("RGB")
    scale = 16 / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = ((side - 16) // 2 for side in image.size)
    return np.asarray(image.crop((left, top, left + 16, top + 16)))


def test_the_words_in_the_steps_are_the_arithmetic() -> None:
    """Each formula of ``steps``, computed by hand for all values that it can have, or many."""

    def converted(mode: str, channels: int, *bands: Any) -> Any:
        pixels = np.stack(bands, axis=2).astype(np.uint8)
        image = Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())
        return np.asarray(preprocess.eight_bit_colours(image, channels))

    colour, opacity = (grid.astype(np.int64) for grid in np.indices((256, 256)))
    found = converted("RGBA", 3, colour, colour, colour, opacity)
    assert (found[..., 1] == (2 * colour * opacity + 255) // 510).all()
    found = converted("CMYK", 3, colour, colour, colour, opacity)
    assert (found[..., 1] == (2 * (255 - opacity) * (255 - colour) + 255) // 510).all()
    red, green, blue = np.moveaxis(noise(10, 256, 256, 3).astype(np.int64), 2, 0)
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) // 65536
    assert (converted("RGB", 1, red, green, blue) == luma).all()
    deep = np.arange(65536).reshape(256, 256)
    image = Image.fromarray(deep.astype(np.uint16))
    assert (np.asarray(preprocess.eight_bit_colours(image, 1)) == (deep + 128) // 257).all()
    for width, height in SIZES:
        shorter, resized = min(width, height), round(16 / 0.875)
        wide, high = (resized * side // shorter for side in (width, height))
        x, y = round((wide - 16) / 2), round((high - 16) / 2)
        right, bottom = min((x + 16) * width / wide, width), min((y + 16) * height / high, height)
        box = (x * width / wide, y * height / high, right, bottom)
        assert preprocess.centre_box(width, height, 16, 0.875) == pytest.approx(box, rel=1e-12)


class Formulas:
    """The arithmetic in a text: ``name = expression`` and single expressions, computed."""

    FUNCTIONS: ClassVar[dict[str, Any]] = {
        "floor": np.floor,
        "round": np.rint,
        "min": np.minimum,
        "max": np.maximum,
    }
    OPERATORS: ClassVar[dict[type, Any]] = {
        ast.Add: np.add,
        ast.Sub: np.subtract,
        ast.Mult: np.multiply,
        ast.Div: np.divide,
    }

    def __init__(self, **values: Any) -> None:
        self.values = values

    def compute(self, text: str) -> Any:
        return self._value(ast.parse(text.replace("'", "_"), mode="eval").body)

    def assign(self, text: str) -> None:
        """Take every ``name = expression`` out of a text, in order."""
        depth, part = 0, ""
        for character in f"{text},":
            depth += {"(": 1, ")": -1}.get(character, 0)
            if depth or character not in ",;:":
                part += character
                continue
            found = re.fullmatch(r"(\w+'?) = (.+)", part.strip())
            if found:
                self.values[found[1].replace("'", "_")] = self.compute(found[2])
            part = ""

    def _value(self, node: Any) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.values[node.id]
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name)
            return self.FUNCTIONS[node.func.id](*map(self._value, node.args))
        assert isinstance(node, ast.BinOp)
        return self.OPERATORS[type(node.op)](self._value(node.left), self._value(node.right))


def formula_in(steps: list[str], before: str) -> str:
    """The ``floor(...)`` that stands behind some words in the steps."""
    (found,) = re.findall(rf"{re.escape(before)}(floor\(.*\))", "\n".join(steps))
    depth = 0
    for index, character in enumerate(str(found)):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0 and character == ")":
            return str(found)[: index + 1]
    raise AssertionError(found)


def unequal_words(steps: list[str], grey_steps: list[str]) -> list[str]:
    """Which formulas in the words are not what the code computes."""

    def converted(mode: str, channels: int, *bands: Any) -> Any:
        pixels = np.stack(bands, axis=2).astype(np.uint8)
        image = Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())
        return np.asarray(preprocess.eight_bit_colours(image, channels))

    colour, other = (grid.astype(np.int64) for grid in np.indices((256, 256)))
    red, green, blue = np.moveaxis(noise(10, 256, 256, 3).astype(np.int64), 2, 0)
    deep = np.arange(65536).reshape(256, 256)
    sixteen = Image.fromarray(deep.astype(np.uint16))
    alpha = converted("RGBA", 3, colour, colour, colour, other)[..., 0]
    inks = converted("CMYK", 3, colour, colour, colour, other)[..., 0]
    # What the words say, and what the code computes.
    said = {
        "alpha": (formula_in(steps, "opacity a becomes "), {"c": colour, "a": other}, alpha),
        "CMYK": (formula_in(steps, "CMYK becomes RGB: R = "), {"C": colour, "K": other}, inks),
        "16 bits": (
            formula_in(steps, "16-bit grey v becomes "),
            {"v": deep},
            np.asarray(preprocess.eight_bit_colours(sixteen, 1)),
        ),
        "luma": (
            formula_in(grey_steps, "Colour becomes grey: "),
            {"R": red, "G": green, "B": blue},
            converted("RGB", 1, red, green, blue),
        ),
    }
    wrong = [
        name
        for name, (words, values, found) in said.items()
        if (Formulas(**values).compute(words) != found).any()
    ]
    (box,) = (step for step in steps if "crop_fraction" in step)
    for width, height in SIZES:
        formulas = Formulas(w=width, h=height, image_size=16, crop_fraction=0.875)
        formulas.assign(box.partition("Image.resize")[0])
        found = [float(formulas.values[side]) for side in ("left", "top", "right", "bottom")]
        if preprocess.centre_box(width, height, 16, 0.875) != pytest.approx(found, rel=1e-12):
            wrong.append(f"box of {width} x {height}")
    return wrong


def test_the_formulas_as_they_are_written_are_the_arithmetic() -> None:
    steps = preprocess_for("float32", TRAINED)["steps"]
    grey = preprocess_for("float32", TRAINED | {"channels": 1})["steps"]
    assert unequal_words(steps, grey) == []


WRONG_WORDS = {
    "alpha": ("2 * c * a + 255", "2 * c * a + 1"),
    "CMYK": ("(255 - K) * (255 - C) + 255", "(255 - K) * (255 - C)"),
    "16 bits": ("(v + 128) / 257", "v / 256"),
    "luma": ("38470 * G", "38469 * G"),
    "box": ("round((w' - S) / 2)", "(w' - S) / 2"),
}


@pytest.mark.parametrize("which", WRONG_WORDS)
def test_control_a_formula_with_another_number_is_found(which: str) -> None:
    right, wrong = WRONG_WORDS[which]
    texts = [
        preprocess_for("float32", TRAINED | {"channels": channels})["steps"] for channels in (3, 1)
    ]
    assert any(right in step for steps in texts for step in steps)
    changed = [[step.replace(right, wrong) for step in steps] for steps in texts]
    found = unequal_words(*changed)
    assert found
    assert all(name.startswith(which) for name in found)


# --- the card's snippet, and the golden picture -------------------------------------------------


@pytest.mark.parametrize("words", [(), ("--input", "uint8")], ids=["float32", "uint8"])
def test_the_cards_snippet_gives_the_cards_answer(
    finished: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    if words:
        assert finished.run("export", "toy", *words) == 0
        assert finished.run("validate", "toy") == 0
    bundle = tmp_path / "elsewhere"
    shutil.copytree(bundle_of(finished), bundle)
    card = (bundle / "MODEL_CARD.md").read_text()
    assert len(snippet_of(card).splitlines()) <= 16
    told = [line.split("\t") for line in alone(bundle, snippet_of(card)).splitlines()]
    assert len(told) == 3
    assert f"with {', '.join(f'{name} {share}' for name, share in told)}.\n" in card
    capfd.readouterr()
    assert run(["predict", str(bundle), str(bundle / "golden.png"), "--top", "3", "--json"]) == 0
    (answer,) = json.loads(capfd.readouterr().out)
    assert [row["class"] for row in answer["predictions"]] == [name for name, _ in told]
    # Control: a preparation that does not turn the picture gives another answer.
    code = (bundle / "preprocess.py").read_text()
    assert "return ImageOps.exif_transpose(image)" in code
    (bundle / "preprocess.py").write_text(code.replace("ImageOps.exif_transpose(image)", "image"))
    other = [line.split("\t") for line in alone(bundle, snippet_of(card)).splitlines()]
    assert other != told


HOSTILE_NAMES = ['"); import os; os.abort()  #', "```\n\n# no heading", "{number} <b>|x|</b> \\"]


def card_of(names: list[str]) -> str:
    arrays = {"logits": np.eye(3), "images": np.zeros((3, 1, 8, 8))}
    arrays |= {"picture": np.zeros((1, 1, 8, 8)), "picture_logits": np.ones((1, 3))}
    report = a_report()
    report["model"] |= {"precision": "fp32"}
    return model_card("demo", 1, report, PREPROCESS | {"class_names": names}, arrays)


def markup_in(card: str) -> list[str]:
    """What a class name has made of the card beside text."""
    shown = re.sub(r"\\([^A-Za-z0-9\s])", "", card)
    marks = ("\n# no heading", "<b>", "|x|")
    fences = shown.count("```") != 4  # the snippet's and the steps' own
    return [mark for mark in marks if mark in shown] + ["```"] * fences


def test_class_names_are_never_code() -> None:
    hostile, harmless = card_of(HOSTILE_NAMES), card_of(["a", "b", "c"])
    assert snippet_of(hostile) == snippet_of(harmless)
    assert "\n# no heading" not in hostile
    assert "\\<b\\>\\|x" in hostile
    assert markup_in(hostile) == markup_in(harmless) == []


def test_control_class_names_as_they_are_would_be_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.bundle.card.markdown", str)
    assert markup_in(card_of(HOSTILE_NAMES)) == ["\n# no heading", "<b>", "|x|", "```"]


def other_picture(bundle: Path) -> None:
    image = Image.open(bundle / "golden.png")
    pixels = np.asarray(image).copy()
    pixels[:5] ^= 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=image.getexif())
    (bundle / "golden.png").write_bytes(file.getvalue())


def a_torn_picture(bundle: Path) -> None:
    path = bundle / "golden.png"
    path.write_bytes(path.read_bytes()[:-40])


def other_code(bundle: Path) -> None:
    path = bundle / "preprocess.py"
    path.write_text(path.read_text() + "\nimport os\n")


def no_picture(bundle: Path) -> None:
    for folder in (bundle, bundle / "1"):
        (folder / "golden.png").unlink()


FORGED: dict[str, tuple[Callable[[Path], None], str, int]] = {
    "another picture": (other_picture, "golden.png is prepared otherwise here", 3),
    "a torn picture": (a_torn_picture, "golden.png: cannot be read as an image", 4),
    "other code": (other_code, "preprocess.py: is not the one that d2nas writes", 4),
    "no picture": (no_picture, "golden.safetensors: contradicts 1/model.onnx", 4),
    "other answers": (
        other_golden(picture_logits=np.ones((1, 10), np.float32)),
        "golden inputs are answered otherwise",
        3,
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_verify_prepares_the_golden_picture_again(
    finished: Place, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    bundle = bundle_of(finished)
    (shown,) = finished.json(capfd, "verify", str(bundle))
    assert shown["golden_picture"] is True
    forge, words, code = FORGED[what]
    forge(bundle)
    seal(bundle)
    assert finished.run("verify", str(bundle)) == code
    assert words in capfd.readouterr().err
    picture = str(bundle.parent / "a.png")
    Image.new("L", (9, 7)).save(picture)
    assert run(["predict", str(bundle), picture]) == code
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("what", ["orientation", "crop"])
def test_another_arithmetic_is_noticed_by_the_golden_picture(
    finished: Place,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """As if a newer Pillow, or a newer d2nas, turned or cropped otherwise."""
    real = preprocess.centre_box
    if what == "orientation":
        monkeypatch.setattr("d2nas.data.decoding.upright", lambda image: image)
    else:
        monkeypatch.setattr(
            preprocess, "centre_box", lambda *known: tuple(0.9 * side for side in real(*known))
        )
    bundle = bundle_of(finished)
    assert finished.run("verify", str(bundle)) == 3
    assert "golden.png is prepared otherwise here" in capfd.readouterr().err
    # Control: the golden inputs alone do not notice.
    monkeypatch.setattr("pipeline.bundle.prediction.check_preparation", lambda _: True)
    assert finished.run("verify", str(bundle)) == 0


@pytest.mark.parametrize("size", [1, 8, 32, 225, 4096])
def test_the_golden_picture_is_odd_small_and_always_the_same(size: int) -> None:
    content = golden.golden_picture(size)
    image = Image.open(io.BytesIO(content))
    assert all(side % 2 for side in image.size)
    assert image.width != image.height
    assert image.getexif()[0x0112] == 6
    assert len(content) < 2**19
    assert content == golden.golden_picture(size)


# --- versions side by side ----------------------------------------------------------------------


def test_each_version_keeps_what_belongs_to_it(finished: Place) -> None:
    bundle = bundle_of(finished)
    first = {path.name: path.read_bytes() for path in (bundle / "1").iterdir()}
    assert finished.run("export", "toy", "--input", "uint8") == 0
    assert finished.run("validate", "toy") == 0
    assert open_bundle(bundle).number == 2
    assert {path.name: path.read_bytes() for path in (bundle / "1").iterdir()} == first
    layouts = {
        number: json.loads((bundle / number / "preprocess.json").read_text())["layout"]
        for number in ("1", "2", ".")
    }
    assert layouts == {"1": "NCHW", "2": "NHWC", ".": "NHWC"}
    for name in first.keys() - {"model.onnx"}:
        assert (bundle / "2" / name).read_bytes() == (bundle / name).read_bytes()
    assert b"versions: [ 1 ]" in first["config.pbtxt"]
    # Each folder is enough for its own version.
    arrays = safetensors.numpy.load(first["golden.safetensors"])
    script = "import preprocess, numpy; numpy.save(sys.argv[1], preprocess.prepare(['golden.png']))"
    alone(bundle / "1", script, str(bundle.parent / "one.npy"))
    assert (np.load(bundle.parent / "one.npy", allow_pickle=False) == arrays["picture"]).all()


def test_files_of_another_version_are_refused(finished: Place) -> None:
    bundle = bundle_of(finished)
    assert finished.run("export", "toy", "--input", "uint8") == 0
    assert finished.run("validate", "toy") == 0
    for name in ("preprocess.json", "labels.txt", "golden.safetensors", "preprocess.py"):
        own, served = ((bundle / number / name).read_bytes() for number in ("1", "2"))
        other = served if own != served else served[::-1]
        for number, words in (
            ("1", rf"1/{name}: contradicts 1/model\.onnx"),
            ("2", rf"2/{name}: is not the {name} of the bundle"),
        ):
            before = (bundle / number / name).read_bytes()
            (bundle / number / name).write_bytes(other if number == "1" else served + b"\n")
            seal(bundle)
            with pytest.raises(DamagedArtifactError, match=words):
                open_bundle(bundle)
            (bundle / number / name).write_bytes(before)
    seal(bundle)
    assert open_bundle(bundle).number == 2  # control
