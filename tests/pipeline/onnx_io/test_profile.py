"""Where the time goes: every kernel's time is placed by the graph's names, or told as unplaced."""

import json
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
from architectures import MERGED, exported
from onnx import helper
from onnx_models import hand_made_model

from d2nas.errors import ConfigError
from pipeline.bench.profile import draw
from pipeline.cli import run
from pipeline.onnx_io import profile as profile_module
from pipeline.onnx_io.devices import describe_cpu
from pipeline.onnx_io.profile import KernelTime, Profile, attribute, operation_of, profile_model


@pytest.fixture(scope="module")
def data() -> bytes:
    return exported(MERGED, cells=3)


@pytest.fixture(scope="module")
def profile(data: bytes) -> Profile:
    return profile_model(data, batch=2, runs=2, num_threads=1)


def nodes(*rows: tuple[str, str, list[str], str]) -> list[onnx.NodeProto]:
    return [
        helper.make_node(kind, inputs, [output], name=name) for name, kind, inputs, output in rows
    ]


ORIGINAL = nodes(
    ("stem/conv", "Conv", ["images", "w"], "a"),
    ("cell00/preprocess0/relu", "Relu", ["a"], "b"),
    ("cell00/node2/edge0_max_pool_3x3/maxpool", "MaxPool", ["b"], "c"),
    ("cell00/node2/add", "Add", ["b", "c"], "d"),
)
OPTIMIZED = nodes(
    ("cell00/preprocess0/relu_nchwc", "Conv", ["images", "w"], "x"),
    ("ReorderOutput_token_1", "ReorderOutput", ["x"], "b"),
    ("cell00/node2/edge0_max_pool_3x3/maxpool", "MaxPool", ["b"], "c"),
    ("ReorderInput", "ReorderInput", ["c"], "y"),
    ("cell00/node2/add", "Add", ["b", "y"], "d"),
    ("twin", "ReorderOutput", ["d"], "e"),
    ("twin", "ReorderOutput", ["d"], "f"),
    ("fusion 7", "Mystery", ["e"], "g"),
)
TIMES = [(node.name, node.op_type, 1.0) for node in OPTIMIZED]


def test_fused_and_moved_kernels_are_put_where_their_work_belongs() -> None:
    found = attribute(TIMES, ORIGINAL, OPTIMIZED)
    assert [(kernel.place, kernel.by_neighbour) for kernel in found] == [
        ("stem", False),  # a convolution that took the name of the ReLU after it
        ("stem", True),  # of the data that it moves
        ("cell00/node2/edge0_max_pool_3x3", False),
        ("cell00/node2", True),  # what it moves data for
        ("cell00/node2", False),
        (None, False),  # two nodes of one name: nobody knows which
        (None, False),
        (None, False),
    ]


def test_nothing_is_lost_and_the_rest_is_told() -> None:
    kernels = attribute(TIMES, ORIGINAL, OPTIMIZED)
    summary = Profile(describe_cpu(1), 1, 1, tuple(kernels)).to_dict()
    assert summary["unattributed"] == {"ms": 0.003, "share": pytest.approx(3 / 8)}
    assert summary["by_neighbour"]["share"] == pytest.approx(2 / 8)
    for rows in ("cells", "places", "operations"):
        assert sum(row["share"] for row in summary[rows]) == pytest.approx(5 / 8)
    # Control: with names that say nothing, nothing is placed.
    bare = attribute([("conv", "Conv", 2.0)], nodes(("conv", "Conv", ["images"], "a")), [])
    assert bare == [KernelTime("conv", "Conv", 2.0, None)]


def test_the_median_leaves_out_the_warm_up() -> None:
    slow, fast = 1000, [5, 1, 3]
    events = [
        {"name": "stem/conv_kernel_time", "args": {"op_name": "Conv"}, "dur": duration}
        for duration in [slow] * profile_module.WARMUP_RUNS + fast
    ]
    assert profile_module._medians(events, len(events)) == [("stem/conv", "Conv", 3.0)]
    # Two nodes of one name: the sum of both in each run.
    assert profile_module._medians(events * 2, len(events))[0][2] > 3.0


@pytest.mark.parametrize(
    ("place", "operation"),
    [
        ("cell03/node2/edge1_sep_conv_3x3", "sep_conv_3x3"),
        ("cell03/node2", "add"),
        ("cell03", "concat"),
        ("cell03/preprocess1", "preprocess"),
        ("stem", "stem"),
    ],
)
def test_a_place_is_an_operation(place: str, operation: str) -> None:
    assert operation_of(place) == operation


def test_a_real_profile_covers_the_network(profile: Profile, data: bytes) -> None:
    places = {node.name.rpartition("/")[0] for node in onnx.ModelProto.FromString(data).graph.node}
    summary = profile.to_dict()
    assert {row["place"] for row in summary["places"]} <= places
    assert [row["cell"] for row in summary["cells"]] == [
        "stem",
        "cell00",
        "cell01",
        "cell02",
        "classifier",
    ]
    assert {"sep_conv_3x3", "max_pool_3x3", "preprocess", "concat"} <= {
        row["operation"] for row in summary["operations"]
    }
    assert summary["unattributed"]["share"] < 0.05
    assert summary["device"].startswith("CPU ")
    assert summary["device"].endswith("1 thread")
    assert summary["total_ms"] > 0


def test_a_profile_in_half_precision_covers_the_network_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = exported(MERGED, cells=3, precision="fp16")

    def kernels() -> list[KernelTime]:
        return list(profile_model(half, batch=2, runs=1, num_threads=1).kernels)

    found = kernels()
    assert [kernel.name for kernel in found if kernel.place is None] == []
    assert any(kernel.by_neighbour and kernel.operator == "Cast" for kernel in found)
    places = {kernel.place for kernel in found}
    assert {"stem", "classifier", "cell01/node4/edge0_sep_conv_3x3"} <= places
    # Control: by the names as they are, the convolutions would have no place.
    monkeypatch.setattr(profile_module, "_PREFIX", profile_module._SUFFIX)
    lost = [kernel for kernel in kernels() if kernel.place is None]
    assert sum(kernel.operator == "Conv" for kernel in lost) > 20


def test_casts_are_counted_where_their_data_comes_from() -> None:
    prefix = "InsertedPrecisionFreeCast_"
    optimized = nodes(
        (f"{prefix}cell00/preprocess0/relu_nchwc", "Conv", ["images", "w"], "b"),
        (f"{prefix}cell00/node2/add", "Cast", ["b"], "y"),
        ("cell00/node2/add", "Add", ["b", "y"], "d"),
        ("graph_output_cast0", "Cast", ["d"], "logits"),
    )
    found = attribute([(n.name, n.op_type, 1.0) for n in optimized], ORIGINAL, optimized)
    assert [(kernel.place, kernel.by_neighbour) for kernel in found] == [
        ("stem", False),
        ("cell00/node2", True),
        ("cell00/node2", False),
        ("cell00/node2", True),
    ]


def test_a_model_without_names_is_wholly_unattributed() -> None:
    found = profile_model(hand_made_model().SerializeToString(), batch=1, runs=1, num_threads=1)
    assert found.to_dict()["unattributed"]["share"] == pytest.approx(1.0)
    assert found.by_cell() == []


def test_nothing_is_left_on_disk(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    profile_model(data, batch=1, runs=1, num_threads=1)
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_is_not_profiled_by_the_times_of_launches(data: bytes) -> None:
    with pytest.raises(ConfigError, match="times launches"):
        profile_model(data, batch=1, device="cuda")
    with pytest.raises(ConfigError, match="above 0"):
        profile_model(data, batch=0)


def test_the_picture_names_the_device_and_every_place(profile: Profile) -> None:
    root = ElementTree.fromstring(draw(profile, "a <model>"))
    text = "".join(root.itertext())
    assert f"a <model> on {profile.device.label}" in text
    assert all(f"{row['place']}: " in text for row in profile.by_edge())
    assert "unattributed" in text


def test_the_command_takes_files_and_bundles(
    data: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in (2, 10):
        (tmp_path / "bundle" / str(number)).mkdir(parents=True)
        (tmp_path / "bundle" / str(number) / "model.onnx").write_bytes(data)
    picture = tmp_path / "p.svg"
    arguments = ["--threads", "1", "--store", str(tmp_path / "store")]
    command = ["bench", "profile", str(tmp_path / "bundle"), *arguments]
    assert run([*command, "--svg", str(picture), "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["model"] == str(tmp_path / "bundle" / "10" / "model.onnx")
    assert answer["kind"] == "cpu"
    assert picture.read_text().startswith("<svg")
    assert run(["bench", "profile", answer["model"], *arguments]) == 0
    shown = capfd.readouterr().out
    assert "cell02\t" in shown
    assert "on CPU " in shown
    for missing in ("no-run", str(tmp_path / "no.onnx"), str(tmp_path)):
        assert run(["bench", "profile", missing, *arguments]) == 2
    assert "Traceback" not in capfd.readouterr().err
