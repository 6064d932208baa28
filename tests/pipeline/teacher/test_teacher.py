"""Teachers are checked against the data, or mapped to it: input, preparation, classes, answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from searches import made_images
from teachers import linear_of, teacher_model, written
from torch import Tensor, nn
from torch.nn import functional as F

from d2nas.config import RetrainConfig, build_config
from d2nas.data.images import ImageData, Normalizer
from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.files.tensors import encode_tensors
from pipeline.onnx_io import foreign
from pipeline.onnx_io.preparation import PREPROCESS_KEY
from pipeline.teacher import models, opening, source
from pipeline.teacher.opening import OpenedTeacher, open_teacher
from pipeline.teacher.preparation import Input, Preparation
from pipeline.teacher.source import source_of, teacher_key

CPU = torch.device("cpu")
UNIT = ("retrain.teacher_mean=[0,0,0]", "retrain.teacher_std=[1,1,1]")


@pytest.fixture
def data() -> ImageData:
    return made_images()


def config_of(path: Path | str, *settings: str) -> RetrainConfig:
    return build_config({"retrain": {"teacher": str(path)}}, settings).retrain


def opened(path: Path | str, data: ImageData, *settings: str) -> OpenedTeacher:
    return open_teacher(config_of(path, *settings), data, CPU)


def images_of(data: ImageData) -> Tensor:
    return Normalizer(data.mean, data.std)(data.train.pixels(slice(0, 7)))


def wanted_of(data: ImageData) -> Tensor:
    weights, biases = linear_of(data)
    values = data.train.pixels(slice(0, 7)).numpy().reshape(7, -1) / 255
    return torch.from_numpy(values @ weights.T + biases).float()


def answers(path: Path | str, data: ImageData, *settings: str) -> Tensor:
    return opened(path, data, *settings).answer(images_of(data))


def test_a_file_of_prepared_images_answers_as_it_should(tmp_path: Path, data: ImageData) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    given = ("retrain.teacher_mean=[0.4,0.5,0.6]", "retrain.teacher_std=[0.2,0.25,0.3]")
    path = written(tmp_path, data, mean=mean, std=std)
    torch.testing.assert_close(answers(path, data, *given), wanted_of(data), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="may be chance"):  # control
        answers(path, data, *UNIT)


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "NHWC"},
        {"dtype": np.float16},
        {"dtype": np.uint8},
        {"dtype": np.uint8, "layout": "NHWC"},
        {"free_size": True},
        {"batch": 4},
        {"batch": 1, "layout": "NHWC"},
    ],
    ids=str,
)
def test_layouts_types_and_batches_give_the_same_answers(
    options: dict[str, Any], tmp_path: Path, data: ImageData
) -> None:
    given = () if options.get("dtype") is np.uint8 else UNIT
    found = answers(written(tmp_path, data, **options), data, *given)
    limit = 0.02 if options.get("dtype") is np.float16 else 1e-4
    torch.testing.assert_close(found, wanted_of(data), rtol=limit, atol=limit)


def test_probabilities_are_logits_after_all(tmp_path: Path, data: ImageData) -> None:
    teacher = opened(written(tmp_path, data, gives="probabilities"), data, *UNIT)
    assert teacher.facts["answers"] == "probabilities"
    found, wanted = teacher.answer(images_of(data)), wanted_of(data)
    torch.testing.assert_close(found, wanted.log_softmax(1), rtol=1e-3, atol=1e-3)
    assert opened(written(tmp_path, data), data, *UNIT).facts["answers"] == "logits"
    rows = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert opening.are_probabilities(rows)
    assert not opening.are_probabilities(rows - 0.1)
    assert not opening.are_probabilities(torch.cat([rows, torch.tensor([[1.5, -0.5]])]))


def test_an_input_that_is_not_told_is_not_guessed(tmp_path: Path, data: ImageData) -> None:
    with pytest.raises(ConfigError, match=r"teacher_mean and retrain\.teacher_std are missing"):
        opened(written(tmp_path, data), data)
    one = ("retrain.teacher_mean=[0.5]", "retrain.teacher_std=[0.5]")
    with pytest.raises(ConfigError, match=r"takes 3 channels, retrain\.teacher_mean has 1"):
        opened(written(tmp_path, data), data, *one)
    with pytest.raises(ConfigError, match="it takes pixels"):
        opened(written(tmp_path, data, dtype=np.uint8), data, *UNIT)


def test_what_a_model_of_d2nas_says_is_taken(tmp_path: Path, data: ImageData) -> None:
    said: dict[str, Any] = {"mean": [0.4] * 3, "std": [0.2] * 3, "class_names": list("badc")}
    said |= {"channels": 3, "image_size": 8}
    options: Any = {"mean": (0.4,), "std": (0.2,), "order": (1, 0, 3, 2)}
    path = written(tmp_path, data, **options, metadata={PREPROCESS_KEY: json.dumps(said)})
    found = opened(path, data)
    assert found.facts["classes"] == "of the same names, in another order"
    got = found.answer(images_of(data))
    torch.testing.assert_close(got, wanted_of(data), rtol=1e-4, atol=1e-4)
    said["std"] = [0.2, 0.0, 0.2]
    path = written(tmp_path, data, **options, metadata={PREPROCESS_KEY: json.dumps(said)})
    with pytest.raises(DamagedArtifactError, match=r"d2nas\.preprocess: std\.1: "):
        opened(path, data)


def test_classes_are_mapped_by_name(tmp_path: Path, data: ImageData) -> None:
    order, names = (2, 0, 3, 1), ("c", "a", "d", "b")
    path = written(tmp_path, data, order=order, names=names)
    found = answers(path, data, *UNIT)
    torch.testing.assert_close(found, wanted_of(data), rtol=1e-4, atol=1e-4)
    path = written(tmp_path, data, order=order)
    with pytest.raises(ConfigError, match="may be chance"):  # control: not named, not mapped
        opened(path, data, *UNIT)
    (tmp_path / "labels.txt").write_text("c\na\nd\nb\n")
    found = answers(path, data, *UNIT)
    torch.testing.assert_close(found, wanted_of(data), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("a", "b", "c", "dog"), 'without "d", with "dog"'),
        (("a", "b", "c", "d", "e"), 'with "e"'),
        (("a", "b", "c", "c"), 'has the class "c" twice'),
    ],
)
def test_other_classes_are_refused(
    names: tuple[str, ...], told: str, tmp_path: Path, data: ImageData
) -> None:
    with pytest.raises(ConfigError, match=told):
        opened(written(tmp_path, data, names=names), data, *UNIT)


def test_another_number_of_outputs_is_refused(tmp_path: Path, data: ImageData) -> None:
    with pytest.raises(ConfigError, match="it has 3 outputs, the data 4 classes"):
        opened(written(tmp_path, data, order=(0, 1, 2)), data, *UNIT)
    path = written(tmp_path, data)
    path.with_name("labels.txt").write_bytes(b"\xff\n")
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        opened(path, data, *UNIT)
    bad = written(tmp_path, data, metadata={"class_names": '{"0": "a"}'})
    with pytest.raises(DamagedArtifactError, match="no JSON list of names"):
        opened(bad, data, *UNIT)


def test_a_teacher_that_knows_no_more_than_chance_is_refused(
    tmp_path: Path, data: ImageData
) -> None:
    with pytest.raises(ConfigError, match=r"25\.0 % of 32 training images, which may be chance"):
        opened(written(tmp_path, data, gives="chance"), data, *UNIT)
    wrong = ("retrain.teacher_mean=[9,9,9]", "retrain.teacher_std=[1,1,1]")
    with pytest.raises(ConfigError, match="may be chance"):
        opened(written(tmp_path, data), data, *wrong)
    assert opened(written(tmp_path, data), data, *UNIT).facts["accuracy"] > 0.9


def test_grey_images_are_given_in_colour(tmp_path: Path) -> None:
    data = made_images(channels=1)
    teacher = opened(written(tmp_path, data, grey=True), data, *UNIT)
    assert teacher.facts["input"] == "float32 NCHW 3 x 8 x 8, grey repeated"
    found = teacher.answer(images_of(data))
    torch.testing.assert_close(found, wanted_of(data), rtol=1e-4, atol=1e-4)
    grey = written(tmp_path, data)
    with pytest.raises(ConfigError, match="it takes grey images"):
        opened(grey, made_images(), "retrain.teacher_mean=[0]", "retrain.teacher_std=[1]")


def test_images_are_resized_to_what_the_teacher_takes(data: ImageData) -> None:
    wanted = Input("NCHW", 3, (20, 12), "float32", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    preparation, images = Preparation(wanted, data, "it"), images_of(data)
    assert preparation.describe() == "float32 NCHW 3 x 20 x 12, resized from 8"
    values = data.train.pixels(slice(0, 7)).float() / 255
    resized = F.interpolate(values, (20, 12), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(one)[:, None, None] for one in (wanted.mean, wanted.std))
    torch.testing.assert_close(preparation(images), (resized - mean) / std, rtol=1e-4, atol=1e-5)
    smaller = Preparation(Input("NCHW", 3, (3, 3), "uint8"), data, "it")(images)
    less = F.interpolate(values, (3, 3), mode="bilinear", antialias=True)
    assert torch.equal(smaller, (less * 255).round().to(torch.uint8))
    same = Input("NCHW", 3, (8, 8), "float32", data.mean, data.std)
    assert Preparation(same, data, "it")(images) is images


def test_pixels_are_those_of_the_data(data: ImageData) -> None:
    preparation = Preparation(Input("NHWC", 3, None, "uint8"), data, "it")
    assert torch.equal(preparation(images_of(data)), data.train.pixels(slice(0, 7)))


def changed(model: bytes, change: Any) -> bytes:
    found = onnx.ModelProto.FromString(model)
    change(found)
    return bytes(found.SerializeToString())


def _axes(*sizes: Any) -> Any:
    def change(model: onnx.ModelProto) -> None:
        for axis, size in zip(
            model.graph.input[0].type.tensor_type.shape.dim, ["n", *sizes], strict=True
        ):
            axis.Clear()
            if isinstance(size, str):
                axis.dim_param = size
            else:
                axis.dim_value = size

    return change


def _two_outputs(model: onnx.ModelProto) -> None:
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output[1].name = "scores"


def _outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    tensor.ClearField("raw_data")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_axes("h", "w", "c"), "which axis has the 1 or 3 channels"),
        (_axes(3, 8, 3), "which axis has the 1 or 3 channels"),
        (_axes(5, 8, 8), "which axis has the 1 or 3 channels"),
        (_two_outputs, "one input and one output are needed, it has pictures and answers, scores"),
        (lambda model: model.graph.node[0].CopyFrom(onnx.NodeProto(op_type="Nothing")), "load"),
        (_outside, "lies in another file"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    change: Any, told: str, tmp_path: Path, data: ImageData
) -> None:
    path = tmp_path / "big.onnx"
    path.write_bytes(changed(teacher_model(data), change))
    with pytest.raises((ConfigError, DamagedArtifactError), match=told):
        opened(path, data, *UNIT)


def test_no_model_and_no_file_are_told(tmp_path: Path, data: ImageData) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.onnx: no such file"):
        opened(tmp_path / "nowhere.onnx", data)
    with pytest.raises(ConfigError, match="no bundle"):
        opened(tmp_path, data)
    path = tmp_path / "text.onnx"
    for content in (b"no model", b""):
        path.write_bytes(content)
        with pytest.raises(DamagedArtifactError, match="not an ONNX file"):
            opened(path, data)


def test_answers_come_with_the_threads_of_the_training(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume sets them to those of the checkpoint after the teacher was opened."""
    taken: list[int] = []
    real = foreign.ForeignModel._open

    def opening_with(model: foreign.ForeignModel, num_threads: int) -> None:
        taken.append(num_threads)
        real(model, num_threads)

    monkeypatch.setattr(foreign.ForeignModel, "_open", opening_with)
    teacher = opened(written(tmp_path, data), data, *UNIT)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        teacher.answer(images_of(data))
        teacher.answer(images_of(data))
    finally:
        torch.set_num_threads(before)
    assert taken == [before, before + 1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_teacher_for_a_gpu_never_answers_on_the_cpu(data: ImageData) -> None:
    with pytest.raises(ConfigError, match="CUDA"):
        foreign.ForeignModel(teacher_model(data), cuda_index=0, num_threads=1, what="it")


def test_a_file_that_is_too_large_is_not_read(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, data)
    monkeypatch.setattr(source, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(DamagedArtifactError, match="bytes, at most"):
        opened(path, data, *UNIT)


# --- what enters the training's key -------------------------------------------------------------


def test_a_key_is_of_what_the_file_holds(tmp_path: Path, data: ImageData) -> None:
    path = written(tmp_path, data)
    key = teacher_key(config_of(path))
    moved = tmp_path / "elsewhere" / "other.onnx"
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    assert teacher_key(config_of(moved)) == key
    assert str(tmp_path) not in str(key)
    assert teacher_key(config_of(path, "retrain.teacher_weight=0.5")) != key
    assert teacher_key(config_of(path, *UNIT)) != key
    moved.with_name("labels.txt").write_text("a\nb\nc\nd\n")
    assert teacher_key(config_of(moved)) != key
    written(tmp_path, data, order=(1, 0, 2, 3))
    assert teacher_key(config_of(path)) != key


def test_networks_of_timm_are_named(tmp_path: Path) -> None:
    assert source_of("timm:resnet18.a1_in1k").name == "resnet18.a1_in1k"
    hub = source_of("timm:hf-hub:someone/net@v2")
    assert (hub.name, hub.file) == ("hf-hub:someone/net@v2", None)
    weights = tmp_path / "own.safetensors"
    weights.write_bytes(b"")
    own = source_of(f"timm:resnet18@{weights}")
    assert (own.name, own.file) == ("resnet18", weights)
    assert teacher_key(config_of("timm:resnet18"))["timm"] == "resnet18"
    assert "sha256" in teacher_key(config_of(f"timm:resnet18@{weights}"))
    for wrong, told in (("timm:", "name is missing"), ("timm:a@b.safetensors", "no such file")):
        with pytest.raises(ConfigError, match=told):
            source_of(wrong)


# --- timm -----------------------------------------------------------------------------------------


class Brightness(nn.Module):
    """As a network of timm: a module with its configuration."""

    pretrained_cfg: dict[str, Any]

    def __init__(self, data: ImageData, names: list[str] | None) -> None:
        super().__init__()
        weights, biases = linear_of(data)
        self.linear = nn.Linear(weights.shape[1], len(biases))
        self.linear.weight.data = torch.from_numpy(weights).float()
        self.linear.bias.data = torch.from_numpy(biases).float()
        shape = {"input_size": (3, 8, 8), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
        self.pretrained_cfg = {**shape, "label_names": names, "num_classes": len(biases)}

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(self.pretrained_cfg[key])[:, None, None] for key in ("mean", "std")
        )
        assert not self.training
        found: Tensor = self.linear((images * std + mean).flatten(1))
        return found


def test_a_network_of_timm_teaches(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    monkeypatch.setattr(models, "build_timm", lambda *_: Brightness(data, list("abcd")))
    teacher = opened("timm:brightness", data)
    assert teacher.facts["classes"] == "of the same names"
    assert teacher.facts["name"] == "brightness"
    found = teacher.answer(images_of(data))
    torch.testing.assert_close(found, wanted_of(data), rtol=1e-4, atol=1e-4)
    assert not found.requires_grad
    monkeypatch.setattr(models, "build_timm", lambda *_: Brightness(data, ["n01440764"] * 4))
    with pytest.raises(ConfigError, match='has the class "n01440764" twice'):
        opened("timm:brightness", data)


def test_real_networks_of_timm_are_built_with_weights_of_a_file(
    tmp_path: Path, data: ImageData
) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t", pretrained=False, num_classes=4)
    weights = tmp_path / "own.safetensors"
    weights.write_bytes(encode_tensors(network.state_dict()))
    own, before = source_of(f"timm:resnet10t@{weights}"), torch.get_rng_state()
    model = models.open_model(own, config_of("timm:resnet10t"), CPU, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.input.size, model.input.channels) == ((176, 176), 3)
    assert model.input.mean == (0.485, 0.456, 0.406)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.answer(images), network.eval()(images).detach())
    with pytest.raises(ConfigError, match="size mismatch"):
        models.open_model(own, config_of("timm:resnet10t"), CPU, 5)
    with pytest.raises(ConfigError, match="Unknown model"):
        models.open_model(source_of("timm:no_such_net"), config_of("timm:x"), CPU, 4)


def test_published_weights_of_imagenet_are_of_its_classes() -> None:
    timm = pytest.importorskip("timm")
    names = models._timm_names(timm.create_model("resnet10t", pretrained=False))
    assert names is not None
    assert (len(names), names[0]) == (1000, "n01440764")
